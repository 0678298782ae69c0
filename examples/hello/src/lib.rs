//! A handler: one function with one attribute, answering one request in an instance of its own.
//!
//! Shows the request's method, query, headers and body, and three ways to answer: text, a status with text, and bytes with a
//! header.
//!
//! ```text
//! hob deploy                                                  # in this folder
//! curl 'http://127.0.0.1:3000/hello/'                         # Hello, world!
//! curl 'http://127.0.0.1:3000/hello/?name=Ana'                # Hello, Ana!
//! curl 'http://127.0.0.1:3000/hello/' --data-binary @Cargo.toml     # echoes the file
//! ```

use hob_sdk::{Error, Request, Response, StatusCode};

#[hob_sdk::function]
fn handle(req: Request) -> Result<Response, Error> {
    match req.method() {
        "GET" | "HEAD" => Ok(greet(req.query()).into()),
        "POST" | "PUT" => echo(req),
        _ => Ok(Response::from("use GET or POST\n")
            .with_status(StatusCode::METHOD_NOT_ALLOWED)
            .with_header("allow", "GET, HEAD, POST, PUT")),
    }
}

fn greet(query: Option<&str>) -> String {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(key, _)| key == "name") {
        Some((_, name)) => format!("Hello, {name}!\n"),
        None => "Hello, world!\n".into(),
    }
}

fn echo(mut req: Request) -> Result<Response, Error> {
    let bytes = req.body().read_bytes()?;
    hob_sdk::info!("{} bytes come back", bytes.len());
    let content_type = req.header_bytes("content-type").unwrap_or(b"application/octet-stream");
    Ok(Response::new(bytes).with_header("content-type", content_type))
}

#[cfg(test)]
mod tests {
    use hob_sdk::http;

    use super::*;

    fn check(request: http::request::Builder, body: &'static str, status: u16, expected: &str) {
        let response = handle(request.body(body).unwrap().into()).unwrap().into_http().unwrap();
        assert_eq!((response.status().as_u16(), str::from_utf8(response.body()).unwrap()), (status, expected));
    }

    #[test]
    fn it_greets_by_name_and_echoes() {
        check(http::Request::get("/"), "", 200, "Hello, world!\n");
        check(http::Request::get("/?name=Ana"), "", 200, "Hello, Ana!\n");
        check(http::Request::get("/?a=b&name=Jos%C3%A9+M."), "", 200, "Hello, José M.!\n");
        check(http::Request::post("/"), "same", 200, "same");
        check(http::Request::delete("/"), "", 405, "use GET or POST\n");
    }
}
