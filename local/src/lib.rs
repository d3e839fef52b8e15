//! A cluster of real Roost node processes on one host.
