//! An invocation and its outcome, and the one way in: [`Invoke`].
//!
//! Owns the types that pass between the doors and whoever runs functions. Knows neither. Bodies stream through it with
//! back-pressure; nothing here buffers more than one frame.

use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};

use crate::fault::{Code, Executed, Fault};
use crate::id::{FunctionName, InvocationId, RevisionNumber, TenantId};

/// Bodies up to this many bytes are read whole before the guest starts, so that a slow client holds no instance and the guest
/// gets its body in one host call. In bytes; the same number is in `guest-sdk/abi.md`.
pub const INLINE_BODY_BYTES: u64 = 64 << 10;

/// Request header in which requests of functions carry how many functions they came through. A client may set it too, and shortens
/// only the way of its own request.
pub static HOB_HOPS: http::HeaderName = http::HeaderName::from_static("hob-hops");
/// Most functions that a request may have come through, each by a request of its own to the next, before one refuses it.
pub const HOPS_MAX: u8 = 8;

/// How many functions a request came through. In the extensions of a request that came through any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hops(u8);

impl Hops {
    /// What the headers of a request say: the largest, and nothing counts that is no number.
    #[must_use]
    pub fn of(headers: &http::HeaderMap) -> Self {
        let counts = headers.get_all(&HOB_HOPS).iter().filter_map(|value| value.to_str().ok()?.parse().ok());
        Self(counts.max().unwrap_or(0))
    }

    /// One function more.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Whether it came through none.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether it is too many.
    #[must_use]
    pub fn is_loop(self) -> bool {
        self.0 > HOPS_MAX
    }

    /// As the header has it.
    #[must_use]
    pub fn value(self) -> http::HeaderValue {
        http::HeaderValue::from(u16::from(self.0))
    }
}

/// Why a body ended early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The client went away, or broke the framing.
    #[error("the client broke off")]
    Disconnected,
    /// Nothing came for longer than the node waits, or too little.
    #[error("the client sent nothing for too long")]
    Idle,
    /// More came than the function takes.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit `request_body` of the function, in bytes.
        limit: u64,
    },
    /// The response was cut: the code says why. Whoever sends it closes the connection without the last chunk.
    #[error("the response was cut: {0}")]
    Cut(Code),
}

/// A body that arrives piece by piece.
pub type StreamBody = Pin<Box<dyn Body<Data = Bytes, Error = BodyError> + Send>>;

/// `stream` with an end: when more than `limit` bytes of data have come, `passed` says why nothing follows. It is asked once; the
/// error is given at every later look.
pub fn bounded(stream: StreamBody, limit: u64, passed: impl FnOnce() -> BodyError + Send + 'static) -> StreamBody {
    Box::pin(Bounded { stream, left: limit, passed: Some(passed), error: None })
}

struct Bounded<F> {
    stream: StreamBody,
    left: u64,
    passed: Option<F>,
    error: Option<BodyError>,
}

// The closure is never pinned, and the stream is already.
impl<F> Unpin for Bounded<F> {}

impl<F: FnOnce() -> BodyError> Body for Bounded<F> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(error) = &this.error {
            return Poll::Ready(Some(Err(error.clone())));
        }
        let frame = ready!(this.stream.as_mut().poll_frame(cx));
        let len = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, |data| data.len() as u64);
        let Some(left) = this.left.checked_sub(len) else {
            this.error = this.passed.take().map(|passed| passed());
            return Poll::Ready(this.error.clone().map(Err));
        };
        this.left = left;
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.error.is_none() && self.stream.is_end_stream()
    }
}

/// The body of a request or a response.
pub enum Payload {
    /// All of it.
    Whole(Bytes),
    /// The rest comes.
    Stream(StreamBody),
}

impl Payload {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

/// Which function is meant.
#[derive(Debug, Clone)]
pub enum Target {
    /// Whatever the request's method, host and path lead to: a declared route, or `/NAME/…`.
    Request,
    /// This function, with the request's path as it stands.
    Function(FunctionName),
}

/// One call of one function.
#[derive(Debug)]
pub struct Invocation {
    /// Whose function.
    pub tenant: TenantId,
    /// Which one.
    pub target: Target,
    /// What it is asked.
    pub request: http::Request<Payload>,
    /// When the request's head had arrived.
    pub received: Instant,
    /// The rung that it must begin on, for those who measure; `None`: the fastest there is.
    pub start: Option<Start>,
}

/// The rung of the start ladder that an invocation began on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Start {
    /// The instance was already waiting.
    Ready,
    /// The template was in memory.
    Resident,
    /// The artifact was on disk.
    Stored,
    /// Only Wasm was on disk.
    Compiled,
}

impl Start {
    /// All rungs, the fastest first; `self as usize` is the position.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Resident, Self::Stored, Self::Compiled];

