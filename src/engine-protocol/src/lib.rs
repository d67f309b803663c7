//! The protocol between the replication engine and the orchestrator.
//!
//! ```text
//!  engine                                     orchestrator
//!    │  Enrol(secret, CSR)  server TLS only        │   RegistrationKey: gateway, CA, secret, expiry
//!    ├────────────────────────────────────────────►│
//!    │◄──────────── client certificate ────────────┤
//!    │  Session, mutual TLS                        │
//!    ├── EngineReport ────────────────────────────►│   observed state
//!    │◄────────────────────────── DesiredState ────┤   whole, with a generation
//! ```
//!
//! [`v1`] is generated from `proto/engine.proto`. [`orders`] puts what may run where into messages. [`authority`] is the
//! orchestrator's CA, [`identity`] the engine's key and certificate, [`tls`] the two ends of the connection.

pub mod authority;
pub mod identity;
pub mod orders;
pub mod registration_key;
mod secret;
pub mod tls;

/// Messages and services of `proto/engine.proto`.
#[allow(
    missing_docs,
    reason = "generated; the proto file is the documentation"
)]
#[allow(clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("siterecovery.engine.v1");
}

pub use authority::Authority;
pub use identity::{EngineIdentity, IdentityRequest, renewal_due, request_key_digest};
pub use registration_key::RegistrationKey;

/// Largest message either side accepts: a thousand recovery points of a hundred VMs fit well.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// What can go wrong with keys, certificates and connections.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Text that is no registration key.
    #[error("registration key is malformed: {0}")]
    MalformedKey(&'static str),
    /// A key, request or certificate could not be made or read.
    #[error("certificate operation `{step}` failed")]
    Certificate {
        /// What was being done.
        step: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// Text that is no certificate request.
    #[error("certificate request is malformed")]
    MalformedRequest,
    /// The peer's certificate does not say which engine it is.
    #[error("peer certificate names no engine")]
    NoEngineName,
    /// Address or TLS parameters are not usable.
    #[error("connection to gateway `{gateway}` can't be set up")]
    Connection {
        /// `host:port` of the gateway.
        gateway: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
}
