//! Who a client is: user, device and device key, kept in a file only its owner may read.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rand::Rng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod new_device;

pub use new_device::NewDevice;

/// Bytes of a device key.
const KEY_BYTES: usize = 32;

/// What a device needs to connect. The file is `DIR/USER/DEVICE_NAME.json`, mode 0600.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// The account: a phone number, or a service's name.
    pub user: String,
    /// The number that the server gave the device.
    pub device: u32,
    /// What people call it.
    pub device_name: String,
    /// The secret; the server keeps only its hash.
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub key: Bytes,
    /// Where to connect when nothing else is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
}

/// Why credentials could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A name that cannot be part of a path.
    #[error("{0:?} cannot be the name of a file: use letters, digits, '.', '_', '-', '+'")]
    Name(String),
    /// No device of this user has credentials here.
    #[error("no credentials in {}: add the account here, or name another directory", .0.display())]
    NotFound(PathBuf),
    /// Several devices, and none was named.
    #[error("several devices in {}: name one of {names}", dir.display())]
    Ambiguous {
        /// The user's directory.
        dir: PathBuf,
        /// The devices, separated by commas.
        names: String,
    },
    /// The file is there already.
    #[error("{} exists already: remove the device first, or give this one another name", .0.display())]
    Exists(PathBuf),
    /// The file is not what this library writes.
    #[error("{} is not a credentials file: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Credentials {
    /// A new secret.
    #[must_use]
    pub fn draw_key() -> Bytes {
        let mut key = [0u8; KEY_BYTES];
        rand::rng().fill(&mut key);
        Bytes::copy_from_slice(&key)
    }

    /// The file of a device.
    ///
    /// # Errors
    /// When a name cannot be part of a path.
    pub fn path(dir: &Path, user: &str, device_name: &str) -> Result<PathBuf, CredentialsError> {
        Ok(user_dir(dir, user)?.join(format!("{}.json", checked(device_name)?)))
    }

    /// Writes the file, whole or not at all, readable by its owner only, and returns where. Never replaces another.
    ///
    /// # Errors
    /// When the file exists, or the system refuses.
    pub fn save(&self, dir: &Path) -> Result<PathBuf, CredentialsError> {
        let path = Self::path(dir, &self.user, &self.device_name)?;
        make_dir(&user_dir(dir, &self.user)?)?;
        write_new(&path, self)?;
        Ok(path)
    }

    /// Reads the named device's file; without a name the user's only one.
    ///
    /// # Errors
    /// When there is none, or more than one and none was named, or it cannot be read.
    pub fn load(
        dir: &Path,
        user: &str,
        device_name: Option<&str>,
    ) -> Result<Self, CredentialsError> {
        let path = match device_name {
            Some(name) => Self::path(dir, user, name)?,
            None => only_file(&user_dir(dir, user)?)?,
        };
        read(&path)
    }

    /// Removes the file, if it is there, and what an unfinished [`NewDevice`] of this name has left: its key must not
    /// come back with a later device.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(dir: &Path, user: &str, device_name: &str) -> Result<(), CredentialsError> {
        remove_file(&NewDevice::path(dir, user, device_name)?)?;
        remove_file(&Self::path(dir, user, device_name)?)
    }

    /// The same for all devices of a user.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove_all(dir: &Path, user: &str) -> Result<(), CredentialsError> {
        let user_dir = user_dir(dir, user)?;
        let unfinished = names(&user_dir, NewDevice::name_in)?;
        for name in unfinished.into_iter().chain(names(&user_dir, name_in)?) {
            Self::remove(dir, user, &name)?;
        }
        Ok(())
    }

    /// The devices of a user with credentials in `dir`, in the order of their names.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn devices(dir: &Path, user: &str) -> Result<Vec<String>, CredentialsError> {
        names(&user_dir(dir, user)?, name_in)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

fn encode<S: Serializer>(key: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(key))
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    let key = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
    Ok(key.into())
}

fn user_dir(dir: &Path, user: &str) -> Result<PathBuf, CredentialsError> {
    Ok(dir.join(checked(user)?))
}

/// One plain path component, not hidden.
fn checked(name: &str) -> Result<&str, CredentialsError> {
    let mut components = Path::new(name).components();
    let one = matches!(components.next(), Some(Component::Normal(_)));
    let plain = name
        .chars()
        .all(|c| c.is_alphanumeric() || "._-+ ".contains(c));
    if one && components.next().is_none() && plain && !name.starts_with('.') {
        Ok(name)
    } else {
        Err(CredentialsError::Name(name.to_owned()))
    }
}

