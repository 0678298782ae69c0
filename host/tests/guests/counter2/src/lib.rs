//! A component of `wasi:http` 0.2 that counts the requests that its memory has seen, and answers with the number.
//!
//! On `/print` it prints a line, which makes Rust's library keep a handle of the host's; on `/map` it makes a hash table, whose keys
//! are drawn; on `/fail` it answers 500; on `/break` it never finishes its body; on `/time` it says whether time ran backwards since it was first asked.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

static COUNT: AtomicU32 = AtomicU32::new(0);
static SINCE: OnceLock<Instant> = OnceLock::new();

struct Counter;

wasip2::http::proxy::export!(Counter);

impl Guest for Counter {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        let path = request.path_with_query().unwrap_or_default();
        drop(request);
        let mut text = count.to_string();
        let mut status = 200;
        match path.as_str() {
            "/print" => println!("a line of request {count}"),
            "/map" => text = format!("{count} {}", HashMap::from([(1, 2)]).len()),
            "/fail" => status = 500,
            "/time" => text = format!("backwards: {}", Instant::now() < *SINCE.get_or_init(Instant::now)),
            _ => {}
        }
        let response = OutgoingResponse::new(Fields::new());
        response.set_status_code(status).expect("the status is one");
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(outparam, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        // A client that has gone away is no fault of this function.
        let _ = stream.blocking_write_and_flush(text.as_bytes());
        drop(stream);
        if path == "/break" {
            return;
        }
        let _ = OutgoingBody::finish(body, None);
    }
}
