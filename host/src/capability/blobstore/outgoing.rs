//! Values on their way into a bucket.
//!
//! ```text
//! body's stream ──> waiting ──> upload, a piece at a time, on a thread that may block ──> finish
//! ```
//!
//! `write-data` says where a value goes, before, while or after its body is written. From then on the guest is as fast as the bucket;
//! before, what it writes waits in memory. Owns that state. Knows nothing about handles. Invariant: `Piece::held` counts every byte
//! that is in memory for the instance, and is above [`OUTGOING_BYTES_MAX`] by one write at most.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError};

use super::{Answer, OUTGOING_BYTES_MAX, Place, text};
use crate::capability::blocking::Jobs;
use crate::capability::reply::PIECE_LEN_MAX;
use crate::data::DataError;
use crate::data::objects::{self, Upload};

/// What is gathered before it is handed on: a change of thread for each write would cost more than the write.
const PIECE_BYTES: usize = 256 << 10;

/// What the body's stream and its value share.
pub(super) struct Writing {
    state: Mutex<State>,
}

struct State {
    waiting: Piece,
    to: Target,
    /// Where the bucket's objects are: what is written waits in line with others that go there.
    at: objects::Place,
    jobs: Jobs,
    /// Keeps a place among the objects of the instance.
    place: Option<Place>,
}

enum Target {
    /// `write-data` was not called yet.
    Unknown,
    /// Ready for a piece.
    Idle(Box<dyn Upload>),
    /// A piece is being written.
    Busy(Pin<Box<dyn Future<Output = wasmtime::Result<Written>> + Send>>),
    /// The object is not to be.
    Failed(String),
}

struct Written {
    upload: Box<dyn Upload>,
    result: Result<(), DataError>,
}

/// Bytes that wait or are being written; counted until it is dropped.
#[derive(Debug)]
struct Piece {
    bytes: BytesMut,
    held: Arc<AtomicUsize>,
}

impl Piece {
    fn new(held: Arc<AtomicUsize>) -> Self {
        Self { bytes: BytesMut::new(), held }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.held.fetch_add(bytes.len(), Ordering::Relaxed);
        self.bytes.extend_from_slice(bytes);
    }

    /// What is in it, counted with it.
    fn take(&mut self) -> Self {
        Self { bytes: std::mem::take(&mut self.bytes), held: self.held.clone() }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

/// When a piece is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hand {
    /// When it is worth it.
    Full,
    /// Whatever waits.
    All,
}

impl fmt::Debug for Writing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing").field("waiting", &self.state().waiting.bytes.len()).finish_non_exhaustive()
    }
}

impl Writing {
    pub(super) fn new(held: Arc<AtomicUsize>, jobs: Jobs) -> Arc<Self> {
        let state = State { waiting: Piece::new(held), to: Target::Unknown, at: objects::Place::Disk, jobs, place: None };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// No code panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `write-data` was called.
    pub(super) fn has_target(&self) -> bool {
        !matches!(self.state().to, Target::Unknown)
    }

    /// Says where the value goes: to objects that are `at`.
    pub(super) fn begin(&self, upload: Box<dyn Upload>, at: objects::Place, place: Place) {
        let mut state = self.state();
        state.at = at;
        state.to = Target::Idle(upload);
        state.place = Some(place);
    }

    /// The stream of the body.
    pub(super) fn stream(self: &Arc<Self>) -> Body {
        Body(self.clone())
    }

    /// Hands everything on, and gives back the upload and where it goes.
    pub(super) async fn whole(&self) -> Answer<(Box<dyn Upload>, objects::Place)> {
        poll_fn(|cx| self.state().poll(cx, Hand::All)).await;
        let mut state = self.state();
        match std::mem::replace(&mut state.to, Target::Failed("the value is finished".into())) {
            Target::Idle(upload) => Ok((upload, state.at)),
            Target::Failed(text) => Err(text),
            Target::Unknown => Err("the value goes nowhere: give it to write-data before it is finished".into()),
            Target::Busy(_) => Err(text(DataError::Closed)),
        }
    }
}

impl State {
    /// Ready when there is nothing to wait for: of [`Hand::Full`], there is room for a piece.
    fn poll(&mut self, cx: &mut Context<'_>, hand: Hand) -> Poll<()> {
        loop {
            let room = self.room();
            match &mut self.to {
                Target::Busy(busy) => match busy.as_mut().poll(cx) {
                    Poll::Pending if hand == Hand::Full && room > 0 => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(written) => self.take_back(written),
                },
                Target::Idle(_) => {
                    // Without room the guest cannot bring more.
                    let enough = if hand == Hand::All || room == 0 { 1 } else { PIECE_BYTES };
                    if self.waiting.bytes.len() < enough {
                        return Poll::Ready(());
                    }
                    self.hand_on();
                }
                Target::Unknown | Target::Failed(_) => return Poll::Ready(()),
            }
        }
    }

