//! A component of `wasi:http` 0.2 that sends requests to other servers.
//!
//! The query of the request is one of these; the answer has a line for each request that was sent: its status, the length of its body
//! and its beginning, or the interface's error.
//!
//! - `get SCHEME AUTHORITY PATH`, with spaces as `+`;
//! - `header NAME` (says whether the interface lets a guest set it);
//! - `post AUTHORITY LENGTH ANNOUNCED`: a body of so many bytes, with that `content-length`;
//! - `flood COUNT AUTHORITY`: begins so many requests before it looks at any.

use wasip2::exports::http::incoming_handler::Guest as Handler;
use wasip2::http::outgoing_handler::{OutgoingRequest, handle};
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

struct Fetch;

wasip2::http::proxy::export!(Fetch);

impl Handler for Fetch {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        drop(request);
        let query = path.split_once('?').map_or("", |(_, query)| query).to_owned();
        let words: Vec<&str> = query.split('+').collect();
        let answer = match words.as_slice() {
            ["get", scheme, authority, path] => get(scheme, authority, path),
            ["header", name] => header(name),
            ["post", authority, len, announced] => post(authority, len.parse().unwrap_or(0), announced),
            ["flood", count, authority] => flood(count.parse().unwrap_or(0), authority),
            _ => "not understood".into(),
        };
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(outparam, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        for piece in answer.as_bytes().chunks(4096) {
            // A client that has gone away is no fault of this function.
            let _ = stream.blocking_write_and_flush(piece);
        }
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn request(method: &Method, scheme: &str, authority: &str, path: &str, headers: Fields) -> Result<OutgoingRequest, String> {
    let request = OutgoingRequest::new(headers);
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    let set = request.set_method(method).and_then(|()| request.set_scheme(Some(&scheme)));
    let set = set.and_then(|()| request.set_authority(Some(authority)));
    set.and_then(|()| request.set_path_with_query(Some(path))).map_err(|()| "no request".to_owned())?;
    Ok(request)
}

fn get(scheme: &str, authority: &str, path: &str) -> String {
    let sent = request(&Method::Get, scheme, authority, path, Fields::new());
    let sent = sent.and_then(|request| handle(request, None).map_err(|code| format!("{code:?}")));
    sent.map_or_else(|error| error, |response| answer(&response))
}

fn header(name: &str) -> String {
    format!("{:?}", Fields::new().append(name, b"1"))
}

fn post(authority: &str, len: usize, announced: &str) -> String {
    let headers = Fields::new();
    headers.append("content-length", announced.as_bytes()).expect("it is a number");
    let request = request(&Method::Post, "http", authority, "/", headers).expect("it is one");
    let body = request.body().expect("it is taken once");
    let response = match handle(request, None) {
        Ok(response) => response,
        Err(code) => return format!("{code:?}"),
    };
    let stream = body.write().expect("it is taken once");
    for _ in 0..len {
        if let Err(error) = stream.blocking_write_and_flush(b"b") {
            return format!("write {error:?}");
        }
    }
    drop(stream);
    let finished = OutgoingBody::finish(body, None);
    finished.map_or_else(|code| format!("finish {code:?}"), |()| answer(&response))
}

fn flood(count: usize, authority: &str) -> String {
    let begin = |_| handle(request(&Method::Get, "http", authority, "/", Fields::new()).expect("it is one"), None);
    let begun: Vec<Result<FutureIncomingResponse, ErrorCode>> = (0..count).map(begin).collect();
    let mut answers = String::new();
    for response in begun {
        answers.push_str(&response.map_or_else(|code| format!("{code:?}"), |response| answer(&response)));
        answers.push('\n');
    }
    answers
}

fn answer(response: &FutureIncomingResponse) -> String {
    response.subscribe().block();
    let response = match response.get().expect("it is there").expect("it is taken once") {
        Ok(response) => response,
        Err(code) => return format!("{code:?}"),
    };
    let body = response.consume().expect("it is taken once");
    let stream = body.stream().expect("it is taken once");
    let mut text = Vec::new();
    loop {
        match stream.blocking_read(65536) {
            Ok(piece) => text.extend(piece),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => {
                let code = wasip2::http::types::http_error_code(&error);
                return format!("body {code:?}");
            }
        }
    }
    format!("{} {} {}", response.status(), text.len(), String::from_utf8_lossy(&text[..text.len().min(2000)]).escape_debug())
}
