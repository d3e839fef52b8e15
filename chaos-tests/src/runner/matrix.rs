//! The long matrix: every fault until it has been struck often enough and enough messages were accepted under it, in as
//! many runs as it takes, and the table of it all.
//!
//! Each run adds a line to a file; what is still to be done, and the table, follow from that file alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Verdict;
use super::kinds::{KINDS, Kind, Needs};
use super::scenario::Scenario;

/// Messages accepted under each fault, at least.
const ACCEPTED_MIN: u64 = 10_000;
/// And in all.
const TOTAL_MIN: u64 = 1_000_000;
/// How often a fault is struck, where it is about how long nobody is served.
const RUNS_MIN: &[(&str, usize)] = &[
    ("kill-leader", 200),
    ("isolate-leader", 50),
    ("one-way-out", 10),
    ("one-way-in", 10),
    ("far", 10),
    ("disk-stalls", 10),
];
/// Faults of one run, at most, so that little is lost when it is stopped.
const FAULTS_MAX: usize = 8;
/// Around the table in the document.
const BEGIN: &str = "<!-- matrix: written by cargo xtask chaos --table -->";
const END: &str = "<!-- end of the matrix -->";

/// A run, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// What was tested.
    pub commit: String,
    /// Its seed.
    pub seed: u64,
    /// Messages accepted in all.
    pub accepted: u64,
    /// Broken promises.
    pub lost: usize,
    /// See [`lost`](Self::lost).
    pub duplicated: usize,
    /// See [`lost`](Self::lost).
    pub reordered: usize,
    /// See [`lost`](Self::lost).
    pub other: usize,
    /// What else went wrong.
    pub failures: Vec<String>,
    /// Its faults.
    pub faults: Vec<Struck>,
}

/// One fault of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Struck {
    /// Which.
    pub fault: String,
    /// Messages accepted under it.
    pub accepted: u64,
    /// The longest time in which a shard with a majority answered nobody who waited.
    pub unavailable_ms: u64,
    /// Until everything was whole again.
    pub recovery_ms: u64,
}

impl Run {
    /// What is kept of a run.
    #[must_use]
    pub fn of(verdict: &Verdict, commit: &str) -> Self {
        Self {
            commit: commit.to_owned(),
            seed: verdict.seed,
            accepted: verdict.accepted,
            lost: verdict.lost,
            duplicated: verdict.duplicated,
            reordered: verdict.reordered,
            other: verdict.other_violations,
            failures: verdict.failures.clone(),
            faults: verdict
                .faults
                .iter()
                .map(|row| Struck {
                    fault: row.fault.clone(),
                    accepted: row.accepted,
                    unavailable_ms: row.longest_unavailable_ms,
                    recovery_ms: row.recovery_ms,
                })
                .collect(),
        }
    }

    /// Whether nothing was broken and nothing went wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty() && self.lost + self.duplicated + self.reordered + self.other == 0
    }
}

/// All runs so far.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn read(file: &Path) -> Result<Vec<Run>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.with_context(|| file.display().to_string())?,
    };
    let runs = text.lines().map(serde_json::from_str);
    runs.collect::<Result<_, _>>()
        .context("a run of the matrix")
}

/// Keeps a run.
///
/// # Errors
/// When the file cannot be written.
pub fn add(file: &Path, run: &Run) -> Result<()> {
    let mut open = File::options().create(true).append(true).open(file)?;
    let mut line = serde_json::to_vec(run)?;
    line.push(b'\n');
    Ok(open.write_all(&line)?)
}

/// What to run next: faults that lack most, of those that can share a cluster. Nothing when all is done.
#[must_use]
pub fn next(runs: &[Run]) -> Option<Scenario> {
    let sums = sums(runs);
    let total: u64 = runs.iter().map(|run| run.accepted).sum();
    let lacks = |kind: &Kind| {
        let sum = sums.get(kind.name).copied().unwrap_or_default();
        sum.accepted < ACCEPTED_MIN || sum.runs < runs_min(kind)
    };
    let mut open: Vec<&Kind> = KINDS.iter().filter(|kind| lacks(kind)).collect();
    if open.is_empty() && total < TOTAL_MIN {
        open = KINDS.iter().collect();
    }
    open.sort_by_key(|kind| sums.get(kind.name).map_or(0, |sum| sum.accepted));
    let first = *open.first()?;
    let mates = open.iter().filter(|kind| shares(kind.needs, first.needs));
    let mut faults: Vec<Kind> = mates.map(|kind| **kind).take(FAULTS_MAX).collect();
    // What lacks runs rather than messages is struck again and again.
    if faults
        .iter()
        .all(|kind| sum_of(&sums, kind).accepted >= ACCEPTED_MIN)
    {
        faults = vec![*first; FAULTS_MAX];
    }
    Some(Scenario {
        name: "matrix".to_owned(),
        faults,
    })
}

fn shares(one: Needs, other: Needs) -> bool {
    one == other
}

fn runs_min(kind: &Kind) -> usize {
    let wanted = RUNS_MIN.iter().find(|(name, _)| *name == kind.name);
    wanted.map_or(1, |(_, runs)| *runs)
}

/// All runs of one fault.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    runs: usize,
    accepted: u64,
}

