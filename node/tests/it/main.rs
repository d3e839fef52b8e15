//! What is tested from outside the modules: that they keep their layers, that the same log gives the same bytes, and
//! that a small cluster in one thread keeps its promises under a seed. One binary, because linking takes long.

mod determinism;
mod layers;
mod simulation;
mod unbounded;
