//! A component of `wasi:http` 0.3 that keeps what it opened.
//!
//! `/log` opens a stream to standard error and keeps its end, as a logger would; `/keep` keeps both ends of a stream of its own. Every request is
//! answered `ok`, and after `/log` a line is written to the log before that.

use std::cell::RefCell;

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::wit_bindgen::rt::async_support::{StreamReader, StreamWriter};
use wasip3::{wit_bindgen, wit_future, wit_stream};

thread_local! {
    static LOG: RefCell<Option<StreamWriter<u8>>> = const { RefCell::new(None) };
    static KEPT: RefCell<Option<(StreamWriter<u8>, StreamReader<u8>)>> = const { RefCell::new(None) };
}

struct Keeps;

wasip3::http::service::export!(Keeps);

impl Guest for Keeps {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        drop(request);
        match path.as_str() {
            "/log" => {
                let (writer, reader) = wit_stream::new();
                wit_bindgen::spawn_local(async move {
                    let _ = wasip3::cli::stderr::write_via_stream(reader).await;
                });
                LOG.set(Some(writer));
            }
            "/keep" => KEPT.set(Some(wit_stream::new())),
            _ => {}
        }
        let (mut body, body_reader) = wit_stream::new();
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(body_reader), trailers_reader);
        drop(trailers);
        wit_bindgen::spawn_local(async move {
            if path == "/"
                && let Some(mut log) = LOG.take()
            {
                let _ = log.write_all(b"a line of the log\n".to_vec()).await;
                LOG.set(Some(log));
            }
            let _ = body.write_all(b"ok".to_vec()).await;
        });
        Ok(response)
    }
}
