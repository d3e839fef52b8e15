//! The surface that people script against: arguments, exit codes, JSON fields.

use bytes::Bytes;
use clap::Parser as _;
use roost_client::{
    AdminError, Code, Cursor, Delivery, Envelope, Error, Kind, Receipt, Refusal, Status, Trouble,
};
use roost_proto::admin;
use serde_json::{Value, json};

use super::Cli;
use super::exit::{Exit, Failure};
use super::format::{self, Sent, TIMED_OUT};
use super::server::Who;

fn refusal(code: Code) -> Refusal {
    Refusal {
        code,
        message: String::new(),
        retryable: false,
        retry_after: None,
    }
}

#[test]
fn the_surface_parses() {
    for line in [
        "roost node --config f --set a.b=1 --set c=2 --dump-config",
        "roost dev",
        "roost dev --nodes 1 --shards 8 --data-dir d --fresh --base-port 8400 --respawn",
        "roost account add +4915112345678 --device phone --admin-token f",
        "roost account list --server http://h:1,http://h:2",
        "roost account remove +4915112345678",
        "roost account remove +4915112345678 --device phone",
        "roost send --as +4915112345678/phone --to billing hello",
        "roost send --as billing --to news --id x --ttl 30d --until delivered --timeout 1m --json",
        "roost --credentials d listen --as billing --count 3 --timeout 10s --no-ack --json",
        "roost listen --as billing/a --read --receipts",
        "roost chat --as billing +4915112345678",
        "roost status --json --admin-token f",
        "roost completions bash",
    ] {
        let parsed = Cli::try_parse_from(line.split(' '));
        assert!(
            parsed.is_ok(),
            "{line}: {}",
            parsed.expect_err("not parsed")
        );
    }
}

#[test]
fn nonsense_is_refused() {
    for line in [
        "roost",
        "roost fly",
        "roost dev --shards 3",
        "roost dev --nodes 0",
        "roost send --as 12 --to billing x",
        "roost send --as billing --to Bob x",
        "roost send --as billing --to news --until soon x",
        "roost send --as billing --to news --ttl long x",
        "roost listen --as billing --count 0",
        "roost listen --as billing --no-ack --read",
        "roost listen",
    ] {
        let parsed = Cli::try_parse_from(line.split(' '));
        let error = parsed.expect_err(line);
        assert!(error.use_stderr() || line == "roost", "{line}");
    }
}

#[test]
fn a_device_may_be_named() {
    let who = |text: &str| text.parse::<Who>();
    let device = |text: &str| who(text).map(|who| who.device);
    assert_eq!(device("billing"), Ok(None));
    assert_eq!(device("billing/a"), Ok(Some("a".to_owned())));
    assert!(who("billing/").is_err());
    assert!(who("/a").is_err());
}

#[test]
fn every_failure_has_its_exit_code() {
    let client = |error: Error| Failure::from(error).exit().code();
    assert_eq!(
        client(Error::Unauthenticated(refusal(Code::Unauthenticated))),
        77
    );
    assert_eq!(client(Error::Displaced), 1);
    assert_eq!(client(Error::Refused(refusal(Code::NotFound))), 1);
    assert_eq!(client(Error::Refused(refusal(Code::Internal))), 2);
    assert_eq!(client(Error::Unreachable(String::new())), 69);
    assert_eq!(client(Error::Invalid(String::new())), 64);
    assert_eq!(client(Error::Closed), 2);
    let admin = |error: AdminError| Failure::from(error).exit().code();
    assert_eq!(admin(AdminError::Unauthenticated(String::new())), 77);
    assert_eq!(admin(AdminError::Refused(String::new())), 1);
    assert_eq!(admin(AdminError::Unavailable(String::new())), 69);
    let late = |trouble: Option<&Trouble>| Failure::timed_out("late", trouble).exit();
    assert_eq!(late(None), Exit::TimedOut);
    assert_eq!(
        late(Some(&Trouble::Refused(refusal(Code::Overloaded)))),
        Exit::TimedOut
    );
    assert_eq!(
        late(Some(&Trouble::Refused(refusal(Code::Unavailable)))),
        Exit::Unavailable
    );
    assert_eq!(
        late(Some(&Trouble::Disconnected(String::new()))),
        Exit::Unavailable
    );
    assert_eq!(
        (Exit::Done.code(), Exit::TimedOut.code(), Exit::Usage.code()),
        (0, 4, 64)
    );
}

