//! The engine's side of enrolment: its key pair, its request, its certificate.

use rcgen::{CertificateParams, KeyPair};

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
