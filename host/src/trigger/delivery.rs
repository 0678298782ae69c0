//! One attempt to deliver one event, to its end.
//!
//! Owns what an answer means for an event, and the pauses between attempts. Knows nothing about other events. Invariant: an event is
//! settled only after the function answered 2xx, or when it is given up.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::RETRY_AFTER;
use http_body_util::BodyExt as _;

use super::message::{grave, invocation, letter};
use super::{STORE_RETRY, Triggers};
use crate::crash;
use crate::data::events::{Event, Lane};
use crate::fault::{Code, Executed};
use crate::id::{BucketName, InvocationId};
use crate::invocation::{BodyError, Invoked};
use crate::telemetry::metrics::Delivery;

/// Pause after the first failure; it doubles with each further one.
pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two attempts, also if the function asks for more.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(300);
/// Pause when there was no place to run the function.
const POSTPONED: Duration = Duration::from_secs(1);
/// Pause when an event that is given up cannot be put where it belongs.
const BURIAL_RETRY: Duration = Duration::from_secs(60);

/// What is to be done with an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The function is to be told.
    Deliver,
    /// It was told, or nobody wants to be: what is left is to remove it.
    Remove(Delivery),
    /// It was given up.
    Bury(BucketName, Failure),
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Status that a client would have got.
    pub(super) status: Option<u16>,
    /// The fault, if it was one.
    pub(super) code: Option<Code>,
}

/// An event that is to be delivered.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) number: u64,
    /// `None` if it is damaged.
    pub(super) event: Option<Arc<Event>>,
    pub(super) failures: u32,
    pub(super) step: Step,
}

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// The event is out of the outbox.
    Gone { number: u64 },
    /// It stays.
    Again { number: u64, after: Duration, failures: u32, step: Step },
}

/// What an answer means.
#[derive(Debug)]
enum Verdict {
    Done,
    /// The function did not run, and is not to blame.
    Postponed(Duration),
    Failed(Failure, Option<Duration>),
}

/// Makes one attempt.
pub(super) async fn deliver(triggers: &Triggers, lane: &Lane, task: Task) -> Delivered {
    let Task { number, event, failures, step } = task;
    let Some(event) = event else {
        tracing::error!(function = %lane.function, bucket = %lane.bucket, number, "an event is damaged on disk, and dropped");
        return remove(triggers, lane, number, failures, Delivery::Dropped).await;
    };
    match step {
        Step::Deliver => attempt(triggers, lane, &event, failures).await,
        Step::Remove(outcome) => remove(triggers, lane, number, failures, outcome).await,
        Step::Bury(bucket, failure) => bury(triggers, lane, &event, failures, bucket, failure).await.0,
    }
}

async fn attempt(triggers: &Triggers, lane: &Lane, event: &Event, failures: u32) -> Delivered {
    let number = event.number;
    match triggers.data.bucket(&lane.tenant, &lane.bucket) {
        Ok(Some(bucket)) if bucket.id == lane.id => {}
        Ok(_) => return remove(triggers, lane, number, failures, Delivery::Dropped).await,
        Err(error) => {
            tracing::error!(%error, "the bucket of an event cannot be read; trying again");
            return Delivered::Again { number, after: STORE_RETRY, failures, step: Step::Deliver };
        }
    }
    let Some(trigger) = triggers.data.events().trigger(lane, event) else {
        return remove(triggers, lane, number, failures, Delivery::Dropped).await;
    };
    let attempt = failures + 1;
    let invoked = triggers.invoke.invoke(invocation(lane, event, attempt)).await;
    let id = invoked.id;
    let (failure, asked) = match judge(invoked).await {
        Verdict::Done => {
            crash::point("event-told");
            return remove(triggers, lane, number, failures, Delivery::Delivered).await;
        }
        Verdict::Postponed(after) => {
            triggers.metrics.delivery(Delivery::Postponed, 1);
            return Delivered::Again { number, after, failures, step: Step::Deliver };
        }
        Verdict::Failed(failure, asked) => (failure, asked),
    };
    triggers.metrics.delivery(Delivery::Failed, 1);
    let what = format!("{} of '{}' in bucket '{}'", event.change.on(), event.key.escape_ascii(), lane.bucket);
    let failed = format!("the event {what} failed, attempt {attempt} of {}: {failure}", trigger.attempts);
    if attempt < trigger.attempts {
        let after = pause(attempt).max(asked.unwrap_or_default()).min(PAUSE_MAX);
        (triggers.tell)(lane, id, &format!("{failed}; again in {after:?}"));
        return Delivered::Again { number, after, failures: attempt, step: Step::Deliver };
    }
    give_up(triggers, lane, event, attempt, trigger.dead_letter, failure, (id, failed)).await
}

