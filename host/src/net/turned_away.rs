//! Connections that nobody serves: how many, and why.
//!
//! Owns the counters of one port, and their names. Knows nothing about how a connection is turned away.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The port has as many connections as it takes.
    Port,
    /// The client's address has.
    Address,
    /// It waited for a request, its first or the next one, and its place was wanted for another.
    Reclaimed,
    /// The system had no descriptor or memory for it. Counted each time that the port has to pause for that.
    System,
    /// Its handshake of TLS failed.
    Handshake,
    /// Its handshake did not end in time.
    HandshakeTimeout,
}

impl Why {
    /// All of them; `self as usize` is the position.
    pub const ALL: [Self; 6] =
        [Self::Port, Self::Address, Self::Reclaimed, Self::System, Self::Handshake, Self::HandshakeTimeout];

    /// Its label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Address => "address",
            Self::Reclaimed => "reclaimed",
            Self::System => "system",
            Self::Handshake => "handshake",
            Self::HandshakeTimeout => "handshake-timeout",
        }
    }
}

/// The counters of one port.
#[derive(Debug, Default)]
pub struct TurnedAway([AtomicU64; Why::ALL.len()]);

impl TurnedAway {
    /// One more.
    pub(super) fn count(&self, why: Why) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far, for each reason.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Why::ALL.into_iter().map(|why| (why.as_str(), self.0[why as usize].load(Ordering::Relaxed)))
    }
}
