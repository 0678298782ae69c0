//! A component of `wasi:http` 0.3 without anything of Hob: an async handler, and a body that is a stream of the component model.
//!
//! ```text
//! hob deploy                                                  # in this folder
//! curl http://127.0.0.1:3000/hello-http3/                     # Hello, world!
//! ```

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Hello;

wasip3::http::service::export!(Hello);

impl Guest for Hello {
    async fn handle(_request: Request) -> Result<Response, ErrorCode> {
        let headers = [("content-type".to_owned(), b"text/plain; charset=utf-8".to_vec())];
        let headers = Fields::from_list(&headers).expect("the header is well-formed");
        let (mut body, body_reader) = wit_stream::new();
        // Dropping the writer sends the default: no trailers.
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(headers, Some(body_reader), trailers_reader);
        drop(trailers);
        // The body is read only after the response has been returned, so it is written by a task of its own.
        wit_bindgen::spawn_local(async move {
            // What comes back was not read: the client has gone away, which is no fault of this function.
            let _ = body.write_all(b"Hello, world!\n".to_vec()).await;
        });
        Ok(response)
    }
}
