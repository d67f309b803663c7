//! Both ends of the connection.
//!
//! The gateway asks for a client certificate but lets a peer without one in, because enrolment has none yet;
//! `Session` must call [`engine_id`] and refuse what it refuses. A certificate of another CA never gets
//! past the handshake.

use std::time::Duration;

use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{EngineIdentity, ProtocolError, RegistrationKey};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Finds a dead peer within a minute, behind firewalls that drop idle connections too.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Chooses ring for the whole process. Call once at the start of each program; calling again does no harm.
pub fn install_crypto() {
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
}

/// The gateway's end: own certificate, client certificates of `ca_pem` accepted, none tolerated.
#[must_use]
pub fn server_config(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> ServerTlsConfig {
    ServerTlsConfig::new()
        .identity(Identity::from_pem(certificate_pem, key_pem))
        .client_ca_root(Certificate::from_pem(ca_pem))
        .client_auth_optional(true)
}

/// Channel of an engine that has no identity yet, for `Enrol` only.
///
/// # Errors
/// When the key's gateway is no address.
pub fn enrolment_channel(key: &RegistrationKey) -> Result<Channel, ProtocolError> {
    channel(
        &key.gateway,
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&key.ca_pem)),
    )
}

/// Channel of an enrolled engine. Connects lazily, reconnects by itself.
///
/// # Errors
/// When `gateway` is no address or the identity is unusable.
pub fn session_channel(gateway: &str, identity: &EngineIdentity) -> Result<Channel, ProtocolError> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&identity.ca_pem))
        .identity(Identity::from_pem(
            &identity.certificate_pem,
            &identity.key_pem,
        ));
    channel(gateway, tls)
}

/// The engine id in the verified client certificate of a request.
///
/// # Errors
/// `unauthenticated` when there is no certificate or it names nobody.
pub fn engine_id<T>(request: &tonic::Request<T>) -> Result<String, tonic::Status> {
    let certificates = request.peer_certs().ok_or_else(|| {
        tonic::Status::unauthenticated("this call needs the client certificate that enrolment gives; enrol with a registration key first")
    })?;
    let leaf = certificates
        .first()
        .ok_or_else(|| tonic::Status::unauthenticated("empty certificate chain"))?;
    common_name(leaf.as_ref()).map_err(|error| tonic::Status::unauthenticated(error.to_string()))
}

/// SHA-256 (hexadecimal) of the public key in the verified client certificate of a request, to be compared with
/// [`crate::request_key_digest`] of the enrolment: an older certificate of the same name is not the same engine.
///
/// # Errors
/// `unauthenticated` when there is no certificate or it can't be read.
pub fn peer_key_digest<T>(request: &tonic::Request<T>) -> Result<String, tonic::Status> {
    let certificates = request.peer_certs();
    let leaf = certificates
        .as_ref()
        .and_then(|chain| chain.first())
        .ok_or_else(|| tonic::Status::unauthenticated("no client certificate"))?;
    let (_, certificate) = X509Certificate::from_der(leaf.as_ref())
        .map_err(|_| tonic::Status::unauthenticated("the client certificate can't be read"))?;
    Ok(crate::identity::key_digest(certificate.public_key().raw))
}

fn common_name(der: &[u8]) -> Result<String, ProtocolError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| ProtocolError::NoEngineName)?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok());
    name.filter(|name| !name.is_empty())
        .map(str::to_owned)
        .ok_or(ProtocolError::NoEngineName)
}

fn channel(gateway: &str, tls: ClientTlsConfig) -> Result<Channel, ProtocolError> {
    let failed = |source| ProtocolError::Connection {
        gateway: gateway.to_owned(),
        source,
    };
    let endpoint = Endpoint::from_shared(format!("https://{gateway}")).map_err(failed)?;
    let endpoint = endpoint
        .tls_config(tls)
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_lazy())
}
