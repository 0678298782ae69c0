//! Limits: the hard ceilings on one invocation, by name, with default, range and unit.
//!
//! Owns the list of limits; the manifest, `hob run --limit`, the API and the documentation all read it. Knows nothing about who
//! enforces them. Invariant: a [`Limits`] only ever holds values inside each limit's range.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Threads of one runtime that may block. What may hold one for long has a bound of its own, and their sum is held against this.
pub const BLOCKING_THREADS_MAX: usize = 40;

/// How long a thread that may block waits for more work before it goes. Work goes to the thread that has waited longest, so a trickle keeps as
/// many threads of a rush alive as it has jobs in this time: with two seconds, all of them at twenty a second. A new thread takes some 50 us.
pub const BLOCKING_IDLE: Duration = Duration::from_millis(100);

/// What a client may send by default (`[net]` of the configuration), and a warm-up request in any case: headers, those that Hob adds to the
/// latter counted.
pub const HEADERS_MAX: usize = 64;
/// The same: bytes of a head.
pub const HEAD_BYTES_MAX: usize = 32 << 10;
/// The same: bytes of a target, which is a path with its query.
pub const URI_BYTES_MAX: usize = 8 << 10;

/// How the number of a limit is written and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes: `64KiB`, `128MiB`, `1GiB`, or a plain number.
    Bytes,
    /// Milliseconds, written as `500ms`, `10s`, `2m`.
    Time,
    /// A plain number.
    Count,
}

/// One limit of an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// Sum over all memories and tables of the instance.
    Memory,
    /// Processor time of the guest.
    Cpu,
    /// Time from when the request was read, or from when the function had a place for it, or was loaded, to the end of the guest.
    Wall,
    /// Invocations of one function that run at once.
    Concurrency,
    /// Invocations of one function that wait for a place among `concurrency`.
    Queue,
    /// How long one waits in `queue`.
    QueueWait,
    /// Request body.
    RequestBody,
    /// Response body.
    ResponseBody,
    /// What one invocation may write to its log.
    Log,
    /// Bytes of objects that one invocation has mapped at once.
    Mapped,
    /// Mappings that one invocation holds at once.
    Mappings,
}

/// What a limit is called and what it may be.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Which one.
    pub limit: Limit,
    /// Its key in `[limits]`, in `--limit`, and in answers.
    pub name: &'static str,
    /// How it is written.
    pub unit: Unit,
    /// When the manifest is silent; in the base unit (bytes, milliseconds, one).
    pub default: u64,
    /// Smallest legal value.
    pub min: u64,
    /// Largest legal value.
    pub max: u64,
    /// One line for people.
    pub about: &'static str,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// All limits, in the order of [`Limit`].
pub const SPECS: [Spec; 11] = [
    spec(Limit::Memory, "memory", Unit::Bytes, (128 * MIB, 64 * KIB, 4 * GIB), "sum over all memories and tables of an instance"),
    spec(Limit::Cpu, "cpu", Unit::Time, (1_000, 1, 3_600_000), "processor time of one invocation"),
    spec(
        Limit::Wall,
        "wall",
        Unit::Time,
        (10_000, 1, 86_400_000),
        "time from when the request was read, or from when the function had a place for it, or was loaded, to the end of the guest",
    ),
    spec(Limit::Concurrency, "concurrency", Unit::Count, (100, 1, 100_000), "invocations of the function that run at once"),
    spec(Limit::Queue, "queue", Unit::Count, (200, 0, 100_000), "invocations of the function that wait for their turn"),
    spec(Limit::QueueWait, "queue_wait", Unit::Time, (1_000, 0, 60_000), "how long an invocation waits for its turn"),
    spec(Limit::RequestBody, "request_body", Unit::Bytes, (8 * MIB, 0, 64 * GIB), "bytes of a request body"),
    spec(Limit::ResponseBody, "response_body", Unit::Bytes, (GIB, 0, 1024 * GIB), "bytes of a response body"),
    spec(Limit::Log, "log", Unit::Bytes, (64 * KIB, 0, 16 * MIB), "bytes that one invocation may log"),
    spec(Limit::Mapped, "mapped", Unit::Bytes, (GIB, 0, 4 * GIB), "bytes of objects that an invocation has mapped at once"),
    spec(Limit::Mappings, "mappings", Unit::Count, (256, 0, 1_000), "objects that an invocation has mapped at once"),
];

