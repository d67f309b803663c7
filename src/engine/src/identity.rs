//! Who this engine is: an id made once, a key pair that never leaves the host, a certificate from enrolment.
//!
//! ```text
//! <data>/identity/engine_id         GUID
//! <data>/identity/key.pem           private key, 0600
//! <data>/identity/enrolment.json    gateway, certificate, CA, ARM id, 0600; its presence = enrolled
//! ```
//!
//! Promise: a crash at any instant leaves an engine that can enrol again with the same id and key; the
//! registration key is deleted only after the enrolment is durable.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use engine_protocol::v1::engine_gateway_client::EngineGatewayClient;
use engine_protocol::v1::{EnrolRequest, Host};
use engine_protocol::{EngineIdentity, IdentityRequest, RegistrationKey, tls};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable::{self, Access};
use crate::platform;

/// What enrolment gave.
#[derive(Clone, Serialize, Deserialize)]
pub struct Enrolment {
    /// `host:port` of the gateway.
    pub gateway: String,
    /// The engine's resource at the orchestrator.
    pub provider_arm_id: String,
    certificate_pem: String,
    ca_pem: String,
}

/// The identity folder.
#[derive(Clone, Debug)]
pub struct IdentityFolder {
    folder: PathBuf,
}

impl IdentityFolder {
    /// Opens the folder, makes it when missing.
    pub fn open(folder: PathBuf) -> anyhow::Result<Self> {
        durable::create_folder(&folder)
            .and_then(|()| platform::make_folder_private(&folder))
            .with_context(|| format!("create identity folder {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// The engine's id; made at the first call.
    pub fn engine_id(&self) -> anyhow::Result<Uuid> {
        let path = self.folder.join("engine_id");
        match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .with_context(|| format!("{} holds no GUID", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = Uuid::new_v4();
                durable::replace(&path, format!("{id}\n").as_bytes(), Access::Plain)
                    .with_context(|| format!("write {}", path.display()))?;
                Ok(id)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// What an earlier enrolment gave; `None` when there was none.
    pub fn enrolment(&self) -> anyhow::Result<Option<Enrolment>> {
        let path = self.enrolment_file();
        durable::read_json(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The identity to open a session with.
    pub fn identity(&self, enrolment: &Enrolment) -> anyhow::Result<EngineIdentity> {
        let path = self.key_file();
        let key_pem =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(EngineIdentity {
            certificate_pem: enrolment.certificate_pem.clone(),
            key_pem,
            ca_pem: enrolment.ca_pem.clone(),
        })
    }

    /// Trades the registration key in `key_file` for a certificate; the file is deleted afterwards.
    pub async fn enrol(&self, key_file: &Path, host: Host) -> anyhow::Result<Enrolment> {
        let text = std::fs::read_to_string(key_file)
            .with_context(|| format!("read registration key file {}", key_file.display()))?;
        let key = RegistrationKey::decode(&text)
            .with_context(|| format!("registration key file {}", key_file.display()))?;
        if key.expires_unix <= time::OffsetDateTime::now_utc().unix_timestamp() {
            bail!(
                "the registration key in {} has expired; make a new one and start the engine again",
                key_file.display()
            );
        }
        let request = self.request()?;
        let channel = tls::enrolment_channel(&key)?;
        let mut client = EngineGatewayClient::new(channel);
        let response = client
            .enrol(EnrolRequest {
                secret: key.secret.clone(),
                engine_id: self.engine_id()?.to_string(),
                certificate_request_pem: request.request_pem,
                host: Some(host),
            })
            .await
            .with_context(|| format!("enrol at gateway {}", key.gateway))?
            .into_inner();
        if response.certificate_pem.is_empty() {
            bail!(
                "gateway {} answered the enrolment without a certificate",
                key.gateway
            );
        }
        let enrolment = Enrolment {
            gateway: key.gateway.clone(),
            provider_arm_id: response.provider_arm_id,
            certificate_pem: response.certificate_pem,
            ca_pem: if response.ca_pem.is_empty() {
                key.ca_pem.clone()
            } else {
                response.ca_pem
            },
        };
        durable::replace_json(&self.enrolment_file(), &enrolment, Access::Secret)
            .context("keep the enrolment")?;
        durable::remove(key_file)
            .with_context(|| format!("delete registration key file {}", key_file.display()))?;
        Ok(enrolment)
    }

    /// The certificate request, always for the same key.
    fn request(&self) -> anyhow::Result<IdentityRequest> {
        let path = self.key_file();
        match std::fs::read_to_string(&path) {
            Ok(pem) => {
                Ok(IdentityRequest::from_key_pem(&pem)
                    .with_context(|| path.display().to_string())?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let request = IdentityRequest::generate()?;
                durable::replace(&path, request.key_pem.as_bytes(), Access::Secret)
                    .with_context(|| format!("write {}", path.display()))?;
                Ok(request)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn key_file(&self) -> PathBuf {
        self.folder.join("key.pem")
    }

    fn enrolment_file(&self) -> PathBuf {
        self.folder.join("enrolment.json")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_id_and_the_key_are_made_once_and_the_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityFolder::open(folder.path().join("identity")).unwrap();
        assert_eq!(identity.engine_id().unwrap(), identity.engine_id().unwrap());
        let first = identity.request().unwrap().key_pem;
        assert_eq!(identity.request().unwrap().key_pem, first);
        let mode = std::fs::metadata(identity.key_file())
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(identity.enrolment().unwrap().is_none());
    }

    #[tokio::test]
    async fn an_expired_or_malformed_key_is_refused_without_repeating_it() {
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityFolder::open(folder.path().join("identity")).unwrap();
        let file = folder.path().join("registration.key");
        std::fs::write(&file, "srk1.s3cretsecret").unwrap();
        let error = format!(
            "{:#}",
            identity.enrol(&file, Host::default()).await.err().unwrap()
        );
        assert!(
            error.contains("registration.key") && !error.contains("s3cret"),
            "{error}"
        );
        let key = RegistrationKey {
            gateway: "localhost:1".to_owned(),
            ca_pem: "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n".to_owned(),
            secret: "s3cret".to_owned(),
            expires_unix: 1,
        };
        std::fs::write(&file, key.encode()).unwrap();
        let error = format!(
            "{:#}",
            identity.enrol(&file, Host::default()).await.err().unwrap()
        );
        assert!(
            error.contains("expired") && !error.contains("s3cret"),
            "{error}"
        );
        assert!(file.exists());
    }
}
