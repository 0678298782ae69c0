//! From names to addresses, once for each connection.
//!
//! Owns [`Resolve`], which the system's resolver implements, and in tests one that changes its answers. Knows nothing about which
//! addresses may be reached.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;

/// Most addresses of one name that are looked at.
pub(super) const ADDRESSES_MAX: usize = 16;

/// Finds the addresses of a name. Two implementations: [`System`], and the one of the tests.
pub(super) trait Resolve: Send + Sync + 'static {
    /// All addresses of `name`. `turn` is held for as long as the work goes on, which may be longer than somebody waits for it.
    fn addresses(&self, name: String, turn: OwnedSemaphorePermit) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's: `/etc/hosts`, and whatever else it is told to ask.
#[derive(Debug)]
pub(super) struct System;

impl Resolve for System {
    fn addresses(&self, name: String, turn: OwnedSemaphorePermit) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let look_up = move || {
            let _turn = turn;
            Ok((name.as_str(), 0).to_socket_addrs()?.map(|addr| addr.ip()).take(ADDRESSES_MAX).collect())
        };
        let job = tokio::task::spawn_blocking(look_up);
        async move { job.await.unwrap_or_else(|error| Err(io::Error::other(error))) }.boxed()
    }
}
