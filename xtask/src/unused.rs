//! Dependencies that are named and not used.
//!
//! A package's manifest names a crate that none of its source files mentions, or the workspace names one that no package
//! takes. A search of the text, not a compiler: it can miss an unused crate whose name stands in a comment, and reports
//! nothing that is used.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Used by generated code only, or named for their features (chaos-tests/Cargo.toml).
const NOT_IN_SOURCE: [&str; 3] = ["tonic-prost", "getrandom", "regex-syntax"];

/// One line for each.
///
/// # Errors
///
/// When the checkout cannot be read.
pub(crate) fn complaints(root: &Path) -> Result<Vec<String>> {
    let mut taken = Vec::new();
    let mut complaints = Vec::new();
    for directory in directories(root)? {
        let manifest = directory.join("Cargo.toml");
        if !manifest.exists() {
            continue;
        }
        let names = named(&read(&manifest)?);
        let source = source(&directory)?;
        let unused = names.iter().filter(|name| !is_used(name, &source));
        complaints.extend(
            unused.map(|name| format!("{} names {name}, and does not use it", manifest.display())),
        );
        taken.extend(names);
    }
    let offered = named(&read(&root.join("Cargo.toml"))?);
    let left = offered.into_iter().filter(|name| !taken.contains(name));
    complaints
        .extend(left.map(|name| format!("the workspace names {name}, and no package takes it")));
    Ok(complaints)
}

/// The crates in the sections of dependencies of a manifest.
fn named(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_end().ends_with("dependencies]");
        } else if inside && line.starts_with(|first: char| first.is_ascii_alphabetic()) {
            let end = line.find([' ', '.', '=']).unwrap_or(line.len());
            names.push(line[..end].to_owned());
        }
    }
    names
}

fn is_used(name: &str, source: &str) -> bool {
    let word = name.replace('-', "_");
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = source.match_indices(&word);
    NOT_IN_SOURCE.contains(&name)
        || found.any(|(at, _)| {
            !source[..at].ends_with(part_of_a_word)
                && !source[at + word.len()..].starts_with(part_of_a_word)
        })
}

/// All Rust source below a directory.
fn source(directory: &Path) -> Result<String> {
    let mut text = String::new();
    for path in entries(directory)? {
        if path.is_dir() && !path.ends_with("target") {
            text += &source(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &read(&path)?;
        }
    }
    Ok(text)
}

fn directories(root: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = entries(root)?;
    entries.retain(|path| path.is_dir());
    Ok(entries)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    Ok(entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_found_in_manifests() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\nanyhow.workspace = true\n# why\ntonic-prost = \"1\"\n\n\
                        [dev-dependencies]\nprost = { version = \"1\" }\n\n[lints]\nworkspace = true\n";
        assert_eq!(named(manifest), ["anyhow", "tonic-prost", "prost"]);
    }

    #[test]
    fn only_whole_words_are_uses() {
        assert!(is_used("roost-local", "use roost_local::Cluster;"));
        assert!(!is_used("rand", "let operand = strand_of(x);"));
        assert!(!is_used("rand", "rand_core::RngCore"));
        assert!(is_used("tonic-prost", ""));
    }
}
