//! What is left of a run: the verdict as one JSON object, and one page for people.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Options;
use super::account::{self, Gap, Row, Second, Sum};
use crate::checker::Violation;
use crate::history::{Event, Record};
use crate::hosts::Hosts;

/// Violations on the page, and events around each.
const SHOWN: usize = 20;
const AROUND: usize = 15;
/// Times without service that are told one by one.
const WINDOWS: usize = 10;
/// The picture.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 180.0;

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Which scenario.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// Messages accepted.
    pub accepted: u64,
    /// Messages accepted and lost, or removed before every device had them.
    pub lost: usize,
    /// Messages that a client which keeps its cursor saw twice.
    pub duplicated: usize,
    /// Messages out of order, or missing between others.
    pub reordered: usize,
    /// Every other broken promise.
    pub other_violations: usize,
    /// The longest time in which a shard whose majority was up answered nobody who waited.
    pub longest_unavailable_ms: u64,
    /// What else went wrong: no life, no recovery, a fault without effect.
    pub failures: Vec<String>,
    /// The longest such times, the longest first.
    pub windows: Vec<Window>,
    /// Every fault, its runs together.
    pub sums: Vec<Sum>,
    /// Every run of a fault.
    #[serde(skip)]
    pub faults: Vec<Row>,
    #[serde(skip)]
    violations: Vec<Violation>,
}

/// A time in which a shard whose majority was up answered nobody who waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Which shard.
    pub shard: u32,
    /// Since the start of the history.
    pub at_ms: u64,
    /// How long.
    pub ms: u64,
}

/// The longest windows.
fn windows(gaps: &[Gap]) -> Vec<Window> {
    let mut windows: Vec<Window> = gaps
        .iter()
        .map(|gap| Window {
            shard: gap.shard,
            at_ms: gap.span.from_us / 1000,
            ms: gap.span.ms(),
        })
        .filter(|window| window.ms > 0)
        .collect();
    windows.sort_by_key(|window| std::cmp::Reverse(window.ms));
    windows.truncate(WINDOWS);
    windows
}

impl Verdict {
    pub(super) fn new(
        options: &Options,
        history: &[Record],
        violations: Vec<Violation>,
        faults: Vec<Row>,
        gaps: &[Gap],
        failures: Vec<String>,
    ) -> Self {
        let count =
            |wanted: fn(&Violation) -> bool| violations.iter().filter(|v| wanted(v)).count();
        let lost = count(|v| matches!(v, Violation::Lost { .. } | Violation::RemovedEarly { .. }));
        let duplicated = count(|v| matches!(v, Violation::Duplicated { .. }));
        let reordered = count(|v| {
            matches!(
                v,
                Violation::OutOfOrder { .. }
                    | Violation::QueueOutOfOrder { .. }
                    | Violation::Gap { .. }
                    | Violation::QueueGap { .. }
            )
        });
        let accepted = |record: &&Record| matches!(record.event, Event::Accepted { .. });
        Self {
            scenario: options.scenario.name.clone(),
            seed: options.seed,
            accepted: history.iter().filter(accepted).count() as u64,
            lost,
            duplicated,
            reordered,
            other_violations: violations.len() - lost - duplicated - reordered,
            longest_unavailable_ms: gaps.iter().map(|gap| gap.span.ms()).max().unwrap_or(0),
            failures,
            windows: windows(gaps),
            sums: account::sums(&faults),
            faults,
            violations,
        }
    }

    /// Whether nothing was broken and there was life.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.failures.is_empty()
    }

    /// For people: what went wrong.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let violations = self.violations.iter().take(SHOWN).map(ToString::to_string);
        self.failures.iter().cloned().chain(violations).collect()
    }

    /// One line.
    ///
    /// # Errors
    /// Never: it is plain data.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("the verdict as JSON")
    }
}

/// Writes `report.html` and `verdict.json`.
pub(super) fn write(
    directory: &Path,
    options: &Options,
    hosts: &Hosts,
    history: &[Record],
    verdict: &Verdict,
) -> Result<()> {
    fs::write(directory.join("verdict.json"), verdict.json()?)?;
    let page = page(options, hosts, history, verdict)?;
    fs::write(directory.join("report.html"), page).context("the report")
}

