//! One store that the operator opened: its client, and what its answers mean.
//!
//! ```text
//! [[origin]] ──> Remote: head, get, list, put, delete ──> Ok, or an OriginFault that names neither hosts nor keys
//! ```
//!
//! Owns the client, its bounds in time, and the key. Knows nothing about buckets of Hob, copies or files. Invariant: it connects to
//! the operator's endpoint and nowhere else: no redirect is followed, no proxy of the environment is used, no service of the machine is
//! asked for credentials. No text of an answer leaves this file.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutResult, RetryConfig, UpdateVersion,
};

use super::super::super::error::{DataError, OriginFault};
use super::super::{CONTENT_TYPE_BYTES_MAX, METADATA_BYTES_MAX, METADATA_PAIRS_MAX, PutOptions as ObjectOptions, metadata_bytes};
use super::client::{Answered, Connector, client};
use super::key;
use crate::bucket::OriginUrl;
use crate::config;

/// How often a read that failed is tried again.
const RETRIES_MAX: u32 = 2;
/// How long it rests before the first of these, and twice as long before each further one.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Longest ETag of an origin that is taken.
const ETAG_BYTES_MAX: usize = 1024;
/// Slowest pace at which bytes may go to an origin, in bytes a second, besides the time for its answer; and at which they may come,
/// besides twice the longest silence. One that drips keeps no request's place for longer.
const BYTES_PER_SECOND_MIN: u64 = 256 << 10;

const NO_ETAG: OriginFault = OriginFault::Nonsense { what: "no usable ETag" };

/// One version of an object, as the origin describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    /// The origin's own, without the quotes around it.
    pub(super) etag: String,
    pub(super) len: u64,
    /// In whole seconds, because that is what every kind of answer has.
    pub(super) modified_ms: u64,
    pub(super) content_type: String,
    pub(super) metadata: Vec<(String, String)>,
}

impl Version {
    fn of(meta: &ObjectMeta, attributes: &Attributes) -> Result<Self, OriginFault> {
        let etag = meta.e_tag.as_deref().and_then(usable).ok_or(NO_ETAG)?;
        let content_type = attributes.get(&Attribute::ContentType).map(|text| text.to_string());
        let content_type = content_type.filter(|text| text.len() <= CONTENT_TYPE_BYTES_MAX).unwrap_or_default();
        let mut metadata: Vec<_> = attributes
            .iter()
            .filter_map(|(name, value)| match name {
                Attribute::Metadata(name) => Some((name.to_string(), value.to_string())),
                _ => None,
            })
            .collect();
        metadata.sort();
        // What S3 allows fits; of another store's more is left out.
        metadata.truncate(METADATA_PAIRS_MAX);
        while metadata_bytes(&metadata) > METADATA_BYTES_MAX {
            metadata.pop();
        }
        Ok(Self { etag, len: meta.size, modified_ms: modified_ms(meta), content_type, metadata })
    }
}

/// The text of an ETag that can be kept and sent again; not of a weak one, which is no proof that bytes are the same.
fn usable(etag: &str) -> Option<String> {
    let text = etag.trim_matches('"');
    let is_good = !text.is_empty() && text.len() <= ETAG_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    is_good.then(|| text.to_owned())
}

fn modified_ms(meta: &ObjectMeta) -> u64 {
    u64::try_from(meta.last_modified.timestamp()).unwrap_or(0).saturating_mul(1000)
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

/// What went wrong, and whether asking again may help.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failure {
    pub(super) why: OriginFault,
    pub(super) may_retry: bool,
}

impl From<OriginFault> for Failure {
    fn from(why: OriginFault) -> Self {
        let may_retry = match why {
            OriginFault::Unreachable | OriginFault::Cut { .. } => true,
            OriginFault::Status { status } => status >= 500 || status == 429,
            OriginFault::Timeout { .. }
            | OriginFault::Denied { .. }
            | OriginFault::Length { .. }
            | OriginFault::Changed
            | OriginFault::Nonsense { .. } => false,
        };
        Self { why, may_retry }
    }
}

/// How often something was tried.
#[derive(Debug, Default)]
pub(super) struct Pause(u32);

