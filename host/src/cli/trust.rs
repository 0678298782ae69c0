//! Whose word counts for who a daemon is, when it speaks TLS.
//!
//! Owns the roots: the system's, or those of one file. Knows nothing about requests.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::failure::{Exit, Failure};

/// Roots of trust. By default the system's.
#[derive(Debug, Default)]
pub(super) struct Trust(Option<Vec<Certificate<'static>>>);

impl Trust {
    /// The certificates in a PEM file, and no others.
    pub(super) fn read(file: &Path) -> Result<Self, Failure> {
        let shown = file.display();
        let pem = std::fs::read(file).with_context(|| format!("cannot read '{shown}', which --ca-file or HOB_CA_FILE names"))?;
        let mut certs = Vec::new();
        for item in parse_pem(&pem) {
            let item = item.with_context(|| format!("'{shown}' is no PEM file"))?;
            if let PemItem::Certificate(cert) = item {
                certs.push(cert);
            }
        }
        if certs.is_empty() {
            let sentence = format!("'{shown}' holds no certificate: expected a PEM file with those that vouch for the daemon's");
            return Err(Failure::new(Exit::Usage, sentence).next("hob --ca-file FILE ls"));
        }
        Ok(Self(Some(certs)))
    }

    /// As ureq wants it. Nothing of it is loaded before the first handshake.
    pub(super) fn tls(&self) -> TlsConfig {
        let roots = match &self.0 {
            Some(certs) => RootCerts::new_with_certs(certs),
            None => RootCerts::PlatformVerifier,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build()
    }
}

/// Whether a request failed because who answers was not believed to be who was asked.
pub(super) fn is_doubt(error: &ureq::Error) -> bool {
    let doubt = |error: &rustls::Error| matches!(error, rustls::Error::InvalidCertificate(_));
    match error {
        ureq::Error::Rustls(error) => doubt(error),
        ureq::Error::Io(error) => error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).is_some_and(doubt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Trust::read(file.path()).unwrap_err().code(), Exit::Usage as u8);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(["a".into()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(file.path(), key.serialize_pem()).unwrap();
        assert!(Trust::read(file.path()).is_err());
        std::fs::write(file.path(), cert.pem() + &cert.pem()).unwrap();
        assert_eq!(Trust::read(file.path()).unwrap().0.unwrap().len(), 2);
        assert!(Trust::read(Path::new("/nonexistent")).is_err());
    }
}
