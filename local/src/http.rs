//! The smallest HTTP client that can ask a node for `/readyz` or `/metrics`.
//!
//! One request, one connection, HTTP/1.0, so that the answer is never chunked and ends with the connection
//! (RFC 1945). It never follows a redirect and never speaks TLS.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest answer that is read; a node's metrics take a fraction of it.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// A node's answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code: 200 is yes.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Asks `address` for `path`; the whole exchange takes `limit` at most.
pub(crate) async fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<Answer> {
    timeout(limit, exchange(address, path))
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer in {limit:?}"),
            ))
        })
}

async fn exchange(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{address} does not speak HTTP"),
        )
    })
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut status_line = head.lines().next()?.split(' ');
    let version = status_line.next()?;
    let status = status_line.next()?.parse().ok()?;
    version.starts_with("HTTP/1.").then(|| Answer {
        status,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer =
            parse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nno leader");
        assert_eq!(
            answer,
            Some(Answer {
                status: 503,
                body: "no leader".into()
            })
        );
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert_eq!(parse(""), None);
        assert_eq!(parse("HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse("SSH-2.0-OpenSSH_9.2\r\n\r\n"), None);
    }
}
