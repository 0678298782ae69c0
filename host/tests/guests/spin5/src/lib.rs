//! A function for Spin's HTTP trigger: built for `wasm32-wasip1`, so it is a core module that the host has to make a component.

use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_component;

/// Answers with what it was asked.
#[http_component]
fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    eprintln!("{} bytes", request.body().len());
    let text = format!("{} {}: {}", request.method(), request.path(), String::from_utf8_lossy(request.body()));
    Ok(Response::builder().status(201).header("content-type", "text/x-spin").body(text).build())
}
