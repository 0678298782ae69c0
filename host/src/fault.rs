//! Faults: what went wrong with a request, and whose fault it is.
//!
//! Owns the codes that users see. Knows no HTTP status (`net/status.rs` alone turns a code into one) and no library's errors.
//! Invariant: the texts of a [`Fault`] are safe to show to a client: no paths, no addresses, no words of a guest.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::time::Duration;

use rustix::io::Errno;

/// Kind of a fault; its text in [`Code::as_str`] is stable and is what clients may test for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request makes no sense.
    BadRequest,
    /// The manifest is malformed.
    BadManifest,
    /// The token is missing, or none that the node knows.
    Unauthenticated,
    /// The token does not allow this, or a web page of somebody else's asks.
    Forbidden,
    /// Too many unknown tokens came from one address.
    TooManyFailures,
    /// A deploy must be signed, and is not, or not with a key of its tenant.
    BadSignature,
    /// No such function, revision, or route.
    NotFound,
    /// The path exists, but not with this method.
    MethodNotAllowed,
    /// The client was too slow, or stopped in the middle.
    ClientTimeout,
    /// Somebody else changed the function, or holds the route.
    Conflict,
    /// The first request with this `Idempotency-Key` is still under way.
    IdempotencyKeyRunning,
    /// This `Idempotency-Key` was sent before, with another request.
    IdempotencyKeyReused,
    /// `If-Match` or `If-None-Match` does not hold.
    PreconditionFailed,
    /// A range begins past the end of what it is of.
    RangeNotSatisfiable,
    /// A body is larger than its limit.
    BodyTooLarge,
    /// The target is longer than its limit.
    UriTooLong,
    /// The head is larger than its limit.
    HeadersTooLarge,
    /// A content coding or type that this does not take.
    UnsupportedMedia,
    /// The bytes are not a function that this host can run.
    NotDeployable,
    /// The module passes a structural cap.
    ModuleOverCap,
    /// The build passed its time or memory.
    BuildOverLimit,
    /// The function's own concurrency and queue are full.
    Concurrency,
    /// A bug of Hob.
    Internal,
    /// The guest trapped.
    GuestTrap,
    /// The guest ended with an exit code other than 0.
    GuestExit,
    /// The guest trapped after it was refused memory.
    GuestMemory,
    /// The guest's answer cannot be a response.
    GuestBadResponse,
    /// The guest broke the rules of a host call.
    GuestBadCall,
    /// The guest ended without an answer.
    GuestNoResponse,
    /// The response body passes its limit.
    ResponseTooLarge,
    /// The node is busy, or has no room.
    Overloaded,
    /// The node is shutting down.
    Draining,
    /// The function's files on this node, or what a bucket holds, are lost or damaged.
    Damaged,
    /// A secret that the function cannot start without is not there, cannot be read, or has changed since its snapshot.
    SecretUnavailable,
    /// The guest used up its processor time.
    CpuDeadline,
    /// The guest used up its time.
    WallDeadline,
    /// A quota is used up: of a tenant, or of a bucket or the list of them.
    QuotaExceeded,
    /// The disk, or the share of it that Hob may use, is full.
    StorageFull,
    /// The store that a bucket is a cache of refused, failed, or gave something else than it announced.
    OriginFailed,
    /// The store that a bucket is a cache of took too long.
    OriginTimeout,
    /// The request came through too many functions.
    LoopDetected,
}

impl Code {
    /// All codes, for documentation and tests.
    pub const ALL: [Self; 41] = [
        Self::BadRequest,
        Self::BadManifest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::TooManyFailures,
        Self::BadSignature,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::ClientTimeout,
        Self::Conflict,
        Self::IdempotencyKeyRunning,
        Self::IdempotencyKeyReused,
        Self::PreconditionFailed,
        Self::RangeNotSatisfiable,
        Self::BodyTooLarge,
        Self::UriTooLong,
        Self::HeadersTooLarge,
        Self::UnsupportedMedia,
        Self::NotDeployable,
        Self::ModuleOverCap,
        Self::BuildOverLimit,
        Self::Concurrency,
        Self::Internal,
        Self::GuestTrap,
        Self::GuestExit,
        Self::GuestMemory,
        Self::GuestBadResponse,
        Self::GuestBadCall,
        Self::GuestNoResponse,
        Self::ResponseTooLarge,
        Self::Overloaded,
        Self::Draining,
        Self::Damaged,
        Self::SecretUnavailable,
        Self::CpuDeadline,
        Self::WallDeadline,
        Self::QuotaExceeded,
        Self::StorageFull,
        Self::OriginFailed,
        Self::OriginTimeout,
        Self::LoopDetected,
    ];

