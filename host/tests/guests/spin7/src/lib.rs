//! A function for Spin's HTTP trigger, of `wasi:http` 0.3.

use spin_sdk::http::{IntoResponse, Request};
use spin_sdk::http_service;

/// Answers with what it was asked.
#[http_service]
async fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    Ok(format!("{} {}", request.method(), request.uri().path()))
}
