//! Requests to other servers by `hob_sdk`, for whoever asks over HTTP: the door through which the tests look.
//!
//! A `GET` of any path but `/` sends a request to where `NEXT` says, and answers what comes. Else the body is a script, one request a
//! line, and the answer has a line for each: `METHOD URL NAME=VALUE …`, and `body=*N` for a body of N bytes. What comes is
//! `STATUS LENGTH TEXT`, the text's beginning, or `error KIND TEXT`. `hold URL` leaves the response open, `head URL` does not read it.

use std::io::Read as _;

use hob_sdk::http::{self, SendErrorKind};
use hob_sdk::{Request, Response};

#[hob_sdk::function]
fn handle(mut req: Request) -> Result<Response, hob_sdk::Error> {
    if req.path() != "/" {
        let next = std::env::var("NEXT").unwrap_or_default();
        // Whatever this says of itself is not the host's word.
        let request = http::Request::get(next).header("hob-hops", "0").header("x-forwarded-for", "1.1.1.1").body("")?;
        let answer = http::send(request)?;
        let status = answer.status();
        return Ok(Response::new(answer.into_body().read_bytes(1 << 20)?).with_status(status));
    }
    let script = req.body().read_text()?;
    let (mut answers, mut held) = (String::new(), Vec::new());
    for line in script.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words.as_slice() {
            ["hold", url] => http::get(url).map(|response| {
                let status = response.status().as_u16();
                held.push(response);
                status.to_string()
            }),
            ["head", url] => http::get(url).map(|response| format!("{:?}", response.headers())),
            words => fetch(words),
        };
        let answer = answer.unwrap_or_else(|error| format!("error {} {error}", kind(error.kind())));
        answers.push_str(&answer);
        answers.push('\n');
    }
    Ok(answers.into())
}

fn fetch(words: &[&str]) -> Result<String, http::SendError> {
    let mut request = http::Request::builder().method(words[0]).uri(words[1]);
    let mut body = Vec::new();
    for (name, value) in words[2..].iter().filter_map(|word| word.split_once('=')) {
        match (name, value.strip_prefix('*')) {
            ("body", Some(len)) => body = vec![b'b'; len.parse().expect("a number")],
            ("body", None) => body = value.into(),
            _ => request = request.header(name, value),
        }
    }
    let Ok(request) = request.body(body) else { return Ok("no request".into()) };
    let mut response = http::send(request)?;
    let mut text = Vec::new();
    let mut piece = [0; 1000];
    loop {
        match response.body_mut().read(&mut piece) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&piece[..count]),
            Err(error) => return Err(*error.into_inner().expect("it has one").downcast().expect("of this type")),
        }
    }
    let shown = String::from_utf8_lossy(&text[..text.len().min(2000)]).escape_debug().to_string();
    Ok(format!("{} {} {shown}", response.status().as_u16(), text.len()))
}

fn kind(kind: SendErrorKind) -> &'static str {
    match kind {
        SendErrorKind::Denied => "denied",
        SendErrorKind::Prohibited => "prohibited",
        SendErrorKind::Invalid => "invalid",
        SendErrorKind::Timeout => "timeout",
        SendErrorKind::TooLarge => "too-large",
        SendErrorKind::Limit => "limit",
        SendErrorKind::Unavailable => "unavailable",
    }
}
