//! Archives: the files of a deploy on their way from the network to a folder in staging.
//!
//! Owns the bound on an archive while it streams. It is unpacked on a thread of its own, four pieces behind the network at most. Knows
//! nothing about what may be in it. Invariant: whatever ends an upload early leaves no file.

use std::io::{self, Read};

use axum::extract::multipart::Field;
use bytes::{Buf, Bytes};
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::Control;
use super::answer::body_fault;
use crate::artifacts::{Bundle, BundleError};
use crate::fault::Fault;
use crate::id::Digest;

/// Pieces that wait between network and disk.
const PIECES: usize = 4;

/// Takes a tar archive in. The digest is of its bytes.
///
/// # Errors
/// 400, 408, 413 or 507.
pub(super) async fn receive(control: &Control, mut field: Field<'_>) -> Result<(Bundle, Digest), Fault> {
    let (artifacts, limits) = control.deployer.bundles();
    let (pieces, receiver) = mpsc::channel::<Bytes>(PIECES);
    let task = tokio::task::spawn_blocking(move || {
        let mut incoming = Incoming { receiver, piece: Bytes::new(), ended: false, hasher: sha2::Sha256::new() };
        let bundle = artifacts.unpack(&mut incoming, limits)?;
        // What follows the archive's end, zeros most often, is not looked at; but it must come to its end.
        match io::copy(&mut incoming, &mut io::sink()) {
            Ok(_) => Ok((bundle, Digest::from_bytes(incoming.hasher.finalize().into()))),
            Err(error) => Err(BundleError::Bad(error.to_string())),
        }
    });
    let mut left = limits.archive_bytes_max();
    loop {
        // An empty piece is the end; without it the sender just went away.
        let piece = loop {
            match field.chunk().await.map_err(|error| body_fault(&error))? {
                Some(piece) if piece.is_empty() => {}
                piece => break piece.unwrap_or_default(),
            }
        };
        let is_last = piece.is_empty();
        let too_large = || BundleError::TooLarge(limits.bytes_max).fault();
        left = left.checked_sub(piece.len() as u64).ok_or_else(too_large)?;
        // If nobody takes it, the thread has ended, and says why.
        if pieces.send(piece).await.is_err() || is_last {
            break;
        }
    }
    let unpacked = task.await.map_err(Fault::internal)?;
    unpacked.map_err(|error| error.fault())
}

/// The pieces as a reader.
struct Incoming {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
    ended: bool,
    hasher: sha2::Sha256,
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !self.ended {
            self.piece = self.receiver.blocking_recv().ok_or_else(|| io::Error::other("the upload broke off"))?;
            self.ended = self.piece.is_empty();
            self.hasher.update(&self.piece);
        }
        let len = self.piece.len().min(buf.len());
        self.piece.copy_to_slice(&mut buf[..len]);
        Ok(len)
    }
}
