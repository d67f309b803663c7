//! The engine's side of enrolment: its key pair, its request, its certificate.

use rcgen::{CertificateParams, KeyPair};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ProtocolError;
use crate::authority::failed;

/// A fresh key pair with the request that is sent to [`Enrol`](crate::v1::EnrolRequest).
pub struct IdentityRequest {
    /// PKCS #10 request.
    pub request_pem: String,
    /// Private key; stays on the host.
    pub key_pem: String,
}

/// What an enrolled engine proves itself with.
#[derive(Clone)]
pub struct EngineIdentity {
    /// Client certificate, common name = engine id.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The CA that the gateway must chain to.
    pub ca_pem: String,
}

// === impl IdentityRequest ===

impl IdentityRequest {
    /// Makes a key pair (ECDSA P-256) and the request for it.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate() -> Result<Self, ProtocolError> {
        let key = KeyPair::generate().map_err(failed("make the engine key"))?;
        Self::with_key(&key)
    }

    /// The request for a key made earlier, so that a repeated enrolment keeps its key.
    ///
    /// # Errors
    /// When `key_pem` is no key.
    pub fn from_key_pem(key_pem: &str) -> Result<Self, ProtocolError> {
        Self::with_key(&KeyPair::from_pem(key_pem).map_err(failed("read the engine key"))?)
    }

    fn with_key(key: &KeyPair) -> Result<Self, ProtocolError> {
        let request = CertificateParams::default()
            .serialize_request(key)
            .map_err(failed("make the certificate request"))?;
        Ok(Self {
            request_pem: request
                .pem()
                .map_err(failed("write the certificate request"))?,
            key_pem: key.serialize_pem(),
        })
    }
}

/// SHA-256 (hexadecimal) of the public key in a certificate request: by it an engine that enrols again is known.
///
/// # Errors
/// [`ProtocolError::MalformedRequest`] when the text holds no request.
pub fn request_key_digest(request_pem: &str) -> Result<String, ProtocolError> {
    let (_, pem) =
        parse_x509_pem(request_pem.as_bytes()).map_err(|_| ProtocolError::MalformedRequest)?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| ProtocolError::MalformedRequest)?;
    Ok(key_digest(
        request.certification_request_info.subject_pki.raw,
    ))
}

/// When a certificate is to be renewed: half of its life is left then, more than a year of ours, for an orchestrator that is
/// away, or a host that is switched off.
///
/// # Errors
/// [`ProtocolError::NoEngineName`] when the text holds no certificate.
pub fn renewal_due(certificate_pem: &str) -> Result<OffsetDateTime, ProtocolError> {
    let (_, pem) =
        parse_x509_pem(certificate_pem.as_bytes()).map_err(|_| ProtocolError::NoEngineName)?;
    let (_, certificate) =
        X509Certificate::from_der(&pem.contents).map_err(|_| ProtocolError::NoEngineName)?;
    let life = certificate.validity();
    let (begin, end) = (life.not_before.to_datetime(), life.not_after.to_datetime());
    Ok(begin + (end - begin) / 2)
}

/// SHA-256 (hexadecimal) of a public key with its algorithm, as requests and certificates hold it.
pub(crate) fn key_digest(public_key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, public_key);
    let bytes = digest.as_ref().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_names_the_key_and_not_the_request() {
        let first = IdentityRequest::generate().expect("request");
        let again = IdentityRequest::from_key_pem(&first.key_pem).expect("request");
        let other = IdentityRequest::generate().expect("request");
        let digest =
            |request: &IdentityRequest| request_key_digest(&request.request_pem).expect("digest");
        assert_eq!(digest(&first), digest(&again));
        assert_ne!(digest(&first), digest(&other));
    }

    #[test]
    fn a_certificate_is_renewed_when_half_of_its_life_is_over() {
        let now = OffsetDateTime::now_utc();
        let authority = crate::Authority::generate("test", now).expect("CA");
        let request = IdentityRequest::generate().expect("request");
        let issued = authority.issue_engine("e", &request.request_pem, now);
        let due = renewal_due(&issued.expect("certificate")).expect("date");
        let days = (due - now).whole_days();
        assert!((400..420).contains(&days), "{days}");
        assert!(renewal_due("no certificate").is_err());
    }

    #[test]
    fn what_is_no_request_gives_an_error() {
        for text in [
            "",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        ] {
            assert!(request_key_digest(text).is_err());
        }
    }
}
