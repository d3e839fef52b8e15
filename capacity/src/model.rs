//! How many nodes a number of users needs: what each resource has to bear, against what a node has of it.

use anyhow::Result;
use roost::config::Config;

use crate::figures::Figures;
use crate::rows::ID_DAYS;
use crate::table::{Table, count, number};

/// Replicas of each shard.
pub(crate) const COPIES: usize = 3;
/// A cluster that survives a node has three.
const NODES_MIN: usize = 3;
const DAY_S: f64 = 86_400.0;
const GIB: f64 = (1_u64 << 30) as f64;
const MEGA: f64 = 1e6;
const TERA: f64 = 1e12;

/// A number of users, and the shards that a cluster for them would be created with.
#[derive(Clone, Copy, Debug)]
struct Size {
    name: &'static str,
    users: f64,
    shards: u32,
}

const SIZES: [Size; 3] = [
    Size {
        name: "1 million users",
        users: 1e6,
        shards: 256,
    },
    Size {
        name: "100 million users",
        users: 1e8,
        shards: 4_096,
    },
    Size {
        name: "2 billion users",
        users: 2e9,
        shards: 16_384,
    },
];

/// What the users of one size do, in the whole cluster.
#[derive(Clone, Copy, Debug)]
struct Load {
    accepted_per_day: f64,
    accepted_peak_per_s: f64,
    logins_peak_per_s: f64,
    sessions: f64,
}

/// What they need of one resource.
#[derive(Clone, Copy, Debug)]
struct Need {
    resource: &'static str,
    unit: &'static str,
    /// In the whole cluster, with every node up.
    total: f64,
    /// Nodes for that, those that carry a lost zone included.
    nodes: f64,
}

impl Need {
    /// `carry`: how many times its share a node bears when a zone is lost.
    fn new(
        resource: &'static str,
        unit: &'static str,
        total: f64,
        of_a_node: f64,
        carry: f64,
    ) -> Self {
        Self {
            resource,
            unit,
            total,
            nodes: total * carry / of_a_node,
        }
    }
}

/// One size, with the nodes that it needs.
pub(crate) struct Sizing {
    size: Size,
    load: Load,
    needs: Vec<Need>,
    /// Bytes on all disks.
    held_bytes: f64,
    /// Bytes a second that a node can receive.
    received_bytes_per_s: f64,
    pub(crate) nodes: usize,
}

impl Sizing {
    pub(crate) fn shards(&self) -> u32 {
        self.size.shards
    }

    fn replicas(&self) -> f64 {
        f64::from(self.size.shards) * COPIES as f64
    }

    /// What asks for the most nodes; none if three are enough for everything.
    fn bottleneck(&self) -> Option<Need> {
        let most = self.needs.iter().max_by(|a, b| a.nodes.total_cmp(&b.nodes));
        most.filter(|need| need.nodes > NODES_MIN as f64).copied()
    }
}

/// All sizes.
///
/// # Errors
/// When a figure is missing.
pub(crate) fn sizings(figures: &Figures) -> Result<Vec<Sizing>> {
    SIZES.iter().map(|size| sizing(*size, figures)).collect()
}

fn sizing(size: Size, figures: &Figures) -> Result<Sizing> {
    let of = |name: &str| figures.value(name);
    let load = load(size, figures)?;
    let held_bytes = held_bytes(size, &load, figures)?;
    let needs = needs(size, &load, held_bytes, figures)?;
    let most = needs.iter().map(|need| need.nodes).fold(0.0, f64::max);
    Ok(Sizing {
        size,
        load,
        needs,
        held_bytes,
        received_bytes_per_s: of("node_network_gbit")? * of("network_share")? * 1e9 / 8.0,
        nodes: (most.ceil() as usize).max(NODES_MIN),
    })
}

