//! Headers that do not pass from a client to a function.
//!
//! Owns their list, for the ports that take them away and for whoever writes a request as a client would send it. Knows nothing about values.

use http::header::{self, HeaderName};

/// What Hob's own headers begin with.
pub const PREFIX: &str = "hob-";

/// Meant for the connection and not for who is behind it (RFC 9110, 7.6.1), and those that frame a body: hyper sets them.
static HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
];

/// Whether it is Hob's own or the connection's, in a request or a response.
#[must_use]
pub fn stays_outside(name: &HeaderName) -> bool {
    name.as_str().starts_with(PREFIX) || HOP_BY_HOP.contains(name)
}

/// Whether no function gets it in a request: `expect` is answered before it starts.
#[must_use]
pub fn never_reaches_a_function(name: &HeaderName) -> bool {
    stays_outside(name) || *name == header::EXPECT
}
