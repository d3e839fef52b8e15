//! Connections through the relay, each with its two ends known, and how bytes pass in each of their directions.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::flip::Seen;
use super::rules::Rules;

/// Bytes read at once, and such pieces under way in one direction of a connection; beyond it its sender waits.
const PIECE_BYTES: usize = 16 << 10;
const PIECES_MAX: usize = 128;
/// How soon it is noticed that nobody waits any more for a connection through a cut.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// All connections.
#[derive(Debug)]
pub(super) struct Passage {
    rules: watch::Receiver<Rules>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// Dropped to end the connection.
    ends: BTreeMap<u64, ([u16; 2], oneshot::Sender<()>)>,
}

impl Passage {
    pub(super) fn new(rules: watch::Receiver<Rules>) -> Self {
        Self {
            rules,
            open: Mutex::default(),
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn reset(&self, k: u16) -> usize {
        let mut open = self.open();
        let before = open.ends.len();
        open.ends.retain(|_, (ends, _)| !ends.contains(&k));
        before - open.ends.len()
    }

    /// Carries a connection that somebody has made to the relay on to where it leads, once the link is whole.
    pub(super) async fn bring(&self, from: u16, to: u16, stream: TcpStream, target: SocketAddr) {
        let mut rules = self.rules.clone();
        let whole = rules.wait_for(|rules| !rules.is_cut(from, to));
        tokio::select! {
            whole = whole => if whole.is_err() { return },
            () = abandoned(&stream) => return,
        }
        match TcpStream::connect(target).await {
            Ok(onward) => self.carry(from, to, stream, onward).await,
            // Nobody listens there: whoever came learns it as he would have without us.
            Err(_) => abort(&stream),
        }
    }

    /// Until both sides have ended, or one of them breaks.
    pub(super) async fn carry(&self, from: u16, to: u16, near: TcpStream, far: TcpStream) {
        // Without it small writes would wait for each other; a socket that refuses it has died.
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (number, ended) = self.enter(from, to);
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let there = Way::new(from, to, self.rules.clone()).pass(&mut near_in, &mut far_out);
        let back = Way::new(to, from, self.rules.clone()).pass(&mut far_in, &mut near_out);
        let in_peace = tokio::select! {
            both = async { futures::try_join!(there, back) } => both.is_ok(),
            _ = ended => false,
        };
        if !in_peace {
            abort(near_in.as_ref());
            abort(far_in.as_ref());
            // Dropped, they would first say goodbye in peace.
            near_out.forget();
            far_out.forget();
        }
        self.open().ends.remove(&number);
    }

    fn enter(&self, from: u16, to: u16) -> (u64, oneshot::Receiver<()>) {
        let (end, ended) = oneshot::channel();
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        open.ends.insert(number, ([from, to], end));
        (number, ended)
    }
}

/// Closed with a reset when it is dropped.
fn abort(stream: &TcpStream) {
    // A socket that refuses it has died already.
    let _ = stream.set_zero_linger();
}

/// Until the other side has closed it.
async fn abandoned(stream: &TcpStream) {
    loop {
        sleep(LOOK_INTERVAL).await;
        let look = stream.ready(Interest::READABLE);
        let closed = tokio::time::timeout(Duration::ZERO, look).await;
        if closed.is_ok_and(|ready| ready.map_or(true, |ready| ready.is_read_closed())) {
            return;
        }
    }
}

/// One direction of one connection.
struct Way {
    from: u16,
    to: u16,
    rules: watch::Receiver<Rules>,
}

impl Way {
    fn new(from: u16, to: u16, rules: watch::Receiver<Rules>) -> Self {
        Self { from, to, rules }
    }

    /// Until the sender has closed and everything has arrived. What is read is let go when its time has come, in order.
    fn pass<'a>(
        mut self,
        input: &'a mut OwnedReadHalf,
        output: &'a mut OwnedWriteHalf,
    ) -> impl Future<Output = io::Result<()>> + 'a {
        let rules = self.rules.clone();
        let to = self.to;
        let (due, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
        let read = async move {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let bytes = input.read(&mut piece).await?;
                if bytes == 0 {
                    return io::Result::Ok(());
                }
                piece.truncate(bytes);
                let at = Instant::now() + rules.borrow().lateness(to);
                if due.send((at, piece)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let write = async move {
            let mut seen = Seen::default();
            while let Some((at, mut piece)) = arriving.recv().await {
                sleep_until(at).await;
                self.wait_whole().await?;
                let narrow = self.rules.borrow().narrow(self.to);
                if let Some(narrow) = narrow {
                    sleep_until(narrow.take(piece.len())).await;
                    self.wait_whole().await?;
                }
                if let Some(bits) = self.rules.borrow().flips.get(&self.to) {
                    seen.pass(&mut piece, bits);
                } else {
                    seen.look(&piece);
                }
                output.write_all(&piece).await?;
            }
            self.wait_whole().await?;
            output.shutdown().await
        };
        async { futures::try_join!(read, write).map(drop) }
    }

    async fn wait_whole(&mut self) -> io::Result<()> {
        let (from, to) = (self.from, self.to);
        let whole = self.rules.wait_for(|rules| !rules.is_cut(from, to)).await;
        whole.map(drop).map_err(io::Error::other)
    }
}
