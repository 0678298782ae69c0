//! TLS on both ports: the certificate, its key, and handshakes.
//!
//! Owns when the two files are read and what of them is believed. Knows nothing about HTTP but its name in ALPN. Invariant: what is
//! shown to clients was a certificate with its own key, within its time when it was read; a worse pair never takes its place.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::signal::unix::Signal;
use tokio_rustls::TlsAcceptor;

use super::stream::Stream;
use super::turned_away::Why;

/// Largest file of certificates or a key, in bytes: a chain has some 4 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A certificate with less than this before it expires is warned of.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("'{}' cannot be read: {source}; expected a PEM file that this user may read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is too large for what it should hold.
    #[error("'{}' is larger than {FILE_BYTES_MAX} bytes: expected a PEM file with {expected}", .path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A file does not hold what it should.
    #[error("'{}' holds no {expected} ({found}): expected a PEM file with one", .path.display())]
    Absent {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What the parser said.
        found: String,
    },
    /// A certificate, or a key, of a kind that is not known.
    #[error("the certificate in '{}' and the key in '{}' cannot be used: {found}; expected an RSA, ECDSA or Ed25519 key", .cert.display(), .key.display())]
    Unusable {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// What the library said.
        found: String,
    },
    /// The key is another certificate's.
    #[error("the key in '{}' is not that of the first certificate in '{}': expected the pair that was issued together, the server's own certificate first", .key.display(), .cert.display())]
    Mismatch {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate in '{}' expired {ago} ago: renew it; no client would accept it", .path.display())]
    Expired {
        /// Which file.
        path: PathBuf,
        /// How long ago.
        ago: humantime::FormattedDuration,
    },
    /// The certificate's time has not begun.
    #[error("the certificate in '{}' is not valid for another {wait}: use one that is valid now, or set the clock of this machine", .path.display())]
    NotYet {
        /// Which file.
        path: PathBuf,
        /// How long until it is.
        wait: humantime::FormattedDuration,
    },
}

/// What both ports show their clients.
#[derive(Debug)]
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    /// Replaced whole, so that no session of an old certificate is taken up under a new one.
    live: ArcSwap<ServerConfig>,
    /// What of the files was read first.
    first: blake3::Hash,
}

impl Tls {
    /// Reads a certificate and its key, and warns of an end that is near.
    ///
    /// # Errors
    /// [`TlsError`] names the file, and what to do.
    pub fn open(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let pair = Pair::read(cert, key)?;
        let live = ArcSwap::from(pair.config(cert, key)?);
        Ok(Arc::new(Self { cert: cert.into(), key: key.into(), live, first: pair.hash() }))
    }

    /// The stream after its handshake.
    ///
    /// # Errors
    /// Why a client has none, which must come to the end of it within `timeout`.
    pub(super) async fn handshake(&self, stream: TcpStream, timeout: Duration) -> Result<Stream, Why> {
        let shaking = TlsAcceptor::from(self.live.load_full()).accept(stream);
        match tokio::time::timeout(timeout, shaking).await {
            Ok(Ok(stream)) => Ok(Stream::Tls(Box::new(stream))),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a handshake failed");
                Err(Why::Handshake)
            }
            Err(_) => {
                tracing::debug!(?timeout, "a handshake did not end (net.handshake_timeout)");
                Err(Why::HandshakeTimeout)
            }
        }
    }

    /// Reads the files again at each `hangup`, and when what is in them has changed. Never ends.
    ///
    /// Their content is compared, not their times: renaming, links that are moved and clocks that are coarse all look alike then.
    pub async fn keep_fresh(self: Arc<Self>, mut hangup: Signal) {
        // What was in the files, or why they could not be read, when that was last told.
        let mut told = Ok(self.first);
        loop {
            let is_asked = tokio::select! {
                asked = hangup.recv() => asked.is_some(),
                () = tokio::time::sleep(LOOK_INTERVAL) => false,
            };
            let this = self.clone();
            // A file system that hangs holds up a thread that nobody else needs.
            let looked = tokio::task::spawn_blocking(move || this.look(is_asked, told));
            told = match looked.await {
                Ok(told) => told,
                // The runtime is going.
                Err(_) => return,
            };
        }
    }

    /// Takes what is in the files if it is good and `is_asked`, or it is not what was `told` of last. Returns what is told of now.
    fn look(&self, is_asked: bool, told: Result<blake3::Hash, String>) -> Result<blake3::Hash, String> {
        let pair = Pair::read(&self.cert, &self.key).map_err(|error| error.to_string());
        let found = pair.as_ref().map(Pair::hash).map_err(Clone::clone);
        if found == told && !is_asked {
            return told;
        }
        let loaded = pair.and_then(|pair| pair.config(&self.cert, &self.key).map_err(|error| error.to_string()));
        match loaded {
            Ok(config) => {
                self.live.store(config);
                tracing::info!(cert = %self.cert.display(), "the certificate was read again");
            }
            Err(error) => tracing::error!(error, "the certificate was not read again; the one before it stays"),
        }
        found
    }
}

