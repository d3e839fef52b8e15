//! Probe packets: what really arrives on a link, how late, and in which order.
//!
//! Each packet carries its number and the time at which it was sent by the clock of this process, which both ends
//! share. Only one probe runs at a time on a receiving host.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The least that a packet holds: mark, number, time.
pub const PACKET_BYTES: usize = 24;
const PACKET_BYTES_MAX: usize = 1400;
/// Packets sent at once, so that none is lost for want of room at the socket.
const BURST: u64 = 50;
const PAUSE: Duration = Duration::from_millis(1);
/// For a narrow stream to take all probes.
const SENDING_MAX: Duration = Duration::from_secs(1);
/// Probes that are so few are sent one by one, so that each goes through a stream as a piece of its own.
const FEW: usize = 100;

/// What arrived of a probe, in the order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// How many were sent.
    pub sent: usize,
    /// Number and time on the way of each that arrived.
    pub packets: Vec<(u64, Duration)>,
}

impl Arrivals {
    /// Whether none came.
    #[must_use]
    pub fn none(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether all came.
    #[must_use]
    pub fn all(&self) -> bool {
        self.packets.len() == self.sent
    }

    /// Share that did not come, in percent.
    #[must_use]
    pub fn lost_percent(&self) -> f64 {
        100.0 * (self.sent - self.packets.len()) as f64 / self.sent.max(1) as f64
    }

    /// The shortest time on the way.
    #[must_use]
    pub fn fastest(&self) -> Option<Duration> {
        self.packets.iter().map(|(_, took)| *took).min()
    }

    /// The longest time on the way.
    #[must_use]
    pub fn slowest(&self) -> Option<Duration> {
        self.packets.iter().map(|(_, took)| *took).max()
    }

    /// How many came after one that was sent later.
    #[must_use]
    pub fn overtaken(&self) -> usize {
        let mut latest = 0;
        let mut overtaken = 0;
        for (number, _) in &self.packets {
            overtaken += usize::from(*number < latest);
            latest = latest.max(*number);
        }
        overtaken
    }
}

/// Sends packets of so many bytes from one socket to the other and waits until all are there, or `patience` after the last is over.
///
/// # Errors
/// When they cannot be sent.
pub async fn send(
    from: &UdpSocket,
    to: &UdpSocket,
    packets: usize,
    bytes: usize,
    patience: Duration,
) -> Result<Arrivals> {
    check(bytes)?;
    let start = Instant::now();
    // Drawn for each probe: what an earlier one left on its way is told apart.
    let mark = rand::random::<u64>();
    let target = to.local_addr().context("the probe's own address")?;
    let mut buffer = [0; PACKET_BYTES_MAX];
    while to.try_recv(&mut buffer).is_ok() {}
    let mut arrivals = Arrivals {
        sent: packets,
        ..Arrivals::default()
    };
    for number in 0..packets as u64 {
        let packet = packet(mark, number, start, bytes);
        from.send_to(&packet, target)
            .await
            .context("sending a probe")?;
        if number % BURST == BURST - 1 {
            sleep(PAUSE).await;
        }
        while to.try_recv(&mut buffer).is_ok_and(|got| got == bytes) {
            note(&mut arrivals, &buffer, mark, start);
        }
    }
    let deadline = Instant::now() + patience;
    while !arrivals.all() {
        match timeout_at(deadline, to.recv(&mut buffer)).await {
            Ok(received) => {
                if received.context("receiving a probe")? == bytes {
                    note(&mut arrivals, &buffer, mark, start);
                }
            }
            Err(_) => break,
        }
    }
    Ok(arrivals)
}

/// As [`send`], over a connection of its own, whose bytes are the packets.
///
/// # Errors
/// When it breaks.
pub async fn stream(
    from: &mut TcpStream,
    to: &mut TcpStream,
    packets: usize,
    bytes: usize,
    patience: Duration,
) -> Result<Arrivals> {
    check(bytes)?;
    let start = Instant::now();
    let mark = rand::random::<u64>();
    let mut arrivals = Arrivals {
        sent: packets,
        ..Arrivals::default()
    };
    let sending = async {
        for number in 0..packets as u64 {
            let packet = packet(mark, number, start, bytes);
            from.write_all(&packet).await.context("sending a probe")?;
            if packets <= FEW || number % BURST == BURST - 1 {
                sleep(PAUSE).await;
            }
        }
        // What finds no room at all is still under way when the patience ends.
        anyhow::Ok(Instant::now() + patience)
    };
    let receiving = async {
        let mut buffer = [0; PACKET_BYTES_MAX];
        while !arrivals.all() {
            let read = to.read_exact(&mut buffer[..bytes]).await;
            read.context("receiving a probe")?;
            note(&mut arrivals, &buffer, mark, start);
        }
        anyhow::Ok(())
    };
    let in_time = async {
        let sent = timeout(patience + SENDING_MAX, sending).await;
        // Else the link takes nothing more.
        if let Ok(deadline) = sent {
            tokio::time::sleep_until(deadline?).await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        biased;
        received = receiving => received?,
        waited = in_time => waited?,
    }
    Ok(arrivals)
}

fn check(bytes: usize) -> Result<()> {
    ensure!(
        (PACKET_BYTES..=PACKET_BYTES_MAX).contains(&bytes),
        "a probe packet has {PACKET_BYTES} to {PACKET_BYTES_MAX} bytes"
    );
    Ok(())
}

fn packet(mark: u64, number: u64, start: Instant, bytes: usize) -> Vec<u8> {
    let sent_us = start.elapsed().as_micros() as u64;
    let words = [mark, number, sent_us].into_iter();
    let mut packet: Vec<u8> = words.flat_map(u64::to_be_bytes).collect();
    packet.resize(bytes, 0);
    packet
}

fn note(arrivals: &mut Arrivals, packet: &[u8; PACKET_BYTES_MAX], mark: u64, start: Instant) {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&packet[at..at + 8]);
        u64::from_be_bytes(bytes)
    };
    if word(0) == mark {
        let now_us = start.elapsed().as_micros() as u64;
        let took = Duration::from_micros(now_us.saturating_sub(word(16)));
        arrivals.packets.push((word(8), took));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn what_is_sent_arrives_and_is_counted() {
        let from = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let arrivals = send(&from, &to, 20, PACKET_BYTES, Duration::from_secs(5))
            .await
            .unwrap();
        assert!(arrivals.all() && !arrivals.none());
        assert!(arrivals.fastest() <= arrivals.slowest());
    }

    #[test]
    fn an_overtaken_packet_is_counted() {
        let packets = [1, 3, 2, 4].map(|number| (number, Duration::ZERO)).to_vec();
        let arrivals = Arrivals { sent: 8, packets };
        assert_eq!(arrivals.overtaken(), 1);
        assert!((arrivals.lost_percent() - 50.0).abs() < f64::EPSILON);
    }
}
