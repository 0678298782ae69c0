//! A component of `wasi:http` 0.2 without anything of Hob: the same file runs under `wasmtime serve`, Spin and wasmCloud.
//!
//! ```text
//! hob deploy                                                  # in this folder
//! curl http://127.0.0.1:3000/hello-http/                      # Hello, world!
//! wasmtime serve -S cli ../target/wasm32-wasip2/release/hello_http.wasm
//! ```

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Hello;

wasip2::http::proxy::export!(Hello);

impl Guest for Hello {
    fn handle(_request: IncomingRequest, outparam: ResponseOutparam) {
        let headers = [("content-type".to_owned(), b"text/plain; charset=utf-8".to_vec())];
        let headers = Fields::from_list(&headers).expect("the header is well-formed");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body is taken once");
        // The head goes first: a host may wait for it before it takes any of the body.
        ResponseOutparam::set(outparam, Ok(response));
        let stream = body.write().expect("the stream is taken once");
        // A client that has gone away is no fault of this function.
        let _ = stream.blocking_write_and_flush(b"Hello, world!\n");
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
