//! Which faults are run together.

use super::kinds::{KINDS, Kind, NOTHING, Needs};

/// Faults that are run one after the other on one cluster.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// Which faults, in this order.
    pub faults: Vec<Kind>,
}

impl Scenario {
    /// What all its faults need.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let needs = self.faults.iter().map(|kind| kind.needs);
        needs.fold(NOTHING, Needs::and)
    }

    /// Its faults with `+` between them, which [`named`] understands.
    #[must_use]
    pub fn faults_named(&self) -> String {
        let names: Vec<&str> = self.faults.iter().map(|kind| kind.name).collect();
        names.join("+")
    }
}

/// Scenarios of several faults: name, what for, and which.
const SETS: &[(&str, &str, &[&str])] = &[
    (
        "smoke",
        "every fault of three nodes once, on one cluster",
        &[
            "kill-one",
            "kill-leader",
            "kill-all",
            "pause-leader",
            "rolling-restart",
            "halves",
            "isolate-leader",
            "one-way-out",
            "one-way-in",
            "bridge",
            "flapping",
            "resets",
            "loss-light",
            "loss-heavy",
            "squeeze",
            "memory",
            "power-one",
            "power-all",
            "disk-full",
            "disk-hangs",
            "disk-stalls",
            "disk-slow",
            "sync-errors",
            "write-errors",
            "read-only",
            "wiped",
            "flipped-log",
            "cut-log",
            "flipped-tables",
            "cut-tables",
            "flipped-tables-dead",
            "cut-tables-dead",
            "flipped-snapshot",
            "clock-minutes",
            "clock-years",
            "clock-drift",
            "receiver-killed",
            "link-dead",
            "all-killed",
        ],
    ),
    (
        "gate-kills",
        "200 kills of leaders: what elections cost (with --rate 0 --hold 0)",
        &["kill-leader*200"],
    ),
    (
        "gate-partitions",
        "50 leaders cut off and back, one-way cuts, stalling syncs (with --rate 0 --hold 2)",
        &[
            "isolate-leader*50",
            "one-way-out*10",
            "one-way-in*10",
            "disk-stalls*10",
        ],
    ),
    (
        "processes",
        "dead, paused and restarted nodes",
        &[
            "kill-one",
            "kill-leader",
            "pause-leader",
            "kill-all",
            "rolling-restart",
        ],
    ),
    (
        "partitions",
        "every shape of partition, and resets",
        &[
            "halves",
            "isolate-leader",
            "one-way-out",
            "one-way-in",
            "bridge",
            "flapping",
            "resets",
        ],
    ),
    (
        "links",
        "packets that are lost or find no room",
        &["loss-light", "loss-heavy", "squeeze"],
    ),
    (
        "disks",
        "disks that lose power, fill up, stand still, are slow or fail",
        &[
            "power-one",
            "power-all",
            "disk-full",
            "disk-hangs",
            "disk-stalls",
            "disk-slow",
            "sync-errors",
            "write-errors",
            "read-only",
        ],
    ),
    (
        "damage",
        "bytes that are not what was written: on disks, on their way, or all gone",
        &[
            "wiped",
            "flipped-log",
            "cut-log",
            "flipped-tables",
            "cut-tables",
            "flipped-tables-dead",
            "cut-tables-dead",
            "flipped-snapshot",
        ],
    ),
    (
        "together",
        "faults in pairs and triples, drawn from the seed",
        &["pair*3", "triple*3"],
    ),
    (
        "rivals",
        "the experiments in which other servers lose acknowledged messages",
        &["receiver-killed", "link-dead", "all-killed"],
    ),
    (
        "laptop",
        "every fault that needs no root",
        &[
            "kill-one",
            "kill-leader",
            "kill-all",
            "pause-leader",
            "rolling-restart",
            "halves",
            "isolate-leader",
            "one-way-out",
            "one-way-in",
            "bridge",
            "flapping",
            "resets",
            "squeeze",
            "wiped",
            "flipped-log",
            "cut-log",
            "flipped-tables",
            "cut-tables",
            "flipped-tables-dead",
            "cut-tables-dead",
            "flipped-snapshot",
            "receiver-killed",
            "link-dead",
            "all-killed",
        ],
    ),
    (
        "clocks",
        "wall clocks that are wrong",
        &["clock-minutes", "clock-years", "clock-drift"],
    ),
    (
        "wide",
        "long round trips, with Raft's times for them",
        &["late", "far"],
    ),
];

/// Finds a scenario: a set, a fault alone, or several of these with `+` between them, on one cluster.
#[must_use]
pub fn named(name: &str) -> Option<Scenario> {
    let mut faults = Vec::new();
    for part in name.split('+') {
        let set = SETS.iter().find(|(set, _, _)| *set == part);
        let found: Vec<Kind> = match set {
            Some((_, _, faults)) => faults.iter().flat_map(|name| several(name)).collect(),
            None => several(part),
        };
        if found.is_empty() {
            return None;
        }
        faults.extend(found);
    }
    Some(Scenario {
        name: name.to_owned(),
        faults,
    })
}

/// `kill-one*20` is twenty times the same.
fn several(name: &str) -> Vec<Kind> {
    let (name, count) = match name.split_once('*') {
        Some((name, count)) => (name, count.parse().unwrap_or(0)),
        None => (name, 1),
    };
    kind(name).map_or_else(Vec::new, |kind| vec![kind; count])
}

fn kind(name: &str) -> Option<Kind> {
    KINDS.iter().find(|kind| kind.name == name).copied()
}

/// Every scenario's name and what it is about.
#[must_use]
pub fn list() -> Vec<(&'static str, &'static str)> {
    let sets = SETS.iter().map(|(name, about, _)| (*name, *about));
    let alone = KINDS.iter().map(|kind| (kind.name, kind.about));
    sets.chain(alone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_names_faults_that_exist() {
        for (_, _, faults) in SETS {
            for fault in *faults {
                assert!(!several(fault).is_empty(), "{fault}");
            }
        }
        assert_eq!(several("kill-one*20").len(), 20);
        assert!(named("laptop").is_some_and(|laptop| !laptop.needs().root));
        assert!(named("no-such-thing").is_none());
        let both = named("links+kill-one*2");
        assert_eq!(both.map(|both| both.faults.len()), Some(5));
        assert!(named("links+no-such-thing").is_none());
    }
}
