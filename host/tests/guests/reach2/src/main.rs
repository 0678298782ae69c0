//! A command of WASI 0.2 that reaches outside by the standard library alone: `env NAME`, `read FILE`, `write FILE TEXT`, or
//! `connect ADDR`, which prints what comes from there. It fails when it is refused.

use std::io::{Error, Read};
use std::net::TcpStream;

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
        _ => return Err(Error::other("expected env, read, write or connect")),
    }
    print!("{text}");
    Ok(())
}