#[test]
fn an_error_is_one_line() {
    let failure = Failure::usage("first\n  second\n");
    assert_eq!(failure.to_string(), "first second");
    for (line, told) in [
        ("roost send --as billing", "not provided: --to <PHONE>"),
        (
            "roost send --as billing --to news --untli read x",
            "'--until'",
        ),
        (
            "roost account add billing --device .x",
            "begins with no dot",
        ),
    ] {
        let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
        let failure = Failure::usage(super::what_is_wrong(&error)).to_string();
        assert!(failure.contains(told), "{failure}");
        assert!(failure.ends_with("; see --help"), "{failure}");
        assert!(!failure.contains("Usage:"), "{failure}");
    }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).expect("JSON")
}

#[test]
fn a_sent_message_as_json() {
    let sent = Sent::unknown("a", "bob", TIMED_OUT, true);
    let expected = json!({
        "id": "a", "to": "bob", "status": "unknown", "seq": null, "code": "TIMED_OUT", "retryable": true,
    });
    assert_eq!(parse(&sent.line(true)), expected);
    assert_eq!(sent.line(false), "a unknown (TIMED_OUT, try again)");
}

fn delivery(kind: Kind, body: &'static [u8]) -> Delivery {
    Delivery {
        incarnation: 1,
        seq: 7,
        envelope: Envelope {
            id: "a".to_owned(),
            from: "bob".to_owned(),
            device: 2,
            kind: kind as i32,
            body: Bytes::from_static(body),
            sent_at_ms: 5,
        },
    }
}

#[test]
fn an_entry_as_json() {
    let line = |kind, body| parse(&format::delivery(&delivery(kind, body), true));
    let expected = json!({
        "seq": 7, "id": "a", "from": "bob", "device": 2, "kind": "text", "body": "hé", "sent_at_ms": 5,
    });
    assert_eq!(line(Kind::Text, "hé".as_bytes()), expected);
    let expected = json!({
        "seq": 7, "id": "a", "from": "bob", "device": 2, "kind": "data", "body_base64": "/w==", "sent_at_ms": 5,
    });
    assert_eq!(line(Kind::Data, b"\xff"), expected);
    assert_eq!(line(Kind::Text, b"\xff")["body_base64"], "/w==");
}

/// A body must not forge a line or steer the terminal.
#[test]
fn an_entry_for_people_is_one_harmless_line() {
    let line = format::delivery(&delivery(Kind::Text, b"a\n8 carol/1: b\x1b[2J"), false);
    assert!(!line.contains('\n') && !line.contains('\x1b'), "{line}");
}

#[test]
fn a_receipt_as_json() {
    let receipt = Receipt {
        revision: 9,
        peer: "bob".to_owned(),
        status: Status::Expired,
        incarnation: 1,
        up_to_seq: 0,
        expired: vec![(2, 3)],
    };
    let expected = json!({
        "receipt": "expired", "peer": "bob", "incarnation": 1, "up_to_seq": 0, "expired": [[2, 3]],
    });
    assert_eq!(parse(&format::receipt(&receipt, true)), expected);
    let one = Cursor {
        incarnation: 1,
        seq: 4,
    };
    assert_eq!(format::range("expired", 4, one), "expired: 4");
}

#[test]
fn the_status_as_json() {
    let status = admin::StatusResponse {
        cluster_id: "c".to_owned(),
        epoch: 3,
        nodes: vec![admin::Node {
            id: "n1".to_owned(),
            name: "node-1".to_owned(),
            address: "h:1".to_owned(),
            ready: true,
            feature_level_min: 1,
            feature_level: 2,
        }],
        shards: vec![admin::Shard {
            id: 0,
            leader: String::new(),
            term: 4,
            replicas: vec![admin::Replica {
                node: "n1".to_owned(),
                role: "follower".to_owned(),
                lag_entries: 5,
                replica: 1,
                snapshot_bytes: None,
            }],
        }],
        queues: None,
        warnings: vec!["for people".to_owned()],
    };
    let expected = json!({
        "cluster_id": "c",
        "epoch": 3,
        "nodes": [{
            "id": "n1", "name": "node-1", "address": "h:1", "ready": true,
            "version": { "feature_level_min": 1, "feature_level": 2 },
        }],
        "shards": [{
            "id": 0, "leader": null, "term": 4,
            "replicas": [{ "node": "n1", "role": "follower", "lag_entries": 5 }],
        }],
        "queues": { "entries": 0, "bytes": 0, "oldest_ms": 0 },
    });
    assert_eq!(super::status::to_json(&status), expected);
}
