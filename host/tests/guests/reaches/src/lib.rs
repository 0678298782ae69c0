//! A component of `wasi:http` 0.2 that reaches for the network and remembers what came of it.
//!
//! `REACH` says how its `wizer-initialize` does: `http` sends a request to the address `NODE`, `socket` connects to it, `panic` gives
//! up. A request whose path is one of them does the same. Every answer has a line for each attempt so far. Being initialised twice
//! ends it.

use std::sync::Mutex;

use wasip2::exports::http::incoming_handler::Guest as Handler;
use wasip2::http::outgoing_handler::{OutgoingRequest, handle};
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam, Scheme};

static TRIED: Mutex<String> = Mutex::new(String::new());

mod init {
    wit_bindgen::generate!({ inline: "package test:init; world init { export wizer-initialize: func(); }" });
}

struct Reaches;

wasip2::http::proxy::export!(Reaches);
init::export!(Reaches with_types_in init);

impl init::Guest for Reaches {
    fn wizer_initialize() {
        assert_eq!(*TRIED.lock().expect("nobody panicked"), "", "this is done once");
        reach("init", &std::env::var("REACH").unwrap_or_default());
    }
}

impl Handler for Reaches {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        drop(request);
        if path != "/" {
            reach("request", path.trim_start_matches('/'));
        }
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(outparam, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        // A client that has gone away is no fault of this function.
        let _ = stream.blocking_write_and_flush(TRIED.lock().expect("nobody panicked").as_bytes());
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn reach(when: &str, how: &str) {
    let address = std::env::var("NODE").unwrap_or_default();
    let result = match how {
        "http" => over_http(&address),
        "socket" => std::net::TcpStream::connect(&address).map(drop).map_err(|error| error.kind().to_string()),
        "panic" => panic!("as it was told"),
        _ => Err("not told how".into()),
    };
    let line = format!("{when} {how}: {}\n", result.err().unwrap_or_else(|| "reached".into()));
    TRIED.lock().expect("nobody panicked").push_str(&line);
}

fn over_http(address: &str) -> Result<(), String> {
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).expect("it is one");
    request.set_authority(Some(address)).expect("it is one");
    request.set_path_with_query(Some("/other")).expect("it is one");
    let response = handle(request, None).map_err(|code| format!("{code:?}"))?;
    response.subscribe().block();
    let response = response.get().expect("it is there").expect("it is taken once");
    response.map(drop).map_err(|code| format!("{code:?}"))
}
