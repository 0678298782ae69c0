//! Write Hob functions: an ordinary Rust function and one attribute.
//!
//! ```
//! use hob_sdk::{Error, Request, Response};
//!
//! #[hob_sdk::function]
//! fn handle(req: Request) -> Result<Response, Error> {
//!     hob_sdk::info!("{} {}", req.method(), req.path());
//!     Ok(format!("Hello from {}\n", req.path()).into())
//! }
//! ```
//!
//! in a package with `crate-type = ["cdylib"]`, built by `cargo build --release --target wasm32-wasip1`. The function is called
//! once, in a fresh instance: nothing it leaves in a `static` is seen by the next request. It is not `async`; where it waits
//! (a long request body, a slow client) the host runs other functions meanwhile.
//!
//! What every instance should begin with is made once, at deploy, by [`init`](macro@init):
//!
//! ```
//! use std::sync::OnceLock;
//!
//! static PRIMES: OnceLock<Vec<u32>> = OnceLock::new();
//!
//! #[hob_sdk::init]
//! fn init() {
//!     PRIMES.get_or_init(|| (2..100_000).filter(|n| (2..*n).take_while(|d| d * d <= *n).all(|d| n % d != 0)).collect());
//! }
//! ```
//!
//! - [`Request`] is read where it lies; [`Body`] is an [`io::Read`](std::io::Read).
//! - [`Response`] has a body of bytes, or [streams](Response::stream) one; [`IntoResponse`] lists what else a handler may return.
//! - [`Error`] is anything that failed: the client sees a 500, the log sees why.
//! - [`info!`] and its kin write to the function's log, as do `println!` and `eprintln!`. Environment, clocks and granted files
//!   come from `std`.
//! - [`kv`] and [`objects`] are the buckets that `hob.toml` grants; [`data::Error`] is what goes wrong with them.
//! - [`http::send`] asks other servers that `hob.toml` grants.
//! - [`secrets`] are read by name, those that `hob.toml` grants.
//! - [`random`] has numbers that differ in every instance, and [`RandomState`] a hasher with keys from there.
//!
//! # What a snapshot freezes
//! After [`init`](macro@init), or after the warm-up requests of `hob.toml`, the function's memory is kept, and every instance
//! begins with it. So whatever was read or drawn by then is the same in all of them:
//!
//! - Random numbers in `static`s; the state of generators such as `rand::rng()`; and **the keys of std's `HashMap`** once one
//!   was made. A client who learns the keys can choose keys that collide, in every instance. A map that holds what clients send
//!   takes [`RandomState`], and is made by the handler.
//! - Environment and arguments. A change of `[env]` or `args` is a new deploy, with a snapshot of its own. Secrets that `hob.toml` lets be
//!   read then: a change of one makes the host take another snapshot.
//! - Times. A saved `SystemTime` is that of the deploy. A saved [`Instant`](std::time::Instant) is never later than one that is
//!   taken after a restore.
//!
//! What must run at each start goes under [`restored`](macro@restored). [`random`] needs nothing of it.
//!
//! # Testing
//! A handler is a function, so a test calls it; no host is needed:
//!
//! ```
//! # use hob_sdk::{Error, Request, Response};
//! # fn handle(req: Request) -> Result<Response, Error> { Ok(req.path().into()) }
//! let response = handle(http::Request::get("/a").body("")?.into())?.into_http()?;
//! assert_eq!(response.body(), b"/a");
//! # Ok::<(), Error>(())
//! ```
//!
//! Only what needs a host is missing off Wasm: such a call panics and says so. A package whose tests run natively declares
//! `crate-type = ["cdylib", "rlib"]` if it has tests outside of its library.
//!
//! # What this crate does not do
//! No routing, no JSON, no decoding of queries: any crate that builds for `wasm32-wasip1` can be used for those. The contract
//! with the host is `guest-sdk/abi.md`; a function needs no SDK to fulfil it.

mod abi;
pub mod data;
mod error;
pub mod http;
pub mod kv;
pub mod log;
mod mapped;
pub mod objects;
pub mod random;
mod record;
mod request;
mod response;
pub mod secrets;
mod start;
mod upload;

pub use ::http::StatusCode;
pub use error::Error;
pub use hob_sdk_macros::{function, init, restored};
pub use log::Level;
pub use random::RandomState;
pub use record::Headers;
pub use request::{Body, Request};
pub use response::{BodyWriter, IntoResponse, Response};

/// What the attributes call. Not for other callers: it may change with any version.
#[doc(hidden)]
pub mod __private {
    pub use crate::start::{function, init, restored};
}
