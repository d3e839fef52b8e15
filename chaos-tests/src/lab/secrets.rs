//! What no log and no metric of a node may show.

use std::sync::{Mutex, PoisonError};

use roost_client::Credentials;

/// Names of accounts, and keys in every way a program would print them.
#[derive(Debug, Default)]
pub(super) struct Secrets(Mutex<Vec<String>>);

impl Secrets {
    pub(super) fn add(&self, credentials: &Credentials) {
        let key = &credentials.key[..];
        let hexadecimal: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.extend([credentials.user.clone(), hexadecimal]);
        secrets.extend([format!("{key:?}"), format!("{:?}", credentials.key)]);
    }

    pub(super) fn are_in(&self, text: &str) -> bool {
        let secrets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.iter().any(|secret| text.contains(secret.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_are_found() {
        let credentials = Credentials {
            user: "+15550001".to_owned(),
            device: 1,
            device_name: "phone".to_owned(),
            key: vec![1, 171].into(),
            servers: Vec::new(),
        };
        let secrets = Secrets::default();
        secrets.add(&credentials);
        for line in ["user=+15550001", "key=01ab", "key=[1, 171]"] {
            assert!(secrets.are_in(line), "{line}");
        }
        assert!(!secrets.are_in("shard=1 device=171"));
    }
}
