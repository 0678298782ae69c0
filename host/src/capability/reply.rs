//! The reply: where a guest puts the head of its response, and whoever sends it looks.
//!
//! Owns the hand-over between a running guest and the sender of its response. Invariant: a guest that was ended after its head
//! was taken is marked before its sender's channel closes, so a cut response never looks like a whole one; nor does a large one
//! whose time is over.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::fault::{Code, Fault};
use crate::invocation::{BodyError, Payload};

/// Pieces of a response body that wait between guest and client. With at most 64 KiB each, and what is read before the head leaves
/// (`engine/opening.rs`), that is what one response holds in the daemon's memory.
pub const PIECES: usize = 4;
/// Largest piece, in bytes.
pub const PIECE_LEN_MAX: usize = 64 << 10;

/// One response on its way out of a guest.
#[derive(Debug, Default)]
pub struct Reply {
    head: Mutex<Option<Result<Response<Payload>, Fault>>>,
    was_put: AtomicBool,
    instantiated: OnceLock<Instant>,
    entered: OnceLock<Instant>,
    cut: OnceLock<Code>,
}

impl Reply {
    fn head(&self) -> MutexGuard<'_, Option<Result<Response<Payload>, Fault>>> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the head of the response there, or a fault in its place; a head that cannot be one is such a fault. The first counts.
    pub fn put(&self, head: Result<Response<Payload>, Fault>) {
        if !self.was_put.swap(true, Ordering::Relaxed) {
            *self.head() = Some(head.and_then(sound));
        }
    }

    /// Puts the fault there that a request body's early end means: what the guest makes of a body that is too large or broken off must not
    /// hide that it was.
    pub fn put_body_fault(&self, error: &BodyError) {
        match error {
            BodyError::TooLarge { limit } => {
                let detail = format!("the request body is larger than the function's limit of {limit} bytes");
                let fault = Fault::executed(Code::BodyTooLarge, detail);
                self.put(Err(fault.hint("raise 'request_body' in [limits] of hob.toml")));
            }
            BodyError::Idle => self.put(Err(Fault::executed(Code::ClientTimeout, "the client stopped sending the request body"))),
            // Whoever sent half of it may wait for an answer still.
            BodyError::Disconnected => {
                let detail = "the request body ended before its announced length, or is malformed";
                self.put(Err(Fault::executed(Code::BadRequest, detail)));
            }
            // That is of responses.
            BodyError::Cut(_) => {}
        }
    }

    /// Whether a head was ever put there.
    #[must_use]
    pub fn was_put(&self) -> bool {
        self.was_put.load(Ordering::Relaxed)
    }

    /// Takes what was put. Looked at after each slice of the guest, so it needs no waker.
    pub fn take(&self) -> Option<Result<Response<Payload>, Fault>> {
        self.head().take()
    }

    /// Notes that the instance is live: what comes after is its own running time.
    pub fn mark_instantiated(&self) {
        // The first time counts.
        let _first = self.instantiated.set(Instant::now());
    }

    /// When the instance was live.
    #[must_use]
    pub fn instantiated(&self) -> Option<Instant> {
        self.instantiated.get().copied()
    }

    /// Notes that the guest made its first host call.
    pub fn mark_entered(&self) {
        // The first time counts.
        let _first = self.entered.set(Instant::now());
    }

    /// When the guest made its first host call, if it is of a kind that is watched.
    #[must_use]
    pub fn entered(&self) -> Option<Instant> {
        self.entered.get().copied()
    }

    /// Says that the rest of the response will not come, and why. Must be called before the guest's store is dropped.
    pub fn cut(&self, code: Code) {
        // The first reason counts.
        let _first = self.cut.set(code);
    }

    /// Why the response was cut, if it was.
    #[must_use]
    pub fn cut_code(&self) -> Option<Code> {
        self.cut.get().copied()
    }
}

/// Refuses a head that HTTP cannot carry: the connection would end, and the client see no answer at all.
fn sound(response: Response<Payload>) -> Result<Response<Payload>, Fault> {
    let status = response.status();
    if status.is_informational() {
        let detail = format!("the function answered {}, which is no final status", status.as_u16());
        return Err(Fault::executed(Code::GuestBadResponse, detail).hint("answer with a status from 200 to 999"));
    }
    let mut lens = response.headers().get_all(CONTENT_LENGTH).iter().map(|value| {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|text| text.parse::<u64>().ok())
    });
    match (lens.next(), lens.next()) {
        (None | Some(Some(_)), None) => Ok(response),
        _ => Err(Fault::executed(Code::GuestBadResponse, "the function's content-length is not one number of bytes")
            .hint("leave content-length out: Hob sets it")),
    }
}

/// The receiving end of a streamed response body. Ends with [`BodyError::Cut`] if the guest was cut.
pub struct GuestBody<B> {
    pieces: B,
    reply: Arc<Reply>,
}