    /// The stable text, as in `hob-error`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::BadManifest => "bad-manifest",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::TooManyFailures => "too-many-failures",
            Self::BadSignature => "bad-signature",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::ClientTimeout => "client-timeout",
            Self::Conflict => "conflict",
            Self::IdempotencyKeyRunning => "idempotency-key-running",
            Self::IdempotencyKeyReused => "idempotency-key-reused",
            Self::PreconditionFailed => "precondition-failed",
            Self::RangeNotSatisfiable => "range-not-satisfiable",
            Self::BodyTooLarge => "body-too-large",
            Self::UriTooLong => "uri-too-long",
            Self::HeadersTooLarge => "headers-too-large",
            Self::UnsupportedMedia => "unsupported-media",
            Self::NotDeployable => "not-deployable",
            Self::ModuleOverCap => "module-over-cap",
            Self::BuildOverLimit => "build-over-limit",
            Self::Concurrency => "concurrency",
            Self::Internal => "internal",
            Self::GuestTrap => "guest-trap",
            Self::GuestExit => "guest-exit",
            Self::GuestMemory => "guest-memory",
            Self::GuestBadResponse => "guest-bad-response",
            Self::GuestBadCall => "guest-bad-call",
            Self::GuestNoResponse => "guest-no-response",
            Self::ResponseTooLarge => "response-too-large",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Damaged => "damaged",
            Self::SecretUnavailable => "secret-unavailable",
            Self::CpuDeadline => "cpu-deadline",
            Self::WallDeadline => "wall-deadline",
            Self::QuotaExceeded => "quota-exceeded",
            Self::StorageFull => "storage-full",
            Self::OriginFailed => "origin-failed",
            Self::OriginTimeout => "origin-timeout",
            Self::LoopDetected => "loop-detected",
        }
    }

    /// The fault as a title: what it is, without the particulars.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "The request is malformed",
            Self::BadManifest => "The manifest cannot be used",
            Self::Unauthenticated => "The token is missing or unknown",
            Self::Forbidden => "The request may not do this",
            Self::TooManyFailures => "Too many unknown tokens were tried",
            Self::BadSignature => "The signature is missing or wrong",
            Self::NotFound => "There is no such thing here",
            Self::MethodNotAllowed => "The method does not apply",
            Self::ClientTimeout => "The client took too long",
            Self::Conflict => "Another change got there first",
            Self::IdempotencyKeyRunning => "The first request with this key still runs",
            Self::IdempotencyKeyReused => "The key was sent with another request",
            Self::PreconditionFailed => "The precondition does not hold",
            Self::RangeNotSatisfiable => "The range is not there",
            Self::BodyTooLarge => "The request body is too large",
            Self::UriTooLong => "The target is too long",
            Self::HeadersTooLarge => "The head of the request is too large",
            Self::UnsupportedMedia => "The content cannot be taken in this form",
            Self::NotDeployable => "These bytes cannot be deployed",
            Self::ModuleOverCap => "The module is too large in some respect",
            Self::BuildOverLimit => "The build took too much",
            Self::Concurrency => "The function has too many invocations at once",
            Self::Internal => "This is a bug of Hob",
            Self::GuestTrap => "The function trapped",
            Self::GuestExit => "The function exited with an error",
            Self::GuestMemory => "The function ran out of memory",
            Self::GuestBadResponse => "The function's response is malformed",
            Self::GuestBadCall => "The function broke the rules of a host call",
            Self::GuestNoResponse => "The function ended without a response",
            Self::ResponseTooLarge => "The response body is too large",
            Self::Overloaded => "The node is busy",
            Self::Draining => "The node is shutting down",
            Self::Damaged => "What was stored is lost or damaged",
            Self::SecretUnavailable => "A secret of the function is not available",
            Self::CpuDeadline => "The function used up its processor time",
            Self::WallDeadline => "The function used up its time",
            Self::QuotaExceeded => "A quota is used up",
            Self::StorageFull => "There is no room to store this",
            Self::OriginFailed => "The bucket's origin failed",
            Self::OriginTimeout => "The bucket's origin took too long",
            Self::LoopDetected => "The request goes round in circles",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether guest code ran before the fault. Clients may retry what was not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executed {
    /// The guest provably never started.
    No,
    /// The guest started.
    Yes,
}

