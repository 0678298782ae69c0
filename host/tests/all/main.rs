//! Integration tests: the real binary, started as a process for each test, spoken to over its two ports.
//!
//! One module for each promise. Guests are WebAssembly text in the test that needs them, the examples, or what `tests/guests`
//! has of other runtimes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "numbers of a test are small")]

mod audit;
mod bench;
mod bodies;
mod buckets;
mod buckets_cli;
mod buckets_kills;
mod buckets_objects;
mod caps;
mod cli;
mod conformance;
mod control;
mod crash;
mod damaged;
mod data;
mod deploy;
mod egress;
mod examples;
mod files;
mod front;
mod fairness;
mod exposed;
mod harness;
mod heals;
mod held;
mod http;
mod idempotency;
mod identity;
mod interop;
mod invoke;
mod isolation;
mod large;
mod limits;
mod mapping;
mod origin;
mod process;
mod progress;
mod quotas;
mod ready;
mod refused;
mod registry;
mod rehearsal;
mod secrets;
mod shortage;
mod signed;
mod snapshot;
mod standard;
mod templates;
mod tls;
mod tenants;
mod triggers;
mod turned_away;
mod unfit;
mod usage;