impl<B> std::fmt::Debug for GuestBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestBody").field("reply", &self.reply).finish_non_exhaustive()
    }
}

impl<B> GuestBody<B> {
    /// `pieces` is what the guest sends; its end is the body's end unless `reply` was cut.
    pub fn new(pieces: B, reply: Arc<Reply>) -> Self {
        Self { pieces, reply }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for GuestBody<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.pieces).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(_)) => Some(Err(BodyError::Cut(this.reply.cut_code().unwrap_or(Code::GuestBadResponse)))),
            None => this.reply.cut_code().map(|code| Err(BodyError::Cut(code))),
        })
    }

    fn is_end_stream(&self) -> bool {
        // Only a look at the end can tell whether the guest was cut.
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.pieces.size_hint()
    }
}

/// A channel of pieces as a body.
#[derive(Debug)]
pub struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A streamed body and the end to write it to; `reply` tells whether it was cut.
#[must_use]
pub fn stream(reply: Arc<Reply>) -> (mpsc::Sender<Bytes>, Payload) {
    let (sender, receiver) = mpsc::channel(PIECES);
    (sender, Payload::Stream(Box::pin(GuestBody::new(Pieces(receiver), reply))))
}

/// Whether a body is so large that a slow client could hold much of the node's memory with it: more than a piece of a stream.
#[must_use]
pub fn is_large(payload: &Payload) -> bool {
    matches!(payload, Payload::Whole(bytes) if bytes.len() > PIECE_LEN_MAX)
}

/// `bytes` as a body that keeps `places` until the connection took its last piece or died, but no longer than until `deadline`:
/// then the rest is dropped, and `passed` says why nothing follows.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn keep<P: Send + 'static>(
    bytes: Bytes,
    places: P,
    deadline: tokio::time::Instant,
    passed: impl FnOnce() -> BodyError + Send + 'static,
) -> Payload {
    let left = bytes.len() as u64;
    let rest = Arc::new(Mutex::new(Ok((bytes, places))));
    let timed = Arc::downgrade(&rest);
    // A task, because nobody asks for the body while the client takes nothing.
    let timer = tokio::spawn(async move {
        tokio::time::sleep_until(deadline).await;
        give_up(&timed, passed);
    });
    Payload::Stream(Box::pin(Kept { rest, left, timer: timer.abort_handle() }))
}

/// What a client has yet to take, with the places that it keeps; or why nothing follows.
type Rest<P> = Mutex<Result<(Bytes, P), BodyError>>;

fn give_up<P>(rest: &Weak<Rest<P>>, passed: impl FnOnce() -> BodyError) {
    let Some(rest) = rest.upgrade() else { return };
    let mut rest = rest.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(&*rest, Ok((bytes, _)) if !bytes.is_empty()) {
        *rest = Err(passed());
    }
}

struct Kept<P> {
    rest: Arc<Rest<P>>,
    /// Bytes of it.
    left: u64,
    timer: AbortHandle,
}

impl<P> Body for Kept<P> {
    type Data = Bytes;
    type Error = BodyError;

    /// Piece by piece: given all at once, the sender would hold all of it, and let the places go.
    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut rest = this.rest.lock().unwrap_or_else(PoisonError::into_inner);
        Poll::Ready(match &mut *rest {
            Ok((bytes, _)) if bytes.is_empty() => None,
            Ok((bytes, _)) => {
                let piece = bytes.split_to(bytes.len().min(PIECE_LEN_MAX));
                this.left = bytes.len() as u64;
                Some(Ok(Frame::data(piece)))
            }
            Err(error) => Some(Err(error.clone())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl<P> Drop for Kept<P> {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(response: http::response::Builder) -> Result<Response<Payload>, Fault> {
        let reply = Reply::default();
        reply.put(Ok(response.body(Payload::empty()).unwrap()));
        reply.take().unwrap()
    }

    #[test]
    fn heads_that_cannot_be_sent_are_faults() {
        for status in [100, 101, 103, 199] {
            assert_eq!(put(Response::builder().status(status)).unwrap_err().code, Code::GuestBadResponse, "{status}");
        }
        for status in [200, 204, 304, 404, 500, 599, 999] {
            assert_eq!(put(Response::builder().status(status)).unwrap().status(), status);
        }
    }

    #[test]
    fn a_length_is_one_number() {
        for bad in [&["1", "2"][..], &["1", "1"], &["lots"], &["-1"], &["+1"], &["1x"], &[""], &["99999999999999999999"]] {
            let head = bad.iter().fold(Response::builder(), |head, len| head.header(CONTENT_LENGTH, *len));
            let fault = put(head).unwrap_err();
            assert_eq!((fault.code, fault.executed), (Code::GuestBadResponse, crate::fault::Executed::Yes), "{bad:?}");
        }
        for good in ["0", "5", "18446744073709551615"] {
            put(Response::builder().header(CONTENT_LENGTH, good)).unwrap();
        }
    }
}
