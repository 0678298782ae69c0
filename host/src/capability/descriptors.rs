//! Descriptors of the process that guests have: each file that is open, each durable object that is, and each that is being put.
//!
//! Owns the share of them that all guests have together, of which those of one tenant have three quarters at most ([`Shares`]); the rest is
//! left for connections, templates and the data itself. Knows nothing about what they are of. Invariant: what was taken is given back when
//! its [`Descriptor`] is dropped.

use std::sync::LazyLock;

use futures_util::FutureExt as _;
use rustix::process::{Resource, getrlimit};
use tokio::sync::Semaphore;
use tokio::task::coop::unconstrained;

use crate::data::{Share, Shares, Turn};
use crate::id::TenantId;

/// Guests have one of so many of the descriptors that the system allows the process.
pub const SHARE: u64 = 4;
/// Where the system sets no limit.
const DESCRIPTORS_MAX: u64 = 1 << 20;

/// What the system allowed when a guest's data was first made ready; the daemon raises it when it starts.
static ALL: LazyLock<Shares> = LazyLock::new(|| Shares::new(of_guests()));

fn of_guests() -> usize {
    let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(DESCRIPTORS_MAX);
    usize::try_from(all / SHARE).unwrap_or(Semaphore::MAX_PERMITS)
}

/// Those that guests of one tenant may have.
#[derive(Debug, Clone)]
pub struct Descriptors(Share);

/// One of them.
#[derive(Debug)]
pub struct Descriptor(#[expect(dead_code, reason = "it is held, not read")] Turn);

impl Descriptors {
    /// Those of a tenant, whichever of its functions asks.
    #[must_use]
    pub fn of(tenant: &TenantId) -> Self {
        Self(ALL.of(tenant))
    }

    /// Takes one; `None` if the tenant's guests, or all, have all of theirs.
    #[must_use]
    pub fn take(&self) -> Option<Descriptor> {
        // Whoever has used up its turn on the thread would otherwise be told that there is none.
        let turn = unconstrained(self.0.take()).now_or_never()?;
        turn.ok().map(Descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_the_share_of_which_no_tenant_has_all_and_they_come_back() {
        let of = |tenant: &str| Descriptors::of(&tenant.parse().unwrap());
        let (flood, other) = (of("flood"), of("other"));
        let mut taken: Vec<_> = std::iter::from_fn(|| flood.take()).collect();
        assert_eq!(taken.len(), ALL.each_max());
        assert!(of("flood").take().is_none(), "a share is of the tenant, not of one of its functions");
        let rest: Vec<_> = std::iter::from_fn(|| other.take()).collect();
        assert_eq!((rest.len(), ALL.max()), (of_guests() - ALL.each_max(), of_guests()));
        taken.pop();
        let again = other.take();
        assert!(again.is_some() && flood.take().is_none(), "there are no more");
        drop(again);
        assert!(flood.take().is_some());
    }
}
