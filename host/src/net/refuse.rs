//! Answers written straight to a stream, when hyper cannot: before it runs, or after it gave up.
//!
//! Owns their bytes and how such a connection ends. Knows nothing about requests. Invariant: the client gets time to read the
//! answer, within a bound.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Response, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::stream::Stream;
use crate::invocation::Payload;

/// How long a closing connection is read from. Closing while input is left makes the kernel send a reset, and a reset makes the
/// client's kernel throw away an answer that was not read yet (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(2);
/// How much of it is read, in bytes: enough for what is under way on a fast local connection.
const LINGER_BYTES_MAX: usize = 16 << 20;

/// The bytes of a response that closes its connection.
pub(super) fn raw(response: Response<Payload>) -> Bytes {
    let (parts, body) = response.into_parts();
    let body = match body {
        Payload::Whole(body) => body,
        Payload::Stream(_) => unreachable!("Hob's own answers are whole"),
    };
    let mut out = format!("HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: {}\r\n", parts.status, body.len()).into_bytes();
    for (name, value) in parts.headers.iter().filter(|(name, _)| *name != header::CONNECTION) {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&body);
    out.into()
}

/// Writes `answer` and closes. Bounded by [`LINGER`].
pub(super) async fn answer(mut stream: Stream, answer: &[u8]) {
    // A client that is gone or takes nothing misses its answer: there is nobody left to tell.
    if let Ok(Ok(())) = timeout(LINGER, stream.write_all(answer)).await {
        linger(stream).await;
    }
}

/// Writes what the system takes of `answer` and of a farewell at once, and closes: for a connection that may take no more time.
pub(super) fn tell(mut stream: Stream, answer: &[u8]) {
    if let Some(Err(error)) = stream.write_all(answer).now_or_never() {
        tracing::debug!(%error, "a connection missed its answer");
    }
    // As above: who takes nothing more does not hear it.
    let _said = farewell(stream).now_or_never();
}

/// Says that nothing more is sent, where the client would take a bare end for a cut. Bounded by [`LINGER`].
pub(super) async fn farewell(mut stream: Stream) {
    if let Stream::Tls(_) = &stream {
        // A client that takes nothing more does not hear it.
        let _said = timeout(LINGER, stream.shutdown()).await;
    }
}

/// Ends the sending side, then reads what still comes until the client ends its own.
pub(super) async fn linger(mut stream: Stream) {
    let rest = async {
        stream.shutdown().await?;
        let mut scratch = vec![0; 16 << 10];
        let mut left = LINGER_BYTES_MAX;
        loop {
            match stream.read(&mut scratch).await? {
                0 => return Ok::<_, std::io::Error>(()),
                len if len > left => return Ok(()),
                len => left -= len,
            }
        }
    };
    // Too slow, too much, or gone: in each case the connection ends here.
    let _ended = timeout(LINGER, rest).await;
}