impl Pause {
    /// Waits before the next try, if there is to be one.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), DataError> {
        if !failure.may_retry || self.0 == RETRIES_MAX {
            return Err(failure.why.into());
        }
        tokio::time::sleep(RETRY_AFTER * 2_u32.pow(self.0)).await;
        self.0 += 1;
        Ok(())
    }
}

/// What a list holds of one object: it says neither type nor metadata.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: String,
    /// `None` if the origin's lists have none.
    pub(super) etag: Option<String>,
    pub(super) len: u64,
    pub(super) modified_ms: u64,
}

/// On which version of an object a put depends.
#[derive(Debug)]
pub(super) enum Expect {
    Anything,
    Nothing,
    /// The origin's ETag.
    Etag(String),
}

/// Bytes of an object under way.
pub(super) struct Pieces {
    stream: BoxStream<'static, Result<Bytes, object_store::Error>>,
    began: Instant,
    /// How long all of them may take.
    limit: Duration,
}

/// See the module.
pub(super) struct Remote {
    pub(super) url: OriginUrl,
    store: AmazonS3,
    connect: Duration,
    response: Duration,
    idle: Duration,
    pub(super) fresh: Duration,
}

impl fmt::Debug for Remote {
    /// Without the client, which has the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Remote {
    /// A client for one origin; connects to nothing yet. Reads the file of the key.
    ///
    /// # Errors
    /// [`DataError::Invalid`] for the operator: it names files, and no content of them.
    pub(super) fn new(config: &config::Origin) -> Result<Self, DataError> {
        let invalid = |what: String, expected: &str| DataError::Invalid {
            what: format!("[[origin]] {}: {what}", config.url),
            expected: expected.into(),
        };
        let endpoint = config.endpoint.clone().unwrap_or_else(|| format!("https://s3.{}.amazonaws.com", config.region));
        let client = client(&endpoint, config.connect_timeout.0)
            .map_err(|error| invalid(format!("its client: {error}"), "certificates of the system, for https"))?;
        let mut builder = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_region(&config.region)
            .with_bucket_name(config.url.bucket())
            .with_allow_http(true)
            .with_disable_tagging(true)
            .with_disable_bulk_delete(true)
            // Retries are ours, and only of reads.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(Connector(client));
        builder = match &config.key_file {
            None => builder.with_skip_signature(true),
            Some(file) => {
                let key = key::read(file).map_err(|why| invalid(format!("key_file {}: {why}", file.display()), key::EXPECTED))?;
                let signed = builder.with_access_key_id(key.id).with_secret_access_key(key.secret);
                key.token.into_iter().fold(signed, AmazonS3Builder::with_token)
            }
        };
        // Its own text could quote what it was given.
        let store = builder.build().map_err(|_| invalid("not usable".into(), "an endpoint, a region and a key of S3"))?;
        let (connect, response, idle) = (config.connect_timeout.0, config.response_timeout.0, config.idle_timeout.0);
        Ok(Self { url: config.url.clone(), store, connect, response, idle, fresh: config.fresh.0 })
    }

    /// How long whoever wants to ask waits for a place.
    pub(super) fn patience(&self) -> Duration {
        self.response
    }

