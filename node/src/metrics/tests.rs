use ::metrics::Unit;

use super::list::ALL;
use super::*;
use crate::types::ShardId;

const MODULES: &[&str] = &[
    "session", "shard", "replica", "raft", "storage", "router", "peer", "node", "config",
];

/// What a name may end in, before `_total`.
const UNITS: &[&str] = &[
    "seconds",
    "bytes",
    "entries",
    "sessions",
    "sends",
    "frames",
    "rows",
    "ids",
    "chains",
    "marks",
    "reads",
    "receipts",
    "proposals",
    "commands",
    "attachments",
    "watches",
    "devices",
    "signals",
    "replicas",
    "renewals",
    "restarts",
    "code",
    "term",
    "elections",
    "snapshots",
    "appends",
    "ranges",
    "pumps",
    "retries",
    "callbacks",
    "syncs",
    "stalls",
    "ratio",
    "forwards",
    "links",
    "redials",
    "calls",
    "grants",
    "replies",
    "messages",
    "flag",
    "limit",
];

/// Every name follows the rule, is described, and is there once.
#[test]
fn names_follow_the_rule() {
    let mut names: Vec<&str> = ALL.iter().map(|(_, metric)| metric.name).collect();
    for (
        kind,
        Definition {
            name,
            help,
            buckets,
            ..
        },
    ) in ALL
    {
        let rest = name.strip_suffix("_total");
        assert_eq!(
            rest.is_some(),
            *kind == "Counter",
            "{name}: counters end in _total"
        );
        let words: Vec<&str> = rest.unwrap_or(name).split('_').collect();
        assert_eq!(words[0], "roost", "{name}");
        assert!(MODULES.contains(&words[1]), "{name}: unknown module");
        assert!(
            words.len() > 2 && UNITS.contains(&words[words.len() - 1]),
            "{name}: unknown unit"
        );
        assert!(help.len() > 20 && help.ends_with('.'), "{name}: {help}");
        assert_eq!(
            !buckets.is_empty(),
            *kind == "Histogram",
            "{name}: histograms have buckets"
        );
        assert!(buckets.is_sorted(), "{name}");
    }
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count, "a name stands twice");
}

/// Units agree with names.
#[test]
fn units_are_base_units() {
    for (_, Definition { name, unit, .. }) in ALL {
        let named = name.trim_end_matches("_total");
        assert_eq!(
            named.ends_with("_seconds"),
            *unit == Unit::Seconds,
            "{name}"
        );
        assert_eq!(named.ends_with("_bytes"), *unit == Unit::Bytes, "{name}");
    }
}

/// OPERATIONS names every metric and no other, with the list's own words.
#[test]
fn the_documentation_has_the_list() {
    let text = include_str!("../../../docs/OPERATIONS.md");
    let (_, chapter) = text
        .split_once("\n## Metrics\n")
        .expect("it has such a chapter");
    let rows = chapter.lines().filter(|line| line.starts_with("| `roost_"));
    let mut rows: Vec<String> = rows.map(str::to_owned).collect();
    let row = |(kind, metric): &(&str, Definition)| {
        let Definition { name, help, .. } = metric;
        let kind = kind.to_lowercase();
        let label = metric.label.map(|label| format!("`{label}`"));
        let label = label.unwrap_or_default();
        format!("| `{name}` | {kind} | {label} | {help} |")
    };
    let mut wanted: Vec<String> = ALL.iter().map(row).collect();
    rows.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(rows, wanted);
}

/// What is recorded is rendered, with its description and as a real histogram.
#[test]
fn recorded_is_rendered() {
    let recorder = builder().expect("buckets are valid").build_recorder();
    ::metrics::with_local_recorder(&recorder, || {
        describe(&recorder);
        ACCEPT_LATENCY.handle().record(0.003);
        QUEUE_ENTRIES.of(ShardId(3)).set(7.0);
        RAFT_TERM.of(ShardId::META).set(2.0);
        REFUSED_SENDS.of("QUEUE_FULL").increment(1);
        set_bounds(&Config::default());
    });
    let text = recorder.handle().render();
    for line in [
        "# TYPE roost_session_accept_latency_seconds histogram",
        "roost_session_accept_latency_seconds_bucket{le=\"0.005\"} 1",
        "roost_shard_queue_entries{shard=\"3\"} 7",
        "roost_raft_current_term{shard=\"meta\"} 2",
        "roost_session_refused_sends_total{code=\"QUEUE_FULL\"} 1",
        "roost_config_bound_limit{bound=\"session.in_flight_max\"} 1024",
    ] {
        assert!(text.contains(line), "{line} is not in:\n{text}");
    }
    assert!(
        text.contains("# HELP roost_shard_queue_entries Entries in all queues"),
        "{text}"
    );
}
