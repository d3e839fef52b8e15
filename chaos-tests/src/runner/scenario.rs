//! Which faults there are, and which of them go together.

use std::time::Duration;

use crate::hosts::Delay;
use crate::nemesis::Fault;
use crate::nemesis::clock::{Drift, Jump};
use crate::nemesis::disk::{FlippedLog, Frozen, Full, PowerLoss, ReadOnly, SyncErrors, Wiped};
use crate::nemesis::memory::MemoryLimit;
use crate::nemesis::network::{Flapping, Partition, Resets, Shape};
use crate::nemesis::process::{Kill, PauseLeader, RollingRestart, Victims};
use crate::nemesis::weather::{Late, Loss, Squeeze};

/// A fault that can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// What the run needs to have from the start.
    pub needs: Needs,
    make: fn() -> Box<dyn Fault>,
}

impl Kind {
    /// One such fault.
    #[must_use]
    pub fn fault(&self) -> Box<dyn Fault> {
        (self.make)()
    }
}

/// What must be prepared before the nodes start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// How many nodes, at least.
    pub nodes: u16,
    /// Longer Raft times, as for a wide network.
    pub wide: bool,
    /// A file system of its own for each node, that can lose power, fill up, freeze and fail.
    pub disks: bool,
    /// A clock of its own for each node.
    pub clocks: bool,
}

impl Needs {
    /// What this and the other need.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.max(other.nodes),
            wide: self.wide || other.wide,
            disks: self.disks || other.disks,
            clocks: self.clocks || other.clocks,
        }
    }
}

const NOTHING: Needs = Needs {
    nodes: 3,
    wide: false,
    disks: false,
    clocks: false,
};
const FIVE: Needs = Needs {
    nodes: 5,
    ..NOTHING
};
const DISKS: Needs = Needs {
    disks: true,
    ..NOTHING
};
const CLOCKS: Needs = Needs {
    clocks: true,
    ..NOTHING
};
const WIDE: Needs = Needs {
    wide: true,
    ..NOTHING
};

