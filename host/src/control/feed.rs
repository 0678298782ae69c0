//! Feeds: answers that go on, event by event, for as long as whoever asked may read.
//!
//! Owns their end when the token goes: it is looked at every [`LOOK`], beside the events and not for each. Knows nothing about what they tell.
//! Invariant: a token that was removed, or expired, is sent no event that comes later than [`LOOK`] after that; nor is who had none, once the
//! node has a token.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::{Stream, StreamExt as _};
use tokio::time::sleep;

use super::Control;
use super::access::Caller;

/// How often it is looked whether a reader still may.
const LOOK: Duration = Duration::from_millis(500);

impl Control {
    /// The answer that tells `events`, until they end or the caller may read them no more.
    pub(super) fn feed(
        &self,
        caller: Caller,
        events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    ) -> Response {
        let identity = self.identity.clone();
        let over = async move {
            let may = || caller.token.as_ref().map_or_else(|| identity.is_open(), |token| identity.is_good(token));
            while may() {
                sleep(LOOK).await;
            }
        };
        // Asked before the events: a flood of them does not keep a reader.
        Sse::new(events.take_until(Box::pin(over))).keep_alive(KeepAlive::default()).into_response()
    }
}
