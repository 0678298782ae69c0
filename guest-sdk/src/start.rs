//! What the exports do: the handler, and what runs before it.
//!
//! Owns the order of steps in each export. Invariant: no random number that was drawn before a snapshot is drawn again after it,
//! because every export that runs after a restore begins with a generator that has no seed.

use std::fmt::Display;

use crate::{IntoResponse, Request, abi, random, response};

/// `hob_handle`: answers the request of this invocation with what `handler` returns for it.
pub fn function<R: IntoResponse>(handler: fn(Request) -> R) {
    random::forget();
    let request = Request::from_record(abi::request_record());
    response::send(request.and_then(|request| handler(request).into_response()));
}

/// `hob_init`. Traps when `init` fails.
pub fn init<O: Outcome>(init: fn() -> O) {
    end("init", init());
}

/// `hob_restored`. Traps when `restored` fails.
pub fn restored<O: Outcome>(restored: fn() -> O) {
    random::forget();
    end("restored", restored());
}

/// Says in the log why `attribute` failed, if it did, and ends the instance.
fn end(attribute: &str, outcome: impl Outcome) {
    if let Err(error) = outcome.into_result() {
        crate::error!("{attribute} failed: {error}");
        // The log has the reason already: a panic would say it twice.
        std::process::abort();
    }
}

/// What a function that runs before the handler may return.
#[diagnostic::on_unimplemented(
    message = "a function that runs before the handler cannot return `{Self}`",
    label = "neither `()` nor a `Result<(), E>`",
    note = "return nothing, or `Result<(), E>` with an `E` that implements `Display`, such as `hob_sdk::Error`"
)]
pub trait Outcome {
    /// Nothing, or why it failed.
    ///
    /// # Errors
    /// It failed, with this text.
    fn into_result(self) -> Result<(), String>;
}

impl Outcome for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_nothing_or_a_text() {
        assert_eq!(().into_result(), Ok(()));
        assert_eq!(Ok::<(), crate::Error>(()).into_result(), Ok(()));
        assert_eq!(Err::<(), _>("no table").into_result(), Err("no table".into()));
    }

    #[test]
    fn restored_begins_without_what_was_drawn() {
        let before = random::u64();
        restored(|| assert!(random::is_unseeded()));
        assert_ne!(random::u64(), before);
        init(|| Ok::<(), crate::Error>(()));
    }
}