    /// Writes what waits, elsewhere.
    fn hand_on(&mut self) {
        let Target::Idle(mut upload) = std::mem::replace(&mut self.to, Target::Unknown) else { return };
        let (piece, at, jobs) = (self.waiting.take(), self.at, self.jobs.clone());
        let write = move || {
            let result = upload.write(&piece.bytes);
            Written { upload, result }
        };
        self.to = Target::Busy(Box::pin(async move { jobs.run_at(at, write).await }));
    }

    fn take_back(&mut self, written: wasmtime::Result<Written>) {
        self.to = match written {
            Ok(Written { upload, result: Ok(()) }) => return self.to = Target::Idle(upload),
            Ok(Written { result: Err(error), .. }) => Target::Failed(text(error)),
            Err(error) => {
                tracing::error!(%error, "the writing of an object ended with a panic");
                Target::Failed(text(DataError::Closed))
            }
        };
        // Nothing more of it will be written.
        drop(self.waiting.take());
        self.place = None;
    }

    /// Bytes that the guest may bring now.
    fn room(&self) -> usize {
        // A guest asks for room after its last byte too.
        let left = if self.waiting.held.load(Ordering::Relaxed) > OUTGOING_BYTES_MAX { 0 } else { PIECE_LEN_MAX };
        match self.to {
            Target::Unknown => left,
            // One piece is written while the next one is gathered.
            Target::Idle(_) | Target::Busy(_) => left.min(PIECE_BYTES.saturating_sub(self.waiting.bytes.len())),
            Target::Failed(_) => 0,
        }
    }
}

/// The stream of a body.
pub(super) struct Body(Arc<Writing>);

#[wasmtime_wasi::async_trait]
impl Pollable for Body {
    async fn ready(&mut self) {
        poll_fn(|cx| self.0.state().poll(cx, Hand::Full)).await;
    }
}

impl OutputStream for Body {
    fn check_write(&mut self) -> Result<usize, StreamError> {
        let state = self.0.state();
        match (&state.to, state.room()) {
            (Target::Failed(text), _) => Err(failed(text)),
            (Target::Unknown, 0) => Err(failed(&format!(
                "more than {OUTGOING_BYTES_MAX} bytes wait: give the value to write-data before more is written"
            ))),
            (Target::Idle(_), 0) if state.waiting.bytes.is_empty() => Err(failed(&format!(
                "more than {OUTGOING_BYTES_MAX} bytes of other values wait: give them to write-data, or drop them"
            ))),
            (_, room) => Ok(room),
        }
    }

    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        let mut state = self.0.state();
        if bytes.len() > state.room() {
            return match &state.to {
                Target::Failed(text) => Err(failed(text)),
                _ => Err(StreamError::trap("wrote more than was allowed")),
            };
        }
        state.waiting.push(&bytes);
        Ok(())
    }

    /// What matters is on disk only after `finish`, so there is nothing to hurry.
    fn flush(&mut self) -> Result<(), StreamError> {
        match &self.0.state().to {
            Target::Failed(text) => Err(failed(text)),
            Target::Unknown | Target::Idle(_) | Target::Busy(_) => Ok(()),
        }
    }
}

fn failed(text: &str) -> StreamError {
    StreamError::LastOperationFailed(wasmtime::Error::msg(text.to_owned()))
}
