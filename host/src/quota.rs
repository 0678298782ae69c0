//! Quotas of a tenant: ceilings over time or in sum, by name, with what each counts.
//!
//! Owns the list of quotas and how they are written; `quota/rate.rs` has what rates are held against. Knows nothing about who enforces them.
//! Invariant: a [`Quotas`] only ever holds values inside each quota's range.

mod rate;

pub use rate::{LogQuota, Rate, TokenBucket};

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::{Serialize, Serializer};

use crate::limits::{Unit, display, parse_bytes};

/// One quota of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quota {
    /// Invocations that begin in a second.
    InvocationsPerSecond,
    /// Invocations that run at once.
    Concurrency,
    /// Seconds of processor time in a minute.
    CpuSecondsPerMinute,
    /// Guest memory of all invocations that run.
    Memory,
    /// Deploys in an hour.
    DeploysPerHour,
    /// Functions.
    Functions,
    /// What the buckets may hold together.
    BytesStored,
    /// Bytes that functions log in a minute.
    LogBytesPerMinute,
}

/// What a quota is called and what it may be.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Which one.
    pub quota: Quota,
    /// Its key in `[quota]`, in the API, and with `-` in place of `_` as a flag.
    pub name: &'static str,
    /// Whether it is written in bytes, as a whole number, or with up to three decimals.
    pub form: Form,
    /// One line for people.
    pub about: &'static str,
}

/// How the number of a quota is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `64MiB`, or a plain number.
    Bytes,
    /// A whole number.
    Count,
    /// A number with up to three decimals; kept in thousandths.
    Rate,
}

/// All quotas, in the order of [`Quota`].
pub const SPECS: [Spec; 8] = [
    Spec {
        quota: Quota::InvocationsPerSecond,
        name: "invocations_per_second",
        form: Form::Rate,
        about: "invocations that begin in a second",
    },
    Spec { quota: Quota::Concurrency, name: "concurrency", form: Form::Count, about: "invocations that run at once" },
    Spec {
        quota: Quota::CpuSecondsPerMinute,
        name: "cpu_seconds_per_minute",
        form: Form::Rate,
        about: "seconds of processor time in a minute",
    },
    Spec { quota: Quota::Memory, name: "memory", form: Form::Bytes, about: "guest memory of all invocations that run" },
    Spec { quota: Quota::DeploysPerHour, name: "deploys_per_hour", form: Form::Rate, about: "deploys in an hour" },
    Spec { quota: Quota::Functions, name: "functions", form: Form::Count, about: "functions" },
    Spec {
        quota: Quota::BytesStored,
        name: "bytes_stored",
        form: Form::Bytes,
        about: "bytes that all buckets may hold, by their own quotas",
    },
    Spec {
        quota: Quota::LogBytesPerMinute,
        name: "log_bytes_per_minute",
        form: Form::Bytes,
        about: "bytes that functions log in a minute",
    },
];

/// No quota.
pub const NONE: u64 = u64::MAX;
/// Largest value that is one: a thousandth of what a number in JSON may be for all who read it. [`Quota::parse`] names it as it is written.
const MOST: u64 = 1 << 50;