/// After the last attempt.
async fn give_up(
    triggers: &Triggers,
    lane: &Lane,
    event: &Event,
    failures: u32,
    dead_letter: Option<BucketName>,
    failure: Failure,
    (id, failed): (InvocationId, String),
) -> Delivered {
    let Some(bucket) = dead_letter else {
        (triggers.tell)(lane, id, &format!("{failed}; dropped, since the trigger names no 'dead_letter'"));
        return remove(triggers, lane, event.number, failures, Delivery::Dropped).await;
    };
    let (delivered, became) = bury(triggers, lane, event, failures, bucket, failure).await;
    (triggers.tell)(lane, id, &format!("{failed}; {became}"));
    delivered
}

/// Keeps an event that is given up in its bucket. Answers too what became of it, for the function's log.
async fn bury(
    triggers: &Triggers,
    lane: &Lane,
    event: &Event,
    failures: u32,
    bucket: BucketName,
    failure: Failure,
) -> (Delivered, String) {
    let (number, grave) = (event.number, grave(lane, event));
    let buried = match triggers.data.bucket(&lane.tenant, &bucket) {
        Ok(Some(grounds)) => {
            let (key, value) = (grave.clone(), letter(lane, event, failures, &failure));
            triggers.data.bury(lane, number, &grounds, key.into(), value).await
        }
        Ok(None) => {
            tracing::error!(%bucket, function = %lane.function, "the bucket for events that are given up is gone; one is dropped");
            let became = format!("dropped, since bucket '{bucket}', which was to keep it, is gone");
            return (remove(triggers, lane, number, failures, Delivery::Dropped).await, became);
        }
        Err(error) => Err(error),
    };
    match buried {
        Ok(_) => {
            triggers.metrics.delivery(Delivery::Buried, 1);
            (Delivered::Gone { number }, format!("given up, see '{grave}' in bucket '{bucket}'"))
        }
        Err(error) => {
            tracing::error!(%error, %bucket, function = %lane.function, "an event that is given up cannot be kept; trying again");
            let became = format!("given up; it waits until bucket '{bucket}' takes it as '{grave}': {error}");
            (Delivered::Again { number, after: BURIAL_RETRY, failures, step: Step::Bury(bucket, failure) }, became)
        }
    }
}

/// Takes an event out of the outbox. It is counted when it is out, and not if it was out before: then its function is gone.
async fn remove(triggers: &Triggers, lane: &Lane, number: u64, failures: u32, outcome: Delivery) -> Delivered {
    match triggers.data.outbox().settle(lane, number).await {
        Ok(was_there) => {
            crash::point("event-settled");
            if was_there {
                triggers.metrics.delivery(outcome, 1);
            }
            Delivered::Gone { number }
        }
        Err(error) => {
            tracing::error!(%error, function = %lane.function, "an event that was told cannot be removed; trying again");
            Delivered::Again { number, after: STORE_RETRY, failures, step: Step::Remove(outcome) }
        }
    }
}

/// Waits for the whole answer, because a guest may fail until its end.
async fn judge(invoked: Invoked) -> Verdict {
    let outcome = match invoked.result {
        Ok(outcome) => outcome,
        Err(fault) => {
            let passes = matches!(
                fault.code,
                Code::Concurrency
                    | Code::Overloaded
                    | Code::Draining
                    | Code::NotFound
                    | Code::QuotaExceeded
                    | Code::SecretUnavailable
                    | Code::Damaged
                    | Code::StorageFull
                    | Code::WallDeadline
            );
            if fault.executed == Executed::No && passes {
                return Verdict::Postponed(fault.retry_after.unwrap_or(POSTPONED).min(PAUSE_MAX));
            }
            return Verdict::Failed(Failure { status: None, code: Some(fault.code) }, fault.retry_after);
        }
    };
    let (head, mut body) = outcome.response.into_parts();
    while let Some(frame) = body.frame().await {
        let code = match frame {
            Ok(_) => continue,
            Err(BodyError::Cut(code)) => Some(code),
            Err(_) => None,
        };
        return Verdict::Failed(Failure { status: Some(head.status.as_u16()), code }, None);
    }
    if head.status.is_success() {
        return Verdict::Done;
    }
    let says_later =
        [StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&head.status);
    let asked = head.headers.get(RETRY_AFTER).filter(|_| says_later).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Verdict::Failed(Failure { status: Some(head.status.as_u16()), code: None }, asked.map(Duration::from_secs))
}

/// The pause after the failure of this number, from 1 up.
pub(super) fn pause(failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    PAUSE.saturating_mul(factor).min(PAUSE_MAX)
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.status) {
            (Some(code), _) => write!(f, "{code}"),
            (None, Some(status)) => write!(f, "status {status}"),
            (None, None) => f.write_str("no answer"),
        }
    }
}
