//! The connections of a node's host, in the order in which they were made.
//!
//! # Promises
//!
//! When the host is killed they are closed in that order, as a kernel closes the descriptors of a process. Left to tokio it would be
//! the order in which it drops the tasks that own them, which hangs on how many tasks the whole process has begun before; and each
//! end that is sent draws from the network's chance.
//!
//! # Does not know
//!
//! What the connections are for. A connection that is still being made, and one that nobody has accepted, sends nothing when it goes.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

type Shared = Arc<Mutex<Option<TcpStream>>>;

#[derive(Default)]
struct All {
    open: BTreeMap<u64, Shared>,
    made: u64,
    killed: bool,
}

/// All of one host. Clones are the same.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Mutex<All>>);

impl Sockets {
    /// The host starts, and has none.
    pub fn start(&self) {
        *self.lock() = All::default();
    }

    /// The host is about to be killed: the first one that goes takes all with it.
    pub fn kill(&self) {
        self.lock().killed = true;
    }

    /// A connection that was just made.
    pub fn own(&self, stream: TcpStream) -> Socket {
        let stream = Arc::new(Mutex::new(Some(stream)));
        let mut all = self.lock();
        all.made += 1;
        let number = all.made;
        all.open.insert(number, stream.clone());
        Socket { number, stream, of: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().expect("nothing panics while it holds the connections")
    }
}

/// One connection.
pub struct Socket {
    number: u64,
    stream: Shared,
    of: Sockets,
}

impl Socket {
    fn with<R>(&self, what: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        match &mut *self.stream.lock().expect("nothing panics while it holds a connection") {
            Some(stream) => what(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let gone = {
            let all = &mut *self.of.lock();
            if all.killed { std::mem::take(&mut all.open) } else { all.open.remove_entry(&self.number).into_iter().collect() }
        };
        for stream in gone.into_values() {
            stream.lock().expect("nothing panics while it holds a connection").take();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, buf))
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}