/// What is in the two files.
struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl Pair {
    fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self { cert: read(cert, "certificates")?, key: read(key, "a private key")? })
    }

    fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.cert.len() as u64).to_le_bytes()).update(&self.cert).update(&self.key);
        hasher.finalize()
    }

    /// `cert` and `key` name the files.
    fn config(&self, cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
        let absent = |path: &Path, expected, found: &dyn ToString| TlsError::Absent {
            path: path.into(),
            expected,
            found: found.to_string(),
        };
        let chain = CertificateDer::pem_slice_iter(&self.cert).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| absent(cert, "certificate", &error))?;
        let first = chain.first().ok_or_else(|| absent(cert, "certificate", &"no such section"))?;
        check_time(first, cert)?;
        let secret = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| absent(key, "private key", &error))?;
        let unusable = |error: rustls::Error| TlsError::Unusable { cert: cert.into(), key: key.into(), found: error.to_string() };
        let provider = Arc::new(ring::default_provider());
        let pair = CertifiedKey::from_der(chain, secret, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { cert: cert.into(), key: key.into() },
            error => unusable(error),
        })?;
        server_config(provider, pair).map_err(unusable)
    }
}

/// TLS 1.2 and 1.3, no certificates of clients, no early data; sessions can be resumed from a bounded memory of this process (rustls keeps
/// 256), never from a key that outlives it.
fn server_config(provider: Arc<CryptoProvider>, pair: CertifiedKey) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &Path, expected: &'static str) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge { path: path.into(), expected });
    }
    Ok(bytes)
}

fn check_time(cert: &CertificateDer<'_>, path: &Path) -> Result<(), TlsError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // To the second: nobody wants to read nanoseconds.
    let spoken = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
    if let Some(not_before) = not_before(cert).filter(|not_before| *not_before > now) {
        return Err(TlsError::NotYet { path: path.into(), wait: spoken(not_before - now) });
    }
    let Some(not_after) = not_after(cert) else { return Ok(()) };
    let Some(left) = not_after.checked_sub(now) else {
        return Err(TlsError::Expired { path: path.into(), ago: spoken(now - not_after) });
    };
    if left < EXPIRES_SOON {
        tracing::warn!(cert = %path.display(), left = %spoken(left), "the certificate expires soon: renew it");
    }
    Ok(())
}

/// When a certificate's time ends, since 1970. rustls has no such question, but its verifier names the end when it is asked about a day
/// past every end, before it looks at anything else that could be wrong. `None` if it has another complaint.
fn not_after(cert: &CertificateDer<'_>) -> Option<Duration> {
    match complaint(cert, Duration::from_secs(u64::MAX / 2)) {
        Some(CertificateError::ExpiredContext { not_after, .. }) => Some(Duration::from_secs(not_after.as_secs())),
        _ => None,
    }
}

/// When it begins; asked in the same way.
fn not_before(cert: &CertificateDer<'_>) -> Option<Duration> {
    match complaint(cert, Duration::ZERO) {
        Some(CertificateError::NotValidYetContext { not_before, .. }) => Some(Duration::from_secs(not_before.as_secs())),
        _ => None,
    }
}

