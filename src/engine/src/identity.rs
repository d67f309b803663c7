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
use engine_protocol::v1::{EnrolRequest, Host, RenewRequest};
use engine_protocol::{EngineIdentity, IdentityRequest, RegistrationKey, tls};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tonic::transport::Channel;
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

    /// Gets a new certificate for our key when half of the life of the old one is over; keeps it for the sessions to come.
    /// `None`: it is not due.
    ///
    /// The registration key is not needed for it, so no hand is. A crash leaves the old certificate or the new one, and both
    /// are good.
    pub async fn renew(
        &self,
        enrolment: &Enrolment,
        client: &mut EngineGatewayClient<Channel>,
        now: OffsetDateTime,
    ) -> anyhow::Result<Option<Enrolment>> {
        let due = engine_protocol::renewal_due(&enrolment.certificate_pem)
            .context("read the engine's certificate")?;
        if now < due {
            return Ok(None);
        }
        let request = RenewRequest {
            certificate_request_pem: self.request()?.request_pem,
        };
        let response = client
            .renew(request)
            .await
            .with_context(|| format!("renew the certificate at gateway {}", enrolment.gateway))?
            .into_inner();
        if response.certificate_pem.is_empty() || response.ca_pem.is_empty() {
            bail!(
                "gateway {} answered the renewal without a certificate",
                enrolment.gateway
            );
        }
        let renewed = Enrolment {
            certificate_pem: response.certificate_pem,
            ca_pem: response.ca_pem,
            ..enrolment.clone()
        };
        durable::replace_json(&self.enrolment_file(), &renewed, Access::Secret)
            .context("keep the renewed certificate")?;
        Ok(Some(renewed))
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

    #[tokio::test]
    async fn a_renewal_that_is_not_answered_leaves_the_certificate_that_there_is() {
        engine_protocol::tls::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let identity = IdentityFolder::open(folder.path().join("identity")).unwrap();
        let begin = OffsetDateTime::now_utc();
        let authority = engine_protocol::Authority::generate("test", begin).unwrap();
        let request = identity.request().unwrap();
        let certificate = authority.issue_engine("e", &request.request_pem, begin);
        let enrolment = Enrolment {
            gateway: "127.0.0.1:1".to_owned(),
            provider_arm_id: "/p".to_owned(),
            certificate_pem: certificate.unwrap(),
            ca_pem: authority.certificate_pem().to_owned(),
        };
        durable::replace_json(&identity.enrolment_file(), &enrolment, Access::Secret).unwrap();
        let known = identity.identity(&enrolment).unwrap();
        let channel = tls::session_channel(&enrolment.gateway, &known).unwrap();
        let mut client = EngineGatewayClient::new(channel);
        let early = begin + time::Duration::days(300);
        let renewed = identity.renew(&enrolment, &mut client, early).await;
        assert!(renewed.unwrap().is_none(), "it is not due");
        let late = begin + time::Duration::days(500);
        let error = identity.renew(&enrolment, &mut client, late).await;
        let error = format!("{:#}", error.err().unwrap());
        assert!(
            error.contains("renew the certificate at gateway 127.0.0.1:1"),
            "{error}"
        );
        let kept = identity.enrolment().unwrap().unwrap();
        assert_eq!(kept.certificate_pem, enrolment.certificate_pem);
    }
}
