//! Which servers, which credentials, which token: what several commands take.

use std::env;
use std::fs;
use std::path::PathBuf;

use roost_client::{Admin, Credentials, Options};

use super::exit::{Exit, Failure};
use crate::types::{UserId, check_device_name};

/// Where `roost dev` serves clients.
const DEV_SERVERS: [&str; 3] = [
    "http://127.0.0.1:7401",
    "http://127.0.0.1:7402",
    "http://127.0.0.1:7403",
];
/// Where `roost dev` leaves the admin token.
const DEV_TOKEN: &str = ".roost/admin.token";

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ServerArgs {
    /// Servers to use, separated by commas [default: those of the credentials, else the ports of `roost dev`].
    #[arg(
        long,
        global = true,
        env = "ROOST_SERVER",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub(super) server: Vec<String>,
    /// Where credentials are kept, as DIR/PHONE/DEVICE.json [default: the user's config directory].
    #[arg(long, global = true, value_name = "DIR")]
    credentials: Option<PathBuf>,
}

impl ServerArgs {
    /// The servers that were named, else the given ones, else those of `roost dev`.
    pub(super) fn servers(&self, known: &[String]) -> Vec<String> {
        let named = self.named();
        match (named.is_empty(), known.is_empty()) {
            (false, _) => named,
            (true, false) => known.to_vec(),
            (true, true) => DEV_SERVERS.map(str::to_owned).to_vec(),
        }
    }

    pub(super) fn named(&self) -> Vec<String> {
        let named = self.server.iter().map(|server| server.trim());
        named
            .filter(|server| !server.is_empty())
            .map(str::to_owned)
            .collect()
    }

    pub(super) fn credentials_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.credentials {
            return Ok(dir.clone());
        }
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config")))
            .map(|config| config.join("roost"))
            .ok_or_else(|| Failure::usage("there is no home directory: say --credentials DIR"))
    }

    /// The options of a client for `who`, and nothing more than sending.
    pub(super) fn client(&self, who: &Who) -> Result<Options, Failure> {
        let dir = self.credentials_dir()?;
        let credentials = Credentials::load(&dir, who.user.as_str(), who.device.as_deref())?;
        let servers = self.servers(&credentials.servers);
        Ok(Options {
            software: concat!("roost-cli/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..Options::new(servers, credentials)
        })
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct AdminArgs {
    /// File with the admin token.
    #[arg(
        long,
        value_name = "FILE",
        env = "ROOST_ADMIN_TOKEN_FILE",
        default_value = DEV_TOKEN
    )]
    admin_token: PathBuf,
}

impl AdminArgs {
    pub(super) fn admin(&self, server: &ServerArgs) -> Result<Admin, Failure> {
        let file = &self.admin_token;
        let token = fs::read_to_string(file).map_err(|error| {
            Failure::new(
                Exit::Credentials,
                format!(
                    "no admin token in {}: {error}; say --admin-token FILE (the cluster's creation wrote it to its data directory)",
                    file.display()
                ),
            )
        })?;
        Ok(Admin::new(server.servers(&[]), token.trim())?)
    }
}

/// `PHONE` or `PHONE/DEVICE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) user: UserId,
    pub(super) device: Option<String>,
}

impl std::str::FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, device) = match text.split_once('/') {
            Some((_, "")) => return Err("the device's name is missing behind '/'".to_owned()),
            Some((user, device)) => (user, Some(device.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            user: parse_user(user)?,
            device,
        })
    }
}

pub(super) fn parse_user(text: &str) -> Result<UserId, String> {
    UserId::parse(text).map_err(|error| error.to_string())
}

pub(super) fn parse_device(text: &str) -> Result<String, String> {
    match check_device_name(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; for example 10s, 5m or 30d"))
}
