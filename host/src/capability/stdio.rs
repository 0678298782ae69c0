//! Standard streams of a guest.
//!
//! Owns three things that a standard stream can be: the log of the function, the body of a command's response, or the terminal
//! of `hob run`. Invariant: the guest's words are bounded everywhere; a log never blocks, a response pushes back.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::cli::{AsyncStdinStream, IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError};

use super::reply::{self, PIECE_LEN_MAX, Reply};
use crate::invocation::Payload;
use crate::telemetry::logs::{ENTRY_LEN_MAX, Level, LogSink, Source};

/// What a command may write before its head is sent: until then an exit code can still become a status. In bytes.
pub const HELD_BYTES_MAX: usize = 64 << 10;

/// What the standard streams of one guest are.
pub enum Stdio {
    /// Input is empty; output and errors are the function's log.
    Log(Arc<LogSink>),
    /// Input is the request's body, output the response's; errors are the function's log.
    Command {
        /// The request's body; taken when the guest's WASI state is made.
        input: Mutex<Option<Payload>>,
        /// The response's body, and where it is told what was wrong with the request's.
        output: Arc<CommandOutput>,
        /// The log.
        log: Arc<LogSink>,
    },
    /// Of a command before there is a request: input is empty, which is noted; output and errors are the function's log.
    Initialising {
        /// Where it is noted that input was read.
        output: Arc<CommandOutput>,
        /// The log.
        log: Arc<LogSink>,
    },
    /// The terminal of whoever started `hob run`.
    Inherit,
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Log(_) => "Log",
            Self::Command { .. } => "Command",
            Self::Initialising { .. } => "Initialising",
            Self::Inherit => "Inherit",
        })
    }
}

impl Stdio {
    /// Gives the streams to a guest's WASI state.
    pub fn attach(&self, builder: &mut WasiCtxBuilder) {
        match self {
            Self::Log(log) => {
                builder.stdout(LogStream::new(log.clone(), Source::Stdout));
                builder.stderr(LogStream::new(log.clone(), Source::Stderr));
            }
            Self::Command { input, output, log } => {
                match input.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    Some(Payload::Whole(bytes)) => builder.stdin(MemoryInputPipe::new(bytes)),
                    Some(stream @ Payload::Stream(_)) => {
                        builder.stdin(AsyncStdinStream::new(BodyReader::new(stream, output.reply.clone())))
                    }
                    None => builder.stdin(NoInput(output.clone())),
                };
                builder.stdout(CommandStream(output.clone()));
                builder.stderr(LogStream::new(log.clone(), Source::Stderr));
            }
            Self::Initialising { output, log } => {
                builder.stdin(NoInput(output.clone()));
                builder.stdout(LogStream::new(log.clone(), Source::Stdout));
                builder.stderr(LogStream::new(log.clone(), Source::Stderr));
            }
            Self::Inherit => {
                builder.inherit_stdio();
            }
        }
    }

    /// Whether a command has read its input where there was no request yet, as in the build: it found the end of what is not empty later.
    pub fn has_missed_input(&self) -> bool {
        matches!(self, Self::Command { output, .. } | Self::Initialising { output, .. } if output.has_missed_input.load(Ordering::Relaxed))
    }
}

/// The input of a command that has none. Notes when it is read.
#[derive(Clone)]
struct NoInput(Arc<CommandOutput>);

impl NoInput {
    fn note(&self) {
        self.0.has_missed_input.store(true, Ordering::Relaxed);
    }
}

impl IsTerminal for NoInput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for NoInput {
    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for NoInput {
    async fn ready(&mut self) {}
}

impl InputStream for NoInput {
    fn read(&mut self, _most: usize) -> Result<Bytes, StreamError> {
        self.note();
        Err(StreamError::Closed)
    }
}

impl AsyncRead for NoInput {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.note();
        Poll::Ready(Ok(()))
    }
}

/// A body read as bytes.
struct BodyReader {
    // Never locked: only `get_mut`, which makes the body `Sync` as WASI's streams must be.
    body: Mutex<Payload>,
    rest: Bytes,
    reply: Arc<Reply>,
}

impl BodyReader {
    fn new(body: Payload, reply: Arc<Reply>) -> Self {
        Self { body: Mutex::new(body), rest: Bytes::new(), reply }
    }
}

impl AsyncRead for BodyReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            let body = this.body.get_mut().unwrap_or_else(PoisonError::into_inner);
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    this.reply.put_body_fault(&error);
                    return Poll::Ready(Err(std::io::Error::other(error)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..count]);
        this.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

/// A stream into the function's log, line by line.
#[derive(Clone)]
struct LogStream(Arc<LineBuffer>);

struct LineBuffer {
    log: Arc<LogSink>,
    source: Source,
    line: Mutex<Vec<u8>>,
}

impl LogStream {
    fn new(log: Arc<LogSink>, source: Source) -> Self {
        Self(Arc::new(LineBuffer { log, source, line: Mutex::default() }))
    }

    fn push(&self, bytes: &[u8]) {
        let mut line = self.0.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.extend_from_slice(bytes);
        // Whole lines go out now; a line that never ends goes out in pieces.
        let end = line.iter().rposition(|b| *b == b'\n').map(|at| at + 1);
        let end = end.or((line.len() > ENTRY_LEN_MAX).then_some(line.len()));
        if let Some(end) = end {
            let rest = line.split_off(end);
            self.0.write(&line);
            *line = rest;
        }
    }
}

