//! The lines of `send` and `listen`, for people and as JSON. The JSON fields are a contract with scripts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roost_client::{Answer, Cursor, Delivery, Kind, Receipt, Status};
use serde::Serialize;
use serde_json::{Value, json};

/// What became of one message that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Sent {
    pub(super) id: String,
    pub(super) to: String,
    /// `accepted`, `delivered`, `read`, `expired`, `refused`, or `unknown` when no answer came in time.
    pub(super) status: &'static str,
    pub(super) seq: Option<u64>,
    /// Why it did not come as far as was asked: a code of the protocol, or `TIMED_OUT`.
    pub(super) code: Option<String>,
    pub(super) retryable: bool,
}

/// Time ran out at this end; the protocol has no such code.
pub(super) const TIMED_OUT: &str = "TIMED_OUT";

impl Sent {
    pub(super) fn of(answer: &Answer) -> Self {
        Self {
            id: answer.id.clone(),
            to: answer.to.clone(),
            status: status(answer.status),
            seq: answer.place.map(|place| place.seq),
            code: answer
                .error
                .as_ref()
                .map(|refusal| refusal.code.as_str_name().to_owned()),
            retryable: answer
                .error
                .as_ref()
                .is_some_and(|refusal| refusal.retryable),
        }
    }

    pub(super) fn unknown(id: &str, to: &str, code: &str, retryable: bool) -> Self {
        Self {
            id: id.to_owned(),
            to: to.to_owned(),
            status: "unknown",
            seq: None,
            code: Some(code.to_owned()),
            retryable,
        }
    }

    pub(super) fn line(&self, as_json: bool) -> String {
        if as_json {
            return to_json(self);
        }
        let mut line = format!("{} {}", self.id, self.status);
        if let Some(seq) = self.seq {
            line += &format!(" seq {seq}");
        }
        if let Some(code) = &self.code {
            let again = if self.retryable { ", try again" } else { "" };
            line += &format!(" ({code}{again})");
        }
        line
    }
}

/// One entry of the queue as a line.
pub(super) fn delivery(delivery: &Delivery, as_json: bool) -> String {
    let envelope = &delivery.envelope;
    let text = match envelope.kind() {
        Kind::Data => None,
        _ => std::str::from_utf8(&envelope.body).ok(),
    };
    if !as_json {
        let body = text.map_or_else(|| format!("({} bytes)", envelope.body.len()), printable);
        return format!(
            "{} {}/{}: {body}",
            delivery.seq,
            printable(&envelope.from),
            envelope.device
        );
    }
    let mut fields = json!({
        "seq": delivery.seq,
        "id": envelope.id,
        "from": envelope.from,
        "device": envelope.device,
        "kind": match envelope.kind() {
            Kind::Data => "data",
            Kind::Text | Kind::Unspecified => "text",
        },
        "sent_at_ms": envelope.sent_at_ms,
    });
    match text {
        Some(text) => fields["body"] = text.into(),
        None => fields["body_base64"] = STANDARD.encode(&envelope.body).into(),
    }
    fields.to_string()
}

/// A receipt as a line. In JSON it is told from an entry by its field `receipt`.
pub(super) fn receipt(receipt: &Receipt, as_json: bool) -> String {
    let ranges: Vec<Value> = receipt.expired.iter().map(|(a, b)| json!([a, b])).collect();
    if as_json {
        return json!({
            "receipt": status(receipt.status),
            "peer": receipt.peer,
            "incarnation": receipt.incarnation,
            "up_to_seq": receipt.up_to_seq,
            "expired": ranges,
        })
        .to_string();
    }
    let what = match receipt.status {
        Status::Expired => ranges.iter().map(ToString::to_string).collect(),
        _ => format!("up to {}", receipt.up_to_seq),
    };
    format!(
        "* {} {}: {what}",
        printable(&receipt.peer),
        status(receipt.status)
    )
}

/// A range of the own queue that is no message, for people.
pub(super) fn range(word: &str, first: u64, end: Cursor) -> String {
    match end.seq {
        last if last == first => format!("{word}: {first}"),
        last => format!("{word}: {first} to {last}"),
    }
}

pub(super) fn status(status: Status) -> &'static str {
    match status {
        Status::Accepted => "accepted",
        Status::Delivered => "delivered",
        Status::Read => "read",
        Status::Expired => "expired",
        Status::Refused => "refused",
        Status::Unspecified => "unknown",
    }
}

pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value)
        .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string())
}

/// What others write must not steer the reader's terminal, nor look like another line.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => c,
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}
