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
//! - [`Request`] is read where it lies; [`Body`] is an [`io::Read`](std::io::Read).
//! - [`Response`] has a body of bytes, or [streams](Response::stream) one; [`IntoResponse`] lists what else a handler may return.
//! - [`Error`] is anything that failed: the client sees a 500, the log sees why.
//! - [`info!`] and its kin write to the function's log, as do `println!` and `eprintln!`. Environment, clocks, random numbers
//!   and granted files come from `std`.
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
mod error;
pub mod log;
mod record;
mod request;
mod response;

pub use error::Error;
pub use hob_sdk_macros::function;
pub use http;
pub use http::StatusCode;
pub use log::Level;
pub use record::Headers;
pub use request::{Body, Request};
pub use response::{BodyWriter, IntoResponse, Response};

/// What the attribute [`function`] calls. Not for other callers: it may change with any version.
#[doc(hidden)]
pub mod __private {
    use crate::{IntoResponse, Request, abi, response};

    /// Answers the request of this invocation with what `handler` returns for it.
    pub fn run<R: IntoResponse>(handler: impl FnOnce(Request) -> R) {
        let request = Request::from_record(abi::request_record());
        response::send(request.and_then(|request| handler(request).into_response()));
    }
}