impl Quota {
    /// Name and form.
    #[must_use]
    pub fn spec(self) -> &'static Spec {
        &SPECS[self as usize]
    }

    /// The quota of a name.
    ///
    /// # Errors
    /// [`QuotaError::Unknown`].
    pub fn named(name: &str) -> Result<Self, QuotaError> {
        let found = SPECS.iter().find(|spec| spec.name == name);
        found.map(|spec| spec.quota).ok_or_else(|| QuotaError::Unknown { name: name.chars().take(80).collect() })
    }

    /// The value of a text; `none` is [`NONE`].
    ///
    /// # Errors
    /// [`QuotaError::Unreadable`].
    pub fn parse(self, text: &str) -> Result<u64, QuotaError> {
        if text == "none" {
            return Ok(NONE);
        }
        let number = match self.spec().form {
            Form::Bytes => parse_bytes(text),
            Form::Count => text.parse().ok(),
            Form::Rate => thousandths(text),
        };
        number.filter(|number| *number <= MOST).ok_or_else(|| QuotaError::Unreadable {
            name: self.spec().name,
            value: text.chars().take(80).collect(),
            expected: match self.spec().form {
                Form::Bytes => "0 to 1024TiB, in bytes such as \"64MiB\", or \"none\"",
                Form::Count => "a whole number from 0 to 1125899906842624, or \"none\"",
                Form::Rate => "a number from 0 to 1125899906842.624 with at most three decimals, or \"none\"",
            },
        })
    }

    /// The text of a value, which [`Quota::parse`] reads back.
    #[must_use]
    pub fn show(self, value: u64) -> String {
        match self.spec().form {
            _ if value == NONE => "none".into(),
            Form::Bytes => display(Unit::Bytes, value),
            Form::Count => value.to_string(),
            Form::Rate if value.is_multiple_of(1000) => (value / 1000).to_string(),
            Form::Rate => format!("{}.{:03}", value / 1000, value % 1000).trim_end_matches('0').into(),
        }
    }
}

fn thousandths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 {
        return None;
    }
    let part: u64 = format!("{part:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part)
}

/// A quota that was written wrongly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// No quota has this name.
    #[error("there is no quota '{name}', expected one of {}", SPECS.map(|spec| format!("`{}`", spec.name)).join(", "))]
    Unknown {
        /// What was written.
        name: String,
    },
    /// The value is none.
    #[error("the quota '{name}' cannot be '{value}': expected {expected}")]
    Unreadable {
        /// Name of the quota.
        name: &'static str,
        /// What was written.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// Those quotas that somebody set; all others are somebody else's to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas([Option<u64>; SPECS.len()]);

impl Quotas {
    /// What is set; [`NONE`] where no bound is.
    #[must_use]
    pub fn get(&self, quota: Quota) -> Option<u64> {
        self.0[quota as usize]
    }

    /// Sets one, or leaves it to others.
    pub fn set(&mut self, quota: Quota, value: Option<u64>) {
        self.0[quota as usize] = value;
    }

    /// These, and `defaults` where they say nothing.
    #[must_use]
    pub fn or(&self, defaults: &Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index].or(defaults.0[index])))
    }

    /// Those that are set, as text.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        SPECS.iter().filter_map(|spec| Some((spec.name, spec.quota.show(self.get(spec.quota)?))))
    }

    /// Changes what `changes` names: a text sets, nothing leaves to others.
    ///
    /// # Errors
    /// [`QuotaError`]; nothing has changed then.
    pub fn change<'a>(&mut self, changes: impl IntoIterator<Item = (&'a str, Option<String>)>) -> Result<(), QuotaError> {
        let mut changed = *self;
        for (name, text) in changes {
            let quota = Quota::named(name)?;
            changed.set(quota, text.map(|text| quota.parse(&text)).transpose()?);
        }
        *self = changed;
        Ok(())
    }
}

impl Serialize for Quotas {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.entries())
    }
}

/// A value as people write it, such as `"64MiB"`, `"none"`, `100` or `0.5`: as text, and not looked at yet.
#[derive(Debug, Clone, Serialize)]
pub struct Value(pub String);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

/// Reads a [`Value`], and says what one is to who wrote something else.
struct Written;

impl Visitor<'_> for Written {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, or text such as \"64MiB\" or \"none\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value(text.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value(number.to_string()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value(number.to_string()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value(number.to_string()))
    }
}

