//! Packets that arrive changed, with checksums that fit the change, so that nothing below the node notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nfq::{Queue, Verdict};

use super::flip::{Bits, Seen};

const TICK: Duration = Duration::from_micros(500);
const TCP: u8 = 6;
/// Where the checksum stands in a TCP header.
const CHECKSUM_AT: usize = 16;
const SYN: u8 = 2;

/// Lets everything through until told to stop, and flips bits of snapshots.
pub(super) fn snapshots(mut queue: Queue, bits: Arc<Bits>, stop: &AtomicBool) {
    let mut seen: BTreeMap<[u8; 8], Seen> = BTreeMap::new();
    while !stop.load(Ordering::SeqCst) {
        while let Ok(mut packet) = queue.recv() {
            let mut bytes = packet.get_payload().to_vec();
            if pass(&mut bytes, &mut seen, &bits) {
                packet.set_payload(bytes);
            }
            packet.set_verdict(Verdict::Accept);
            // A packet that the kernel no longer knows was dropped with its connection.
            let _ = queue.verdict(packet);
        }
        thread::sleep(TICK);
    }
}

/// Whether it was changed.
fn pass(packet: &mut [u8], seen: &mut BTreeMap<[u8; 8], Seen>, bits: &Bits) -> bool {
    let Some(segment) = Segment::of(packet) else {
        return false;
    };
    if segment.opens {
        seen.remove(&segment.connection);
    }
    let seen = seen.entry(segment.connection).or_default();
    let Some(at) = seen.pass(&mut packet[segment.data..segment.end], bits) else {
        return false;
    };
    mend(
        &mut packet[segment.header..segment.end],
        segment.data - segment.header + at,
    );
    true
}

/// Where the parts of a TCP segment stand in its packet.
struct Segment {
    /// Source address, both ports.
    connection: [u8; 8],
    opens: bool,
    header: usize,
    data: usize,
    end: usize,
}

impl Segment {
    fn of(packet: &[u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0xf) * 4;
        let end = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if packet[0] >> 4 != 4 || *packet.get(9)? != TCP || end > packet.len() {
            return None;
        }
        let tcp = packet.get(header..end)?;
        let data = header + usize::from(tcp.get(12)? >> 4) * 4;
        let mut connection = [0; 8];
        connection[..4].copy_from_slice(packet.get(12..16)?);
        connection[4..].copy_from_slice(tcp.get(..4)?);
        (data <= end).then_some(Self {
            connection,
            opens: *tcp.get(13)? & SYN != 0,
            header,
            data,
            end,
        })
    }
}

/// Makes a segment's checksum right again after its lowest bit at this place was flipped (RFC 1624).
fn mend(segment: &mut [u8], at: usize) {
    let word = |segment: &[u8], at: usize| {
        let low = segment.get(at + 1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([segment[at], low]))
    };
    let new = word(segment, at & !1);
    let old = new ^ if at.is_multiple_of(2) { 0x100 } else { 1 };
    let sum = (!word(segment, CHECKSUM_AT) & 0xffff) + (!old & 0xffff) + new;
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(folded + (folded >> 16)) as u16;
    segment[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum that a right checksum makes all ones; what stands before the segment is left out, as it does not change.
    fn sum(segment: &[u8]) -> u32 {
        let words = segment
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
        let mut sum: u32 = words.sum();
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    }

    #[test]
    fn the_checksum_follows_the_change() {
        for length in [61, 64] {
            for at in 20..length {
                let mut segment: Vec<u8> = (0..length as u8)
                    .map(|byte| byte.wrapping_mul(37))
                    .collect();
                let before = sum(&segment);
                segment[at] ^= 1;
                assert_ne!(sum(&segment), before);
                mend(&mut segment, at);
                assert_eq!(sum(&segment), before, "{at} of {length}");
            }
        }
    }

    #[test]
    fn a_packet_that_is_no_tcp_segment_is_left_alone() {
        assert!(Segment::of(&[]).is_none());
        assert!(Segment::of(&[0x45; 40]).is_none());
    }
}
