//! What rates are held against: a bucket of tokens, and the one of a tenant's logs.
//!
//! Owns how tokens come back with time. Knows nothing about what they are for. Invariant: however many take at once, no more is given than a
//! full bucket and what its time brings.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::NONE;

static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Nanoseconds since the process first asked.
fn nanos(now: Instant) -> u64 {
    let passed = now.saturating_duration_since(*BEGAN.get_or_init(|| now));
    u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX)
}

/// A bucket of tokens: so many in a time, all of which may be taken at once; and debt, which later tokens pay.
///
/// It is one number: when the bucket would be full again ("generic cell rate algorithm").
#[derive(Debug, Default)]
pub struct TokenBucket {
    full_at: AtomicU64,
}

/// How many tokens a time brings, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Thousandths of a token.
    pub tokens: u64,
    /// In how long.
    pub time: Duration,
}

impl Rate {
    /// Nanoseconds that `count` tokens take to come.
    fn span(self, count: u64) -> u64 {
        let nanos = self.time.as_nanos().saturating_mul(count.into()).saturating_mul(1000) / u128::from(self.tokens.max(1));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    fn span_of_time(self) -> u64 {
        u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX)
    }

    /// How far ahead the bucket may be promised: it holds what `time` brings, and a whole token at least.
    fn depth(self) -> u64 {
        self.span_of_time().max(self.span(1))
    }
}

impl TokenBucket {
    /// Takes `count` tokens, if there are so many.
    ///
    /// # Errors
    /// How long until there are; for ever if the bucket is never so full.
    /// # Cost
    /// A few atomic operations, no lock.
    pub fn take(&self, rate: Rate, count: u64, now: Instant) -> Result<(), Duration> {
        let (now, span, depth) = (nanos(now), rate.span(count), rate.depth());
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(span);
            let late = next.saturating_sub(now.saturating_add(depth));
            if late > 0 || rate.tokens == 0 {
                return Err(if rate.tokens == 0 { Duration::MAX } else { Duration::from_nanos(late) });
            }
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(found) => full_at = found,
            }
        }
    }

    /// Whether no more is owed than a time brings, or how long until that is so.
    ///
    /// # Errors
    /// How long.
    pub fn look(&self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let late = self.full_at.load(Ordering::Relaxed).saturating_sub(nanos(now).saturating_add(rate.span_of_time()));
        match (rate.tokens, late) {
            (0, _) => Err(Duration::MAX),
            (_, 0) => Ok(()),
            (_, late) => Err(Duration::from_nanos(late)),
        }
    }

    /// Takes what was used already, of which a part of a token is given in `nanos` of a whole one.
    pub fn owe(&self, rate: Rate, used: Duration, now: Instant) {
        // A token is a second of use here.
        let span = rate.span(1);
        let owed = u128::from(span) * used.as_nanos() / 1_000_000_000;
        let (now, owed) = (nanos(now), u64::try_from(owed).unwrap_or(u64::MAX));
        let update = |full_at: u64| Some(full_at.max(now).saturating_add(owed));
        // It always has a new value.
        let _ = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// Fills it, when its rate changes: what was promised at another rate says nothing.
    pub fn fill(&self) {
        self.full_at.store(0, Ordering::Relaxed);
    }
}

/// What functions of a tenant may log, in bytes of a minute.
#[derive(Debug)]
pub struct LogQuota {
    most: AtomicU64,
    refused: AtomicU64,
    bucket: TokenBucket,
}

impl Default for LogQuota {
    fn default() -> Self {
        Self { most: AtomicU64::new(NONE), refused: AtomicU64::new(0), bucket: TokenBucket::default() }
    }
}

impl LogQuota {
    /// What is in force; [`NONE`] where nothing is.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// Puts another one in force.
    pub fn set(&self, most: u64) {
        if self.most.swap(most, Ordering::Relaxed) != most {
            self.bucket.fill();
        }
    }

    /// Whether so many bytes more may be logged, which counts them.
    pub fn take(&self, bytes: u64) -> bool {
        let most = self.most();
        let rate = Rate { tokens: most.saturating_mul(1000), time: Duration::from_secs(60) };
        let fits = most == NONE || self.bucket.take(rate, bytes, Instant::now()).is_ok();
        if !fits {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// Lines that were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_its_time_brings() {
        let (bucket, began) = (TokenBucket::default(), Instant::now());
        let rate = Rate { tokens: 2_000, time: Duration::from_secs(1) };
        let at = |ms| began + Duration::from_millis(ms);
        assert_eq!((bucket.take(rate, 1, at(0)), bucket.take(rate, 1, at(0))), (Ok(()), Ok(())));
        assert_eq!(bucket.take(rate, 1, at(0)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(rate, 1, at(499)), Err(Duration::from_millis(1)));
        assert_eq!(bucket.take(rate, 1, at(500)), Ok(()));
        // Full again, and never fuller.
        assert_eq!((bucket.take(rate, 2, at(9_000)), bucket.take(rate, 1, at(9_000)).is_err()), (Ok(()), true));
        assert_eq!(bucket.take(rate, 3, at(90_000)), Err(Duration::from_millis(500)), "it never holds three");
        let none = Rate { tokens: 0, ..rate };
        assert_eq!(bucket.take(none, 1, at(99_000)), Err(Duration::MAX));
    }

    #[test]
    fn less_than_one_in_its_time_is_one_in_a_longer_time() {
        let (bucket, began) = (TokenBucket::default(), Instant::now());
        let rate = Rate { tokens: 1, time: Duration::from_secs(1) };
        assert_eq!(bucket.take(rate, 1, began), Ok(()));
        assert_eq!(bucket.take(rate, 1, began), Err(Duration::from_secs(1000)));
        bucket.fill();
        assert_eq!(bucket.take(rate, 1, began), Ok(()));
    }

    #[test]
    fn logs_on_both_sides() {
        let quota = LogQuota::default();
        assert!(quota.take(1 << 40) && quota.refused() == 0);
        quota.set(10);
        assert!(quota.take(10) && !quota.take(10) && quota.refused() == 1);
        quota.set(11);
        assert!(quota.take(11));
    }

    #[test]
    fn debt_is_paid_back() {
        let (bucket, began) = (TokenBucket::default(), Instant::now());
        // Six seconds in each minute.
        let rate = Rate { tokens: 6_000, time: Duration::from_secs(60) };
        assert_eq!(bucket.look(rate, began), Ok(()));
        bucket.owe(rate, Duration::from_secs(6), began);
        assert_eq!(bucket.look(rate, began), Ok(()), "what a minute brings may be used at once");
        bucket.owe(rate, Duration::from_secs(3), began);
        assert_eq!(bucket.look(rate, began), Err(Duration::from_secs(30)));
        assert_eq!(bucket.look(rate, began + Duration::from_secs(30)), Ok(()));
    }
}
