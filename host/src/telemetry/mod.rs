//! What the node tells about itself and its functions: metrics, and the logs of functions.
//!
//! Owns names of metrics and the rings of log entries. Knows nothing about who reads them.

pub mod exposition;
pub mod logs;
pub mod metrics;
pub mod used;
