//! This checkout: where it is, what its lockfile says, and how cargo is called in it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The profile of everything that is run: optimised, quick to link, with assertions.
pub(crate) const PROFILE: &str = "fast";

/// What `.cargo/rocksdb.toml` sets. `cargo run` hands it on to this process; handed on once more it would outlive a
/// change of that file, so no cargo started from here inherits it, unless the user has chosen it himself.
pub(crate) const ROCKSDB_VARIABLES: [&str; 2] = ["ROCKSDB_LIB_DIR", "ROCKSDB_STATIC"];

/// The checkout that this xtask was built from.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    /// A library of RocksDB that the user has named in the environment: his to keep right.
    pub(crate) own_rocksdb: Option<PathBuf>,
}

impl Workspace {
    /// # Errors
    ///
    /// When this is not started by `cargo xtask`, or the checkout is gone.
    pub(crate) fn here() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask`")?;
        let root = Path::new(&manifest)
            .parent()
            .context("xtask lies at the root")?
            .to_path_buf();
        // Cargo has just put this program into the target directory, whatever its configuration says.
        let program = env::current_exe().context("cannot find this program's own file")?;
        let target = program
            .ancestors()
            .nth(2)
            .context("xtask runs from a target directory")?
            .to_path_buf();
        let own_rocksdb = own_rocksdb(&root);
        Ok(Self {
            root,
            target,
            own_rocksdb,
        })
    }

    /// Where binaries of [`PROFILE`] are.
    pub(crate) fn binaries(&self) -> PathBuf {
        self.target.join(PROFILE)
    }

    /// A cargo command at the root, on the same target directory.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match self.own_rocksdb {
            Some(_) => plain_cargo(),
            None => cargo(),
        };
        cargo
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        cargo
    }

    /// Tells every cargo command here which library of RocksDB to link.
    pub(crate) fn rocksdb_config(&self) -> PathBuf {
        rocksdb_config(&self.root)
    }

    /// The version the lockfile gives to `package`, of which there is only one.
    pub(crate) fn locked_version(&self, package: &str) -> Result<String> {
        let path = self.root.join("Cargo.lock");
        let lock =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        locked_version(&lock, package)
    }
}

/// A cargo that knows nothing of the library that its parent was told to link.
pub(crate) fn cargo() -> Command {
    let mut cargo = plain_cargo();
    for variable in ROCKSDB_VARIABLES {
        cargo.env_remove(variable);
    }
    cargo
}

fn plain_cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn rocksdb_config(root: &Path) -> PathBuf {
    root.join(".cargo/rocksdb.toml")
}

/// What our own config file says is in our environment too, because cargo started us, and is no choice of the user.
fn own_rocksdb(root: &Path) -> Option<PathBuf> {
    let directory = env::var(ROCKSDB_VARIABLES[0]).ok()?;
    let ours = fs::read_to_string(rocksdb_config(root)).unwrap_or_default();
    (!ours.contains(&format!("= {directory:?}\n"))).then(|| directory.into())
}

fn locked_version(lock: &str, package: &str) -> Result<String> {
    let name = format!("name = \"{package}\"");
    let mut versions = lock
        .split("[[package]]")
        .filter(|entry| entry.lines().any(|line| line == name))
        .filter_map(|entry| {
            entry
                .lines()
                .find_map(|line| line.strip_prefix("version = "))
        });
    match (versions.next(), versions.next()) {
        (Some(version), None) => Ok(version.trim_matches('"').to_owned()),
        (None, _) => bail!("{package} is not in Cargo.lock"),
        (Some(_), Some(_)) => {
            bail!("{package} is in Cargo.lock more than once: bring it down to one version")
        }
    }
}

/// Runs `command`, its output being ours; anything but success is an error that shows it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// What `command` prints; anything but success is an error that shows it.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `command` as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = [program].into_iter().chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n\
                        [[package]]\nname = \"b\"\nversion = \"0.1.0+2\"\ndependencies = [\n \"a\",\n]\n\n\
                        [[package]]\nname = \"a\"\nversion = \"2.0.0\"\n";

    #[test]
    fn the_lockfile_says_the_version() {
        assert_eq!(locked_version(LOCK, "b").ok().as_deref(), Some("0.1.0+2"));
    }

    #[test]
    fn a_missing_or_doubled_package_is_an_error() {
        assert!(locked_version(LOCK, "c").is_err());
        assert!(locked_version(LOCK, "a").is_err());
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        assert_eq!(
            shown(Command::new("/usr/bin/cargo").args(["fmt", "--check"])),
            "cargo fmt --check"
        );
    }
}
