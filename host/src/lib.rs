//! Hob: one binary that runs WebAssembly functions next to their data.
//!
//! Modules are declared in the order of their layers: a module imports only from layers above its own in this list
//! (`tests/tidy.rs` holds the table and fails on an upward import). `docs/architecture.md` is the same map in prose.

// Words: plain values, no I/O.
pub mod id;
pub mod limits;
pub mod quota;
pub mod headers;
pub mod host;
pub mod token;
pub mod signing;
pub mod route;
pub mod bucket;
pub mod grants;
pub mod manifest;
pub mod config;
pub mod fault;
pub mod idempotency;
pub mod invocation;
pub mod histogram;
pub mod crash;

// Storage: how files survive, whatever they hold.
pub mod storage;

// Parts: each knows the words only, and neither wasmtime nor who calls it.
pub mod registry;
pub mod audit;
pub mod artifacts;
pub mod data;
pub mod secrets;
pub mod meter;
pub mod telemetry;
pub mod net;
pub mod egress;
pub mod process;

// Capability: what a guest may import.
pub mod capability;

// Engine: the only place besides `capability` that names wasmtime.
pub mod engine;

// Use: what is done with the engine.
pub mod identity;
pub mod dispatch;
pub mod deploy;

// Doors: they know `invocation::Invoke`, never the engine.
pub mod front;
pub mod control;
pub mod trigger;

// Program: sees everything.
pub mod daemon;
pub mod cli;
