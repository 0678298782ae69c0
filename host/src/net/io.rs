//! The stream of a connection: cut when its client takes nothing for too long, or has left; closed by its owner alone.
//!
//! Owns the time that a write may stand still, and the look for a client that left behind a body nobody reads: hyper reads only
//! what is asked for, and would not meet the end of the stream behind it. Knows nothing about HTTP except that what hyper writes
//! while no response is under way ([`Phase::is_silent`]) is its own bare answer to a broken head: that is swallowed, and
//! `connection` writes a better one.
//! Invariant: only [`Io::into_inner`] closes the stream, so the owner can still answer when hyper is done.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::idle::Idle;
use super::phase::Phase;
use super::stream::Stream;

/// How often a connection whose request's body waits to be read is asked whether its client is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Io {
    stream: Stream,
    phase: Arc<Phase>,
    idle: Idle,
    look: Idle,
    swallowed: bool,
}

impl Io {
    pub(super) fn new(stream: Stream, phase: Arc<Phase>, write_idle_timeout: Duration) -> Self {
        Self { stream, phase, idle: Idle::new(write_idle_timeout), look: Idle::new(LOOK_INTERVAL), swallowed: false }
    }

    /// The stream, and whether an answer of hyper's was swallowed and is owed.
    pub(super) fn into_inner(self) -> (Stream, bool) {
        (self.stream, self.swallowed)
    }

    /// Whether a write of `len` bytes would be hyper's own answer.
    fn swallow(&mut self, len: usize) -> Option<usize> {
        self.phase.is_silent().then(|| {
            self.swallowed = true;
            len
        })
    }

    /// Whether the client has ended its side while input of its is left unread. Asked now and then: input that waits keeps the
    /// stream readable, so its end is no event of its own.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.phase.leaves_input() {
            self.look.progress();
            return Poll::Pending;
        }
        while self.look.poll_silence(cx).is_ready() {
            self.look.progress();
            let mut asked = [PollFd::new(self.stream.tcp(), PollFlags::RDHUP)];
            let now = Timespec::default();
            if poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.idle.progress();
            return written;
        }
        self.idle.poll_silence(cx).map(|()| {
            let timeout = self.idle.timeout();
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("the client took nothing of its response for {timeout:?}")))
        })
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() && buf.filled().len() > before {
            self.phase.read();
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(len) = self.swallow(buf.len()) {
            return Poll::Ready(Ok(len));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(len) = self.swallow(bufs.iter().map(|buf| buf.len()).sum()) {
            return Poll::Ready(Ok(len));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper asks for this once its buffers are empty, and only then. A TCP stream has nothing to flush, one of TLS may.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Stream::Tls(stream) = &mut self.stream {
            let flushed = Pin::new(stream).poll_flush(cx);
            std::task::ready!(self.watch(cx, flushed))?;
        }
        if self.phase.flushed() {
            cx.waker().wake_by_ref();
        }
        match self.poll_gone(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the client left"))),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    /// Left to the owner.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
