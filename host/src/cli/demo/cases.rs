//! What the demo sends to each example, and what must come back.

use anyhow::{Context as _, ensure};
use http::Method;

use super::{png, prose};
use crate::cli::text::clean;

/// Judges the body of an answer.
type Check = Box<dyn Fn(&[u8]) -> anyhow::Result<String>>;

/// One example and the requests for it.
pub(super) struct Case {
    /// Its folder under `examples/`.
    pub(super) example: &'static str,
    /// Requests, in order.
    pub(super) requests: Vec<Request>,
}

/// A request, and how its answer is judged.
pub(super) struct Request {
    /// Method.
    pub(super) method: Method,
    /// Path and query after the function's name.
    pub(super) path: &'static str,
    /// Body.
    pub(super) body: Vec<u8>,
    /// Says what came back, or what is wrong with it.
    pub(super) check: Check,
}

/// Bytes of text that are counted.
const BOOK_LEN: usize = 600_000;
/// Size of the picture that is made smaller, and the longest side of what must come back.
const PHOTO: (u32, u32) = (1600, 1200);
const THUMBNAIL_SIDE: u32 = 256;

/// All examples.
pub(super) fn all() -> Vec<Case> {
    vec![
        Case {
            example: "hello",
            requests: vec![
                says(Method::GET, "/", b"", "Hello, world!\n"),
                says(Method::GET, "/?name=Ana", b"", "Hello, Ana!\n"),
                says(Method::POST, "/", b"what comes in goes out", "what comes in goes out"),
            ],
        },
        Case { example: "wordcount", requests: vec![count()] },
        Case { example: "thumbnail", requests: vec![shrink()] },
        Case { example: "hello-http", requests: vec![says(Method::GET, "/", b"", "Hello, world!\n")] },
        Case { example: "hello-http3", requests: vec![says(Method::GET, "/", b"", "Hello, world!\n")] },
    ]
}

fn says(method: Method, path: &'static str, body: &[u8], expected: &'static str) -> Request {
    let check = move |answer: &[u8]| {
        ensure!(answer == expected.as_bytes(), "expected {expected:?}, and {:?} came back", excerpt(answer));
        Ok(format!("{:?}", expected.trim_end()))
    };
    Request { method, path, body: body.to_vec(), check: Box::new(check) }
}

fn count() -> Request {
    let text = prose::book(BOOK_LEN);
    let (lines, words, bytes) = (text.lines().count(), text.split_whitespace().count(), text.len());
    let check = move |answer: &[u8]| {
        let answer = std::str::from_utf8(answer).context("the answer is not text")?;
        let expected = format!("{lines} lines, {words} words, {bytes} bytes");
        let first = answer.lines().next().unwrap_or_default();
        ensure!(first == expected, "expected {expected:?}, and {:?} came back", excerpt(first.as_bytes()));
        let most = answer.lines().nth(1).context("no word was counted")?;
        Ok(format!("{first}; most frequent: {}", clean(most)))
    };
    Request { method: Method::POST, path: "/", body: text.into_bytes(), check: Box::new(check) }
}

fn shrink() -> Request {
    let (width, height) = PHOTO;
    let photo = png::photo(width, height);
    let check = move |answer: &[u8]| {
        let size = png::size(answer).with_context(|| format!("expected a PNG, and {:?} came back", excerpt(answer)))?;
        let expected = (THUMBNAIL_SIDE, THUMBNAIL_SIDE * height / width);
        ensure!(size == expected, "expected {expected:?} pixels, and {size:?} came back");
        Ok(format!("{width}x{height} PNG became {}x{}, {} bytes", size.0, size.1, answer.len()))
    };
    Request { method: Method::POST, path: "/", body: photo, check: Box::new(check) }
}

fn excerpt(bytes: &[u8]) -> String {
    clean(&String::from_utf8_lossy(&bytes[..bytes.len().min(120)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_answers_are_told_from_wrong_ones() {
        let hello = says(Method::GET, "/", b"", "Hello\n");
        assert_eq!((hello.check)(b"Hello\n").unwrap(), "\"Hello\"");
        assert!((hello.check)(b"Hello").is_err());
        let thumbnail = shrink();
        assert!((thumbnail.check)(&png::photo(256, 192)).is_ok());
        assert!((thumbnail.check)(&thumbnail.body).is_err() && (thumbnail.check)(b"GIF").is_err());
        assert!((count().check)(b"1 lines, 2 words, 3 bytes\nthe 1\n").is_err());
    }
}