fn complaint(cert: &CertificateDer<'_>, now: Duration) -> Option<CertificateError> {
    let cert = ParsedCertificate::try_from(cert).ok()?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(now);
    match verify_server_cert_signed_by_trust_anchor(&cert, &RootCertStore::empty(), &[], now, algorithms) {
        Err(rustls::Error::InvalidCertificate(complaint)) => Some(complaint),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;

    /// A certificate for these years with its key, as PEM.
    fn pair(from: i32, until: i32) -> (String, String) {
        let mut params = CertificateParams::new(["localhost".into()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    struct Files(TempDir);

    impl Files {
        fn new((cert, key): &(String, String)) -> Self {
            let files = Self(tempfile::tempdir().unwrap());
            std::fs::write(files.cert(), cert).unwrap();
            std::fs::write(files.key(), key).unwrap();
            files
        }
        fn cert(&self) -> PathBuf {
            self.0.path().join("cert.pem")
        }
        fn key(&self) -> PathBuf {
            self.0.path().join("key.pem")
        }
        fn open(&self) -> Result<Arc<Tls>, TlsError> {
            Tls::open(&self.cert(), &self.key())
        }
    }

    #[test]
    fn times_are_read_from_the_certificate() {
        let cert = pair(2001, 2096).0;
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let years = |year: i32| Duration::from_secs(date_time_ymd(year, 1, 1).unix_timestamp().cast_unsigned());
        assert_eq!((not_before(&cert), not_after(&cert)), (Some(years(2001)), Some(years(2096))));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let good = pair(2001, 2096);
        assert!(Files::new(&good).open().is_ok());
        let found = |pair: (String, String), expected: &[&str]| {
            let error = Files::new(&pair).open().unwrap_err().to_string();
            assert!(expected.iter().all(|word| error.contains(word)), "{error}: {expected:?}");
        };
        let (cert, key) = good.clone();
        found((cert.clone(), pair(2001, 2096).1), &["is not that of", "cert.pem", "key.pem"]);
        found((key.clone(), key.clone()), &["cert.pem", "no certificate"]);
        found((cert.clone(), cert.clone()), &["key.pem", "no private key"]);
        found((String::new(), key.clone()), &["cert.pem", "no certificate"]);
        found((cert[..cert.len() / 2].into(), key.clone()), &["cert.pem", "no certificate"]);
        found((" ".repeat((1 << 20) + 1), key.clone()), &["cert.pem", "larger than"]);
        found(pair(2001, 2002), &["cert.pem", "expired", "years"]);
        found(pair(2095, 2096), &["cert.pem", "not valid for another"]);
        let files = Files::new(&good);
        std::fs::remove_file(files.key()).unwrap();
        let error = files.open().unwrap_err().to_string();
        assert!(error.contains("key.pem") && error.contains("cannot be read"), "{error}");
    }

    #[test]
    fn a_new_pair_is_taken_and_a_bad_one_is_not() {
        let files = Files::new(&pair(2001, 2096));
        let tls = files.open().unwrap();
        let live = || Arc::as_ptr(&tls.live.load_full());
        let first = live();
        let told = tls.look(false, Ok(tls.first));
        assert_eq!((live(), &told), (first, &Ok(tls.first)), "nothing changed");
        let new = pair(2001, 2095);
        // Half of it is there: certificate and key do not fit.
        std::fs::write(files.cert(), &new.0).unwrap();
        let told = tls.look(false, told);
        assert_eq!(live(), first);
        std::fs::remove_file(files.key()).unwrap();
        let told = tls.look(false, told);
        assert!(told.is_err() && live() == first);
        std::fs::write(files.key(), &new.1).unwrap();
        let told = tls.look(false, told);
        let second = live();
        assert!(told.is_ok() && second != first);
        let told = tls.look(false, told);
        assert_eq!(live(), second);
        let _told = tls.look(true, told);
        assert_ne!(live(), second, "whoever asks is obeyed");
    }
}