impl LineBuffer {
    fn write(&self, text: &[u8]) {
        let level = if self.source == Source::Stderr { Level::Warn } else { Level::Info };
        self.log.guest(self.source, level, text.strip_suffix(b"\n").unwrap_or(text));
    }
}

impl Drop for LineBuffer {
    fn drop(&mut self) {
        let line = std::mem::take(self.line.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !line.is_empty() {
            self.write(&line);
        }
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.push(&bytes);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
    fn check_write(&mut self) -> Result<usize, StreamError> {
        Ok(PIECE_LEN_MAX)
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let count = bytes.len().min(PIECE_LEN_MAX);
        self.push(&bytes[..count]);
        Poll::Ready(Ok(count))
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The output of a command: held back until it is known that the program did not fail at once, then streamed.
#[derive(Debug)]
pub struct CommandOutput {
    state: Mutex<Output>,
    reply: Arc<Reply>,
    /// Whether an input was read where there was none.
    has_missed_input: AtomicBool,
}

#[derive(Debug)]
enum Output {
    Held(BytesMut),
    Streaming(mpsc::Sender<Bytes>),
    Finished,
}

impl CommandOutput {
    /// Nothing written; the head goes to `reply` when [`HELD_BYTES_MAX`] are reached or at [`CommandOutput::finish`].
    #[must_use]
    pub fn new(reply: Arc<Reply>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(Output::Held(BytesMut::new())), reply, has_missed_input: AtomicBool::new(false) })
    }

    fn state(&self) -> MutexGuard<'_, Output> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program exited well: what is held becomes the whole response, or the stream ends.
    pub fn finish(&self) {
        match std::mem::replace(&mut *self.state(), Output::Finished) {
            Output::Held(held) => {
                let held = held.freeze();
                self.reply.put(Ok(head(&held, |held| Payload::Whole(held.clone()))));
            }
            Output::Streaming(_) | Output::Finished => {}
        }
    }

    /// How many bytes may be written now.
    fn room(&self) -> Result<usize, StreamError> {
        match &*self.state() {
            Output::Held(_) => Ok(PIECE_LEN_MAX),
            Output::Streaming(sender) if sender.is_closed() => Err(StreamError::Closed),
            Output::Streaming(sender) if sender.capacity() == 0 => Ok(0),
            Output::Streaming(_) => Ok(PIECE_LEN_MAX),
            Output::Finished => Err(StreamError::Closed),
        }
    }

    /// Writes what `room` allowed.
    fn write(&self, bytes: Bytes) -> Result<(), StreamError> {
        let mut state = self.state();
        match &mut *state {
            Output::Held(held) => {
                held.extend_from_slice(&bytes);
                if held.len() >= HELD_BYTES_MAX {
                    let held = std::mem::take(held).freeze();
                    let (sender, payload) = reply::stream(self.reply.clone());
                    self.reply.put(Ok(head(&held, |_| payload)));
                    // The channel was just made and has room.
                    let _sent = sender.try_send(held);
                    *state = Output::Streaming(sender);
                }
                Ok(())
            }
            Output::Streaming(sender) => match sender.try_send(bytes) {
                Ok(()) => Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => Err(StreamError::Closed),
                Err(mpsc::error::TrySendError::Full(_)) => Err(StreamError::trap("wrote more than was allowed")),
            },
            Output::Finished => Err(StreamError::Closed),
        }
    }

    /// Waits until there is room, or nobody reads any more.
    async fn ready(&self) {
        let sender = match &*self.state() {
            Output::Streaming(sender) => sender.clone(),
            Output::Held(_) | Output::Finished => return,
        };
        // Both outcomes are for `room` to tell.
        let _room_or_closed = sender.reserve().await;
    }
}

/// Head of a command's response: the type follows from the first bytes, because a program has no way to say it.
fn head(first: &Bytes, payload: impl FnOnce(&Bytes) -> Payload) -> Response<Payload> {
    // A character may be cut at the end of the first piece.
    let is_text = match std::str::from_utf8(first) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    let kind = if is_text { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    let mut response = Response::new(payload(first));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[derive(Clone)]
struct CommandStream(Arc<CommandOutput>);

impl IsTerminal for CommandStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for CommandStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(CommandWriter { output: self.0.clone(), waiting: None })
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for CommandStream {
    async fn ready(&mut self) {
        self.0.ready().await;
    }
}

impl OutputStream for CommandStream {
    fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
    fn check_write(&mut self) -> Result<usize, StreamError> {
        self.0.room()
    }
}

type Waiting = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The same as [`CommandStream`] for WASI 0.3, which writes through tokio's trait.
struct CommandWriter {
    output: Arc<CommandOutput>,
    waiting: Option<Waiting>,
}

impl AsyncWrite for CommandWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let this = self.get_mut();
        loop {
            if let Some(waiting) = &mut this.waiting {
                ready!(waiting.as_mut().poll(cx));
                this.waiting = None;
            }
            let closed = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
            let count = this.output.room().map_err(closed)?.min(bytes.len());
            if count > 0 || bytes.is_empty() {
                this.output.write(Bytes::copy_from_slice(&bytes[..count])).map_err(closed)?;
                return Poll::Ready(Ok(count));
            }
            let output = this.output.clone();
            this.waiting = Some(Box::pin(async move { output.ready().await }));
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
