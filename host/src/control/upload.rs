//! Uploads: a module, and the files beside it, on their way from the network to the disk.
//!
//! Owns the bounds on an upload while it streams. Writing blocks, so it happens on a thread of its own, four pieces behind the
//! network at most. Invariant: whatever ends an upload early leaves no file.

use axum::extract::multipart::{Field, Multipart};
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::access::Caller;
use super::answer::body_fault;
use super::buckets::turn;
use super::{Control, archive};
use crate::artifacts::Uploaded;
use crate::deploy::{Deployer, Digests, Sent};
use crate::engine::build::check_magic;
use crate::fault::{Code, Fault};
use crate::id::Digest;
use crate::manifest::{MANIFEST_LEN_MAX, Manifest};

/// Uploads at once. Each holds a thread while it lasts, and other routes need threads too; `data.upload_timeout` is how long.
pub(super) const UPLOADS_MAX: usize = 16;
/// Pieces that wait between network and disk.
const PIECES: usize = 4;
/// Room for the framing of a multipart body around a module of the largest size, in bytes.
const MULTIPART_SLACK: u64 = 128 << 10;

/// Reads a deploy: raw Wasm, or multipart with the parts `manifest`, `wasm` and `files` in any order.
///
/// # Errors
/// 400, 408, 413 or 415 about the body; 422 when its first bytes are no Wasm; `overloaded`.
pub(super) async fn receive(control: &Control, caller: &Caller, request: Request) -> Result<(Sent, Digests), Fault> {
    let _place = turn(&control.places.uploads, caller, "uploads").await?;
    let time = control.deployer.upload_timeout();
    // Giving up drops what was received, and the file with it.
    timeout(time, whole(control, request)).await.unwrap_or_else(|_| {
        let fault = Fault::new(Code::ClientTimeout, format!("the upload did not end within {time:?}"));
        Err(fault.hint("send it from nearer by, or raise data.upload_timeout"))
    })
}

/// [`receive`], however long it takes.
async fn whole(control: &Control, request: Request) -> Result<(Sent, Digests), Fault> {
    let headers = request.headers();
    if headers.contains_key(CONTENT_ENCODING) {
        let fault = Fault::new(Code::UnsupportedMedia, "the body has a content coding, and nothing is unpacked here");
        return Err(fault.hint("send the .wasm file as it is"));
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/wasm");
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let max = control.deployer.upload_bytes_max();
    let archive = control.deployer.bundles().1.archive_bytes_max();
    let slack = if kind == "multipart/form-data" { MULTIPART_SLACK.saturating_add(archive) } else { 0 };
    if announced.is_some_and(|len| len > max + slack) {
        return Err(too_large(max));
    }
    // Bounds what has no announced length, and what a multipart body has around its parts.
    let limit = usize::try_from(max + slack).unwrap_or(usize::MAX);
    let request = request.map(|body| axum::body::Body::new(Limited::new(body, limit)));
    match kind.as_str() {
        "application/wasm" | "application/octet-stream" => {
            let wasm = raw(control, request).await?;
            let digests = Digests { wasm: wasm.digest(), manifest: Digest::of(b""), files: Digest::of(b"") };
            Ok((Sent { wasm, bundle: None, manifest: Manifest::default() }, digests))
        }
        "multipart/form-data" => parts(control, request).await,
        other => {
            let other: String = other.chars().take(80).collect();
            let fault = Fault::new(Code::UnsupportedMedia, format!("a deploy cannot be '{other}'"));
            Err(fault.hint("send application/wasm, or multipart/form-data with the parts 'manifest' and 'wasm'"))
        }
    }
}

async fn raw(control: &Control, request: Request) -> Result<Uploaded, Fault> {
    let mut body = request.into_body();
    let mut writer = Writer::new(&control.deployer)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| body_fault(&error))?;
        if let Ok(data) = frame.into_data() {
            writer.write(data).await?;
        }
    }
    writer.finish().await
}

