//! Hosts, faults, workload, history and checker: Roost seen from outside.
