//! Puts the replication engine onto a host and takes it away again.
//!
//! A [`Deployer`] works through one channel to one host: [`local::LocalDeployer`] on the machine this process runs on,
//! [`ssh::SshDeployer`] over SSH to a Linux host. Every step is idempotent: it looks first, changes only what differs, and a
//! run that was cut short is mended by running it again.
//!
//! ```text
//!  bundled engine ──sha256──► install folder/siterecovery-engine   (temporary file, fsync, rename)
//!  EngineSettings ──────────► data folder/engine.toml              (0600)
//!  registration key ────────► data folder/registration.key         (0600; the engine deletes it once enrolled)
//!                             systemd unit, or a detached process with a pid file
//! ```
//!
//! What may go wrong is a [`DeployError`]: it names the object, the step, the cause and the next thing to try.
//! A registration key is never part of an error or a log line.

mod error;
mod files;
pub mod local;
mod record;
mod recovered;
mod service;
mod settings;
pub mod ssh;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

pub use error::{DeployError, DeployErrorKind};
pub use settings::EngineSettings;
pub use ssh::{HostKeyTrust, Secret, SshConnection, SshCredentials};

/// Name of the engine's executable, in the bundle and on the host.
pub const ENGINE_BINARY: &str = "siterecovery-engine";

/// How to reach a host.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostConnection {
    /// The machine this process runs on.
    Local,
    /// A host that is reached over SSH.
    Ssh(Box<SshConnection>),
}

impl HostConnection {
    /// The deployer that speaks this channel.
    pub fn deployer(&self) -> Box<dyn Deployer> {
        match self {
            HostConnection::Local => Box::new(local::LocalDeployer::new()),
            HostConnection::Ssh(connection) => {
                Box::new(ssh::SshDeployer::new(connection.as_ref().clone()))
            }
        }
    }
}

/// What shall be on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// The engine to install, on the machine this process runs on.
    pub bundled_engine: PathBuf,
    /// Folder on the host for the executable.
    pub install_folder: PathBuf,
    /// Configuration of the engine; its data folder holds the configuration file too.
    pub settings: EngineSettings,
    /// Whose engine it is, such as the id of its site: kept on the host, so that nobody takes away another's engine.
    pub owner: String,
}

impl Deployment {
    /// The executable on the host.
    pub fn engine_path(&self) -> PathBuf {
        self.install_folder.join(ENGINE_BINARY)
    }

    /// The configuration file on the host.
    pub fn config_path(&self) -> PathBuf {
        self.settings.data_folder.join("engine.toml")
    }

    /// Where the registration key lies until the engine has used it.
    pub fn key_path(&self) -> PathBuf {
        self.settings.data_folder.join("registration.key")
    }

    pub(crate) fn record_path(&self) -> PathBuf {
        self.settings.data_folder.join(record::RECORD)
    }
}

/// A registration key: whoever holds it may enrol an engine. Its text is never shown by `Debug`.
#[derive(Clone)]
pub struct RegistrationKey(String);

impl RegistrationKey {
    /// Wraps the text of a key.
    pub fn new(text: impl Into<String>) -> Self {
        RegistrationKey(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for RegistrationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistrationKey(..)")
    }
}

/// What is on the host now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// SHA-256 of the installed executable in lower-case hexadecimal digits; `None` when there is none.
    pub engine_sha256: Option<String>,
    /// Version the installed executable reports; `None` when it is missing or doesn't start.
    pub engine_version: Option<String>,
    /// SHA-256 of the engine that would be installed; `None` when it is missing.
    pub bundled_sha256: Option<String>,
    /// The configuration file is there and says what the deployment asks for.
    pub config_current: bool,
    /// The engine runs as a service or a process.
    pub running: bool,
    /// Identity of the engine, made at its first start.
    pub engine_id: Option<String>,
    /// Owner of the deployment that lies in the data folder.
    pub owner: Option<String>,
    /// SHA-256 fingerprint of the key that the host has shown, as in `SHA256:…`; `None` where there is no such key.
    pub host_key_fingerprint: Option<String>,
}

impl Inspection {
    /// Nothing is left to do but to start the engine.
    pub fn is_current(&self) -> bool {
        self.config_current
            && self.engine_sha256.is_some()
            && self.engine_sha256 == self.bundled_sha256
    }
}

/// One channel to one host.
#[async_trait]
pub trait Deployer: Send + Sync {
    /// Looks at the host and changes nothing.
    async fn inspect(&self, deployment: &Deployment) -> Result<Inspection, DeployError>;

    /// Copies the engine and writes its configuration where they differ, and the key when one is given.
    /// A running engine keeps running with what it had: follow with [`Deployer::restart`].
    /// Gives back whether anything was changed.
    async fn install(
        &self,
        deployment: &Deployment,
        key: Option<&RegistrationKey>,
    ) -> Result<bool, DeployError>;

    /// Starts the engine when it isn't running. Returns once it runs.
    async fn start(&self, deployment: &Deployment) -> Result<(), DeployError>;

    /// Stops the engine and starts what is installed now.
    async fn restart(&self, deployment: &Deployment) -> Result<(), DeployError>;

    /// Brings the installed engine and its configuration up to date and restarts it, or starts it when it is stopped.
    /// Gives back whether anything was changed.
    async fn upgrade(&self, deployment: &Deployment) -> Result<bool, DeployError> {
        if self.install(deployment, None).await? {
            self.restart(deployment).await?;
            return Ok(true);
        }
        self.start(deployment).await?;
        Ok(false)
    }

    /// Waits until the engine runs and has an identity, which it gets when it first starts. Gives back the identity.
    async fn wait_ready(
        &self,
        deployment: &Deployment,
        limit: Duration,
    ) -> Result<String, DeployError>;

    /// Stops the engine and removes all that was installed, the data folder and its content included.
    /// Works when the engine is dead and when half of it is gone already. VMs of drills are stopped and removed, VMs that
    /// were left to themselves run on with their disks.
    ///
    /// # Errors
    /// [`DeployErrorKind::InUse`], before anything is touched, while a failed-over VM depends on the engine.
    async fn uninstall(&self, deployment: &Deployment) -> Result<(), DeployError>;
}

/// SHA-256 of a file in lower-case hexadecimal digits, or `None` when there is no such file.
pub fn file_sha256(path: &Path) -> std::io::Result<Option<String>> {
    files::sha256(path)
}
