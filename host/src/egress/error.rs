//! What can go wrong with a request to somewhere else.
//!
//! Owns the errors, and finds them again in what hyper and rustls say. Invariant: no text holds an address that a name stands for, and
//! a closed address looks the same whether somebody listens there or not: nothing is sent to it.

use std::error::Error as StdError;

use rustls::{AlertDescription, Error as TlsError};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// The target is not `http://HOST` or `https://HOST` with a port and a path perhaps.
    #[error("the target names no server: expected http:// or https://, a host or an address in its usual spelling, and no user")]
    BadTarget,
    /// A method that would turn the connection into something else.
    #[error("the method CONNECT is not for functions")]
    BadMethod,
    /// `content-length` is malformed, there twice, or another one than the body's.
    #[error("the content-length is not the length of the body")]
    BadLength,
    /// The operator does not let functions go there.
    #[error("the address is not public, and the operator has not opened it (egress.allow)")]
    Prohibited,
    /// There is no such name.
    #[error("the name of the host is not known")]
    UnknownName,
    /// It could not be connected in time.
    #[error("it took too long to connect")]
    ConnectTimeout,
    /// Nobody listens.
    #[error("the connection was refused")]
    Refused,
    /// No way leads there.
    #[error("there is no way to the server")]
    Unreachable,
    /// The certificate is not one that this node trusts, or not one of this host.
    #[error("the server's certificate is not trusted")]
    Certificate,
    /// TLS failed.
    #[error("the server does not speak TLS as expected")]
    Tls,
    /// The head of the response is larger than the node reads.
    #[error("the head of the response is too large: expected at most {HEADERS_MAX} headers and {HEAD_BYTES_MAX} bytes")]
    HeadTooLarge,
    /// What came is no response.
    #[error("the server's response is malformed")]
    Malformed,
    /// The head did not come in time.
    #[error("the server did not answer in time")]
    ResponseTimeout,
    /// The body stopped.
    #[error("the server stopped sending the response")]
    Idle,
    /// The body is larger than the node takes.
    #[error("the response has more than {limit} bytes")]
    BodyTooLarge {
        /// In bytes.
        limit: u64,
    },
    /// The connection ended before the response did.
    #[error("the connection ended before the response did")]
    Cut,
    /// The function gave up its own request's body.
    #[error("the request's body ended early")]
    RequestBody,
    /// The node stops.
    #[error("the node is shutting down")]
    Closed,
}

/// Most headers of a response.
pub const HEADERS_MAX: usize = 128;
/// Longest head of a response, and how much of a response is read before somebody wants it, in bytes.
pub const HEAD_BYTES_MAX: usize = 32 << 10;

/// A request's body that was given up by whoever makes it.
#[derive(Debug, thiserror::Error)]
#[error("the request's body was given up")]
pub struct GivenUp;

impl EgressError {
    /// Finds out what an error of the client is about.
    pub(super) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut cause = Some(error);
        let mut found = Self::Cut;
        while let Some(error) = cause {
            if let Some(ours) = error.downcast_ref::<Self>() {
                return ours.clone();
            }
            if error.is::<GivenUp>() {
                return Self::RequestBody;
            }
            if let Some(error) = error.downcast_ref::<hyper::Error>() {
                found = Self::of_hyper(error);
            }
            cause = error.source();
        }
        found
    }

    fn of_hyper(error: &hyper::Error) -> Self {
        match error {
            error if error.is_parse_too_large() => Self::HeadTooLarge,
            error if error.is_parse() => Self::Malformed,
            error if error.is_user() => Self::RequestBody,
            _ => Self::Cut,
        }
    }

    /// What an error of connecting is about.
    pub(super) fn of_connect(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused => Self::Refused,
            std::io::ErrorKind::TimedOut => Self::ConnectTimeout,
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::ConnectionAborted => Self::Cut,
            _ => Self::Unreachable,
        }
    }

    /// What an error of a handshake is about.
    pub(super) fn of_tls(error: &std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        match inner {
            Some(TlsError::InvalidCertificate(_) | TlsError::NoCertificatesPresented) => Self::Certificate,
            Some(TlsError::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate)) => Self::Certificate,
            _ => Self::Tls,
        }
    }
}
