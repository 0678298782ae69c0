//! The oldest events of one lane, and what is being done with each.
//!
//! Owns which event comes next. Knows nothing about how it is delivered. Invariant: no event begins before an older one of the same key
//! has ended.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::delivery::{Delivered, Step, Task};
use super::{LANE_DELIVERIES_MAX, WINDOW};
use crate::data::events::{Event, Waiting};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Window {
    items: VecDeque<Item>,
    /// Number of the youngest event that was ever in it.
    last: u64,
    running: usize,
    /// Whether the outbox may have younger ones.
    pub(super) has_more: bool,
    /// Whether its lane stands in the queue of turns.
    pub(super) is_queued: bool,
}

#[derive(Debug)]
struct Item {
    number: u64,
    /// `None` if it is damaged.
    event: Option<Arc<Event>>,
    is_running: bool,
    /// Not begun before.
    due: Instant,
    failures: u32,
    step: Step,
}

impl Window {
    /// Whether it is worth to read more: not for every event that ends.
    pub(super) fn wants_more(&self) -> bool {
        self.has_more && self.items.len() <= WINDOW / 2
    }

    /// How many events to read.
    pub(super) fn room(&self) -> usize {
        WINDOW.saturating_sub(self.items.len())
    }

    /// After which number to read.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Takes what was read into its room.
    pub(super) fn extend(&mut self, found: Vec<Waiting>) {
        self.has_more = found.len() >= self.room();
        let due = Instant::now();
        for Waiting { number, event } in found {
            self.last = number;
            let event = event.map(Arc::new);
            self.items.push_back(Item { number, event, is_running: false, due, failures: 0, step: Step::Deliver });
        }
    }

    /// The next event that may begin, which has begun then.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Task> {
        if self.running >= LANE_DELIVERIES_MAX {
            return None;
        }
        let mut busy = HashSet::new();
        let next = self.items.iter_mut().find(|item| {
            let is_first = item.event.as_ref().is_none_or(|event| busy.insert(event.key.clone()));
            is_first && !item.is_running && item.due <= now
        })?;
        next.is_running = true;
        self.running += 1;
        Some(Task { number: next.number, event: next.event.clone(), failures: next.failures, step: next.step.clone() })
    }

    /// An event that was begun has ended. Answers when it is due again, if it is.
    pub(super) fn end(&mut self, delivered: Delivered) -> Option<Instant> {
        self.running = self.running.saturating_sub(1);
        let (number, again) = match delivered {
            Delivered::Gone { number } => (number, None),
            Delivered::Again { number, after, failures, step } => (number, Some((Instant::now() + after, failures, step))),
        };
        let at = self.items.iter().position(|item| item.number == number)?;
        let Some((due, failures, step)) = again else {
            self.items.remove(at);
            return None;
        };
        let item = self.items.get_mut(at)?;
        (item.is_running, item.due, item.failures, item.step) = (false, due, failures, step);
        Some(due)
    }

    /// Whether nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        self.items.is_empty() && !self.has_more
    }
}
