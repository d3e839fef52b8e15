//! Real text to send: the lines of Debian's `fortunes`, which are installed when that is possible.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::process::Command;
use tokio::time::timeout;

const DIRECTORY: &str = "/usr/share/games/fortunes";
const INSTALL_LIMIT: Duration = Duration::from_secs(120);

/// `count` lines of real text; where there is none, of made-up text, and it says so.
pub(crate) async fn lines(count: usize) -> Result<Vec<String>> {
    if !Path::new(DIRECTORY).exists() {
        install().await;
    }
    let mut lines = fortunes().unwrap_or_default();
    if lines.len() < count {
        println!("no text from {DIRECTORY} (Debian's package `fortunes`): using made-up lines");
        lines = (0..count).map(made_up).collect();
    }
    lines.truncate(count);
    ensure!(
        lines.len() == count,
        "{} lines of text, not {count}",
        lines.len()
    );
    Ok(lines)
}

/// Only root can, and only with a package registry at hand; otherwise there is the made-up text.
async fn install() {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "-q", "--no-install-recommends", "fortunes"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let _ = timeout(INSTALL_LIMIT, apt.status()).await;
}

/// The text files, not their indexes; lines that are neither empty nor separators.
fn fortunes() -> Result<Vec<String>> {
    let mut files: Vec<_> = fs::read_dir(DIRECTORY)
        .context("no fortunes")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && path.extension().is_none())
        .collect();
    files.sort();
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    Ok(texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| !line.trim().is_empty() && line != "%")
        .collect())
}

fn made_up(number: usize) -> String {
    const WORDS: [&str; 8] = [
        "wind",
        "rain",
        "\u{e4}pfel",
        "crow",
        "nest",
        "\u{1f426}",
        "branch",
        "dusk",
    ];
    let words = (0..3 + number % 9).map(|place| WORDS[(number * 31 + place * 7) % WORDS.len()]);
    format!("{number}: {}", words.collect::<Vec<_>>().join(" "))
}
