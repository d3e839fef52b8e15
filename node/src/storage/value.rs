//! How every value is written: a version byte, the payload, and a checksum over key, version and payload.
//!
//! The key is part of the checksum, so a value that turns up under another key is refused like any other damage.
//! The first byte and the last four mean the same in every version to come: a value of a newer version is told apart
//! from a damaged one.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;

use super::{Error, Read, keys::Key};
use crate::sabotage::{self, Break};

/// The format that this build writes, and the newest it reads.
pub const VERSION: u8 = 1;

const VERSION_BYTES: usize = 1;
const CHECKSUM_BYTES: usize = 4;

/// A message as the value of a key.
#[must_use]
pub fn encode(key: &[u8], message: &impl Message) -> Bytes {
    write(key, message.encoded_len(), |value| {
        message
            .encode(value)
            .expect("a growing buffer has room for every message");
    })
}

/// The message in a key's value. Its byte fields are slices of `value`, not copies.
///
/// # Errors
/// [`Error::Corrupt`] if the checksum fails or the payload is no such message, [`Error::UnknownFormat`] if a newer
/// version wrote it.
pub fn decode<M: Message + Default>(
    what: &'static str,
    key: &[u8],
    value: Bytes,
) -> Result<M, Error> {
    // The decoder's words name fields of our schema, never content.
    M::decode(open(what, key, value)?).map_err(|error| corrupt(what, error.to_string()))
}

/// Reads a key and decodes its value.
///
/// # Errors
/// As [`Read::get`] and [`decode`].
pub fn get<M: Message + Default>(
    store: &(impl Read + ?Sized),
    key: &Key<'_>,
) -> Result<Option<M>, Error> {
    let bytes = key.encode();
    let value = store.get(key.column(), &bytes)?;
    value
        .map(|value| decode(key.what(), &bytes, value))
        .transpose()
}

/// A payload that is not protobuf as the value of a key.
#[must_use]
pub fn seal(key: &[u8], payload: &[u8]) -> Bytes {
    write(key, payload.len(), |value| value.put_slice(payload))
}

/// The payload in a key's value, as a slice of it.
///
/// # Errors
/// [`Error::Corrupt`] if the checksum fails, [`Error::UnknownFormat`] if a newer version wrote it.
pub fn open(what: &'static str, key: &[u8], value: Bytes) -> Result<Bytes, Error> {
    let payload_end = value.len().checked_sub(CHECKSUM_BYTES);
    let Some(payload_end) = payload_end.filter(|&end| end >= VERSION_BYTES) else {
        return Err(corrupt(what, "too short for its checksum".to_owned()));
    };
    let (checked, stored) = value.split_at(payload_end);
    if stored != checksum(key, checked) && !sabotage::on(Break::RowUnchecked) {
        return Err(corrupt(what, "its checksum does not fit".to_owned()));
    }
    match value[0] {
        VERSION => Ok(value.slice(VERSION_BYTES..payload_end)),
        version => Err(Error::UnknownFormat {
            what,
            version: version.into(),
            known: VERSION.into(),
        }),
    }
}

fn write(key: &[u8], payload_bytes: usize, payload: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut value = BytesMut::with_capacity(VERSION_BYTES + payload_bytes + CHECKSUM_BYTES);
    value.put_u8(VERSION);
    payload(&mut value);
    let checksum = checksum(key, &value);
    value.put_slice(&checksum);
    value.freeze()
}

fn checksum(key: &[u8], checked: &[u8]) -> [u8; CHECKSUM_BYTES] {
    crc32c::crc32c_append(crc32c::crc32c(key), checked).to_be_bytes()
}

fn corrupt(what: &'static str, detail: String) -> Error {
    Error::Corrupt { what, detail }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use roost_proto::storage::{Entry, Number};
    use roost_proto::v1::Envelope;

    use super::*;

    fn is_corrupt<T>(result: Result<T, Error>) -> bool {
        matches!(result, Err(Error::Corrupt { .. }))
    }

    /// Golden bytes: the format on disk may not change by itself.
    #[test]
    fn the_layout_is_version_payload_checksum() {
        let value = seal(b"key", b"payload");
        assert_eq!(value[0], 1);
        assert_eq!(&value[1..8], b"payload");
        assert_eq!(
            u32::from_be_bytes(value[8..].try_into().unwrap()),
            crc32c::crc32c(b"key\x01payload")
        );
        // RFC 3720 gives this checksum for 32 zero bytes: the polynomial is the right one.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let mut value = vec![2];
        value.extend_from_slice(b"whatever");
        value.extend_from_slice(&checksum(b"key", &value));
        assert!(matches!(
            open("thing", b"key", value.into()),
            Err(Error::UnknownFormat {
                what: "thing",
                version: 2,
                known: 1
            })
        ));
    }

    #[test]
    fn a_sound_value_of_the_wrong_type_is_corrupt() {
        let value = seal(b"key", &[0xff; 9]);
        assert!(is_corrupt(decode::<Number>("number", b"key", value)));
    }

    #[test]
    fn byte_fields_are_slices_of_the_value() {
        let entry = Entry {
            envelope: Some(Envelope {
                body: Bytes::from(vec![7; 1000]),
                ..Envelope::default()
            }),
            ..Entry::default()
        };
        let value = encode(b"key", &entry);
        let within = value.as_ptr_range();
        let decoded: Entry = decode("entry", b"key", value.clone()).unwrap();
        assert!(within.contains(&decoded.envelope.as_ref().unwrap().body.as_ptr()));
        assert_eq!(decoded, entry);
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens(key: Vec<u8>, payload: Vec<u8>) {
            prop_assert_eq!(&open("x", &key, seal(&key, &payload)).unwrap()[..], &payload[..]);
        }

        #[test]
        fn any_flipped_bit_is_refused(key: Vec<u8>, payload: Vec<u8>, bit: prop::sample::Index) {
            let mut value = seal(&key, &payload).to_vec();
            let bit = bit.index(value.len() * 8);
            value[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(is_corrupt(open("x", &key, value.into())));
        }

        #[test]
        fn any_truncation_is_refused(key: Vec<u8>, payload: Vec<u8>, end: prop::sample::Index) {
            let value = seal(&key, &payload);
            prop_assert!(is_corrupt(open("x", &key, value.slice(..end.index(value.len())))));
        }

        #[test]
        fn another_key_is_refused(key: Vec<u8>, other: Vec<u8>, payload: Vec<u8>) {
            prop_assume!(key != other);
            prop_assert!(is_corrupt(open("x", &other, seal(&key, &payload))));
        }
    }
}
