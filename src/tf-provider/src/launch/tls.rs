//! Mutual TLS with a client whose certificate came through the environment.
//!
//! The client's certificate is a CA used as an end entity, with a P-521 key: the usual verifiers refuse the first and
//! `ring` does not know the second. So the certificate is pinned byte for byte, which is stricter than any chain, and
//! the one P-521 signature of the handshake is checked by the crate `p521`. All else is `ring`.

use std::sync::Arc;

use p521::ecdsa::signature::Verifier;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName as Subject, Error, ServerConfig,
    SignatureScheme,
};

/// Why no TLS could be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("PLUGIN_CLIENT_CERT does not hold a certificate")]
    ClientCertificate,
    #[error("cannot make the server's certificate")]
    ServerCertificate(#[from] rcgen::Error),
    #[error("cannot set up TLS")]
    Config(#[from] Error),
}

/// A server configuration that lets in nobody but the holder of `client_pem`'s key, with the certificate (DER) that
/// the client has to expect.
pub(crate) fn server_config(client_pem: &str) -> Result<(ServerConfig, Vec<u8>), TlsError> {
    let client = CertificateDer::from_pem_slice(client_pem.as_bytes())
        .map_err(|_| TlsError::ClientCertificate)?;
    let verifier = PinnedClient::new(client.into_owned())?;
    let (certificate, key) = server_certificate()?;
    let der = certificate.to_vec();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // One connection for each process: tickets would only cost time.
    config.send_tls13_tickets = 0;
    Ok((config, der))
}

/// One-time and self-signed; the client knows it from the handshake line. P-256 is the quickest to make.
fn server_certificate() -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut parameters = CertificateParams::new(vec!["localhost".to_owned()])?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "localhost");
    parameters.distinguished_name = name;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = parameters.self_signed(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((certificate.der().clone(), key))
}

#[derive(Debug)]
struct PinnedClient {
    certificate: CertificateDer<'static>,
    /// The public key as a SEC1 point.
    public_key: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedClient {
    fn new(certificate: CertificateDer<'static>) -> Result<Self, TlsError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_| TlsError::ClientCertificate)?;
        let public_key = parsed.public_key().subject_public_key.data.to_vec();
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Ok(Self {
            certificate,
            public_key,
            algorithms,
        })
    }

    fn verify_p521(
        &self,
        message: &[u8],
        signature: &[u8],
    ) -> Result<HandshakeSignatureValid, Error> {
        let bad = |_| Error::InvalidCertificate(CertificateError::BadSignature);
        let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(&self.public_key).map_err(bad)?;
        let signature = p521::ecdsa::Signature::from_der(signature).map_err(bad)?;
        key.verify(message, &signature).map_err(bad)?;
        Ok(HandshakeSignatureValid::assertion())
    }
}

impl ClientCertVerifier for PinnedClient {
    fn root_hint_subjects(&self) -> &[Subject] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if end_entity.as_ref() == self.certificate.as_ref() {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match signed.scheme {
            SignatureScheme::ECDSA_NISTP521_SHA512 => self.verify_p521(message, signed.signature()),
            _ => verify_tls12_signature(message, certificate, signed, &self.algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match signed.scheme {
            SignatureScheme::ECDSA_NISTP521_SHA512 => self.verify_p521(message, signed.signature()),
            _ => verify_tls13_signature(message, certificate, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = vec![SignatureScheme::ECDSA_NISTP521_SHA512];
        schemes.extend(self.algorithms.supported_schemes());
        schemes
    }
}