impl<'de> Deserialize<'de> for Quotas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, Value>::deserialize(deserializer)?;
        let mut quotas = Self::default();
        let changes = map.iter().map(|(name, Value(text))| (name.as_str(), Some(text.clone())));
        quotas.change(changes).map_err(Error::custom)?;
        Ok(quotas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_in_the_order_of_the_enum() {
        for (index, spec) in SPECS.iter().enumerate() {
            assert_eq!(spec.quota as usize, index);
            assert_eq!(Quota::named(spec.name), Ok(spec.quota));
        }
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        for (quota, text, value) in [
            (Quota::InvocationsPerSecond, "0.01", 10),
            (Quota::InvocationsPerSecond, "2.5", 2500),
            (Quota::InvocationsPerSecond, "100", 100_000),
            (Quota::Memory, "64MiB", 64 << 20),
            (Quota::Functions, "0", 0),
            (Quota::Functions, "none", NONE),
        ] {
            assert_eq!(quota.parse(text), Ok(value), "{text}");
            assert_eq!(quota.show(value), text);
        }
        for (quota, text) in [
            (Quota::InvocationsPerSecond, "0.0001"),
            (Quota::InvocationsPerSecond, "-1"),
            (Quota::InvocationsPerSecond, "1."),
            (Quota::InvocationsPerSecond, "1e3"),
            (Quota::Functions, "1.5"),
            (Quota::Functions, ""),
            (Quota::Memory, "lots"),
            (Quota::Functions, "9999999999999999999"),
        ] {
            assert!(quota.parse(text).is_err(), "{text}");
        }
        assert!(Quota::named("memroy").unwrap_err().to_string().contains("log_bytes_per_minute"));
    }

    #[test]
    fn a_value_out_of_range_is_told_the_range() {
        for (quota, most, more) in [
            (Quota::CpuSecondsPerMinute, "1125899906842.624", ["-1", "1125899906842.625", "10000000000000"]),
            (Quota::Concurrency, "1125899906842624", ["-1", "1125899906842625", "99999999999999999999"]),
            (Quota::Memory, "1024TiB", ["-1", "1125899906842625", "1025TiB"]),
        ] {
            assert_eq!((quota.parse("0"), quota.parse(most)), (Ok(0), Ok(MOST)), "{most}");
            for text in more {
                let error = quota.parse(text).unwrap_err().to_string();
                assert!(error.contains(&format!("'{text}'")) && error.contains(&format!("0 to {most}")), "{error}");
            }
        }
    }

    #[test]
    fn a_value_of_another_type_is_told_what_one_is() {
        for (json, found) in [("[1]", "sequence"), ("true", "boolean `true`"), ("{}", "map"), ("null", "null")] {
            let error = serde_json::from_str::<Quotas>(&format!(r#"{{"concurrency":{json}}}"#)).unwrap_err().to_string();
            let expected = format!(r#"invalid type: {found}, expected a number, or text such as "64MiB" or "none""#);
            assert!(error.starts_with(&expected), "{error}");
        }
        // A number is one, and in its range or not.
        let below = serde_json::from_str::<Quotas>(r#"{"concurrency":-1}"#).unwrap_err().to_string();
        assert!(below.contains("cannot be '-1'"), "{below}");
        assert_eq!(serde_json::from_str::<Quotas>(r#"{"concurrency":0}"#).unwrap().get(Quota::Concurrency), Some(0));
    }

    #[test]
    fn quotas_survive_json_and_changes_are_whole() {
        let mut quotas = Quotas::default();
        quotas.change([("memory", Some("1GiB".into())), ("functions", Some("none".into()))]).unwrap();
        let json = serde_json::to_string(&quotas).unwrap();
        assert_eq!(json, r#"{"memory":"1GiB","functions":"none"}"#);
        assert_eq!(serde_json::from_str::<Quotas>(&json).unwrap(), quotas);
        let numbers: Quotas = serde_json::from_str(r#"{"invocations_per_second": 0.5, "concurrency": 3}"#).unwrap();
        assert_eq!((numbers.get(Quota::InvocationsPerSecond), numbers.get(Quota::Concurrency)), (Some(500), Some(3)));
        let before = quotas;
        quotas.change([("memory", None), ("nothing", None)]).unwrap_err();
        assert_eq!(quotas, before);
        quotas.change([("memory", None)]).unwrap();
        assert_eq!((quotas.get(Quota::Memory), quotas.or(&before).get(Quota::Memory)), (None, Some(1 << 30)));
    }
}
