//! Bodies on their way out and in.
//!
//! Owns what is counted, timed and bounded of them. Invariant: places are given back as soon as nothing more of the request will be sent and
//! nothing more of its response will be read, whoever ended either.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::error::{EgressError, GivenUp};
use super::{Places, Used};

/// The body of a request, as whoever sends it makes it.
pub type RequestBody = UnsyncBoxBody<Bytes, GivenUp>;

/// Any body of a guest's: whatever ends it early is its own business.
pub fn from_guest<B>(body: B) -> RequestBody
where
    B: Body<Data = Bytes> + Send + 'static,
{
    use http_body_util::BodyExt as _;
    body.map_err(|_| GivenUp).boxed_unsync()
}

/// A request's body that is being sent: counted, and watched.
pub(super) struct Sending {
    body: RequestBody,
    used: Arc<Used>,
    progress: Progress,
    /// A server may answer before it has all of the request: then the connection is there for as long as this is.
    _places: Arc<Places>,
}

/// When the last piece of a body was taken.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<(OnceLock<Instant>, AtomicU64)>);

impl Progress {
    /// `None` before the first.
    pub(super) fn last(&self) -> Option<Instant> {
        let (began, later_ms) = &*self.0;
        began.get().map(|began| *began + Duration::from_millis(later_ms.load(Ordering::Relaxed)))
    }

    fn tell(&self) {
        let (began, later_ms) = &*self.0;
        let began = began.get_or_init(Instant::now);
        // Rounded up, so that it is later than what was seen before.
        let since = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        later_ms.store(since, Ordering::Relaxed);
    }
}

impl Sending {
    pub(super) fn new(body: RequestBody, used: Arc<Used>, places: Arc<Places>) -> Self {
        Self { body, used, progress: Progress(Arc::default()), _places: places }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.progress.tell();
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.used.bytes_out.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bounds of a response's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes_max: u64,
    pub(super) idle: Duration,
}

/// The body of a response. It ends by an error that is given once; then nothing follows.
#[derive(Debug)]
pub struct ResponseBody {
    /// `None` once it has ended. The connection before the places: who gets one of them must find the descriptor free.
    open: Option<(Incoming, Arc<Places>)>,
    bounds: Bounds,
    left: u64,
    used: Arc<Used>,
    /// Armed only when nothing is there.
    timer: Option<Pin<Box<Sleep>>>,
}

impl ResponseBody {
    /// # Errors
    /// [`EgressError::BodyTooLarge`] for one that is announced to be.
    pub(super) fn new(body: Incoming, bounds: Bounds, used: Arc<Used>, places: Arc<Places>) -> Result<Self, EgressError> {
        if body.size_hint().lower() > bounds.bytes_max {
            return Err(EgressError::BodyTooLarge { limit: bounds.bytes_max });
        }
        let open = (!body.is_end_stream()).then_some((body, places));
        Ok(Self { open, bounds, left: bounds.bytes_max, used, timer: None })
    }

    fn end(&mut self) {
        self.timer = None;
        if let Some((body, places)) = self.open.take() {
            drop(body);
            drop(places);
        }
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, EgressError> {
        self.timer = None;
        let len = frame.data_ref().map_or(0, |data| data.len() as u64);
        self.used.bytes_in.fetch_add(len, Ordering::Relaxed);
        self.left = self.left.checked_sub(len).ok_or(EgressError::BodyTooLarge { limit: self.bounds.bytes_max })?;
        Ok(frame)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = EgressError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, EgressError>>> {
        let this = self.get_mut();
        let Some((body, _)) = &mut this.open else { return Poll::Ready(None) };
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => this.take(frame),
            Poll::Ready(Some(Err(error))) => Err(EgressError::of(&error)),
            Poll::Ready(None) => {
                this.end();
                return Poll::Ready(None);
            }
            Poll::Pending => {
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.bounds.idle)));
                std::task::ready!(timer.as_mut().poll(cx));
                Err(EgressError::Idle)
            }
        };
        if frame.is_err() || this.open.as_ref().is_some_and(|(body, _)| body.is_end_stream()) {
            this.end();
        }
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.open.as_ref().map_or_else(|| SizeHint::with_exact(0), |(body, _)| body.size_hint())
    }
}