fn page(options: &Options, hosts: &Hosts, history: &[Record], verdict: &Verdict) -> Result<String> {
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><title>Chaos</title>\
         <style>body{font:14px sans-serif;max-width:1020px;margin:2em auto}\
         td,th{text-align:right;padding:2px 8px;border-bottom:1px solid #ddd}\
         td:first-child,th:first-child,td:last-child{text-align:left}pre{background:#f6f6f6;overflow:auto}</style>",
    );
    let (title, passed) = (&options.scenario.name, verdict.passed());
    let word = if passed { "passed" } else { "FAILED" };
    write!(page, "<h1>{title}, seed {}: {word}</h1>", options.seed)?;
    write!(
        page,
        "<p>{} accepted, {} lost, {} duplicated, {} reordered, {} other violations; longest unavailable {} ms.</p>",
        verdict.accepted,
        verdict.lost,
        verdict.duplicated,
        verdict.reordered,
        verdict.other_violations,
        verdict.longest_unavailable_ms
    )?;
    for failure in &verdict.failures {
        write!(page, "<p><b>{}</b></p>", escaped(failure))?;
    }
    for limit in hosts.cannot() {
        write!(
            page,
            "<p>Not tested on these hosts: {}.</p>",
            escaped(limit)
        )?;
    }
    let seconds = account::seconds(history);
    page += "<h2>Accepted (blue) and delivered (green) a second; faults shaded</h2>";
    let rates = [
        (
            "#36c",
            seconds.iter().map(|s| s.accepted).collect::<Vec<_>>(),
        ),
        ("#393", seconds.iter().map(|s| s.delivered).collect()),
    ];
    page += &picture(&rates, &verdict.faults, seconds.len());
    page += "<h2>From send to accepted, ms: median (blue), worst (red)</h2>";
    let waits = [
        (
            "#c33",
            seconds
                .iter()
                .map(|s: &Second| s.worst_ms)
                .collect::<Vec<_>>(),
        ),
        ("#36c", seconds.iter().map(|s| s.median_ms).collect()),
    ];
    page += &picture(&waits, &verdict.faults, seconds.len());
    faults(&mut page, verdict)?;
    page += "<h2>Longest times without service while a majority was up</h2><table><tr><th>shard<th>at s<th>ms</tr>";
    for window in &verdict.windows {
        let at = window.at_ms as f64 / 1000.0;
        write!(
            page,
            "<tr><td>{}<td>{at:.1}<td>{}</tr>",
            window.shard, window.ms
        )?;
    }
    page += "</table><h2>Broken promises, and what happened around them</h2>";
    for violation in verdict.violations.iter().take(SHOWN) {
        write!(page, "<p><b>{}</b></p>", escaped(&violation.to_string()))?;
        write!(page, "<pre>{}</pre>", escaped(&around(history, violation)?))?;
    }
    Ok(page)
}

fn faults(page: &mut String, verdict: &Verdict) -> Result<()> {
    *page += "<h2>Faults</h2><table><tr><th>fault<th>at s<th>lasted ms<th>accepted<th>delivered\
              <th>unavailable ms<th>recovery ms<th>proof</tr>";
    for row in &verdict.faults {
        write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
            row.fault,
            row.whole.from_us / 1_000_000,
            row.lasted.ms(),
            row.accepted,
            row.delivered,
            row.longest_unavailable_ms,
            row.recovery_ms,
            escaped(&row.proof)
        )?;
    }
    *page += "</table>";
    Ok(())
}

/// Lines over seconds, with the faults behind them.
fn picture(lines: &[(&str, Vec<u64>)], faults: &[Row], seconds: usize) -> String {
    let most = lines.iter().flat_map(|(_, values)| values).max();
    let most = (*most.unwrap_or(&1)).max(1) as f64;
    let x = |second: f64| second * WIDTH / seconds.max(1) as f64;
    let mut svg = format!(
        "<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' style='border:1px solid #ccc'>"
    );
    for row in faults {
        let (from, to) = (row.whole.from_us as f64 / 1e6, row.whole.to_us as f64 / 1e6);
        svg += &format!(
            "<rect x='{:.1}' y='0' width='{:.1}' height='{HEIGHT}' fill='{}'><title>{}</title></rect>",
            x(from),
            x(to - from).max(1.0),
            if row.majority { "#fed" } else { "#fbb" },
            escaped(&row.fault)
        );
        let at = x(from) + 3.0;
        svg += &format!(
            "<text x='{at:.1}' y='16' font-size='9' fill='#963' transform='rotate(90 {at:.1} 16)'>{}</text>",
            escaped(&row.fault)
        );
    }
    for (colour, values) in lines {
        let points: Vec<String> = (0..)
            .zip(values)
            .map(|(second, value)| {
                let y = HEIGHT - *value as f64 / most * (HEIGHT - 12.0);
                format!("{:.1},{y:.1}", x(f64::from(second)))
            })
            .collect();
        svg += &format!(
            "<polyline points='{}' fill='none' stroke='{colour}'/>",
            points.join(" ")
        );
    }
    svg + &format!(
        "<text x='4' y='12' font-size='11'>{most}</text>\
         <text x='4' y='{HEIGHT}' dy='-4' font-size='11'>0 s</text>\
         <text x='{WIDTH}' y='{HEIGHT}' dx='-4' dy='-4' font-size='11' text-anchor='end'>{seconds} s</text></svg>"
    )
}

/// The lines about the message that a violation names, with the faults among them.
fn around(history: &[Record], violation: &Violation) -> Result<String> {
    let text = violation.to_string();
    let id = text
        .split_once("message ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .map(|id| format!("\"id\":\"{id}\""));
    let Some(id) = id else {
        return Ok(String::new());
    };
    let mut lines = String::new();
    let mut shown = 0;
    for record in history {
        let line = serde_json::to_string(record)?;
        let is_fault = matches!(
            record.event,
            Event::Fault { .. } | Event::FaultBegins { .. }
        );
        if is_fault || (shown < AROUND && line.contains(&id)) {
            shown += usize::from(!is_fault);
            lines += &line;
            lines.push('\n');
        }
    }
    Ok(lines)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