async fn parts(control: &Control, request: Request) -> Result<(Sent, Digests), Fault> {
    let bad = |detail: String| {
        Fault::new(Code::BadRequest, detail)
            .hint("send the parts 'manifest' (hob.toml) and 'wasm', and 'files' if it grants folders")
    };
    let mut parts = Multipart::from_request(request, &()).await.map_err(|error| bad(error.body_text()))?;
    let (mut uploaded, mut manifest, mut bundle) = (None, None, None);
    while let Some(field) = parts.next_field().await.map_err(|error| body_fault(&error))? {
        match field.name().unwrap_or_default() {
            "wasm" if uploaded.is_none() => uploaded = Some(module(control, field).await?),
            "manifest" if manifest.is_none() => manifest = Some(self::manifest(field).await?),
            "files" if bundle.is_none() => bundle = Some(archive::receive(control, field).await?),
            other => {
                let other: String = other.chars().take(80).collect();
                return Err(bad(format!("the part '{other}' is unknown, or there twice")));
            }
        }
    }
    let wasm = uploaded.ok_or_else(|| bad("the part 'wasm' is missing".into()))?;
    let (manifest, text) = manifest.unwrap_or_else(|| (Manifest::default(), Digest::of(b"")));
    let (bundle, files) = bundle.map_or_else(|| (None, Digest::of(b"")), |(bundle, files)| (Some(bundle), files));
    let digests = Digests { wasm: wasm.digest(), manifest: text, files };
    Ok((Sent { wasm, bundle, manifest }, digests))
}

async fn module(control: &Control, mut field: Field<'_>) -> Result<Uploaded, Fault> {
    let mut writer = Writer::new(&control.deployer)?;
    while let Some(data) = field.chunk().await.map_err(|error| body_fault(&error))? {
        writer.write(data).await?;
    }
    writer.finish().await
}

/// The manifest, and the digest of its text.
async fn manifest(mut field: Field<'_>) -> Result<(Manifest, Digest), Fault> {
    let mut text = Vec::new();
    while let Some(data) = field.chunk().await.map_err(|error| body_fault(&error))? {
        text.extend_from_slice(&data);
        if text.len() > MANIFEST_LEN_MAX {
            return Err(Fault::new(Code::BadManifest, format!("the manifest has more than {MANIFEST_LEN_MAX} bytes")));
        }
    }
    let text = String::from_utf8(text).map_err(|_| Fault::new(Code::BadManifest, "the manifest is not UTF-8 text"))?;
    let manifest = Manifest::parse(&text).map_err(|error| Fault::new(Code::BadManifest, error.to_string()))?;
    Ok((manifest, Digest::of(text.as_bytes())))
}

fn too_large(max: u64) -> Fault {
    Fault::new(Code::BodyTooLarge, format!("the module is larger than {max} bytes"))
        .hint("make it smaller, or raise data.upload_bytes_max")
}

/// Hands pieces to the thread that writes them.
struct Writer {
    pieces: mpsc::Sender<Bytes>,
    task: JoinHandle<Result<Uploaded, Fault>>,
    /// The first bytes, until there are enough to look at.
    head: Vec<u8>,
    len: u64,
    max: u64,
}

/// Bytes that tell what a file is.
const MAGIC_LEN: usize = 8;

impl Writer {
    fn new(deployer: &Deployer) -> Result<Self, Fault> {
        let mut upload = deployer.create_upload()?;
        let (pieces, mut receiver) = mpsc::channel::<Bytes>(PIECES);
        let task = tokio::task::spawn_blocking(move || {
            while let Some(piece) = receiver.blocking_recv() {
                if piece.is_empty() {
                    // What `finish` sends; without it the sender just went away, and the file goes with this `Upload`.
                    return upload.finish().map_err(|error| error.fault());
                }
                upload.write(&piece).map_err(|error| error.fault())?;
            }
            Err(Fault::new(Code::BadRequest, "the upload broke off"))
        });
        Ok(Self { pieces, task, head: Vec::new(), len: 0, max: deployer.upload_bytes_max() })
    }

    async fn write(&mut self, data: Bytes) -> Result<(), Fault> {
        self.len += data.len() as u64;
        if self.len > self.max {
            return Err(too_large(self.max));
        }
        if self.head.len() < MAGIC_LEN {
            self.head.extend_from_slice(&data[..data.len().min(MAGIC_LEN - self.head.len())]);
            if self.head.len() == MAGIC_LEN {
                self.check_head()?;
            }
        }
        if !data.is_empty() && self.pieces.send(data).await.is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }

    fn check_head(&self) -> Result<(), Fault> {
        check_magic(&self.head).map_err(crate::engine::build::Refused::into_fault)
    }

    async fn finish(mut self) -> Result<Uploaded, Fault> {
        self.check_head()?;
        if self.pieces.send(Bytes::new()).await.is_err() {
            return Err(self.failure().await);
        }
        (&mut self.task).await.map_err(Fault::internal)?
    }

    /// Why the thread stopped taking pieces.
    async fn failure(&mut self) -> Fault {
        match (&mut self.task).await {
            Ok(Err(fault)) => fault,
            Ok(Ok(_)) => Fault::internal("an upload ended before it was finished"),
            Err(error) => Fault::internal(error),
        }
    }
}
