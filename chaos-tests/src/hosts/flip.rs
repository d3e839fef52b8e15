//! Bits that arrive wrong although every checksum of the network is right: in snapshots on their way between nodes.
//!
//! Snapshots travel on a connection of their own, which its first request names. Whatever carries packets or bytes shows
//! them to [`Seen`], which finds that request and then flips a bit in the middle of each piece that is large enough to be
//! rows, as long as there are bits left to flip.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The path `/roost.peer.v1.Peer/Bulk` as every HTTP/2 connection of a node begins with it, in HPACK's Huffman code.
const BULK: &[u8] = &[
    0x62, 0xc3, 0x9d, 0x09, 0x5e, 0xb2, 0x96, 0xc5, 0xfb, 0x85, 0x7d, 0x65, 0x2d, 0x8c, 0x5d, 0xb6,
    0x8e, 0xbf,
];
/// Smaller pieces may be anything.
const PIECE_BYTES_MIN: usize = 1_000;
/// What a connection may send before its first request.
const HEAD_BYTES_MAX: usize = 4 << 10;

/// How many bits are still to be flipped, and how many were.
#[derive(Debug)]
pub struct Bits {
    left: AtomicUsize,
    flipped: AtomicUsize,
}

impl Bits {
    /// So many to be flipped.
    #[must_use]
    pub fn new(left: usize) -> Self {
        Self {
            left: AtomicUsize::new(left),
            flipped: AtomicUsize::new(0),
        }
    }

    /// How many were flipped.
    pub fn flipped(&self) -> usize {
        self.flipped.load(Ordering::SeqCst)
    }

    fn take(&self) -> bool {
        let took = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        took.is_ok()
    }
}

/// One direction of one connection, as far as it was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    head: Vec<u8>,
    is_bulk: bool,
}

impl Seen {
    /// Looks at what passes.
    pub(super) fn look(&mut self, piece: &[u8]) {
        if self.is_bulk || self.head.len() >= HEAD_BYTES_MAX {
            return;
        }
        let room = HEAD_BYTES_MAX - self.head.len();
        self.head.extend(&piece[..piece.len().min(room)]);
        self.is_bulk = self.head.windows(BULK.len()).any(|bytes| bytes == BULK);
    }

    /// Looks at what passes, and flips a bit of it if it is of a snapshot. Says where.
    pub(super) fn pass(&mut self, piece: &mut [u8], bits: &Bits) -> Option<usize> {
        let was_bulk = self.is_bulk;
        self.look(piece);
        if !was_bulk || piece.len() < PIECE_BYTES_MIN || !bits.take() {
            return None;
        }
        let middle = piece.len() / 2;
        piece[middle] ^= 1;
        bits.flipped.fetch_add(1, Ordering::SeqCst);
        Some(middle)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Goal: the connection of snapshots is known, and no other. Method: real clients ask for each lane of a listener
    /// that only notes what they send.
    #[tokio::test]
    async fn the_connection_of_snapshots_is_known_by_its_first_request() {
        use roost_proto::peer::peer_client::PeerClient;
        use tokio::io::AsyncReadExt as _;
        for lane in ["control", "traffic", "bulk"] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let ask = async move {
                let mut client = PeerClient::connect(url).await.unwrap();
                let nothing = futures::stream::pending();
                let answer = match lane {
                    "control" => client.control(nothing).await,
                    "traffic" => client.traffic(nothing).await,
                    _ => client.bulk(nothing).await,
                };
                drop(answer);
            };
            let asking = tokio::spawn(ask);
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Seen::default();
            let mut piece = [0; 1024];
            let limit = std::time::Duration::from_millis(500);
            while let Ok(read) = tokio::time::timeout(limit, stream.read(&mut piece)).await {
                let read = read.unwrap();
                if read == 0 {
                    break;
                }
                seen.look(&piece[..read]);
            }
            asking.abort();
            assert_eq!(seen.is_bulk, lane == "bulk", "{lane}: {:02x?}", seen.head);
        }
    }

    #[test]
    fn only_large_pieces_of_snapshots_are_changed_and_only_so_many() {
        let bits = Bits::new(1);
        let mut seen = Seen::default();
        let mut piece = vec![0; 2 * PIECE_BYTES_MIN];
        assert_eq!(seen.pass(&mut piece, &bits), None);
        seen.look(BULK);
        assert_eq!(seen.pass(&mut piece[..10], &bits), None);
        assert_eq!(seen.pass(&mut piece, &bits), Some(PIECE_BYTES_MIN));
        assert_eq!(seen.pass(&mut piece, &bits), None);
        assert_eq!(piece.iter().filter(|byte| **byte != 0).count(), 1);
        assert_eq!(bits.flipped(), 1);
    }
}
