//! The HTTP client of origins: where it goes, and what of an answer comes further.
//!
//! Owns the transport below `object_store`. Knows nothing about S3 but how a list is asked for. Invariant: it goes to the host that a
//! request names and to no other, and neither text of an error nor a list without end reaches who asked.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::{StatusCode, header};
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

/// Most bytes of the list that one answer holds; 1,000 of the longest keys are less.
const LIST_BYTES_MAX: usize = 8 << 20;

/// A client that goes where it is told and nowhere else.
pub(super) fn client(endpoint: &str, connect: Duration) -> Result<reqwest::Client, reqwest::Error> {
    // Another part of the process may have chosen the same before.
    let _chosen = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .http1_only()
        .connect_timeout(connect);
    match endpoint.starts_with("https://") {
        true => client.https_only(true).build(),
        // Certificates that nobody asks for are not looked for either.
        false => client.tls_certs_only(std::iter::empty()).build(),
    }
}

/// An answer that is no success, without its text.
#[derive(Debug, thiserror::Error)]
#[error("answered {0}")]
pub(super) struct Answered(pub(super) StatusCode);

/// Gives the client to `object_store`.
#[derive(Debug)]
pub(super) struct Connector(pub(super) reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Guard(self.0.clone())))
    }
}

/// Takes from answers what must not come further: text of errors, and lists without end.
#[derive(Debug)]
struct Guard(reqwest::Client);

type Answering<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Guard {
    // As the attribute of `async-trait` writes it.
    fn call<'life0, 'async_trait>(&'life0 self, request: HttpRequest) -> Answering<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            let is_get = request.method() == http::Method::GET;
            let is_list = is_get && request.uri().query().is_some_and(|query| query.contains("list-type=2"));
            let (mut parts, body) = HttpService::call(&self.0, request).await?.into_parts();
            let understood = [
                StatusCode::NOT_MODIFIED,
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
                StatusCode::NOT_FOUND,
                StatusCode::CONFLICT,
                StatusCode::PRECONDITION_FAILED,
            ];
            if understood.contains(&parts.status) {
                parts.headers.remove(header::CONTENT_LENGTH);
                return Ok(HttpResponse::from_parts(parts, String::new().into()));
            }
            if !parts.status.is_success() {
                return Err(HttpError::new(HttpErrorKind::Unknown, Answered(parts.status)));
            }
            let body = match is_list {
                false => body,
                true => {
                    let limited = Limited::new(body, LIST_BYTES_MAX);
                    HttpResponseBody::new(limited.map_err(|error| HttpError::new_boxed(HttpErrorKind::Decode, error)))
                }
            };
            Ok(HttpResponse::from_parts(parts, body))
        })
    }
}