const fn spec(limit: Limit, name: &'static str, unit: Unit, (default, min, max): (u64, u64, u64), about: &'static str) -> Spec {
    assert!(min <= default && default <= max, "a default lies in its range");
    Spec { limit, name, unit, default, min, max, about }
}

impl Limit {
    /// Name, unit and range.
    #[must_use]
    pub fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }
}

/// A limit that was written wrongly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No limit has this name.
    #[error("unknown limit '{name}'{}; the limits are {}", suggestion(.near), names())]
    Unknown {
        /// What was written.
        name: String,
        /// The nearest real name.
        near: Option<&'static str>,
    },
    /// The value is not a number with the right unit.
    #[error("limit '{name}' cannot be '{value}': expected {expected}")]
    Unreadable {
        /// Name of the limit.
        name: &'static str,
        /// What was written.
        value: String,
        /// The form that is expected.
        expected: &'static str,
    },
    /// The value is outside of the limit's range.
    #[error("limit '{name}' cannot be {value}: expected {min} to {max}")]
    OutOfRange {
        /// Name of the limit.
        name: &'static str,
        /// What was written.
        value: String,
        /// Smallest legal value.
        min: String,
        /// Largest legal value.
        max: String,
    },
}

fn suggestion(near: &Option<&'static str>) -> String {
    near.map(|name| format!(" (did you mean '{name}'?)")).unwrap_or_default()
}

fn names() -> String {
    SPECS.map(|spec| spec.name).join(", ")
}

/// The nearest of `known` to a mistyped `word`, if any is near enough to be what was meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The ceilings of one invocation, each inside its range. [`Limits::default`] is what a silent manifest gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits([u64; SPECS.len()]);

impl Default for Limits {
    fn default() -> Self {
        Self(SPECS.map(|spec| spec.default))
    }
}

impl Limits {
    /// Limits of a command under `hob run`: it is the user's own program on the user's own terminal, so only memory is
    /// bounded, every other limit is at the end of its range.
    #[must_use]
    pub fn only_memory() -> Self {
        let mut limits = Self(SPECS.map(|spec| spec.max));
        limits.0[Limit::Memory as usize] = Limit::Memory.spec().default;
        limits
    }

    /// The number in the limit's base unit: bytes, milliseconds, or one.
    #[must_use]
    pub fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }

    /// The number as `usize`; limits past the address space count as its end.
    #[must_use]
    pub fn size(&self, limit: Limit) -> usize {
        usize::try_from(self.get(limit)).unwrap_or(usize::MAX)
    }

    /// A limit of [`Unit::Time`].
    #[must_use]
    pub fn duration(&self, limit: Limit) -> Duration {
        Duration::from_millis(self.get(limit))
    }

    /// Sets a limit from text, as `[limits]` and `--limit NAME=VALUE` do.
    ///
    /// # Errors
    /// [`LimitError`] names the limit, what was expected, and the nearest name for an unknown one. Nothing is changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), LimitError> {
        let Some(spec) = SPECS.iter().find(|spec| spec.name == name) else {
            let near = nearest(name, SPECS.iter().map(|spec| spec.name));
            return Err(LimitError::Unknown { name: name.into(), near: near.and_then(static_name) });
        };
        let number = parse(spec.unit, value).ok_or_else(|| LimitError::Unreadable {
            name: spec.name,
            value: value.into(),
            expected: match spec.unit {
                Unit::Bytes => "bytes such as \"64KiB\", \"128MiB\" or 1048576",
                Unit::Time => "a time such as \"500ms\", \"10s\" or \"2m\"",
                Unit::Count => "a whole number",
            },
        })?;
        if number < spec.min || number > spec.max {
            let [min, max] = [spec.min, spec.max].map(|bound| display(spec.unit, bound));
            return Err(LimitError::OutOfRange { name: spec.name, value: value.into(), min, max });
        }
        self.0[spec.limit as usize] = number;
        Ok(())
    }

    /// Names and values as text, in the order of [`SPECS`].
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        SPECS.iter().map(|spec| (spec.name, display(spec.unit, self.get(spec.limit))))
    }
}

