//! Openings: the head of a response, with as much of its body as is there at once.
//!
//! Owns the reading of a body on the guest's behalf before anybody sends it: a guest that waits until its body is taken goes on, and
//! most have ended before the next request begins. Knows nothing about guests and time. Invariant: at most
//! [`PIECE_LEN_MAX`] bytes and one piece more are held here, and nothing that was read is lost.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body::{Body, Frame, SizeHint};

use crate::capability::reply::PIECE_LEN_MAX;
use crate::invocation::{BodyError, Payload, StreamBody};

/// What a piece counts at least, in bytes: many small ones hold more than their bytes.
const PIECE_COST_MIN: usize = 1 << 10;

/// A response that has begun.
pub(super) struct Opening {
    head: Response<()>,
    body: Beginning,
}

enum Beginning {
    /// There is nothing to wait for.
    Whole(Bytes),
    Stream {
        read: Vec<Frame<Bytes>>,
        /// What they count.
        cost: usize,
        rest: Rest,
    },
}

/// What follows what was read.
enum Rest {
    More(StreamBody),
    End,
    Broken(BodyError),
}

impl Opening {
    pub(super) fn new(response: Response<Payload>) -> Self {
        let (parts, payload) = response.into_parts();
        let body = match payload {
            Payload::Whole(bytes) => Beginning::Whole(bytes),
            Payload::Stream(stream) => Beginning::Stream { read: Vec::new(), cost: 0, rest: Rest::More(stream) },
        };
        Self { head: Response::from_parts(parts, ()), body }
    }

    /// Reads what is there. Whether it was anything: then a guest that waited for that can go on.
    pub(super) fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let Beginning::Stream { read, cost, rest } = &mut self.body else { return false };
        let mut came = false;
        while *cost < PIECE_LEN_MAX
            && let Rest::More(stream) = rest
            && let Poll::Ready(frame) = stream.as_mut().poll_frame(cx)
        {
            came = true;
            match frame {
                Some(Ok(frame)) => {
                    *cost += frame.data_ref().map_or(0, Bytes::len).max(PIECE_COST_MIN);
                    read.push(frame);
                }
                Some(Err(error)) => *rest = Rest::Broken(error),
                None => *rest = Rest::End,
            }
        }
        came
    }

    /// The response: its body in one piece if all of it was read, which saves chunked framing.
    pub(super) fn into_response(self) -> Response<Payload> {
        let payload = match self.body {
            Beginning::Whole(bytes) => Payload::Whole(bytes),
            Beginning::Stream { read, rest: Rest::End, .. } if read.iter().all(Frame::is_data) => Payload::Whole(join(read)),
            Beginning::Stream { read, rest: Rest::More(stream), .. } if read.is_empty() => Payload::Stream(stream),
            Beginning::Stream { read, rest, .. } => Payload::Stream(Box::pin(Resumed { read: read.into_iter(), rest })),
        };
        self.head.map(|()| payload)
    }
}

fn join(frames: Vec<Frame<Bytes>>) -> Bytes {
    let mut pieces = frames.into_iter().filter_map(|frame| frame.into_data().ok());
    match (pieces.next(), pieces.next()) {
        (None, _) => Bytes::new(),
        (Some(one), None) => one,
        (Some(first), Some(second)) => {
            let mut all = BytesMut::from(first);
            all.extend_from_slice(&second);
            pieces.for_each(|piece| all.extend_from_slice(&piece));
            all.freeze()
        }
    }
}

/// A body whose first frames were read already.
struct Resumed {
    read: std::vec::IntoIter<Frame<Bytes>>,
    rest: Rest,
}

impl Body for Resumed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(frame) = self.read.next() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Rest::More(stream) => stream.as_mut().poll_frame(cx),
            Rest::End => Poll::Ready(None),
            Rest::Broken(error) => Poll::Ready(Some(Err(error.clone()))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Rest::More(stream) => stream.size_hint(),
            Rest::End | Rest::Broken(_) => SizeHint::with_exact(0),
        };
        let read: u64 = self.read.as_slice().iter().filter_map(|frame| Some(frame.data_ref()?.len() as u64)).sum();
        let mut hint = SizeHint::new();
        hint.set_lower(read.saturating_add(rest.lower()));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(read)) {
            hint.set_upper(upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::capability::reply::{self, Reply};
    use crate::fault::Code;

    const PIECE: Bytes = Bytes::from_static(b"abc");

    fn read(opening: &mut Opening) -> bool {
        opening.read(&mut Context::from_waker(Waker::noop()))
    }

    fn whole(opening: Opening) -> Bytes {
        match opening.into_response().into_body() {
            Payload::Whole(bytes) => bytes,
            Payload::Stream(_) => panic!("a stream"),
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_at_once_is_whole() {
        for count in 0..4 {
            let (sender, payload) = reply::stream(Arc::default());
            let mut opening = Opening::new(Response::new(payload));
            assert!(!read(&mut opening), "nothing came yet");
            for _ in 0..count {
                sender.try_send(PIECE).unwrap();
                assert!(read(&mut opening));
            }
            drop(sender);
            assert!(read(&mut opening), "its end came");
            assert!(!read(&mut opening));
            assert_eq!(whole(opening), "abc".repeat(count));
        }
    }

    #[tokio::test]
    async fn a_body_that_goes_on_loses_nothing() {
        let (sender, payload) = reply::stream(Arc::default());
        let mut opening = Opening::new(Response::new(payload));
        sender.try_send(PIECE).unwrap();
        assert!(read(&mut opening));
        let body = opening.into_response().into_body();
        sender.try_send(PIECE).unwrap();
        drop(sender);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcabc");
    }

    #[tokio::test]
    async fn a_body_that_was_cut_is_not_whole() {
        let reply = Arc::new(Reply::default());
        let (sender, payload) = reply::stream(reply.clone());
        let mut opening = Opening::new(Response::new(payload));
        sender.try_send(PIECE).unwrap();
        reply.cut(Code::GuestTrap);
        drop(sender);
        assert!(read(&mut opening));
        let error = opening.into_response().into_body().collect().await.unwrap_err();
        assert!(matches!(error, BodyError::Cut(Code::GuestTrap)), "{error:?}");
    }

    #[tokio::test]
    async fn what_is_read_is_bounded_on_both_sides() {
        for (len, reads) in [(PIECE_LEN_MAX, 1), (PIECE_LEN_MAX - 1, 2), (1, PIECE_LEN_MAX / PIECE_COST_MIN)] {
            let (sender, payload) = reply::stream(Arc::default());
            let mut opening = Opening::new(Response::new(payload));
            for at in 0..=reads {
                sender.try_send(vec![7; len].into()).unwrap();
                assert_eq!(read(&mut opening), at < reads, "{len} bytes, the {at}th");
            }
            drop(sender);
            let body = opening.into_response().into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes().len(), len * (reads + 1));
        }
    }
}
