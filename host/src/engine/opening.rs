//! Openings: the head of a response, with as much of its body as is there at once.
//!
//! Owns the reading of a body on the guest's behalf before anybody sends it: a guest that waits until its body is taken goes on, and
//! most have ended before the next request begins. Knows nothing about guests and time. Invariant: at most
//! [`PIECE_LEN_MAX`] bytes and one piece more are held here, nothing that was read is lost, and a body is whole only if its guest ended
//! it where it said it would.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::capability::reply::PIECE_LEN_MAX;
use crate::fault::{Code, Fault};
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
    ///
    /// # Errors
    /// When the body broke off. Nothing of it has left yet.
    pub(super) fn into_response(self) -> Result<Response<Payload>, Fault> {
        let payload = match self.body {
            Beginning::Whole(bytes) => Payload::Whole(bytes),
            Beginning::Stream { rest: Rest::Broken(error), .. } => return Err(broken(&error)),
            Beginning::Stream { read, rest: Rest::End, .. } if is_whole(&self.head, &read) => Payload::Whole(join(read)),
            Beginning::Stream { read, rest: Rest::More(stream), .. } if read.is_empty() => Payload::Stream(stream),
            Beginning::Stream { read, rest, .. } => Payload::Stream(Box::pin(Resumed { read: read.into_iter(), rest })),
        };
        Ok(self.head.map(|()| payload))
    }
}

fn broken(error: &BodyError) -> Fault {
    let code = match error {
        BodyError::Cut(code) => *code,
        _ => Code::GuestBadResponse,
    };
    Fault::executed(code, "the function broke off the body of its response")
        .hint("finish each outgoing body, with as many bytes as its content-length says")
}

/// Whether these frames, after which nothing follows, are a body of one piece: data alone, not more than a piece, and as many bytes as
/// the head says.
fn is_whole(head: &Response<()>, frames: &[Frame<Bytes>]) -> bool {
    let mut len = 0;
    for frame in frames {
        let Some(data) = frame.data_ref() else { return false };
        len += data.len();
    }
    let said = head.headers().get(CONTENT_LENGTH).map(|said| said.to_str().ok().and_then(|said| said.parse().ok()));
    len <= PIECE_LEN_MAX && said.is_none_or(|said| said == Some(len))
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
        // What the guest said in its head is what counts: whoever sends this holds the body against it.
        SizeHint::default()
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
        match opening.into_response().unwrap().into_body() {
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
        let body = opening.into_response().unwrap().into_body();
        assert_eq!(body.size_hint().exact(), None);
        sender.try_send(PIECE).unwrap();
        drop(sender);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abcabc");
    }

    #[tokio::test]
    async fn a_body_that_was_cut_is_no_response() {
        let reply = Arc::new(Reply::default());
        let (sender, payload) = reply::stream(reply.clone());
        let mut opening = Opening::new(Response::new(payload));
        sender.try_send(PIECE).unwrap();
        reply.cut(Code::GuestTrap);
        drop(sender);
        assert!(read(&mut opening));
        assert_eq!(opening.into_response().unwrap_err().code, Code::GuestTrap);
    }

    #[tokio::test]
    async fn a_body_of_another_length_than_was_said_is_not_whole() {
        for (said, whole) in [("3", true), ("2", false), ("4", false)] {
            let (sender, payload) = reply::stream(Arc::default());
            let mut opening = Opening::new(Response::builder().header(CONTENT_LENGTH, said).body(payload).unwrap());
            sender.try_send(PIECE).unwrap();
            drop(sender);
            assert!(read(&mut opening));
            let body = opening.into_response().unwrap().into_body();
            assert_eq!(body.size_hint().exact(), whole.then_some(3), "{said}");
            assert_eq!(body.collect().await.unwrap().to_bytes(), PIECE);
        }
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
            let body = opening.into_response().unwrap().into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes().len(), len * (reads + 1));
        }
    }
}