    /// What there is of an object without its bytes, `None` if there is none.
    pub(super) async fn head(&self, path: &Path) -> Result<Option<Version>, OriginFault> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.answer(0, self.store.get_opts(path, options)).await {
            Ok(got) => Version::of(&got.meta, &got.attributes).map(Some),
            Err(Answer::None) => Ok(None),
            Err(answer) => Err(answer.fault()),
        }
    }

    /// Begins to get an object, or goes on with `version` of it from a place: `None` if there is none. A range is asked for even from
    /// the beginning, because the answer then tells the length twice.
    pub(super) async fn get(&self, path: &Path, from: Option<(&Version, u64)>) -> Result<Option<(Version, Pieces)>, OriginFault> {
        let options = match from {
            None => GetOptions { range: Some(GetRange::Offset(0)), ..GetOptions::default() },
            Some((version, at)) => GetOptions {
                range: Some(GetRange::Bounded(at..version.len)),
                if_match: Some(quoted(&version.etag)),
                ..GetOptions::default()
            },
        };
        let mut got = self.answer(0, self.store.get_opts(path, options)).await;
        if from.is_none() && matches!(got, Err(Answer::Fault(OriginFault::Status { status: 416 }))) {
            // An empty object has no range.
            got = self.answer(0, self.store.get_opts(path, GetOptions::default())).await;
        }
        match got {
            Ok(got) => {
                let version = Version::of(&got.meta, &got.attributes)?;
                if from.is_some_and(|(wanted, _)| (&wanted.etag, wanted.len) != (&version.etag, version.len)) {
                    return Err(OriginFault::Changed);
                }
                let left = version.len - from.map_or(0, |(_, at)| at.min(version.len));
                let limit = 2 * self.idle + Duration::from_secs(left / BYTES_PER_SECOND_MIN);
                Ok(Some((version, Pieces { stream: got.into_stream(), began: Instant::now(), limit })))
            }
            Err(Answer::None) if from.is_none() => Ok(None),
            Err(Answer::None | Answer::Condition) => Err(OriginFault::Changed),
            Err(answer) => Err(answer.fault()),
        }
    }

    /// The next piece of an object, `None` at its end. `found` of `len` bytes are there already.
    pub(super) async fn next(&self, pieces: &mut Pieces, found: u64, len: u64) -> Result<Option<Bytes>, OriginFault> {
        let left = pieces.limit.saturating_sub(pieces.began.elapsed());
        let next = tokio::time::timeout(self.idle.min(left), pieces.stream.next()).await;
        let late = || match self.idle <= left {
            true => OriginFault::Timeout { what: "further byte", limit: self.idle },
            false => OriginFault::Timeout { what: "end of the object", limit: pieces.limit },
        };
        match next.map_err(|_| late())? {
            None if found < len => Err(OriginFault::Length { len, found }),
            None => Ok(None),
            Some(Ok(piece)) => Ok(Some(piece)),
            Some(Err(_)) if found >= len => {
                Err(OriginFault::Nonsense { what: "a body of another length than its head announced" })
            }
            Some(Err(_)) => Err(OriginFault::Cut { found, len }),
        }
    }

    /// Objects whose paths begin with `prefix`, in order, from the one after `after`; whether there are more; what to say to go on.
    pub(super) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        token: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Listed>, Option<String>), OriginFault> {
        let options = PaginatedListOptions {
            offset: after.map(ToOwned::to_owned),
            max_keys: Some(limit),
            page_token: token,
            ..PaginatedListOptions::default()
        };
        let prefix = (!prefix.is_empty()).then_some(prefix);
        let page = self.answer(0, self.store.list_paginated(prefix, options)).await.map_err(Answer::fault)?;
        let listed = page.result.objects.into_iter().map(|meta| Listed {
            etag: meta.e_tag.as_deref().and_then(usable),
            len: meta.size,
            modified_ms: modified_ms(&meta),
            path: meta.location.into(),
        });
        Ok((listed.collect(), page.page_token))
    }

    /// Puts an object whole. Answers its ETag; `None` if the condition does not hold.
    pub(super) async fn put(
        &self,
        path: &Path,
        bytes: Bytes,
        options: &ObjectOptions,
        expect: Expect,
    ) -> Result<Option<String>, OriginFault> {
        let mode = match expect {
            Expect::Anything => PutMode::Overwrite,
            Expect::Nothing => PutMode::Create,
            Expect::Etag(etag) => PutMode::Update(UpdateVersion { e_tag: Some(quoted(&etag)), version: None }),
        };
        let len = bytes.len() as u64;
        let put = PutOptions { mode, attributes: attributes(options), ..PutOptions::default() };
        match self.answer(len, self.store.put_opts(path, bytes.into(), put)).await {
            Ok(put) => etag_of(put).map(Some),
            Err(Answer::Condition) => Ok(None),
            Err(answer) => Err(answer.fault()),
        }
    }

    /// Begins to put an object in parts.
    pub(super) async fn put_parts(&self, path: &Path, options: &ObjectOptions) -> Result<Parts<'_>, OriginFault> {
        let put = PutMultipartOptions { attributes: attributes(options), ..PutMultipartOptions::default() };
        let upload = self.answer(0, self.store.put_multipart_opts(path, put)).await.map_err(Answer::fault)?;
        Ok(Parts { remote: self, upload })
    }

    /// Deletes an object, if it is there.
    pub(super) async fn delete(&self, path: &Path) -> Result<(), OriginFault> {
        match self.answer(0, self.store.delete(path)).await {
            Ok(()) | Err(Answer::None) => Ok(()),
            Err(answer) => Err(answer.fault()),
        }
    }

    /// Waits for an answer, for as long as the origin may take when so many bytes are sent first.
    async fn answer<T>(&self, sent: u64, ask: impl Future<Output = Result<T, object_store::Error>>) -> Result<T, Answer> {
        let limit = self.response + Duration::from_secs(sent / BYTES_PER_SECOND_MIN);
        match tokio::time::timeout(limit, ask).await {
            Err(_) => Err(Answer::Fault(OriginFault::Timeout { what: "answer", limit })),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.classify(&error)),
        }
    }

    fn classify(&self, error: &object_store::Error) -> Answer {
        use object_store::Error as E;
        let denied = |status| Answer::Fault(OriginFault::Denied { status });
        match error {
            E::NotFound { .. } => return Answer::None,
            E::Precondition { .. } | E::AlreadyExists { .. } | E::NotModified { .. } => return Answer::Condition,
            E::PermissionDenied { .. } => return denied(403),
            E::Unauthenticated { .. } => return denied(401),
            E::InvalidPath { .. } => return Answer::Fault(OriginFault::Nonsense { what: "a key that is no path" }),
            _ => {}
        }
        let (mut at, mut kind) = (Some(error as &(dyn Error + 'static)), None);
        while let Some(error) = at {
            if let Some(Answered(status)) = error.downcast_ref() {
                return Answer::Fault(OriginFault::Status { status: status.as_u16() });
            }
            kind = kind.or_else(|| error.downcast_ref::<HttpError>().map(HttpError::kind));
            at = error.source();
        }
        Answer::Fault(match kind {
            Some(HttpErrorKind::Timeout) => OriginFault::Timeout { what: "connection", limit: self.connect },
            Some(HttpErrorKind::Connect) => OriginFault::Unreachable,
            Some(_) => OriginFault::Cut { found: 0, len: 0 },
            None => OriginFault::Nonsense { what: "an answer that cannot be read" },
        })
    }
}

/// What was answered instead of what was asked for.
enum Answer {
    /// There is no such thing.
    None,
    /// A condition does not hold.
    Condition,
    Fault(OriginFault),
}

impl Answer {
    fn fault(self) -> OriginFault {
        match self {
            Self::None => OriginFault::Status { status: 404 },
            Self::Condition => OriginFault::Status { status: 412 },
            Self::Fault(why) => why,
        }
    }
}

/// An object that is being put in parts.
pub(super) struct Parts<'a> {
    remote: &'a Remote,
    upload: Box<dyn MultipartUpload>,
}

impl Parts<'_> {
    /// Sends the next part.
    pub(super) async fn put(&mut self, bytes: Bytes) -> Result<(), OriginFault> {
        let len = bytes.len() as u64;
        self.remote.answer(len, self.upload.put_part(bytes.into())).await.map_err(Answer::fault)
    }

    /// Makes an object of all parts. Answers its ETag.
    pub(super) async fn finish(&mut self) -> Result<String, OriginFault> {
        self.remote.answer(0, self.upload.complete()).await.map_err(Answer::fault).and_then(etag_of)
    }

    /// Drops all parts.
    pub(super) async fn abort(mut self) {
        if let Err(answer) = self.remote.answer(0, self.upload.abort()).await {
            let (origin, why) = (&self.remote.url, answer.fault());
            tracing::warn!(%origin, %why, "parts of an upload that failed are left at the origin");
        }
    }
}

fn etag_of(put: PutResult) -> Result<String, OriginFault> {
    put.e_tag.as_deref().and_then(usable).ok_or(NO_ETAG)
}

fn attributes(options: &ObjectOptions) -> Attributes {
    let mut attributes = Attributes::new();
    if !options.content_type.is_empty() {
        attributes.insert(Attribute::ContentType, options.content_type.clone().into());
    }
    for (name, value) in &options.metadata {
        attributes.insert(Attribute::Metadata(name.clone().into()), value.clone().into());
    }
    attributes
}
