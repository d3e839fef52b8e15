//! `roost account`: accounts and their devices, by the administrator.

use std::io::Write as _;

use clap::Subcommand;
use roost_client::{Credentials, NewDevice};

use super::exit::{Exit, Failure};
use super::format::printable;
use super::server::{AdminArgs, ServerArgs, parse_device, parse_user};
use crate::types::UserId;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Create an account with its first device, or add a device to it; writes the device's credentials. Interrupted,
    /// the same command again finishes it.
    Add {
        /// The account: a phone number like +4915112345678, or a service's name.
        #[arg(value_name = "PHONE", value_parser = parse_user)]
        user: UserId,
        /// What the device is called.
        #[arg(long, value_name = "NAME", value_parser = parse_device)]
        device: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Show all accounts, their devices and how much waits for them.
    List {
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Remove an account with its queue, or one device; its credentials here are removed too.
    Remove {
        /// The account.
        #[arg(value_name = "PHONE", value_parser = parse_user)]
        user: UserId,
        /// Only this device; it then holds no messages back any more.
        #[arg(long, value_name = "NAME", value_parser = parse_device)]
        device: Option<String>,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

pub(super) async fn run(args: Args, server: &ServerArgs) -> Result<Exit, Failure> {
    match args.action {
        Action::Add {
            user,
            device,
            admin,
        } => add(user.as_str(), &device, &admin, server).await,
        Action::List { admin } => list(&admin, server).await,
        Action::Remove {
            user,
            device,
            admin,
        } => remove(user.as_str(), device.as_deref(), &admin, server).await,
    }
}

async fn add(
    user: &str,
    device_name: &str,
    admin: &AdminArgs,
    server: &ServerArgs,
) -> Result<Exit, Failure> {
    let dir = server.credentials_dir()?;
    let admin = admin.admin(server)?;
    // On disk before the server knows of it: whatever dies from here on, the same command again adds the same device.
    let new = NewDevice::begin(&dir, user, device_name)?;
    let added = admin.add_device(user, device_name, new.key()).await?;
    let (credentials, path) = new.finish(added.device, server.named())?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "added {user}/{} as device {}; credentials in {}",
        credentials.device_name,
        credentials.device,
        path.display()
    )?;
    Ok(Exit::Done)
}

async fn list(admin: &AdminArgs, server: &ServerArgs) -> Result<Exit, Failure> {
    let mut written = Ok(());
    let mut out = std::io::BufWriter::new(std::io::stdout());
    let admin = admin.admin(server)?;
    admin
        .list_accounts(|account| {
            if written.is_err() {
                return;
            }
            let devices: Vec<String> = account
                .devices
                .iter()
                .map(|device| format!("{} ({})", printable(&device.name), device.device))
                .collect();
            written = writeln!(
                out,
                "{}  devices: {}  waiting: {} messages, {} bytes",
                printable(&account.user),
                if devices.is_empty() {
                    "none".to_owned()
                } else {
                    devices.join(", ")
                },
                account.queued_entries,
                account.queued_bytes,
            );
        })
        .await?;
    written?;
    out.flush()?;
    Ok(Exit::Done)
}

async fn remove(
    user: &str,
    device: Option<&str>,
    admin: &AdminArgs,
    server: &ServerArgs,
) -> Result<Exit, Failure> {
    let dir = server.credentials_dir()?;
    let admin = admin.admin(server)?;
    // The server first: interrupted in between, the same command again does the rest.
    match device {
        Some(device) => {
            admin.remove_device(user, device).await?;
            Credentials::remove(&dir, user, device)?;
        }
        None => {
            admin.remove_account(user).await?;
            Credentials::remove_all(&dir, user)?;
        }
    }
    let what = device.map_or_else(|| user.to_owned(), |device| format!("{user}/{device}"));
    writeln!(std::io::stdout(), "removed {what}")?;
    Ok(Exit::Done)
}
