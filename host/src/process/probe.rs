//! Probes: what a test has a walled process try, in debug builds.
//!
//! Owns the words. Knows nothing about who may do what. Compiled to nothing where debug assertions are off, so a released binary has no way to
//! reach them.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// Tries `word` on `target`; says `done`, or the name of the error.
#[must_use]
pub fn run(word: &str, target: &str) -> String {
    let tried = match word {
        "read" => std::fs::read(target).map(drop),
        "write" => std::fs::write(target, "probe"),
        "listen" => TcpListener::bind(target).map(drop),
        "connect" => TcpStream::connect(target).map(drop),
        "unix" => UnixStream::connect(target).map(drop),
        "run" => std::process::Command::new(target).status().map(drop),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    match tried {
        Ok(()) => "done".into(),
        Err(error) => match error.raw_os_error() {
            Some(libc::EACCES) => "EACCES".into(),
            Some(libc::ENOSYS) => "ENOSYS".into(),
            _ => error.to_string(),
        },
    }
}
