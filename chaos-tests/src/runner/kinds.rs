//! Which faults there are, and what each needs.

use std::time::Duration;

use crate::hosts::Delay;
use crate::nemesis::Fault;
use crate::nemesis::calls::{Calls, Failing};
use crate::nemesis::clock::{Drift, Jump};
use crate::nemesis::damage::{Damage, Part as Bytes, Wound};
use crate::nemesis::disk::{Full, PowerLoss, ReadOnly};
use crate::nemesis::frozen::{Frozen, Pace};
use crate::nemesis::memory::MemoryLimit;
use crate::nemesis::network::{Flapping, Partition, Resets, Shape};
use crate::nemesis::process::{Kill, PauseLeader, RollingRestart, Victims};
use crate::nemesis::rivals::{Experiment, Rival};
use crate::nemesis::together::{Part, Together, Uses};
use crate::nemesis::transit::Snapshots;
use crate::nemesis::weather::{Late, Loss, Squeeze};
use crate::nemesis::wiped::Wiped;

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
    /// Packets, processes and memory of which the kernel lets only root dispose.
    pub root: bool,
    /// A file system of its own for each node, that can lose power, fill up, freeze and fail; needs root too.
    pub disks: bool,
    /// Logs and tables that are rewritten within seconds, so that snapshots are sent and all of a table is read soon.
    pub short: bool,
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
            root: self.root || other.root,
            disks: self.disks || other.disks,
            short: self.short || other.short,
            clocks: self.clocks || other.clocks,
        }
    }
}

