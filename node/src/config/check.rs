//! What a config must be as a whole, beyond the types and ranges of its settings.

use std::net::SocketAddr;

use super::{Config, Error};

impl Config {
    /// Refuses what no node can run with.
    ///
    /// # Errors
    /// Names the setting, what is wrong with it and what would be right.
    pub fn check(&self) -> Result<(), Error> {
        self.check_ranges("")?;
        self.cluster.check_ranges("cluster.")?;
        self.raft.check_ranges("raft.")?;
        self.queue.check_ranges("queue.")?;
        self.session.check_ranges("session.")?;
        self.storage.check_ranges("storage.")?;
        self.replica.check_ranges("replica.")?;
        self.peer.check_ranges("peer.")?;
        self.check_names()?;
        self.check_addresses()?;
        self.check_cluster()?;
        self.check_times()?;
        self.check_sizes()
    }

    fn check_names(&self) -> Result<(), Error> {
        require(
            !self.data_dir.as_os_str().is_empty(),
            "data_dir",
            "is empty; name a directory",
        )?;
        let named = (1..=64).contains(&self.name.len()) && !self.name.contains(char::is_control);
        require(named, "name", "must be 1 to 64 bytes of text")
    }

    fn check_addresses(&self) -> Result<(), Error> {
        let listen = &self.listen;
        for (key, address) in [
            ("listen.client", listen.client),
            ("listen.peer", listen.peer),
            ("listen.http", listen.http),
        ] {
            let allowed = self.insecure || address.ip().is_loopback();
            require(
                allowed,
                key,
                "is beyond loopback, where nothing is encrypted yet: listen on 127.0.0.1, or say insecure = true",
            )?;
        }
        require(
            listen.peer.ip().is_loopback() || !self.cluster.token.reveal().is_empty(),
            "cluster.token",
            "is empty while listen.peer is beyond loopback, where whoever reaches it could ask for the admin token: give \
             all founding nodes the same secret",
        )?;
        check_advertised("advertise.client", &self.advertise.client, listen.client)?;
        check_advertised("advertise.peer", &self.advertise.peer, listen.peer)
    }

    fn check_cluster(&self) -> Result<(), Error> {
        let cluster = &self.cluster;
        require(
            cluster.shards.is_power_of_two(),
            "cluster.shards",
            "must be a power of two, because a user's shard is the top bits of a hash",
        )?;
        let nodes = &cluster.initial_nodes;
        for (place, node) in nodes.iter().enumerate() {
            require(
                is_host_port(node),
                "cluster.initial_nodes",
                "must be a list of host:port",
            )?;
            require(
                !nodes[..place].contains(node),
                "cluster.initial_nodes",
                "names an address twice",
            )?;
        }
        let own = self.advertised_peer();
        require(
            nodes.is_empty() || nodes.contains(&own),
            "cluster.initial_nodes",
            "does not name this node: add its advertise.peer (or listen.peer) address, written the same way",
        )?;
        require(
            nodes.len() <= 1 || cluster.replication_factor as usize <= nodes.len(),
            "cluster.replication_factor",
            "is more than cluster.initial_nodes has nodes",
        )
    }

    fn check_times(&self) -> Result<(), Error> {
        let raft = &self.raft;
        require(
            raft.election_min_ms >= 2 * raft.heartbeat_ms,
            "raft.election_min_ms",
            "must be at least twice raft.heartbeat_ms, so that one late heartbeat elects nobody",
        )?;
        require(
            raft.election_max_ms > raft.election_min_ms,
            "raft.election_max_ms",
            "must be more than raft.election_min_ms, so that followers do not stand at the same moment",
        )?;
        require(
            raft.log_age_max_ms <= self.storage.reclaim_ms / 2,
            "raft.log_age_max_ms",
            "must be at most half of storage.reclaim_ms, which promises that nothing delivered is left in any file",
        )?;
        require(
            raft.snapshot_life_max_ms < self.storage.reclaim_ms,
            "raft.snapshot_life_max_ms",
            "must be less than storage.reclaim_ms, because a snapshot pins what was deleted",
        )?;
        require(
            self.queue.ttl_default_ms <= self.queue.ttl_max_ms,
            "queue.ttl_default_ms",
            "must not be more than queue.ttl_max_ms",
        )?;
        require(
            self.peer.redial_min_ms <= self.peer.redial_max_ms,
            "peer.redial_min_ms",
            "must not be more than peer.redial_max_ms",
        )
    }

    fn check_sizes(&self) -> Result<(), Error> {
        require(
            self.queue.body_bytes_max <= self.queue.bytes_max,
            "queue.body_bytes_max",
            "must not be more than queue.bytes_max, or the largest message fits no queue",
        )?;
        require(
            self.queue.body_bytes_max <= self.session.window_bytes,
            "queue.body_bytes_max",
            "must not be more than session.window_bytes",
        )
    }
}

fn check_advertised(key: &'static str, text: &str, listen: SocketAddr) -> Result<(), Error> {
    if text.is_empty() {
        return require(
            !listen.ip().is_unspecified(),
            key,
            "must be said, because the node listens on every address",
        );
    }
    require(is_host_port(text), key, "must be host:port")
}

fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host_is_one_word =
        !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/@".contains(c));
    host_is_one_word && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn require(holds: bool, key: &'static str, problem: &'static str) -> Result<(), Error> {
    if holds {
        Ok(())
    } else {
        Err(Error::Refused { key, problem })
    }
}
