//! Failures: how often an address presented a token that is none.
//!
//! Owns that count. Nobody guesses 256 bits; this keeps what a broken client, or somebody who tries, can ask for and have written down.
//! Invariant: at most [`ADDRESSES_MAX`] addresses are remembered; of more the one that failed longest ago is forgotten.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

/// Failures that an address may have within [`FAILURES_TIME`].
pub const FAILURES_MAX: u32 = 10;
/// How long a failure counts, from the first one on.
pub const FAILURES_TIME: Duration = Duration::from_secs(60);
/// Addresses that are remembered.
pub const ADDRESSES_MAX: usize = 4096;

const PLACES: NonZeroUsize = NonZeroUsize::new(ADDRESSES_MAX).expect("it is not 0");

/// What is known of the addresses that failed.
#[derive(Debug)]
pub(super) struct Failures(LruCache<IpAddr, (Instant, u32)>);

impl Default for Failures {
    fn default() -> Self {
        Self(LruCache::new(PLACES))
    }
}

impl Failures {
    /// Counts one.
    ///
    /// # Errors
    /// The time until the address may fail again, if it has failed too often.
    pub(super) fn note(&mut self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let (began, count) = self.0.get_or_insert_mut(network(address), || (now, 0));
        let passed = now.saturating_duration_since(*began);
        if passed >= FAILURES_TIME {
            (*began, *count) = (now, 0);
        }
        if *count >= FAILURES_MAX {
            return Err(FAILURES_TIME.saturating_sub(passed));
        }
        *count += 1;
        Ok(())
    }
}

/// What one client has of addresses: a network of 64 bits where there are enough of them (RFC 6177).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_failures_a_minute_and_no_more() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for _ in 0..FAILURES_MAX {
            assert_eq!(failures.note(address("127.0.0.2"), now), Ok(()));
        }
        let later = now + Duration::from_secs(20);
        assert_eq!(failures.note(address("127.0.0.2"), later), Err(Duration::from_secs(40)));
        assert_eq!(
            failures.note(address("::ffff:127.0.0.2"), later),
            Err(Duration::from_secs(40)),
            "the same in the other spelling"
        );
        assert_eq!(failures.note(address("127.0.0.3"), later), Ok(()));
        assert_eq!(failures.note(address("127.0.0.2"), now + FAILURES_TIME), Ok(()));
        for _ in 0..FAILURES_MAX {
            assert_eq!(failures.note(address("2001:db8::1"), now), Ok(()));
        }
        assert!(failures.note(address("2001:db8::2"), now).is_err(), "one network");
        assert!(failures.note(address("2001:db8:0:1::2"), now).is_ok());
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for number in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 10 {
            assert_eq!(failures.note(IpAddr::from(number.to_be_bytes()), now), Ok(()));
        }
        assert_eq!(failures.0.len(), ADDRESSES_MAX);
    }
}