fn static_name(name: &str) -> Option<&'static str> {
    SPECS.iter().map(|spec| spec.name).find(|known| *known == name)
}

/// Reads a number with the unit's suffixes; plain digits are always bytes, or one. `None` when it is neither.
fn parse(unit: Unit, text: &str) -> Option<u64> {
    let text = text.trim();
    match unit {
        Unit::Count => text.parse().ok(),
        Unit::Bytes => parse_bytes(text),
        Unit::Time => parse_time(text).and_then(|time| u64::try_from(time.as_millis()).ok()),
    }
}

/// Reads `128MiB`, `64KiB` or plain bytes.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64())
}

/// Reads `500ms`, `10s`, `1h 30m`. A number without a unit is not a time, because nobody can tell which was meant.
#[must_use]
pub fn parse_time(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok().filter(|_| text.bytes().any(|b| b.is_ascii_alphabetic()))
}

/// The shortest text that [`parse`] reads back as `number`.
pub(crate) fn display(unit: Unit, number: u64) -> String {
    let largest = |scales: &[(u64, &str)]| {
        let scale = scales.iter().find(|(size, _)| number != 0 && number.is_multiple_of(*size));
        scale.map(|(size, suffix)| format!("{}{suffix}", number / size))
    };
    match unit {
        Unit::Count => number.to_string(),
        Unit::Bytes => largest(&[(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")]).unwrap_or_else(|| number.to_string()),
        Unit::Time => largest(&[(3_600_000, "h"), (60_000, "m"), (1_000, "s")]).unwrap_or_else(|| format!("{number}ms")),
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self.entries().map(|(name, value)| format!("{name} {value}")).collect();
        f.write_str(&entries.join(", "))
    }
}

impl Serialize for Limits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries())
    }
}

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut limits = Self::default();
        for (name, value) in std::collections::BTreeMap::<String, String>::deserialize(deserializer)? {
            limits.set(&name, &value).map_err(serde::de::Error::custom)?;
        }
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_in_the_order_of_the_enum() {
        for (index, spec) in SPECS.iter().enumerate() {
            assert_eq!(spec.limit as usize, index);
        }
    }

    #[test]
    fn every_limit_on_both_sides_of_both_ends() {
        for spec in &SPECS {
            let mut limits = Limits::default();
            for good in [spec.min, spec.max, spec.default] {
                let text = display(spec.unit, good);
                limits.set(spec.name, &text).unwrap();
                assert_eq!(limits.get(spec.limit), good, "{} {text}", spec.name);
            }
            let above = display(spec.unit, spec.max + 1);
            assert!(matches!(limits.set(spec.name, &above), Err(LimitError::OutOfRange { .. })), "{}", spec.name);
            if let Some(below) = spec.min.checked_sub(1) {
                let below = display(spec.unit, below);
                assert!(matches!(limits.set(spec.name, &below), Err(LimitError::OutOfRange { .. })), "{}", spec.name);
            }
        }
    }

    #[test]
    fn unreadable_values_name_the_expected_form() {
        let mut limits = Limits::default();
        for (name, value) in [("memory", "lots"), ("cpu", "5"), ("cpu", "-1s"), ("concurrency", "1.5"), ("queue", "")] {
            assert!(matches!(limits.set(name, value), Err(LimitError::Unreadable { .. })), "{name}={value}");
        }
        assert_eq!(limits, Limits::default());
    }

    #[test]
    fn unknown_limits_suggest_the_nearest() {
        let error = Limits::default().set("memroy", "1MiB").unwrap_err().to_string();
        assert!(error.contains("did you mean 'memory'?"), "{error}");
        assert!(!Limits::default().set("zzz", "1").unwrap_err().to_string().contains("did you mean"));
    }

    #[test]
    fn limits_survive_json() {
        let mut limits = Limits::default();
        limits.set("memory", "96KiB").unwrap();
        let json = serde_json::to_string(&limits).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&json).unwrap(), limits);
    }
}
