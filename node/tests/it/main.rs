//! What is tested from outside the modules: that they keep their layers, that the same log gives the same bytes,
//! that a small cluster in one thread keeps its promises under a seed, and that a broken one is caught. One binary, because linking takes long.

mod determinism;
mod layers;
mod simulation;
mod teeth;
mod unbounded;
