//! Who may do what: device keys and the admin token. Pure, but for the token's file.
//!
//! Only SHA-256 hashes of secrets are stored or compared, in constant time. Both secrets are 32 bytes of full entropy
//! drawn by a machine, so a plain hash is enough and no slow one is needed. A secret is never shown: its type has a
//! redacted `Debug` and no `Display`.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Bytes of a secret, and of its hash.
pub const SECRET_BYTES: usize = 32;

/// Why a secret is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device key of another length.
    #[error("a device key is {SECRET_BYTES} bytes")]
    Key,
    /// Not what [`AdminToken::reveal`] gives.
    #[error("an admin token is 43 letters, digits, '-' and '_'")]
    Token,
    /// The token's file.
    #[error("cannot {action} the admin token in {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The token's file holds something else.
    #[error("{} holds no admin token; it is 43 letters, digits, '-' and '_' on one line", path.display())]
    NotAToken {
        /// Which file.
        path: PathBuf,
    },
}

/// SHA-256 of a secret: what is stored and compared.
#[derive(Clone, Copy)]
pub struct Hash([u8; SECRET_BYTES]);

impl Hash {
    /// Of any secret bytes.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// As it was stored.
    #[must_use]
    pub fn stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To be stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

impl PartialEq for Hash {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Hash {}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash(redacted)")
    }
}

/// What a device proves itself with; drawn by the client.
#[derive(Clone)]
pub struct DeviceKey([u8; SECRET_BYTES]);

impl DeviceKey {
    /// Checks what came from outside.
    ///
    /// # Errors
    /// [`Error::Key`] if it has another length.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        bytes.try_into().map(Self).map_err(|_| Error::Key)
    }

    /// What the cluster keeps of it.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of(&self.0)
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceKey(redacted)")
    }
}

/// Whether a device's key is the one whose hash is stored. For an unknown device give `None`: it takes as long.
#[must_use]
pub fn device_is_welcome(key: &[u8], stored_hash: Option<&[u8]>) -> bool {
    let stored = stored_hash.and_then(Hash::stored);
    let same = Hash::of(key) == stored.unwrap_or(Hash([0; SECRET_BYTES]));
    same && stored.is_some() && key.len() == SECRET_BYTES
}

/// What an administrator proves himself with; drawn when the cluster is created.
#[derive(Clone)]
pub struct AdminToken([u8; SECRET_BYTES]);

impl AdminToken {
    /// From random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// Checks what came from outside: the text that [`AdminToken::reveal`] gives.
    ///
    /// # Errors
    /// [`Error::Token`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Token)?;
        bytes.try_into().map(Self).map_err(|_| Error::Token)
    }

    /// The secret itself, as text for its file and for `authorization`.
    #[must_use]
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// What the cluster keeps of it.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash::of(&self.0)
    }

    /// Writes it to a new file that only its owner may read, and makes the file durable.
    ///
    /// # Errors
    /// [`Error::File`], also when the file exists.
    pub fn write_new(&self, path: &Path) -> Result<(), Error> {
        let failed = file_error("write", path);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(&failed)?;
        writeln!(file, "{}", self.reveal()).map_err(&failed)?;
        file.sync_all().map_err(&failed)
    }

    /// Reads it from its file.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read or others than its owner may read it, [`Error::NotAToken`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = file_error("read", path);
        let mode = fs::metadata(path).map_err(&failed)?.permissions();
        if is_open_to_others(&mode) {
            let reason = "others may read the file; make it mode 0600";
            return Err(failed(io::Error::new(
                io::ErrorKind::PermissionDenied,
                reason,
            )));
        }
        let text = fs::read_to_string(path).map_err(&failed)?;
        Self::parse(text.trim_end()).map_err(|_| Error::NotAToken {
            path: path.to_owned(),
        })
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(redacted)")
    }
}

/// Whether a call's `authorization` is the cluster's admin token. No header, no admin.
#[must_use]
pub fn admin_is_welcome(authorization: Option<&str>, stored_hash: &[u8]) -> bool {
    let token = authorization
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .and_then(|(_, token)| AdminToken::parse(token.trim()).ok());
    match (token, Hash::stored(stored_hash)) {
        (Some(token), Some(stored)) => token.hash() == stored,
        _ => false,
    }
}

fn is_open_to_others(mode: &Permissions) -> bool {
    mode.mode() & 0o077 != 0
}

fn file_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash is stored for ever: SHA-256 of 32 zero bytes.
    #[test]
    fn the_hash_is_sha_256() {
        let hash = DeviceKey::parse(&[0; 32]).expect("32 bytes").hash();
        assert_eq!(hash.as_bytes()[..4], [0x66, 0x68, 0x7a, 0xad]);
    }

    #[test]
    fn only_the_right_key_is_welcome() {
        let hash = Hash::of(&[7; 32]);
        let stored = Some(hash.as_bytes().as_slice());
        assert!(device_is_welcome(&[7; 32], stored));
        assert!(!device_is_welcome(&[8; 32], stored));
        assert!(!device_is_welcome(&[7; 31], stored));
        assert!(!device_is_welcome(&[7; 32], None));
        assert!(!device_is_welcome(&[7; 32], Some(&hash.as_bytes()[..31])));
        assert!(!device_is_welcome(&[], Some(Hash::of(&[]).as_bytes())));
        assert!(matches!(DeviceKey::parse(&[0; 33]), Err(Error::Key)));
    }

    #[test]
    fn only_the_right_token_is_welcome() {
        let token = AdminToken::from_random([9; 32]);
        let hash = token.hash();
        let welcome = |header: &str| admin_is_welcome(Some(header), hash.as_bytes());
        let text = token.reveal();
        assert!(welcome(&format!("Bearer {text}")));
        assert!(welcome(&format!("bearer {text}")));
        assert!(!welcome(&text));
        assert!(!welcome(&format!("Basic {text}")));
        assert!(!welcome("Bearer "));
        assert!(!welcome(&format!(
            "Bearer {}",
            AdminToken::from_random([8; 32]).reveal()
        )));
        assert!(!admin_is_welcome(None, hash.as_bytes()));
        assert!(!admin_is_welcome(Some(&format!("Bearer {text}")), &[]));
    }

    #[test]
    fn the_file_is_the_owners_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("admin.token");
        let token = AdminToken::from_random([9; 32]);
        token.write_new(&path).expect("written");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(AdminToken::read(&path).expect("read").hash(), token.hash());
        assert!(token.write_new(&path).is_err(), "never overwritten");

        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("changed");
        let error = AdminToken::read(&path)
            .expect_err("open to others")
            .to_string();
        assert!(error.contains("0600"), "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let token = AdminToken::from_random([9; 32]);
        let key = DeviceKey::parse(&[9; 32]).expect("32 bytes");
        let shown = format!("{token:?} {key:?} {:?}", token.hash());
        assert_eq!(
            shown,
            "AdminToken(redacted) DeviceKey(redacted) Hash(redacted)"
        );
        assert!(matches!(AdminToken::parse("short"), Err(Error::Token)));
    }
}
