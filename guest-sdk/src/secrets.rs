//! Secrets: values that `hob.toml` grants and that nobody else sees: `[grants] secrets = ["API_KEY"]`.
//!
//! ```no_run
//! use hob_sdk::{http, secrets};
//!
//! # fn f() -> Result<(), hob_sdk::Error> {
//! let key = format!("Bearer {}", secrets::text("API_KEY")?);
//! let response = http::send(http::Request::get("https://api.example.com/v1/rates").header("authorization", key).body("")?)?;
//! # Ok(())
//! # }
//! ```
//!
//! Each call asks the host, so a secret that was changed is seen by the next invocation. During [`init`](macro@crate::init) and warm-up a secret can
//! be read only if `hob.toml` says so, `{ name = "API_KEY", init = true }`: what is kept of it is then in every instance, and a change of it
//! makes the host initialise the function again. Whoever compares a secret with what a client sent does so in a time that does not depend on
//! where they differ.

use std::fmt;

use crate::abi::{self, Errno};

/// The value of a secret.
///
/// # Errors
/// [`Error`]. Converts to [`hob_sdk::Error`](crate::Error) by `?`.
pub fn get(name: &str) -> Result<Vec<u8>, Error> {
    abi::secret_get(name, |record| record.into_tail(0)).map_err(Error::of)
}

/// The value of a secret that is text, as it is: with the line end at its end, if it has one.
///
/// # Errors
/// Those of [`get`], and [`ErrorKind::Invalid`] for one that is not UTF-8.
pub fn text(name: &str) -> Result<String, Error> {
    String::from_utf8(get(name)?)
        .map_err(|_| Error { kind: ErrorKind::Invalid, text: format!("the secret '{name}' is not UTF-8") })
}

/// Why a secret could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    text: String,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The manifest does not grant it, or not during initialisation; the text is the line that would.
    Denied,
    /// There is no such secret.
    NoSecret,
    /// It is no text.
    Invalid,
    /// It is damaged: not what was set. Setting it anew mends it.
    Damaged,
    /// It cannot be read at present, or here.
    Unavailable,
}

impl Error {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error of the call that was just made, with the text that waits for it.
    #[cold]
    fn of(errno: Errno) -> Self {
        let kind = match errno.0 {
            -2 => ErrorKind::Denied,
            -9 => ErrorKind::Damaged,
            -16 => ErrorKind::NoSecret,
            _ => ErrorKind::Unavailable,
        };
        Self { kind, text: abi::error_text() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}