fn only_file(dir: &Path) -> Result<PathBuf, CredentialsError> {
    let names = names(dir, name_in)?;
    match names.as_slice() {
        [] => Err(CredentialsError::NotFound(dir.to_owned())),
        [name] => Ok(dir.join(format!("{name}.json"))),
        _ => Err(CredentialsError::Ambiguous {
            dir: dir.to_owned(),
            names: names.join(", "),
        }),
    }
}

/// The device's name in that of its credentials' file.
fn name_in(file: &str) -> Option<&str> {
    file.strip_suffix(".json")
}

fn names(
    dir: &Path,
    name_in: impl Fn(&str) -> Option<&str>,
) -> Result<Vec<String>, CredentialsError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file_error(dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(file_error(dir))?.file_name();
        if let Some(name) = name.to_str().and_then(&name_in) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, CredentialsError> {
    let text = fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CredentialsError::NotFound(path.to_owned()),
        _ => file_error(path)(source),
    })?;
    serde_json::from_slice(&text).map_err(|source| CredentialsError::Format {
        path: path.to_owned(),
        source,
    })
}

/// A directory for its owner alone, durable with all above it that were missing.
fn make_dir(dir: &Path) -> Result<(), CredentialsError> {
    let above = dir.ancestors().filter(|path| !path.as_os_str().is_empty());
    let missing: Vec<&Path> = above.take_while(|path| !path.exists()).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file_error(dir))?;
    for made in missing {
        let above = made.parent().filter(|path| !path.as_os_str().is_empty());
        sync_dir(above.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Writes a file, durably, whole or not at all, readable by its owner only. Never replaces another.
fn write_new(path: &Path, content: &impl Serialize) -> Result<(), CredentialsError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let draft = parent.join(format!(".{:016x}.draft", rand::rng().random::<u64>()));
    let written = write_draft(&draft, content)
        .and_then(|()| link(&draft, path))
        .and_then(|()| sync_dir(parent));
    // The draft is either linked under its real name or worthless.
    let _ = fs::remove_file(&draft);
    written
}

fn write_draft(draft: &Path, content: &impl Serialize) -> Result<(), CredentialsError> {
    let text = serde_json::to_vec_pretty(content).map_err(|source| CredentialsError::Format {
        path: draft.to_owned(),
        source,
    })?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(draft)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(file_error(draft))
}

fn remove_file(path: &Path) -> Result<(), CredentialsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path)(error)),
        _ => Ok(()),
    }
}

/// As a rename, but it never replaces a file.
fn link(draft: &Path, path: &Path) -> Result<(), CredentialsError> {
    fs::hard_link(draft, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => CredentialsError::Exists(path.to_owned()),
        _ => file_error(path)(source),
    })
}

fn sync_dir(dir: &Path) -> Result<(), CredentialsError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(file_error(dir))
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> CredentialsError {
    let path = path.to_owned();
    move |source| CredentialsError::File { path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn credentials(device_name: &str) -> Credentials {
        Credentials {
            user: "+4915112345678".to_owned(),
            device: 3,
            device_name: device_name.to_owned(),
            key: Credentials::draw_key(),
            servers: vec!["http://127.0.0.1:7401".to_owned()],
        }
    }

    #[test]
    fn saved_for_the_owner_alone_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let phone = credentials("phone");
        let path = phone.save(dir.path()).unwrap();
        assert_eq!(path, dir.path().join("+4915112345678/phone.json"));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "no draft is left");
        assert_eq!(
            Credentials::load(dir.path(), &phone.user, None).unwrap(),
            phone
        );
    }

    #[test]
    fn never_replaces_and_never_guesses() {
        let dir = tempfile::tempdir().unwrap();
        let phone = credentials("phone");
        phone.save(dir.path()).unwrap();
        let again = credentials("phone").save(dir.path());
        assert!(
            matches!(again, Err(CredentialsError::Exists(_))),
            "{again:?}"
        );
        credentials("laptop").save(dir.path()).unwrap();
        let which = Credentials::load(dir.path(), &phone.user, None);
        assert!(
            matches!(&which, Err(CredentialsError::Ambiguous { names, .. }) if names == "laptop, phone")
        );
        let named = Credentials::load(dir.path(), &phone.user, Some("phone")).unwrap();
        assert_eq!(named, phone);
        let none = Credentials::load(dir.path(), "bob", None);
        assert!(matches!(none, Err(CredentialsError::NotFound(_))));
    }

    #[test]
    fn names_stay_inside_the_directory() {
        for bad in ["", ".", "..", "a/b", "/etc", ".hidden", "a\0"] {
            assert!(
                Credentials::path(Path::new("d"), bad, "x").is_err(),
                "{bad:?}"
            );
            assert!(
                Credentials::path(Path::new("d"), "x", bad).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_key_is_not_printed() {
        let phone = credentials("phone");
        let printed = format!("{phone:?}");
        assert!(
            !printed.contains("key") && !printed.contains("4915"),
            "{printed}"
        );
    }
}
