//! Which node has made a connection: the kernel says whose socket it is.
//!
//! A node cannot be given one address of each other node that is its own, because they all record the same ones. So the
//! relay asks `/proc`: the socket's number by its ports, then which of the processes started from here has it open, and
//! which config that process was started with.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// The number of the node whose process has a socket with this address, connected to that one; `None` when there is none
/// any more.
pub(super) async fn of(address: SocketAddr, to: SocketAddr) -> Option<u16> {
    let find = move || {
        let socket = socket(address, to)?;
        processes().find_map(|(process, k)| has(&process, &socket).then_some(k))
    };
    tokio::task::spawn_blocking(find).await.ok().flatten()
}

/// What the link of an open file that is this socket reads.
fn socket(address: SocketAddr, to: SocketAddr) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let (from, to) = (shown(address)?, shown(to)?);
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let ours = words.next()? == from && words.next()? == to;
        // Then state, queues, timer, retransmits, user, timeout.
        let inode = words.nth(6)?;
        ours.then(|| format!("socket:[{inode}]"))
    })
}

/// As the kernel writes it: bytes of the address from the last to the first.
fn shown(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let bytes = u32::from_le_bytes(address.ip().octets());
    Some(format!("{bytes:08X}:{:04X}", address.port()))
}

/// Processes that this one has started as nodes, and the number of each.
fn processes() -> impl Iterator<Item = (std::path::PathBuf, u16)> {
    let own = std::process::id().to_string();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(move |entry| {
        let process = entry.path();
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // Behind the name: state, then parent.
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?;
        if parent != own {
            return None;
        }
        let words = fs::read_to_string(process.join("cmdline")).ok()?;
        Some((process, number(&words)?))
    })
}

/// Of the node whose config stands last: `.../node-2.toml`.
fn number(words: &str) -> Option<u16> {
    let config = words.trim_end_matches('\0').rsplit('\0').next()?;
    let name = Path::new(config).file_stem()?.to_str()?;
    name.strip_prefix("node-")?.parse().ok()
}

fn has(process: &Path, socket: &str) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten();
    files.flatten().any(|file| {
        let target = fs::read_link(file.path());
        target.is_ok_and(|target| target.as_os_str() == socket)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_config_names_its_node() {
        let words = "/bin/roost\0node\0--config\0/tmp/lab/cluster/node-12.toml\0";
        assert_eq!(number(words), Some(12));
        assert_eq!(number("sleep\x001000\0"), None);
    }

    #[test]
    fn the_kernel_knows_our_socket_by_its_addresses() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = socket(near.local_addr().unwrap(), near.peer_addr().unwrap()).unwrap();
        assert!(has(Path::new("/proc/self"), &socket), "{socket}");
        drop(near);
        assert!(!has(Path::new("/proc/self"), &socket), "{socket}");
    }
}