impl Executed {
    /// Value of the header `hob-executed`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "0",
            Self::Yes => "1",
        }
    }
}

/// What went wrong, in words for the one who asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    /// Kind.
    pub code: Code,
    /// What happened and what was expected.
    pub detail: Cow<'static, str>,
    /// What to do next.
    pub hint: Option<Cow<'static, str>>,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
    /// Whether the guest ran.
    pub executed: Executed,
}

impl Fault {
    /// A fault before any guest code ran.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), hint: None, retry_after: None, executed: Executed::No }
    }

    /// A fault of an invocation whose guest had started.
    pub fn executed(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { executed: Executed::Yes, ..Self::new(code, detail) }
    }

    /// A bug of Hob. The cause goes to the node's log under the invocation's identifier, never to the client.
    pub fn internal(cause: impl fmt::Display) -> Self {
        tracing::error!(%cause, "internal error");
        Self::new(Code::Internal, "something went wrong that is not your fault; the node's log says what")
    }

    /// A failure of the operating system: `overloaded` if the process has no descriptors, mappings or memory left, else a bug of Hob.
    pub fn system(error: &io::Error) -> Self {
        if is_exhausted(error) { Self::exhausted() } else { Self::internal(error) }
    }

    /// The process has no descriptors, mappings or memory left.
    #[must_use]
    pub fn exhausted() -> Self {
        Self::new(Code::Overloaded, EXHAUSTED)
            .hint("try again, or raise its limit of open files and vm.max_map_count")
            .retry_after(EXHAUSTED_RETRY)
    }

    /// Whether it is [`Fault::exhausted`].
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.detail == EXHAUSTED
    }

    /// The function's native code is not there yet, and its request has waited long enough.
    #[must_use]
    pub fn compiling(retry_after: Duration) -> Self {
        Self::new(Code::Overloaded, "the function is being compiled, which takes a while")
            .hint("try again; the compilation goes on")
            .retry_after(retry_after)
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds when to try again; rounded up to whole seconds where it is shown.
    #[must_use]
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.retry_after = Some(time);
        self
    }
}

/// What a client is told of that.
const EXHAUSTED: &str = "the node is out of file descriptors, memory mappings or memory";
/// When a client may try again after the process was out of something.
const EXHAUSTED_RETRY: Duration = Duration::from_secs(1);

/// Whether an error of the system says that the process has no descriptors, mappings or memory left, which passes.
#[must_use]
pub fn is_exhausted(error: &io::Error) -> bool {
    let short = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| short.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_from_other_errors_of_the_system() {
        for (errno, code) in [
            (Errno::MFILE, Code::Overloaded),
            (Errno::NFILE, Code::Overloaded),
            (Errno::NOMEM, Code::Overloaded),
            (Errno::AGAIN, Code::Overloaded),
            (Errno::IO, Code::Internal),
            (Errno::ACCESS, Code::Internal),
        ] {
            assert_eq!(Fault::system(&errno.into()).code, code, "{errno}");
        }
        assert_eq!(Fault::system(&io::Error::other("24")).code, Code::Internal);
    }

    #[test]
    fn codes_have_distinct_texts() {
        let mut texts: Vec<_> = Code::ALL.map(Code::as_str).to_vec();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
    }
}
