//! Which ports a cluster takes, and whether they are free.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::Error;

/// Between the three kinds of ports of one node, and so also the most nodes one base port can serve.
pub(crate) const KIND_STEP: u16 = 100;
const KINDS: [(&str, u16); 3] = [("client", 0), ("peer", KIND_STEP), ("http", 2 * KIND_STEP)];

/// Base ports tried by [`free_base_port`]: below 32768, where the kernel takes ports for outgoing connections, so that
/// no connection of a test takes the port of a node that is down for a moment.
const BASE_FIRST: u16 = 20_000;
const BASE_LAST: u16 = 32_400;

const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Claims on base ports; they last as long as this process.
static CLAIMS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Where one node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) client: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) http: SocketAddr,
}

impl Addresses {
    /// The addresses of node `k` (from 1) on `host`.
    pub(crate) fn of(host: IpAddr, base: u16, k: u16) -> Self {
        let at = |offset| SocketAddr::new(host, base + offset + k);
        Self {
            client: at(0),
            peer: at(KIND_STEP),
            http: at(2 * KIND_STEP),
        }
    }

    /// Refuses when somebody listens on one of them.
    pub(crate) fn check_free(&self, node: &str) -> Result<(), Error> {
        let wanted = [
            (self.client, "client"),
            (self.peer, "peer"),
            (self.http, "http"),
        ];
        match wanted.into_iter().find(|(address, _)| in_use(*address)) {
            None => Ok(()),
            Some((address, purpose)) => Err(Error::PortInUse {
                address,
                node: node.to_owned(),
                purpose,
            }),
        }
    }
}

/// Only "in use" counts: an address of another network namespace cannot be bound from here at all. Asked again after a
/// while, because a listener closed here lives on in what another thread starts, until that has called exec.
fn in_use(address: SocketAddr) -> bool {
    let refused = || {
        let listener = TcpListener::bind(address);
        listener.is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    };
    refused() && {
        std::thread::sleep(ASK_AGAIN);
        refused()
    }
}

/// A base port whose ports for `nodes` nodes are all free on the loopback address.
///
/// The base is claimed by a file lock until this process ends, so that two test processes that look at the same moment
/// do not find the same one.
///
/// # Errors
///
/// [`Error::NoFreePorts`] when every range is taken.
pub fn free_base_port(nodes: u16) -> Result<u16, Error> {
    let slot = nodes.clamp(10, KIND_STEP);
    let bases = (BASE_FIRST..=BASE_LAST)
        .step_by(usize::from(KINDS.len() as u16 * KIND_STEP))
        .flat_map(|block| (0..KIND_STEP / slot).map(move |i| block + i * slot));
    for base in bases {
        // Looking takes the ports for a moment, so only who has claimed them may look.
        let Some(claim) = claim(base, nodes) else {
            continue;
        };
        if all_free(base, nodes) {
            let mut claims = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
            claims.extend(claim);
            return Ok(base);
        }
    }
    Err(Error::NoFreePorts {
        nodes,
        from: BASE_FIRST,
        to: BASE_LAST,
    })
}

fn all_free(base: u16, nodes: u16) -> bool {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    (1..=nodes).all(|k| {
        KINDS
            .iter()
            .all(|(_, offset)| !in_use(SocketAddr::new(localhost, base + offset + k)))
    })
}

/// A claim is one lock per ten nodes' slot, whatever the number of nodes of who asks.
fn claim(base: u16, nodes: u16) -> Option<Vec<File>> {
    (0..nodes.max(1))
        .step_by(10)
        .map(|offset| lock(base + offset))
        .collect()
}

fn lock(base: u16) -> Option<File> {
    let path = std::env::temp_dir().join(format!("roost-ports-{base}.lock"));
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .ok()?;
    file.try_lock().ok().map(|()| file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_a_node_follow_from_its_number() {
        let addresses = Addresses::of(IpAddr::V4(Ipv4Addr::LOCALHOST), 7400, 2);
        let ports =
            [addresses.client, addresses.peer, addresses.http].map(|address| address.port());
        assert_eq!(ports, [7402, 7502, 7602]);
    }

    #[test]
    fn a_port_in_use_is_named() -> std::io::Result<()> {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let peer = taken.local_addr()?;
        let free = SocketAddr::new(peer.ip(), 0);
        let addresses = Addresses {
            client: free,
            peer,
            http: free,
        };
        let error = addresses
            .check_free("node-1")
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(
            error.contains(&format!("port {} is in use", peer.port())),
            "{error}"
        );
        assert!(error.contains("node-1 for peer"), "{error}");
        Ok(())
    }

    #[test]
    fn two_free_base_ports_do_not_overlap() -> Result<(), Error> {
        let (a, b) = (free_base_port(3)?, free_base_port(3)?);
        assert!(a.abs_diff(b) >= 10, "{a} and {b}");
        Ok(())
    }
}
