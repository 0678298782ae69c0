//! What both ports share: listeners, connections with every timer set, draining, and the one map from faults to statuses.
//!
//! Knows words only: not wasmtime, not who answers. Invariant: a request that reaches a service has a sound head, and everything
//! that a client can stretch (head, body, response, connection count) has a bound from [`crate::config::Net`].

pub mod afterwards;
pub mod body;
mod connection;
pub mod drain;
pub mod exchange;
mod head;
mod headers;
mod idle;
mod io;
pub mod listener;
mod outgoing;
mod phase;
pub mod places;
mod refuse;
pub mod serve;
pub mod status;
mod stream;
pub mod tls;
pub mod turned_away;

pub use connection::panic_text;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
