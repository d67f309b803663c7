//! The orchestrator's certificate authority: one root, server certificates, engine certificates.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::ProtocolError;

/// The clock of a host may be behind: certificates are valid from a day before they are made.
const SKEW: Duration = Duration::days(1);
const CA_LIFE: Duration = Duration::days(3650);
const LEAF_LIFE: Duration = Duration::days(825);

/// A CA with its private key. Lives in the orchestrator's data folder only.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
}

/// A certificate with its private key, both PEM.
pub struct KeyedCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// PKCS #8 private key.
    pub key_pem: String,
}

// === impl Authority ===

impl Authority {
    /// Makes a new root (ECDSA P-256).
    ///
    /// # Errors
    /// When the random source or the encoder fails.
    pub fn generate(common_name: &str, now: OffsetDateTime) -> Result<Self, ProtocolError> {
        let key = KeyPair::generate().map_err(failed("make the CA key"))?;
        let mut params = params(common_name, now, CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params
            .self_signed(&key)
            .map_err(failed("sign the CA certificate"))?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Takes up a root made earlier.
    ///
    /// # Errors
    /// When either text is no PEM of ours.
    pub fn from_pem(certificate_pem: String, key_pem: String) -> Result<Self, ProtocolError> {
        let authority = Self {
            certificate_pem,
            key_pem,
        };
        authority.issuer()?;
        Ok(authority)
    }

    /// The root certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The root's private key, for the file it is kept in.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Makes a server certificate for DNS names and IP addresses.
    ///
    /// # Errors
    /// When a name is not usable in a certificate.
    pub fn issue_server(
        &self,
        names: &[String],
        now: OffsetDateTime,
    ) -> Result<KeyedCertificate, ProtocolError> {
        let key = KeyPair::generate().map_err(failed("make the server key"))?;
        let mut params = CertificateParams::new(names).map_err(failed("read the server names"))?;
        stamp(
            &mut params,
            names.first().map_or("site-recovery", String::as_str),
            now,
            LEAF_LIFE,
        );
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params
            .signed_by(&key, &self.issuer()?)
            .map_err(failed("sign the server certificate"))?;
        Ok(KeyedCertificate {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs an engine's request. Of the request only the public key counts: name and usages are ours.
    ///
    /// # Errors
    /// When the request is malformed or not signed by its own key.
    pub fn issue_engine(
        &self,
        engine_id: &str,
        request_pem: &str,
        now: OffsetDateTime,
    ) -> Result<String, ProtocolError> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(failed("read the certificate request"))?;
        let mut params = params(engine_id, now, LEAF_LIFE);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params = params;
        let certificate = request
            .signed_by(&self.issuer()?)
            .map_err(failed("sign the engine certificate"))?;
        Ok(certificate.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, ProtocolError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(failed("read the CA key"))?;
        Issuer::from_ca_cert_pem(&self.certificate_pem, key)
            .map_err(failed("read the CA certificate"))
    }
}

fn params(common_name: &str, now: OffsetDateTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    stamp(&mut params, common_name, now, life);
    params
}

fn stamp(params: &mut CertificateParams, common_name: &str, now: OffsetDateTime, life: Duration) {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    params.not_before = now - SKEW;
    params.not_after = now + life;
    params.use_authority_key_identifier_extension = true;
}

pub(crate) fn failed(step: &'static str) -> impl FnOnce(rcgen::Error) -> ProtocolError {
    move |source| ProtocolError::Certificate { step, source }
}
