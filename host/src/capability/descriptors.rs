//! Descriptors of the process that guests have: each durable object that is open, and each that is being put, is a file.
//!
//! Owns the share of them that all guests have together; the rest is left for connections, templates and the data itself. Knows nothing
//! about what they are of. Invariant: what was taken is given back when its [`Descriptor`] is dropped.

use std::sync::{Arc, LazyLock};

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Guests have one of so many of the descriptors that the system allows the process.
pub const SHARE: u64 = 4;
/// Where the system sets no limit.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// What the system allowed when a guest first asked; the daemon raises it when it starts.
static LEFT: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(DESCRIPTORS_MAX);
    Arc::new(Semaphore::new(usize::try_from(all / SHARE).unwrap_or(usize::MAX)))
});

/// One of them.
#[derive(Debug)]
pub struct Descriptor(#[expect(dead_code, reason = "it is held, not read")] OwnedSemaphorePermit);

/// Takes one; `None` if guests have all of theirs.
#[must_use]
pub fn take() -> Option<Descriptor> {
    LEFT.clone().try_acquire_owned().ok().map(Descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_the_share_and_they_come_back() {
        let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(DESCRIPTORS_MAX);
        let mut taken: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!(taken.len() as u64, all / SHARE);
        taken.pop();
        assert!(take().is_some());
    }
}
