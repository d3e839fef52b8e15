//! Roost, a distributed message router: messages roost here until their receiver comes home.
