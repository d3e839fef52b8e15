//! The review of what we depend on, as far as it goes without a network service.
//!
//! Every package that is built on this platform comes under an accepted licence, those whose types or sockets must meet
//! are there once, and what the workspace names is used ([`unused`]). It knows nothing of advisories: CONTRIBUTING says
//! what to run for those.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::licence;
use crate::unused;
use crate::workspace::{Workspace, output};

/// What tests and binaries of this platform are made from.
const EDGES: &str = "normal,build,dev";
/// Two versions of one of these in one program would be two runtimes, two wire formats or two stores.
const SINGLE: [&str; 8] = [
    "bytes", "hyper", "openraft", "prost", "rocksdb", "rustls", "tokio", "tonic",
];

/// Reviews the dependencies of all packages, those of build scripts and tests too, and says how many there are.
///
/// # Errors
///
/// Naming each package that does not pass.
pub(crate) fn review(workspace: &Workspace) -> Result<()> {
    let packages = packages(workspace)?;
    let mut complaints = complaints(&packages);
    complaints.extend(unused::complaints(&workspace.root)?);
    let in_binaries = features(workspace, "normal,build")?;
    complaints.extend(compiled_twice(&in_binaries, &features(workspace, EDGES)?));
    if complaints.is_empty() {
        println!(
            "{} packages: licences accepted, none of {} twice, none named for nothing",
            packages.len(),
            SINGLE.join(", ")
        );
        return Ok(());
    }
    bail!("{}", complaints.join("\n"))
}

/// A package as the tree names it, and its licence.
type Packages = BTreeSet<(String, String)>;

fn packages(workspace: &Workspace) -> Result<Packages> {
    tree(workspace, EDGES, "{p}|{l}")
}

/// A package, and the features that it is compiled with; once for each set of them.
fn features(workspace: &Workspace, edges: &str) -> Result<Packages> {
    tree(workspace, edges, "{p}|{f}")
}

fn tree(workspace: &Workspace, edges: &str, format: &str) -> Result<Packages> {
    let tree = output(workspace.cargo().args([
        "tree",
        "--locked",
        "--workspace",
        &format!("--edges={edges}"),
        "--prefix=none",
        "--no-dedupe",
        &format!("--format={format}"),
    ]))?;
    let lines = tree.lines().filter(|line| !line.trim().is_empty());
    Ok(lines
        .filter_map(|line| line.split_once('|'))
        .map(|(p, rest)| (p.to_owned(), rest.trim().to_owned()))
        .collect())
}

/// Packages of which tests want other features than binaries do: whoever builds both compiles them twice, and all that
/// depends on them.
fn compiled_twice(in_binaries: &Packages, in_all: &Packages) -> Vec<String> {
    let names: BTreeSet<&String> = in_binaries.iter().map(|(package, _)| package).collect();
    let differing = in_binaries.symmetric_difference(in_all);
    let shared = differing.filter(|(package, _)| names.contains(package));
    shared
        .map(|(package, features)| {
            format!("{package} is compiled with [{features}] only for binaries, or only for tests")
        })
        .collect()
}

fn complaints(packages: &Packages) -> Vec<String> {
    let refused = packages
        .iter()
        .filter(|(_, expression)| !licence::is_accepted(expression));
    let refused = refused
        .map(|(package, expression)| format!("{package}: licence {expression:?} is not accepted"));
    refused.chain(doubled(packages)).collect()
}

fn doubled(packages: &Packages) -> impl Iterator<Item = String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (package, _) in packages {
        let mut words = package.split(' ');
        if let (Some(name), Some(version)) = (words.next(), words.next()) {
            versions.entry(name).or_default().insert(version);
        }
    }
    let doubled = versions
        .into_iter()
        .filter(|(name, versions)| SINGLE.contains(name) && versions.len() > 1);
    doubled.map(|(name, versions)| {
        let versions: Vec<&str> = versions.into_iter().collect();
        format!(
            "{name} is there more than once: {} (see `cargo tree --duplicates`)",
            versions.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packages(list: &[(&str, &str)]) -> Packages {
        list.iter()
            .map(|(package, expression)| ((*package).to_owned(), (*expression).to_owned()))
            .collect()
    }

    #[test]
    fn accepted_single_packages_pass() {
        let packages = packages(&[
            ("tokio v1.2.0", "MIT"),
            ("rand v0.8.0", "MIT"),
            ("rand v0.9.0", "MIT"),
        ]);
        assert!(complaints(&packages).is_empty());
    }

    #[test]
    fn features_that_only_tests_want_are_named() {
        let binaries = packages(&[("tokio v1.2.0", "full"), ("bytes v1.0.0", "std")]);
        let mut all = binaries.clone();
        assert!(compiled_twice(&binaries, &all).is_empty());
        all.insert(("proptest v1.0.0".to_owned(), "std".to_owned()));
        assert!(compiled_twice(&binaries, &all).is_empty());
        all.insert(("tokio v1.2.0".to_owned(), "full,test-util".to_owned()));
        assert_eq!(compiled_twice(&binaries, &all).len(), 1);
    }

    #[test]
    fn a_refused_licence_and_a_second_version_are_named() {
        let packages = packages(&[
            ("a v1.0.0", "GPL-3.0"),
            ("tokio v0.3.0", "MIT"),
            ("tokio v1.2.0", "MIT"),
        ]);
        let complaints = complaints(&packages);
        assert!(
            complaints.len() == 2 && complaints[0].starts_with("a v1.0.0"),
            "{complaints:?}"
        );
        assert!(complaints[1].contains("v0.3.0, v1.2.0"), "{complaints:?}");
    }
}
