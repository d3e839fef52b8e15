//! Promises that a build for tests can be told to break, so that the tests show that they would notice.
//!
//! Without the feature `sabotage`, [`on`] is a constant `false`, and where it is asked nothing is compiled. With it, a
//! process breaks the one promise that `ROOST_SABOTAGE` names, and none without that variable. What each break must
//! raise, and what raises it, is a table in docs/CHAOS.md.

#[cfg(all(feature = "sabotage", not(debug_assertions)))]
compile_error!("the feature `sabotage` breaks promises on purpose: no release may contain it");

macro_rules! breaks {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One deliberate break.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Break {
            $($(#[$doc])* $name,)*
        }

        impl Break {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// What `ROOST_SABOTAGE` calls it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

breaks! {
    /// What waits for a sync is answered without one.
    NoSync = "no-sync",
    /// A vote is answered and not written.
    VoteNotSaved = "vote-not-saved",
    /// A leader takes a follower that does not answer for one that has stored the entries.
    CommitAlone = "commit-alone",
    /// A leader serves reads and attachments without asking whether it still leads.
    StaleReads = "stale-reads",
    /// What comes over the wire between replicas, snapshots with it, is taken without its checksums.
    SnapshotUnchecked = "snapshot-unchecked",
    /// A row is served whatever its checksum says.
    RowUnchecked = "row-unchecked",
    /// A replica whose store is gone comes back under its old id.
    IdReused = "id-reused",
    /// An entry is deleted when the first device has acknowledged it.
    DeletedEarly = "deleted-early",
    /// An id that was answered before is taken for a new one.
    NoDedup = "no-dedup",
    /// A message is taken whichever position it has.
    NoOrder = "no-order",
    /// An acknowledgement beyond what was handed out is taken.
    CursorUnchecked = "cursor-unchecked",
    /// Outbox rows are trimmed once they are sent, whether their destination has them or not.
    OutboxTrimmed = "outbox-trimmed",
    /// Shard time follows its leader's clock wherever that goes.
    AnyClock = "any-clock",
}

/// The break that this process was told to make.
///
/// # Panics
/// When `ROOST_SABOTAGE` names none of them.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn chosen() -> Option<Break> {
    use std::sync::OnceLock;

    static CHOSEN: OnceLock<Option<Break>> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("ROOST_SABOTAGE").ok()?;
        let known = Break::ALL.iter().find(|known| known.name() == name);
        Some(*known.unwrap_or_else(|| panic!("ROOST_SABOTAGE={name}: there is no such break")))
    })
}

/// None: this build cannot break anything.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub const fn chosen() -> Option<Break> {
    None
}

/// Whether this promise is to be broken.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn on(which: Break) -> bool {
    chosen() == Some(which)
}

/// Never.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub const fn on(_: Break) -> bool {
    false
}