fn sum_of(sums: &BTreeMap<&str, Sum>, kind: &Kind) -> Sum {
    sums.get(kind.name).copied().unwrap_or_default()
}

/// Only runs in which all was well count towards what is to be done.
fn sums(runs: &[Run]) -> BTreeMap<&str, Sum> {
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for struck in runs
        .iter()
        .filter(|run| run.passed())
        .flat_map(|run| &run.faults)
    {
        let sum = sums.entry(&struck.fault).or_default();
        sum.runs += 1;
        sum.accepted += struck.accepted;
    }
    sums
}

/// Writes the table into a document, between its two marks.
///
/// # Errors
/// When the document cannot be read or written, or has no marks.
pub fn publish(runs: &[Run], document: &Path) -> Result<()> {
    let text = fs::read_to_string(document)?;
    let (before, rest) = text
        .split_once(BEGIN)
        .context("the beginning is not marked")?;
    let (_, behind) = rest.split_once(END).context("the end is not marked")?;
    let text = format!("{before}{BEGIN}\n\n{}\n{END}{behind}", table(runs));
    fs::write(document, text).context("the document")
}

/// Every fault that was struck, in the order of the list, and the runs in which something went wrong.
fn table(runs: &[Run]) -> String {
    let mut table = String::from(
        "| fault | runs | accepted | lost | duplicated | reordered | unavailable ms: p50, p99, max | recovery ms: p50, max |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for kind in KINDS {
        let of_kind = |run: &&Run| run.faults.iter().any(|struck| struck.fault == kind.name);
        let with: Vec<&Run> = runs.iter().filter(of_kind).collect();
        let struck: Vec<&Struck> = with
            .iter()
            .flat_map(|run| &run.faults)
            .filter(|struck| struck.fault == kind.name)
            .collect();
        if struck.is_empty() {
            continue;
        }
        let sum = |count: fn(&Run) -> usize| with.iter().map(|run| count(run)).sum::<usize>();
        let gaps = sorted(struck.iter().map(|struck| struck.unavailable_ms));
        let recoveries = sorted(struck.iter().map(|struck| struck.recovery_ms));
        table += &format!(
            "| `{}` | {} | {} | {} | {} | {} | {}, {}, {} | {}, {} |\n",
            kind.name,
            struck.len(),
            struck.iter().map(|struck| struck.accepted).sum::<u64>(),
            sum(|run| run.lost),
            sum(|run| run.duplicated),
            sum(|run| run.reordered),
            at(&gaps, 50),
            at(&gaps, 99),
            at(&gaps, 100),
            at(&recoveries, 50),
            at(&recoveries, 100),
        );
    }
    let passed = runs.iter().filter(|run| run.passed()).count();
    let accepted: u64 = runs.iter().map(|run| run.accepted).sum();
    table += &format!(
        "\n{} runs, {accepted} messages accepted in all; {passed} runs passed.\n",
        runs.len()
    );
    for run in runs.iter().filter(|run| !run.passed()) {
        let why = run
            .failures
            .first()
            .map_or("violations", |why| why.as_str());
        let why: String = why
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect();
        table += &format!(
            "\n- Seed {} at {} did not pass: {why}",
            run.seed, run.commit
        );
    }
    table
}

fn sorted(values: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values
}

/// Of so many percent of the values, the highest.
fn at(sorted: &[u64], percent: usize) -> u64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn run(faults: &[(&str, u64)], lost: usize) -> Run {
        Run {
            commit: "abc".to_owned(),
            seed: 1,
            accepted: faults.iter().map(|(_, accepted)| accepted).sum(),
            lost,
            duplicated: 0,
            reordered: 0,
            other: 0,
            failures: Vec::new(),
            faults: faults
                .iter()
                .map(|(fault, accepted)| Struck {
                    fault: (*fault).to_owned(),
                    accepted: *accepted,
                    unavailable_ms: *accepted,
                    recovery_ms: 1,
                })
                .collect(),
        }
    }

    #[test]
    fn what_lacks_most_is_next_and_a_failed_run_counts_for_nothing() {
        let all: Vec<(&str, u64)> = KINDS.iter().map(|kind| (kind.name, 2_000_000)).collect();
        let mut runs = vec![run(&all, 0); 200];
        assert!(next(&runs).is_none());
        runs = vec![run(&all, 0)];
        let again = next(&runs).unwrap();
        assert!(
            again
                .faults
                .iter()
                .all(|kind| kind.name == again.faults[0].name)
        );
        runs = vec![run(&all, 1)];
        let names = next(&runs).unwrap().faults;
        assert!(names.len() > 1 && names[0].name != names[1].name);
    }

    #[test]
    fn the_table_replaces_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let document = directory.path().join("doc.md");
        fs::write(&document, format!("a\n{BEGIN}\nold\n{END}\nz\n")).unwrap();
        let runs = [run(&[("kill-one", 7), ("kill-one", 9)], 0)];
        publish(&runs, &document).unwrap();
        publish(&runs, &document).unwrap();
        let text = fs::read_to_string(&document).unwrap();
        assert!(text.starts_with("a\n") && text.ends_with("\nz\n") && !text.contains("old"));
        assert!(
            text.contains("| `kill-one` | 2 | 16 | 0 | 0 | 0 | 7, 9, 9 | 1, 1 |"),
            "{text}"
        );
    }
}