/// Every fault.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "kill-one",
        about: "kill -9 of any node",
        needs: NOTHING,
        make: || Box::new(Kill::of(Victims::One)),
    },
    Kind {
        name: "kill-leader",
        about: "kill -9 of a node that leads",
        needs: NOTHING,
        make: || Box::new(Kill::of(Victims::Leader)),
    },
    Kind {
        name: "kill-minority",
        about: "kill -9 of two nodes of five, every shard on all five",
        needs: FIVE,
        make: || Box::new(Kill::of(Victims::Minority)),
    },
    Kind {
        name: "kill-all",
        about: "kill -9 of every node at once",
        needs: NOTHING,
        make: || Box::new(Kill::of(Victims::All)),
    },
    Kind {
        name: "pause-leader",
        about: "SIGSTOP to a leader for longer than the election time",
        needs: NOTHING,
        make: || Box::<PauseLeader>::default(),
    },
    Kind {
        name: "rolling-restart",
        about: "SIGTERM and start of every node in turn",
        needs: NOTHING,
        make: || Box::<RollingRestart>::default(),
    },
    Kind {
        name: "halves",
        about: "a majority and a minority that see nothing of each other",
        needs: NOTHING,
        make: || Box::new(Partition::new(Shape::Halves)),
    },
    Kind {
        name: "isolate-leader",
        about: "a leader that sees no other node",
        needs: NOTHING,
        make: || Box::new(Partition::new(Shape::IsolateLeader)),
    },
    Kind {
        name: "one-way-out",
        about: "nothing that a leader sends arrives at other nodes",
        needs: NOTHING,
        make: || Box::new(Partition::new(Shape::OneWayOut)),
    },
    Kind {
        name: "one-way-in",
        about: "nothing that other nodes send arrives at a leader",
        needs: NOTHING,
        make: || Box::new(Partition::new(Shape::OneWayIn)),
    },
    Kind {
        name: "bridge",
        about: "two sides that only one node sees both of",
        needs: NOTHING,
        make: || Box::new(Partition::new(Shape::Bridge)),
    },
    Kind {
        name: "flapping",
        about: "the links of a leader come and go",
        needs: NOTHING,
        make: || Box::<Flapping>::default(),
    },
    Kind {
        name: "resets",
        about: "every connection of a node is reset, again and again",
        needs: NOTHING,
        make: || Box::<Resets>::default(),
    },
    Kind {
        name: "loss-light",
        about: "2% of all packets to nodes are lost",
        needs: NOTHING,
        make: || Box::new(Loss { percent: 2 }),
    },
    Kind {
        name: "loss-heavy",
        about: "20% of all packets to nodes are lost",
        needs: NOTHING,
        make: || Box::new(Loss { percent: 20 }),
    },
    Kind {
        name: "late",
        about: "packets to nodes come 10 to 100 ms late and out of order: round trips of 20 to 200 ms",
        needs: WIDE,
        make: || {
            Box::new(Late {
                delay: delay(10, 100),
            })
        },
    },
    Kind {
        name: "far",
        about: "packets to nodes come 100 ms late: round trips of 200 ms",
        needs: WIDE,
        make: || {
            Box::new(Late {
                delay: delay(100, 100),
            })
        },
    },
    Kind {
        name: "squeeze",
        about: "nodes receive 4 Mbit/s each",
        needs: NOTHING,
        make: || {
            Box::new(Squeeze {
                bits_per_second: 4_000_000,
            })
        },
    },
    Kind {
        name: "memory",
        about: "a leader may take 8 MiB more memory, and no more",
        needs: NOTHING,
        make: || Box::<MemoryLimit>::default(),
    },
    Kind {
        name: "power-one",
        about: "power loss of one node: what it had not synced is gone",
        needs: DISKS,
        make: || Box::new(PowerLoss::one()),
    },
    Kind {
        name: "power-all",
        about: "power loss of all nodes at once",
        needs: DISKS,
        make: || Box::new(PowerLoss::all()),
    },
    Kind {
        name: "disk-full",
        about: "the disk of a leader has no room",
        needs: DISKS,
        make: || Box::<Full>::default(),
    },
    Kind {
        name: "disk-hangs",
        about: "the disk of a leader answers nothing",
        needs: DISKS,
        make: || Box::new(Frozen::hung()),
    },
    Kind {
        name: "disk-stalls",
        about: "the disk of a leader stalls for 500 ms again and again",
        needs: DISKS,
        make: || Box::new(Frozen::stalling()),
    },
    Kind {
        name: "sync-errors",
        about: "every sync of a leader fails",
        needs: DISKS,
        make: || Box::<SyncErrors>::default(),
    },
    Kind {
        name: "read-only",
        about: "the file system of a leader becomes read-only",
        needs: DISKS,
        make: || Box::<ReadOnly>::default(),
    },
    Kind {
        name: "wiped",
        about: "a node starts again over an empty disk",
        needs: DISKS,
        make: || Box::<Wiped>::default(),
    },
    Kind {
        name: "flipped-log",
        about: "a bit flipped in the synced write-ahead log of a node",
        needs: DISKS,
        make: || Box::<FlippedLog>::default(),
    },
    Kind {
        name: "clock-minutes",
        about: "a leader's clock ten minutes ahead or behind",
        needs: CLOCKS,
        make: || Box::new(Jump::by(600)),
    },
    Kind {
        name: "clock-years",
        about: "a leader's clock ten years ahead or behind",
        needs: CLOCKS,
        make: || Box::new(Jump::by(10 * 365 * 86_400)),
    },
    Kind {
        name: "clock-drift",
        about: "a leader's clock a tenth too fast",
        needs: CLOCKS,
        make: || Box::<Drift>::default(),
    },
];

const fn delay(least_ms: u64, most_ms: u64) -> Delay {
    Delay {
        least: Duration::from_millis(least_ms),
        most: Duration::from_millis(most_ms),
    }
}

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
            "sync-errors",
            "read-only",
            "wiped",
            "flipped-log",
            "clock-minutes",
            "clock-years",
            "clock-drift",
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
        "disks that lose power, fill up, stand still, fail, are wiped or damaged",
        &[
            "power-one",
            "power-all",
            "disk-full",
            "disk-hangs",
            "disk-stalls",
            "sync-errors",
            "read-only",
            "wiped",
            "flipped-log",
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

/// Finds a scenario: a set, or a fault alone.
#[must_use]
pub fn named(name: &str) -> Option<Scenario> {
    let set = SETS.iter().find(|(set, _, _)| *set == name);
    let faults: Vec<Kind> = match set {
        Some((_, _, faults)) => faults.iter().flat_map(|name| several(name)).collect(),
        None => kind(name).into_iter().collect(),
    };
    (!faults.is_empty()).then(|| Scenario {
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
        assert!(named("no-such-thing").is_none());
    }
}