fn load(size: Size, figures: &Figures) -> Result<Load> {
    let of = |name: &str| figures.value(name);
    let in_and_out = size.users * of("messages_per_user_day")?;
    let accepted_per_day = in_and_out / (1.0 + of("deliveries_per_message")?);
    let peak = of("peak_over_mean")? / DAY_S;
    Ok(Load {
        accepted_per_day,
        accepted_peak_per_s: accepted_per_day * peak,
        logins_peak_per_s: size.users * of("logins_per_user_day")? * peak,
        sessions: size.users * of("online_share")?,
    })
}

/// What all replicas together keep.
fn held_bytes(size: Size, load: &Load, figures: &Figures) -> Result<f64> {
    let of = |name: &str| figures.value(name);
    let users = of("user_row_bytes")?
        + of("waiting_per_user")? * of("entry_row_bytes")?
        + of("conversations_per_user")? * of("conversation_row_bytes")?;
    let ids = load.accepted_per_day * f64::from(ID_DAYS) * of("id_row_bytes")?;
    let pairs = f64::from(size.shards).powi(2) * of("shard_pair_row_bytes")?;
    Ok((size.users * users + ids + pairs) * COPIES as f64)
}

fn needs(size: Size, load: &Load, held_bytes: f64, figures: &Figures) -> Result<Vec<Need>> {
    let of = |name: &str| figures.value(name);
    let replicas = f64::from(size.shards) * COPIES as f64;
    // When a zone is lost its share of sessions and messages goes to the others; its replicas are not made anew.
    let zones = of("zones")?;
    let carry = zones / (zones - 1.0);
    let cores = load.accepted_peak_per_s * of("message_cpu_ms")? / 1e3
        + load.logins_peak_per_s * of("login_cpu_ms")? / 1e3
        + replicas * of("replica_cpu_cores")?;
    let memory = load.sessions * of("session_bytes")? + replicas * of("replica_bytes")?;
    let written = load.accepted_peak_per_s * of("message_written_bytes")? * COPIES as f64;
    let wire = load.accepted_peak_per_s * of("message_wire_bytes")?;
    Ok(vec![
        Need::new(
            "processor",
            "cores",
            cores,
            of("node_cores")? * of("processor_share")?,
            carry,
        ),
        Need::new(
            "memory",
            "GiB",
            memory / GIB,
            of("node_memory_gib")? * of("memory_share")? - of("caches_gib")?,
            carry,
        ),
        Need::new(
            "disk",
            "TB",
            held_bytes / TERA,
            of("node_disk_tb")? * of("disk_share")?,
            1.0,
        ),
        Need::new("writes", "MB/s", written / MEGA, of("node_disk_mb_s")?, 1.0),
        Need::new(
            "network",
            "Gbit/s",
            wire * 8.0 / 1e9,
            of("node_network_gbit")? * of("network_share")?,
            carry,
        ),
    ])
}

/// What each resource needs at each size, and which is the first to end.
pub(crate) fn nodes_table(sizings: &[Sizing]) -> String {
    let mut table = Table::of_numbers(&headings(sizings));
    let mut row = |what: &str, cell: &dyn Fn(&Sizing) -> String| {
        table.row(what, sizings.iter().map(cell));
    };
    row("messages accepted a second, mean", &|sizing| {
        number(sizing.load.accepted_per_day / DAY_S)
    });
    row("at the peak", &|sizing| {
        number(sizing.load.accepted_peak_per_s)
    });
    row("sessions at the peak", &|sizing| {
        number(sizing.load.sessions)
    });
    row("logins a second at the peak", &|sizing| {
        number(sizing.load.logins_peak_per_s)
    });
    let resources = sizings
        .first()
        .map_or(&[] as &[Need], |sizing| sizing.needs.as_slice());
    for (at, need) in resources.iter().enumerate() {
        row(
            &format!("{}, {}: nodes", need.resource, need.unit),
            &|sizing| {
                let need = sizing.needs[at];
                format!("{}: {}", number(need.total), number(need.nodes))
            },
        );
    }
    row("**nodes**", &|sizing| {
        format!("**{}**", count(sizing.nodes))
    });
    row("**first bottleneck**", &|sizing| {
        let need = sizing.bottleneck();
        need.map_or("none", |need| need.resource).to_owned()
    });
    table.finish()
}

