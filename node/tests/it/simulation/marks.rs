//! What receipts have said of a sender's messages.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use roost_chaos_tests::history::{Place, Tick};
use roost_proto::v1::{Receipt, Status};

/// By recipient. Accounts live throughout a run, so there is one incarnation of each queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks(BTreeMap<String, OfPeer>);

#[derive(Clone, Debug, Default)]
struct OfPeer {
    delivered: Option<Place>,
    read: Option<Place>,
    /// Incarnation and seqs. The word that something has expired comes before a watermark that covers it.
    expired: Vec<(u64, RangeInclusive<u64>)>,
}

impl Marks {
    /// Takes in a receipt; false if it is none.
    pub(super) fn note(&mut self, receipt: &Receipt) -> bool {
        let peer = self.0.entry(receipt.peer.clone()).or_default();
        let place = Some(Place {
            incarnation: receipt.incarnation,
            seq: receipt.up_to_seq,
        });
        match receipt.status() {
            Status::Delivered => peer.delivered = peer.delivered.max(place),
            Status::Read => peer.read = peer.read.max(place),
            Status::Expired => peer.expired.extend(
                receipt
                    .expired
                    .iter()
                    .map(|range| (receipt.incarnation, range.first..=range.last)),
            ),
            _ => return false,
        }
        true
    }

    /// How far a message has come by them.
    pub(super) fn tick(&self, to: &str, at: Place) -> Option<Tick> {
        let peer = self.0.get(to)?;
        let covers = |mark: Option<Place>| {
            mark.is_some_and(|mark| mark.incarnation == at.incarnation && mark >= at)
        };
        let has_expired = |(incarnation, seqs): &(u64, RangeInclusive<u64>)| {
            *incarnation == at.incarnation && seqs.contains(&at.seq)
        };
        if peer.expired.iter().any(has_expired) {
            Some(Tick::Expired)
        } else if covers(peer.read) {
            Some(Tick::Read)
        } else {
            covers(peer.delivered).then_some(Tick::Delivered)
        }
    }
}
