//! The identifiers that every layer speaks in.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

/// An account: an E.164 phone number for people (`+` and 7 to 15 digits), a lower-case name for services.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(String);

/// The longest user id, in bytes.
pub const USER_ID_BYTES_MAX: usize = 64;

/// The longest message id, in bytes.
pub const MESSAGE_ID_BYTES_MAX: usize = 64;

/// The longest device name, in bytes.
pub const DEVICE_NAME_BYTES_MAX: usize = 64;

/// What is wrong with an identifier that somebody typed or sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    /// Neither a phone number nor a service name.
    #[error(
        "a user is a phone number like +4915112345678 or a name of a-z, 0-9, '.', '_', '-' (at most 64)"
    )]
    User,
    /// Empty, too long, or with a NUL byte.
    #[error("a message id is 1 to 64 bytes of text without NUL")]
    MessageId,
    /// Not fit for a file's name everywhere.
    #[error("a device name is 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-', and begins with no dot")]
    DeviceName,
    /// Not a UUID.
    #[error("a node id is a UUID")]
    Node,
}

impl UserId {
    /// Checks what came from outside.
    ///
    /// # Errors
    /// [`Invalid::User`] if it is neither a phone number nor a service name.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let valid = match text.strip_prefix('+') {
            Some(digits) => {
                (7..=15).contains(&digits.len())
                    && digits.bytes().all(|b| b.is_ascii_digit())
                    && !digits.starts_with('0')
            }
            None => {
                (1..=USER_ID_BYTES_MAX).contains(&text.len())
                    && text.starts_with(|c: char| c.is_ascii_lowercase())
                    && text.bytes().all(|b| {
                        b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)
                    })
            }
        };
        valid.then(|| Self(text.to_owned())).ok_or(Invalid::User)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a message id that came from outside.
///
/// # Errors
/// [`Invalid::MessageId`] if it is empty, over [`MESSAGE_ID_BYTES_MAX`] or holds a NUL byte.
pub fn check_message_id(id: &str) -> Result<(), Invalid> {
    let valid = (1..=MESSAGE_ID_BYTES_MAX).contains(&id.len()) && !id.contains('\0');
    valid.then_some(()).ok_or(Invalid::MessageId)
}

/// Checks what people call a device.
///
/// # Errors
/// [`Invalid::DeviceName`] if it is empty, over [`DEVICE_NAME_BYTES_MAX`], begins with a dot or holds anything but ASCII
/// letters and digits, `.`, `_` and `-`.
pub fn check_device_name(name: &str) -> Result<(), Invalid> {
    let valid = (1..=DEVICE_NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !name.starts_with('.');
    valid.then_some(()).ok_or(Invalid::DeviceName)
}

/// One client installation of a user; numbered from 1 within the account and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// A fixed slice of the key space: one Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The meta shard: cluster id, nodes, replica ids, placement.
    pub const META: Self = Self(u32::MAX);

    /// The shard of a user: the top bits of XXH3-64 (seed 0) over the id's UTF-8 bytes. `shards` is a power of two.
    #[must_use]
    pub fn of(user: &UserId, shards: u32) -> Self {
        Self::of_str(user.as_str(), shards)
    }

    /// As [`ShardId::of`], for an id that was checked before it was stored.
    #[must_use]
    pub fn of_str(user: &str, shards: u32) -> Self {
        assert!(
            shards.is_power_of_two(),
            "the shard count is checked when the cluster is created"
        );
        let hash = xxh3_64(user.as_bytes());
        // A shift by 64 would be undefined: one shard has no bits to look at.
        match shards.trailing_zeros() {
            0 => Self(0),
            bits => Self((hash >> (64 - bits)) as u32),
        }
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::META => f.write_str("meta"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

/// A shard's copy on a node; the Raft node id. Given out by the meta shard and never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// A node's identity: made at random with its data directory. Name and address are attributes that may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(uuid::Uuid);

impl NodeId {
    /// From 16 random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// What [`NodeId::as_bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(uuid::Uuid::from_bytes(bytes))
    }

    /// Checks what came from outside.
    ///
    /// # Errors
    /// [`Invalid::Node`] if it is not a UUID.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        uuid::Uuid::parse_str(text)
            .map(Self)
            .map_err(|_| Invalid::Node)
    }

    /// The 16 bytes of the id.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_phones_or_service_names() {
        for good in ["+4915112345678", "+1234567", "billing", "a", "news.de_1-x"] {
            assert!(UserId::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "+",
            "+123456",
            "+0123456789",
            "+12345678901234567",
            "Bob",
            "4915112345678",
            "a b",
            "ä",
            "a\0",
        ] {
            assert_eq!(UserId::parse(bad), Err(Invalid::User), "{bad}");
        }
    }

    /// Golden values: a user's shard may never move by itself.
    #[test]
    fn shard_hash_is_stable() {
        let shard =
            |user: &str, shards| ShardId::of(&UserId::parse(user).expect("valid"), shards).0;
        assert_eq!(shard("+4915112345678", 1), 0);
        let of_32: Vec<u32> = ["+4915112345678", "+12025550100", "billing", "a"]
            .iter()
            .map(|user| shard(user, 32))
            .collect();
        let of_16: Vec<u32> = of_32.iter().map(|shard| shard / 2).collect();
        assert_eq!(
            of_16,
            ["+4915112345678", "+12025550100", "billing", "a"].map(|user| shard(user, 16))
        );
    }
}