    /// Value of the header `hob-start`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Resident => "resident",
            Self::Stored => "stored",
            Self::Compiled => "compiled",
        }
    }
}

/// Text that names no rung.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no rung of the start ladder: expected 'ready', 'resident', 'stored' or 'compiled'")]
pub struct UnknownStart(String);

impl FromStr for Start {
    type Err = UnknownStart;

    fn from_str(text: &str) -> Result<Self, UnknownStart> {
        let found = Self::ALL.into_iter().find(|start| start.as_str() == text);
        // What a client sent may be long: the error shows its beginning only.
        found.ok_or_else(|| UnknownStart(text.chars().take(80).collect()))
    }
}

/// Where the time of an invocation went until its response began. A phase that its rung does not have is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the request's head to a place among the function's `concurrency`, with the reading of a small body.
    pub queue: Duration,
    /// Getting the template, without `verify`: nothing when it was resident.
    pub load: Duration,
    /// The check of the artifact's integrity, as part of getting the template.
    pub verify: Duration,
    /// From `Store::new` to a live instance: nothing when it was ready.
    pub instantiate: Duration,
    /// From there to the guest's first host call, which bounds its first instruction. Only handlers are watched so closely.
    pub enter: Duration,
    /// From there to the head of the response.
    pub run: Duration,
}

impl Phases {
    /// Names of the phases in their order, as in `server-timing` and in metrics.
    pub const NAMES: [&'static str; 6] = ["queue", "load", "verify", "instantiate", "enter", "run"];

    /// All of them, in the order of [`Self::NAMES`].
    #[must_use]
    pub fn times(&self) -> [Duration; Self::NAMES.len()] {
        [self.queue, self.load, self.verify, self.instantiate, self.enter, self.run]
    }

    /// The inverse of [`Self::times`].
    #[must_use]
    pub fn of_times([queue, load, verify, instantiate, enter, run]: [Duration; Self::NAMES.len()]) -> Self {
        Self { queue, load, verify, instantiate, enter, run }
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.times().iter().sum()
    }

    /// What the start took, from admission to the guest's first instruction: all but `queue` and `run`.
    #[must_use]
    pub fn start(&self) -> Duration {
        self.load + self.verify + self.instantiate + self.enter
    }
}

/// A response that began, and how it came about.
#[derive(Debug)]
pub struct Outcome {
    /// What the guest answered, host's headers not yet added. Its status is final, and its `content-length`, if there is one, is one
    /// number.
    pub response: http::Response<Payload>,
    /// Which revision answered.
    pub revision: RevisionNumber,
    /// How it started.
    pub start: Start,
    /// Where the time went.
    pub phases: Phases,
}

/// The end of an invocation: its identifier, and a response or a fault.
#[derive(Debug)]
pub struct Invoked {
    /// Given before anything else happens, so that a fault has one too.
    pub id: InvocationId,
    /// How it ended; `Ok` as soon as the response has begun.
    pub result: Result<Outcome, Fault>,
}

impl Invoked {
    /// Whether guest code ran.
    #[must_use]
    pub fn executed(&self) -> Executed {
        match &self.result {
            Ok(_) => Executed::Yes,
            Err(fault) => fault.executed,
        }
    }
}

/// Runs functions. Every trigger calls this and nothing else.
///
/// Implemented by `dispatch::Dispatcher`, which runs them here, and by `daemon::DataPlane`, which hands them to a data thread.
pub trait Invoke: Send + Sync + fmt::Debug {
    /// Runs one invocation until its response begins.
    ///
    /// # Cancellation
    /// Dropping the future stops the guest and frees its instance; so does dropping the body of the response.
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'static, Invoked>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(body: &mut StreamBody) -> Option<Result<Bytes, BodyError>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(frame) => frame.map(|frame| frame.map(|frame| frame.into_data().unwrap())),
            Poll::Pending => panic!("all of it is there"),
        }
    }

    #[test]
    fn rungs_are_named_as_they_are_printed() {
        for (index, start) in Start::ALL.into_iter().enumerate() {
            assert_eq!((start as usize, start.as_str().parse()), (index, Ok(start)));
        }
        for wrong in ["", "Ready", "cold", " ready"] {
            assert!(wrong.parse::<Start>().is_err(), "{wrong}");
        }
        assert!("x".repeat(10_000).parse::<Start>().unwrap_err().to_string().len() < 200);
    }

    #[test]
    fn a_bounded_body_on_both_sides_of_its_limit() {
        let of = |limit| bounded(Box::pin(Payload::Whole("abc".into())), limit, move || BodyError::TooLarge { limit });
        let mut exact = of(3);
        assert_eq!((next(&mut exact), next(&mut exact)), (Some(Ok("abc".into())), None));
        let mut over = of(2);
        for _ in 0..2 {
            assert_eq!(next(&mut over), Some(Err(BodyError::TooLarge { limit: 2 })));
        }
    }
}
