//! A command of WASI 0.2 that reaches outside, by the standard library where that can: `env NAME`, `read FILE`, `write FILE TEXT`,
//! `connect ADDR`, which prints what comes from there, or `get ADDR`, which prints the status of an HTTP response. It fails when it
//! is refused.

use std::io::{Error, Read};
use std::net::TcpStream;

use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, OutgoingRequest, Scheme};

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut text = String::new();
    match args.as_slice() {
        ["env", name] => text = std::env::var(name).map_err(Error::other)?,
        ["read", file] => text = std::fs::read_to_string(file)?,
        ["write", file, words] => std::fs::write(file, words)?,
        ["connect", addr] => {
            TcpStream::connect(addr)?.read_to_string(&mut text)?;
        }
        ["get", addr] => text = get(addr).map_err(|error| Error::other(format!("{error:?}")))?.to_string(),
        _ => return Err(Error::other("expected env, read, write or connect")),
    }
    print!("{text}");
    Ok(())
}

/// The status of `http://ADDR/`.
fn get(addr: &str) -> Result<u16, wasip2::http::types::ErrorCode> {
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&Scheme::Http)).expect("the scheme is one");
    request.set_authority(Some(addr)).expect("the address is one");
    request.set_path_with_query(Some("/")).expect("the path is one");
    let response = outgoing_handler::handle(request, None)?;
    response.subscribe().block();
    let response = response.get().expect("it is there").expect("it is taken once")?;
    Ok(response.status())
}