/// What a node and a shard then have to bear.
pub(crate) fn share_table(sizings: &[Sizing]) -> String {
    let config = Config::default();
    let snapshots_per_s = config.raft.snapshot_bytes_per_second as f64;
    let snapshot_bytes_max = snapshots_per_s / config.raft.snapshots_max as f64
        * config.raft.snapshot_life_max_ms as f64
        / 1e3;
    let mut table = Table::of_numbers(&headings(sizings));
    let mut row = |what: &str, cell: &dyn Fn(&Sizing) -> String| {
        table.row(what, sizings.iter().map(cell));
    };
    row("nodes", &|sizing| count(sizing.nodes));
    row("shards", &|sizing| count(sizing.size.shards as usize));
    row("users a shard", &|sizing| {
        number(sizing.size.users / f64::from(sizing.size.shards))
    });
    row("messages a second and shard, at the peak", &|sizing| {
        number(sizing.load.accepted_peak_per_s / f64::from(sizing.size.shards))
    });
    row("replicas a node", &|sizing| {
        number(sizing.replicas() / sizing.nodes as f64)
    });
    row("shards led by a node", &|sizing| {
        number(f64::from(sizing.size.shards) / sizing.nodes as f64)
    });
    row("sessions a node, at the peak", &|sizing| {
        number(sizing.load.sessions / sizing.nodes as f64)
    });
    row("state of a replica, GiB", &|sizing| {
        number(sizing.held_bytes / sizing.replicas() / GIB)
    });
    row(
        "the largest state that a snapshot carries with the default settings, GiB",
        &|_| number(snapshot_bytes_max / GIB),
    );
    row("data of a node, GiB", &|sizing| {
        number(sizing.held_bytes / sizing.nodes as f64 / GIB)
    });
    row("a node's replicas renewed in, at the least, s", &|sizing| {
        // Each replica comes from its shard's leader, and each leader's node sends at one rate.
        let others = sizing.replicas() / sizing.nodes as f64 * (COPIES - 1) as f64;
        let senders = others.min(sizing.nodes as f64 - 1.0);
        let rate = (senders * snapshots_per_s).min(sizing.received_bytes_per_s);
        number(sizing.held_bytes / sizing.nodes as f64 / rate)
    });
    table.finish()
}

fn headings(sizings: &[Sizing]) -> Vec<String> {
    let names = sizings.iter().map(|sizing| sizing.size.name.to_owned());
    std::iter::once(String::new()).chain(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: more users never need fewer nodes, and reached goals never more.
    #[test]
    fn nodes_grow_with_users_and_shrink_with_costs() -> Result<()> {
        let figures = Figures::read()?;
        let nodes = |figures: &Figures| -> Result<Vec<usize>> {
            Ok(sizings(figures)?.iter().map(|one| one.nodes).collect())
        };
        let (now, goals) = (nodes(&figures)?, nodes(&figures.at_goals())?);
        assert!(now.is_sorted(), "{now:?}");
        assert!(
            now.iter().zip(&goals).all(|(now, goal)| goal <= now),
            "{now:?} {goals:?}"
        );
        Ok(())
    }

    /// Goal: the load is the one that was asked for: 50 billion in and out a day.
    #[test]
    fn two_billion_users_send_and_receive_50_billion_messages() -> Result<()> {
        let figures = Figures::read()?;
        let load = load(SIZES[2], &figures)?;
        let deliveries = load.accepted_per_day * figures.value("deliveries_per_message")?;
        assert_eq!(load.accepted_per_day + deliveries, 50e9);
        Ok(())
    }
}
