//! A component of `wasi:http` 0.3 that sends a request to another server.
//!
//! The query says where, as `SCHEME+AUTHORITY+PATH`. The answer is the status, the length of the body and its beginning, or the
//! interface's error.

use wasip3::exports::http::handler::Guest;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Request, Response, Scheme};
use wasip3::{wit_bindgen, wit_future, wit_stream};

struct Fetch;

wasip3::http::service::export!(Fetch);

impl Guest for Fetch {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        drop(request);
        let query = path.split_once('?').map_or("", |(_, query)| query).to_owned();
        let words: Vec<&str> = query.split('+').collect();
        let text = match words.as_slice() {
            [scheme, authority, path] => fetch(scheme, authority, path).await.unwrap_or_else(|code| format!("{code:?}")),
            _ => "not understood".into(),
        };
        let (mut body, body_reader) = wit_stream::new();
        // Dropping the writer sends the default: no trailers.
        let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(body_reader), trailers_reader);
        drop(trailers);
        wit_bindgen::spawn_local(async move {
            let _ = body.write_all(text.into_bytes()).await;
        });
        Ok(response)
    }
}

async fn fetch(scheme: &str, authority: &str, path: &str) -> Result<String, ErrorCode> {
    let (trailers, trailers_reader) = wit_future::new(|| Ok(None));
    let (request, _sent) = Request::new(Fields::new(), None, trailers_reader, None);
    drop(trailers);
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let set = request.set_scheme(Some(&scheme)).and_then(|()| request.set_authority(Some(authority)));
    if set.and_then(|()| request.set_path_with_query(Some(path))).is_err() {
        return Ok("no request".into());
    }
    let response = client::send(request).await?;
    let status = response.get_status_code();
    let (result, result_reader) = wit_future::new(|| Ok(()));
    drop(result);
    let (body, trailers) = Response::consume_body(response, result_reader);
    let text = body.collect().await;
    // Says what ended the body.
    trailers.await?;
    Ok(format!("{status} {} {}", text.len(), String::from_utf8_lossy(&text[..text.len().min(2000)]).escape_debug()))
}
