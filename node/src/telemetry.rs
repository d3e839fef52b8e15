//! Events of the node, as text or JSON lines on standard error.
//!
//! Levels: error needs a human, warn is degraded, info is lifecycle, debug is traffic. Never in an event, at any level:
//! a message body, a key or token, a phone number (so no user id, and no message id, which clients choose). Say shard,
//! node, replica, device number or link instead. Types that hold a secret have no `Display` and a redacted `Debug`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::{Log, LogFormat};

/// Why events cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is none.
    #[error("config: log.filter is not a filter like \"info,roost::peer=debug\": {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Another subscriber was there first.
    #[error("events of this process go elsewhere already: {0}")]
    Taken(#[from] TryInitError),
}

/// Sends all events of this process to standard error from now on. Call it once, first of all.
///
/// # Errors
/// [`Error::Filter`] for a config error, [`Error::Taken`] the second time.
pub fn init(log: &Log) -> Result<(), Error> {
    Ok(subscriber(log, std::io::stderr)?.try_init()?)
}

fn subscriber<W>(log: &Log, writer: W) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&log.filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    Ok(match log.format {
        LogFormat::Text => Box::new(builder.with_ansi(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(filter: &str, format: LogFormat) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let log = Log {
            filter: filter.to_owned(),
            format,
        };
        let subscriber = subscriber(&log, move || writer.clone()).expect("a filter");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(shard = 3, "leader elected");
            tracing::debug!("traffic");
        });
        let bytes = buffer.0.lock().clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn text_and_json_hold_the_same_event() {
        let text = written("info", LogFormat::Text);
        assert!(
            text.contains("leader elected") && text.contains("shard=3"),
            "{text}"
        );
        let json: serde_json::Value =
            serde_json::from_str(&written("info", LogFormat::Json)).expect("one object");
        assert_eq!(json["message"], "leader elected");
        assert_eq!(json["shard"], 3);
    }

    #[test]
    fn the_filter_decides() {
        assert!(!written("info", LogFormat::Text).contains("traffic"));
        assert!(written("debug", LogFormat::Text).contains("traffic"));
        let log = Log {
            filter: "a=b=c".to_owned(),
            ..Log::default()
        };
        assert!(matches!(init(&log), Err(Error::Filter(_))));
    }
}
