//! Every operation of `hob_sdk` on data, for whoever asks over HTTP: the door through which the tests look.
//!
//! The path names the bucket. The body is a script, one operation a line, and the answer has a line for each: words between spaces.
//! Bytes are written as hexadecimal digits, `-` for none, `*N` for N bytes of 1; numbers and conditions as `name=value`. What fails
//! is `error KIND TEXT`, and the next line goes on.

mod kv;
mod objects;

use std::fmt::Write as _;

use hob_sdk::data::{Error, ErrorKind};
use hob_sdk::{Request, Response};

/// How often `init` or a warm-up request asked for data and was told that there is none.
static REFUSED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

#[hob_sdk::init]
fn init() {
    if std::env::var("ASK").is_ok_and(|ask| ask == "init") {
        ask();
    }
}

fn ask() {
    let error = hob_sdk::kv::open("hits").expect_err("there is no data at deploy");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    REFUSED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

#[hob_sdk::function]
fn handle(mut req: Request) -> Result<Response, hob_sdk::Error> {
    if req.path() == "/warm-up" {
        ask();
        return Ok("asked\n".into());
    }
    if let Some(name) = req.path().strip_prefix("/secret/") {
        let found = hob_sdk::secrets::text(name);
        return Ok(found.unwrap_or_else(|error| format!("{:?}: {error}", error.kind())).into());
    }
    if req.path() == "/refused" {
        return Ok(REFUSED.load(std::sync::atomic::Ordering::Relaxed).to_string().into());
    }
    let bucket = req.path().trim_start_matches('/').to_owned();
    let script = req.body().read_text()?;
    let mut answers = String::new();
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let verb = words.remove(0);
        let answer = match verb {
            "batch" => kv::batch(&bucket, lines.by_ref().take_while(|line| *line != "end")),
            "put" | "write" | "abandon" | "leak" | "drip" | "read" | "head" | "list" | "rm" | "hold" | "uploads" | "map"
            | "remap" | "mapgrow" | "mapped" => objects::run(&bucket, verb, &words),
            "spin" => spin(),
            _ => kv::run(&bucket, verb, &words),
        };
        let answer = answer.unwrap_or_else(|error| format!("error {} {error}", kind(&error)));
        writeln!(answers, "{answer}")?;
    }
    Ok(answers.into())
}

/// Never ends: its deadline does it.
#[expect(clippy::empty_loop, reason = "that is what it is for")]
fn spin() -> Result<String, Error> {
    loop {}
}

fn kind(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Denied => "denied",
        ErrorKind::NoBucket => "no-bucket",
        ErrorKind::Invalid => "invalid",
        ErrorKind::TooLarge => "too-large",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Quota => "quota",
        ErrorKind::Full => "full",
        ErrorKind::Busy => "busy",
        ErrorKind::Damaged => "damaged",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Limit => "limit",
    }
}

/// Bytes of a word.
fn bytes(word: &str) -> Vec<u8> {
    match word.strip_prefix('*') {
        Some(count) => vec![1; count.parse().expect("a count")],
        None if word == "-" => Vec::new(),
        None => (0..word.len()).step_by(2).map(|at| u8::from_str_radix(&word[at..at + 2], 16).expect("digits")).collect(),
    }
}

/// A word of bytes.
fn word(bytes: &[u8]) -> String {
    match bytes {
        [] => "-".into(),
        bytes if bytes.len() > 64 && bytes.iter().all(|byte| *byte == 1) => format!("*{}", bytes.len()),
        bytes => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// The value of `name=value` among words.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number<T: std::str::FromStr>(words: &[&str], name: &str) -> Option<T> {
    option(words, name).map(|text| text.parse().ok().expect("a number"))
}

fn millis(time: Option<std::time::SystemTime>) -> String {
    let since = |time: std::time::SystemTime| time.duration_since(std::time::SystemTime::UNIX_EPOCH).expect("after 1970");
    time.map_or_else(|| "never".into(), |time| since(time).as_millis().to_string())
}
