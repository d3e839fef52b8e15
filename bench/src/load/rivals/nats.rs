//! NATS' client protocol, as much of it as publishing to JetStream takes.

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::News;

/// One connection.
pub(crate) struct Nats {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    out: Vec<u8>,
    inbox: String,
    line: String,
    payload: Vec<u8>,
}

impl Nats {
    pub(crate) async fn open(server: &str, user: u32) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let mut nats = Self {
            read: BufReader::new(read),
            write,
            out: Vec::new(),
            inbox: format!("_INBOX.{user}"),
            line: String::new(),
            payload: Vec::new(),
        };
        nats.read_line().await?;
        ensure!(nats.line.starts_with("INFO "), "no NATS server there");
        let subscribe = format!("SUB {}.* 1\r\n", nats.inbox);
        nats.out
            .extend_from_slice(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n");
        nats.out.extend_from_slice(subscribe.as_bytes());
        Ok(nats)
    }

    /// A request, and its answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn ask(&mut self, subject: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.message(subject, 0, body);
        loop {
            if let News::Accepted(_) = self.take().await? {
                return Ok(std::mem::take(&mut self.payload));
            }
        }
    }

    pub(super) fn publish(&mut self, slot: usize, to: u32, body: &[u8]) -> Result<()> {
        self.message(&format!("q.{to}"), slot, body);
        Ok(())
    }

    fn message(&mut self, subject: &str, slot: usize, body: &[u8]) {
        let head = format!("PUB {subject} {}.{slot} {}\r\n", self.inbox, body.len());
        self.out.extend_from_slice(head.as_bytes());
        self.out.extend_from_slice(body);
        self.out.extend_from_slice(b"\r\n");
    }

    pub(super) async fn next(&mut self) -> Result<News> {
        let news = self.take().await?;
        if matches!(news, News::Accepted(_)) {
            let refused = self.payload.windows(7).any(|part| part == b"\"error\"");
            let answer = String::from_utf8_lossy(&self.payload);
            ensure!(!refused, "JetStream refused a message: {answer}");
        }
        Ok(news)
    }

    async fn take(&mut self) -> Result<News> {
        // What has come already needs no answer first: one write for all that it makes us send.
        if self.read.buffer().is_empty() && !self.out.is_empty() {
            self.write.write_all(&self.out).await?;
            self.out.clear();
        }
        self.read_line().await?;
        let mut words = self.line.split_ascii_whitespace();
        match words.next() {
            Some("MSG") => {}
            Some("PING") => {
                self.out.extend_from_slice(b"PONG\r\n");
                return Ok(News::Nothing);
            }
            Some("-ERR") => bail!("the server says {}", self.line.trim()),
            _ => return Ok(News::Nothing),
        }
        let subject = words.next().context("a message has a subject")?;
        let slot = subject
            .rsplit('.')
            .next()
            .and_then(|slot| slot.parse().ok());
        let slot = slot.context("the subject ends with the slot")?;
        let bytes: usize = words.next_back().context("a message has a size")?.parse()?;
        self.payload.resize(bytes + 2, 0);
        self.read.read_exact(&mut self.payload).await?;
        self.payload.truncate(bytes);
        Ok(News::Accepted(slot))
    }

    async fn read_line(&mut self) -> Result<()> {
        self.line.clear();
        let bytes = self.read.read_line(&mut self.line).await?;
        ensure!(bytes > 0, "the server closed the connection");
        Ok(())
    }
}
