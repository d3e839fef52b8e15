//! MQTT 3.1.1 (OASIS standard, 2014), as much of it as quality of service 1 takes.

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::News;

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
/// With quality of service 1.
const PUBLISH: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const DISCONNECT: u8 = 0xe0;
const CLEAN_SESSION: u8 = 0x02;
const LEVEL_3_1_1: u8 = 4;
const KEEP_ALIVE_S: u16 = 600;

/// One connection.
pub(crate) struct Mqtt {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    out: Vec<u8>,
    packet: Vec<u8>,
}

impl Mqtt {
    pub(super) async fn open(server: &str, user: u32, clean: bool) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let mut mqtt = Self {
            read: BufReader::new(read),
            write,
            out: Vec::new(),
            packet: Vec::new(),
        };
        let mut hello = text("MQTT");
        hello.extend([LEVEL_3_1_1, if clean { CLEAN_SESSION } else { 0 }]);
        hello.extend(KEEP_ALIVE_S.to_be_bytes());
        hello.extend(text(&format!("u{user}")));
        mqtt.put(CONNECT, &[&hello]);
        mqtt.expect(CONNACK).await?;
        ensure!(mqtt.packet.get(1) == Some(&0), "the broker refuses us");
        Ok(mqtt)
    }

    /// Makes a session that stays, with a subscription, and goes.
    pub(super) async fn leave_subscription(server: &str, user: u32) -> Result<()> {
        let mut mqtt = Self::open(server, user, false).await?;
        mqtt.subscribe(user).await?;
        mqtt.put(DISCONNECT, &[]);
        mqtt.flush().await
    }

    pub(super) async fn subscribe(&mut self, user: u32) -> Result<()> {
        let topic = text(&format!("q/{user}"));
        self.put(SUBSCRIBE, &[&1u16.to_be_bytes(), &topic, &[1]]);
        self.expect(SUBACK).await
    }

    /// Packet ids count from 1.
    pub(super) fn publish(&mut self, slot: usize, to: u32, body: &[u8]) -> Result<()> {
        let id = u16::try_from(slot + 1).context("more under way than packet ids")?;
        let topic = text(&format!("q/{to}"));
        self.put(PUBLISH, &[&topic, &id.to_be_bytes(), body]);
        Ok(())
    }

    pub(super) async fn next(&mut self) -> Result<News> {
        if self.read.buffer().is_empty() {
            self.flush().await?;
        }
        let kind = self.read_packet().await?;
        match kind & 0xf0 {
            PUBACK => {
                let id = self.packet.first_chunk().context("an answer without id")?;
                let slot = usize::from(u16::from_be_bytes(*id)).checked_sub(1);
                Ok(News::Accepted(slot.context("packet ids count from 1")?))
            }
            kind if kind == PUBLISH & 0xf0 => self.delivered(),
            _ => Ok(News::Nothing),
        }
    }

    fn delivered(&mut self) -> Result<News> {
        let topic = self
            .packet
            .first_chunk()
            .context("a message without topic")?;
        let at = 2 + usize::from(u16::from_be_bytes(*topic));
        let rest = self.packet.get(at..).context("a message without id")?;
        let (id, body) = rest
            .split_first_chunk::<2>()
            .context("a message without id")?;
        let (id, body) = (*id, body.to_vec());
        self.put(PUBACK, &[&id]);
        Ok(News::Delivered(body))
    }

    async fn expect(&mut self, kind: u8) -> Result<()> {
        self.flush().await?;
        let got = self.read_packet().await?;
        if got & 0xf0 != kind {
            bail!("the broker answered {got:#x} and not {kind:#x}");
        }
        Ok(())
    }

    fn put(&mut self, kind: u8, parts: &[&[u8]]) {
        self.out.push(kind);
        let mut length: usize = parts.iter().map(|part| part.len()).sum();
        loop {
            let more = if length > 127 { 0x80 } else { 0 };
            self.out.push((length & 127) as u8 | more);
            length >>= 7;
            if length == 0 {
                break;
            }
        }
        parts
            .iter()
            .for_each(|part| self.out.extend_from_slice(part));
    }

    async fn flush(&mut self) -> Result<()> {
        self.write.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    async fn read_packet(&mut self) -> Result<u8> {
        let kind = self.read.read_u8().await?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.read.read_u8().await?;
            length |= usize::from(byte & 127) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            ensure!(shift < 28, "a packet without end");
        }
        self.packet.resize(length, 0);
        self.read.read_exact(&mut self.packet).await?;
        Ok(kind)
    }
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("our names are short");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}