/// Three nodes that anybody may break.
pub(super) const NOTHING: Needs = Needs {
    nodes: 3,
    wide: false,
    root: false,
    disks: false,
    short: false,
    clocks: false,
};
const ROOT: Needs = Needs {
    root: true,
    ..NOTHING
};
const SHORT: Needs = Needs {
    short: true,
    ..NOTHING
};
const TOGETHER: Needs = Needs {
    nodes: 5,
    root: true,
    disks: true,
    clocks: true,
    ..SHORT
};
const FIVE: Needs = Needs {
    nodes: 5,
    ..NOTHING
};
const DISKS: Needs = Needs {
    root: true,
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
        needs: ROOT,
        make: || Box::new(Loss { percent: 2 }),
    },
    Kind {
        name: "loss-heavy",
        about: "20% of all packets to nodes are lost",
        needs: ROOT,
        make: || Box::new(Loss { percent: 20 }),
    },
    Kind {
        name: "late",
        about: "what comes to nodes is 10 to 100 ms late, packets out of order: round trips of 20 to 200 ms",
        needs: WIDE,
        make: || {
            Box::new(Late {
                delay: delay(10, 100),
            })
        },
    },
    Kind {
        name: "far",
        about: "what comes to nodes is 100 ms late: round trips of 200 ms",
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
        needs: ROOT,
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
        make: || Box::new(Frozen::new(Pace::Hangs)),
    },
    Kind {
        name: "disk-stalls",
        about: "the disk of a leader stalls for 500 ms again and again",
        needs: DISKS,
        make: || Box::new(Frozen::new(Pace::Stalls)),
    },
    Kind {
        name: "disk-slow",
        about: "the disk of a leader answers only for moments, every 60 ms",
        needs: DISKS,
        make: || Box::new(Frozen::new(Pace::Slow)),
    },
    Kind {
        name: "sync-errors",
        about: "every sync of a leader fails",
        needs: ROOT,
        make: || Box::new(Failing::new(Calls::Syncs)),
    },
    Kind {
        name: "write-errors",
        about: "writes of a leader to its files fail",
        needs: ROOT,
        make: || Box::new(Failing::new(Calls::Writes)),
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
        needs: NOTHING,
        make: || Box::<Wiped>::default(),
    },
    Kind {
        name: "flipped-log",
        about: "a bit flipped in the synced write-ahead log of a node",
        needs: NOTHING,
        make: || Box::new(Damage::dead(Bytes::Log, Wound::Flip)),
    },
    Kind {
        name: "cut-log",
        about: "the second half of the synced write-ahead log of a node cut off",
        needs: NOTHING,
        make: || Box::new(Damage::dead(Bytes::Log, Wound::Cut)),
    },
    Kind {
        name: "flipped-tables",
        about: "a bit flipped in every table of a node that runs",
        needs: SHORT,
        make: || Box::new(Damage::running(Bytes::Tables, Wound::Flip)),
    },
    Kind {
        name: "cut-tables",
        about: "the second half of every table of a node that runs cut off",
        needs: SHORT,
        make: || Box::new(Damage::running(Bytes::Tables, Wound::Cut)),
    },
    Kind {
        name: "flipped-tables-dead",
        about: "a bit flipped in every table of a dead node",
        needs: SHORT,
        make: || Box::new(Damage::dead(Bytes::Tables, Wound::Flip)),
    },
    Kind {
        name: "cut-tables-dead",
        about: "the second half of every table of a dead node cut off",
        needs: SHORT,
        make: || Box::new(Damage::dead(Bytes::Tables, Wound::Cut)),
    },
    Kind {
        name: "flipped-snapshot",
        about: "bits flipped in snapshots on their way to a node that was away",
        needs: SHORT,
        make: || Box::<Snapshots>::default(),
    },
    Kind {
        name: "receiver-killed",
        about: "6,000 messages; the recipient's node is killed while he receives",
        needs: NOTHING,
        make: || Box::new(Rival::new(Experiment::ReceiverKilled)),
    },
    Kind {
        name: "link-dead",
        about: "2,000 messages to a recipient whose link is dead; then his node is killed",
        needs: NOTHING,
        make: || Box::new(Rival::new(Experiment::LinkDead)),
    },
    Kind {
        name: "all-killed",
        about: "6,000 messages; all nodes are killed after the last accepted",
        needs: NOTHING,
        make: || Box::new(Rival::new(Experiment::AllKilled)),
    },
    Kind {
        name: "pair",
        about: "two faults at the same time, drawn from the seed, on five nodes",
        needs: TOGETHER,
        make: || Box::new(Together::new(2, PARTS)),
    },
    Kind {
        name: "triple",
        about: "three faults at the same time, drawn from the seed, on five nodes",
        needs: TOGETHER,
        make: || Box::new(Together::new(3, PARTS)),
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

/// What [`Together`] draws from.
const PARTS: &[Part] = &[
    takes("kill-leader", || Box::new(Kill::of(Victims::Leader))),
    takes("pause-leader", || Box::<PauseLeader>::default()),
    links("isolate-leader", 1, || {
        Box::new(Partition::new(Shape::IsolateLeader))
    }),
    links("one-way-out", 1, || {
        Box::new(Partition::new(Shape::OneWayOut))
    }),
    links("flapping", 1, || Box::<Flapping>::default()),
    links("resets", 0, || Box::<Resets>::default()),
    links("loss-light", 0, || Box::new(Loss { percent: 2 })),
    Part {
        uses: Uses::Memory,
        ..takes("memory", || Box::<MemoryLimit>::default())
    },
    takes("power-one", || Box::new(PowerLoss::one())),
    takes("disk-full", || Box::<Full>::default()),
    takes("disk-hangs", || Box::new(Frozen::new(Pace::Hangs))),
    takes("disk-stalls", || Box::new(Frozen::new(Pace::Stalls))),
    takes("disk-slow", || Box::new(Frozen::new(Pace::Slow))),
    takes("sync-errors", || Box::new(Failing::new(Calls::Syncs))),
    takes("read-only", || Box::<ReadOnly>::default()),
    takes("flipped-log", || {
        Box::new(Damage::dead(Bytes::Log, Wound::Flip))
    }),
    takes("flipped-tables", || {
        Box::new(Damage::running(Bytes::Tables, Wound::Flip))
    }),
    Part {
        takes: 0,
        ..takes("clock-minutes", || Box::new(Jump::by(600)))
    },
    Part {
        takes: 0,
        ..takes("clock-years", || Box::new(Jump::by(10 * 365 * 86_400)))
    },
];

const fn takes(name: &'static str, make: fn() -> Box<dyn Fault>) -> Part {
    Part {
        name,
        takes: 1,
        uses: Uses::Nodes,
        make,
    }
}

const fn links(name: &'static str, takes: u16, make: fn() -> Box<dyn Fault>) -> Part {
    Part {
        name,
        takes,
        uses: Uses::Links,
        make,
    }
}

const fn delay(least_ms: u64, most_ms: u64) -> Delay {
    Delay {
        least: Duration::from_millis(least_ms),
        most: Duration::from_millis(most_ms),
    }
}
