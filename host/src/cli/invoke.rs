//! `hob invoke`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;

use anyhow::Context as _;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use ureq::Body;

use super::client::{Call, accept};
use super::failure::{Exit, next};
use super::output;
use super::text::clean;
use super::{Ctx, Failure};
use crate::id::FunctionName;

/// Arguments of `hob invoke`.
#[derive(Debug, Args)]
pub(super) struct Invoke {
    /// Name of the function
    name: FunctionName,
    /// The request's body: text, @FILE, or - for standard input; without it, a pipe or file on standard input is the body
    #[arg(short, long, value_name = "TEXT|@FILE|-")]
    data: Option<String>,
    /// The request's method [default: POST with a body, else GET]
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<Method>,
    /// A header of the request, as often as needed
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Path and query that the function sees
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// Print status and headers of the response on standard error
    #[arg(short, long)]
    include: bool,
}

/// The body of a request, and its length if it is known.
struct Input {
    reader: Box<dyn Read>,
    len: Option<u64>,
}

impl Invoke {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let client = ctx.client()?;
        let mut input = self.input()?;
        let method = match (&self.method, &input) {
            (Some(method), _) => method.clone(),
            (None, Some(_)) => Method::POST,
            (None, None) => Method::GET,
        };
        let mut headers: HeaderMap = HeaderMap::new();
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        if let Some(len) = input.as_ref().and_then(|input| input.len) {
            headers.insert(http::header::CONTENT_LENGTH, len.into());
        }
        let path = if self.path.starts_with('/') { self.path } else { format!("/{}", self.path) };
        if path.parse::<http::uri::PathAndQuery>().is_err() {
            let sentence = format!("'{path}' is no path and query: write other characters as %XX");
            return Err(Failure::new(Exit::Usage, sentence).next("hob invoke --help"));
        }
        let body = input.as_mut().map(|input| &mut input.reader as &mut dyn Read);
        let response = client.invoke(&self.name, Call { method, path, headers }, body)?;
        if self.include {
            show_head(&response);
        }
        // What Hob answers itself is an error of this command; what the function answers is its result, whatever the status.
        let response = if response.headers().contains_key("hob-error") { accept(response, Some(&self.name))? } else { response };
        print_body(response, &self.name)
    }

    fn input(&self) -> Result<Option<Input>, Failure> {
        let Some(data) = &self.data else { return waiting_input(self.method.as_ref()) };
        if data == "-" {
            return Ok(Some(Input { reader: Box::new(io::stdin()), len: None }));
        }
        let Some(path) = data.strip_prefix('@') else {
            let bytes = data.clone().into_bytes();
            let len = Some(bytes.len() as u64);
            return Ok(Some(Input { reader: Box::new(io::Cursor::new(bytes)), len }));
        };
        let file = File::open(path).with_context(|| format!("cannot open '{path}'")).map_err(next("hob invoke --help"))?;
        let meta = file.metadata().with_context(|| format!("cannot look at '{path}'"))?;
        if meta.is_dir() {
            return Err(Failure::new(Exit::Failure, format!("'{path}' is a folder, not a file")).next("hob invoke --help"));
        }
        // A pipe or device has no length, and a file that shrinks meanwhile would leave the request without its end.
        let len = meta.is_file().then_some(meta.len());
        let reader: Box<dyn Read> = match len {
            Some(len) => Box::new(Exactly::new(file, len)),
            None => Box::new(file),
        };
        Ok(Some(Input { reader, len }))
    }
}

/// Standard input, if it is a pipe or file with something in it and the method may have a body. A terminal or `/dev/null` is not
/// asked.
fn waiting_input(method: Option<&Method>) -> Result<Option<Input>, Failure> {
    if method.is_some_and(|method| [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS].contains(method)) {
        return Ok(None);
    }
    let Ok(kind) = std::fs::metadata("/dev/stdin").map(|meta| meta.file_type()) else { return Ok(None) };
    if !kind.is_fifo() && !kind.is_file() {
        return Ok(None);
    }
    let mut first = vec![0; 64 << 10];
    let len = io::stdin().read(&mut first).context("cannot read standard input")?;
    if len == 0 {
        return Ok(None);
    }
    first.truncate(len);
    Ok(Some(Input { reader: Box::new(io::Cursor::new(first).chain(io::stdin())), len: None }))
}

/// Reads a number of bytes that was announced, and fails if there are fewer.
pub(super) struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R> Exactly<R> {
    /// Of `inner`, `len` bytes.
    pub(super) fn new(inner: R, len: u64) -> Self {
        Self { inner, left: len }
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let len = self.inner.read(&mut buffer[..room])?;
        if len == 0 && room > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was sent"));
        }
        self.left -= len as u64;
        Ok(len)
    }
}

/// Reads `NAME: VALUE`.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let name = name.trim().parse().map_err(|_| format!("'{name}' cannot be the name of a header"))?;
    let value = value.trim().parse().map_err(|_| format!("'{value}' cannot be the value of a header"))?;
    Ok((name, value))
}

fn show_head(response: &Response<Body>) {
    output::note(response.status());
    for (name, value) in response.headers() {
        output::note(format!("{name}: {}", clean(&String::from_utf8_lossy(value.as_bytes()))));
    }
    output::note("");
}

/// Passes the body on, as it is and as it comes.
fn print_body(response: Response<Body>, name: &FunctionName) -> Result<(), Failure> {
    let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => output::raw(&buffer[..len])?,
            // The daemon cuts the connection when a guest fails after its response has begun.
            Err(error) => {
                let failure = Failure::from(anyhow::Error::new(error).context("the response broke off before its end"));
                return Err(failure.exit(Exit::Guest).next(format!("hob logs {name}")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        let (name, value) = header("X-Name:  a: b ").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-name", "a: b"));
        for bad in ["", "name", "na me: x", ": x", "a: \u{1}"] {
            assert!(header(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_one_that_grows_is_cut() {
        let read = |len| {
            let mut out = Vec::new();
            Exactly::new(&b"four"[..], len).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(read(3).unwrap(), b"fou");
        assert_eq!(read(4).unwrap(), b"four");
        assert!(read(5).is_err());
    }
}
