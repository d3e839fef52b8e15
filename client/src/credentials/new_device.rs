//! A device that is being added: its key lies on disk before any server hears of it.
//!
//! A server knows a device by its key's hash, and answers the same name and key with the same device. So whatever dies in
//! between, and wherever, the same steps again find the same key and end with the same device. None is left at the server
//! that nobody can speak for and that holds entries back for ever.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Credentials, CredentialsError, checked, decode, encode, make_dir, read, remove_file, user_dir,
    write_new,
};

/// [`begin`](Self::begin), have the server add the [`key`](Self::key), [`finish`](Self::finish). What was refused or
/// left in the middle may begin again, under the same key; [`Credentials::remove`] forgets it. The file until then is
/// `DIR/USER/.DEVICE_NAME.adding`, mode 0600.
#[derive(Debug)]
pub struct NewDevice {
    dir: PathBuf,
    user: String,
    device_name: String,
    secret: Secret,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    key: Bytes,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl NewDevice {
    /// Goes on with what was begun before, or draws a key and makes it durable.
    ///
    /// # Errors
    /// [`CredentialsError::Exists`] when the device has its credentials already; else when the system refuses.
    pub fn begin(dir: &Path, user: &str, device_name: &str) -> Result<Self, CredentialsError> {
        let path = Self::path(dir, user, device_name)?;
        let finished = Credentials::path(dir, user, device_name)?;
        if finished.exists() {
            remove_file(&path)?;
            return Err(CredentialsError::Exists(finished));
        }
        make_dir(&user_dir(dir, user)?)?;
        let drawn = Secret {
            key: Credentials::draw_key(),
        };
        let secret = match write_new(&path, &drawn) {
            Ok(()) => drawn,
            Err(CredentialsError::Exists(path)) => read(&path)?,
            Err(error) => return Err(error),
        };
        Ok(Self {
            dir: dir.to_owned(),
            user: user.to_owned(),
            device_name: device_name.to_owned(),
            secret,
        })
    }

    /// What the server is to know the device by.
    #[must_use]
    pub fn key(&self) -> Bytes {
        self.secret.key.clone()
    }

    /// The server has added the device under this number: writes its credentials, and returns them with their file.
    ///
    /// # Errors
    /// When the system refuses, or others have written credentials of this name meanwhile.
    pub fn finish(
        self,
        device: u32,
        servers: Vec<String>,
    ) -> Result<(Credentials, PathBuf), CredentialsError> {
        let credentials = Credentials {
            user: self.user,
            device,
            device_name: self.device_name,
            key: self.secret.key,
            servers,
        };
        let (user, name) = (&credentials.user, &credentials.device_name);
        let path = match credentials.save(&self.dir) {
            // The same command, running twice.
            Err(CredentialsError::Exists(path)) if is_of(&path, &credentials) => path,
            saved => saved?,
        };
        remove_file(&Self::path(&self.dir, user, name)?)?;
        Ok((credentials, path))
    }

    pub(super) fn path(
        dir: &Path,
        user: &str,
        device_name: &str,
    ) -> Result<PathBuf, CredentialsError> {
        Ok(user_dir(dir, user)?.join(format!(".{}.adding", checked(device_name)?)))
    }

    /// The device's name in that of this file.
    pub(super) fn name_in(file: &str) -> Option<&str> {
        file.strip_prefix('.')?.strip_suffix(".adding")
    }
}

fn is_of(path: &Path, credentials: &Credentials) -> bool {
    let known: Result<Credentials, _> = read(path);
    known.is_ok_and(|known| known.device == credentials.device && known.key == credentials.key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const USER: &str = "+4915112345678";

    fn begin(dir: &Path) -> NewDevice {
        NewDevice::begin(dir, USER, "phone").unwrap()
    }

    fn files(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir.join(USER)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    /// Whoever dies after the key was drawn finds it again, until the credentials are written; then it is gone from its
    /// first place.
    #[test]
    fn what_was_begun_goes_on_under_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("not/yet/there");
        let key = begin(dir).key();
        let file = dir.join(USER).join(".phone.adding");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Credentials::devices(dir, USER).unwrap().is_empty());

        let again = begin(dir);
        assert_eq!(again.key(), key);
        let (credentials, path) = again.finish(3, Vec::new()).unwrap();
        assert_eq!((&credentials.key, credentials.device), (&key, 3));
        assert_eq!(
            Credentials::load(dir, USER, None).unwrap(),
            credentials,
            "{}",
            path.display()
        );
        assert_eq!(files(dir), ["phone.json"]);
    }

    /// Died between its last two steps: the credentials stand, and the rest is cleared away.
    #[test]
    fn what_is_finished_is_not_begun_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (first, twin) = (begin(dir), begin(dir));
        let (credentials, _) = first.finish(3, Vec::new()).unwrap();
        write_new(
            &NewDevice::path(dir, USER, "phone").unwrap(),
            &Secret { key: twin.key() },
        )
        .unwrap();
        let again = NewDevice::begin(dir, USER, "phone");
        assert!(
            matches!(again, Err(CredentialsError::Exists(_))),
            "{again:?}"
        );
        assert_eq!(files(dir), ["phone.json"]);
        // The same command at the same time ends the same way, another device of that name does not.
        let (same, _) = twin.finish(3, Vec::new()).unwrap();
        assert_eq!(same, credentials);
        let other = NewDevice {
            dir: dir.to_owned(),
            user: USER.to_owned(),
            device_name: "phone".to_owned(),
            secret: Secret {
                key: Credentials::draw_key(),
            },
        };
        assert!(matches!(
            other.finish(4, Vec::new()),
            Err(CredentialsError::Exists(_))
        ));
    }

    /// A device that was removed must not come back with its old key.
    #[test]
    fn removing_forgets_what_was_begun() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let first = begin(dir).key();
        Credentials::remove(dir, USER, "phone").unwrap();
        let second = begin(dir).key();
        assert_ne!(first, second);
        Credentials::remove_all(dir, USER).unwrap();
        assert!(files(dir).is_empty());
        assert_ne!(begin(dir).key(), second);
    }
}
