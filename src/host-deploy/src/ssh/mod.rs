//! The channel to a Linux host over SSH: commands and SFTP, nothing else; the engine itself dials out to its orchestrator.
//!
//! ```text
//!  connect ─► host's key checked ─► signed in ─► lock of the host ─► look ─► change what differs ─► bye
//!
//!  engine   .part (resumable) ─► hashed, synced ─► in its place in one step; what was there stays as `.previous`
//!  restart  stop ─► start ─► it answers      ─► `.previous` goes
//!                        └─► it does not     ─► `.previous` comes back, is started, and the error says so
//! ```
//!
//! `.previous` is there exactly while an upgrade is not confirmed: an inspection then says that the engine does not run as it
//! should, so a run that was cut short between two steps is noticed and mended by the next one. Two deployments of one user at a time
//! are kept apart by a lock of the host's kernel that goes with the connection.

mod connection;
mod linux;
mod session;
mod shell;
mod steps;
mod trust;
mod upload;

use std::time::{Duration, Instant};

use async_trait::async_trait;

pub use self::connection::{HostKeyTrust, Secret, SshConnection, SshCredentials};
use self::linux::SystemdFolders;
use self::steps::Host;
use crate::error::{DeployError, DeployErrorKind};
use crate::record::{self, bundled_sha256};
use crate::{Deployer, Deployment, Inspection, RegistrationKey};

/// How often a state that can only be polled is looked at. Each look is a command on the host.
const POLL: Duration = Duration::from_millis(300);
/// An engine that has not answered by then is one that does not come up.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Deploys over SSH.
#[derive(Debug, Clone)]
pub struct SshDeployer {
    connection: SshConnection,
    systemd: SystemdFolders,
    start_limit: Duration,
}

impl SshDeployer {
    /// Uses systemd where it runs and the user is root, else a detached process.
    pub fn new(connection: SshConnection) -> Self {
        SshDeployer {
            connection,
            systemd: SystemdFolders::default(),
            start_limit: START_LIMIT,
        }
    }

    /// For hosts that keep systemd's folders elsewhere: the one that is there while it runs, and the one for units.
    #[must_use]
    pub fn with_systemd_in(mut self, runs: impl Into<String>, units: impl Into<String>) -> Self {
        self.systemd = SystemdFolders {
            runs: runs.into(),
            units: units.into(),
        };
        self
    }

    /// How long an engine that was started may take until it answers.
    #[must_use]
    pub fn with_start_limit(mut self, limit: Duration) -> Self {
        self.start_limit = limit;
        self
    }

    async fn open<'a>(&'a self, deployment: &'a Deployment) -> Result<Host<'a>, DeployError> {
        deployment.settings.check()?;
        Host::open(&self.connection, &self.systemd, deployment).await
    }

    /// Stops what runs, starts what is installed, and goes back to what was there before when that does not come up.
    async fn bring_up(&self, host: &Host<'_>) -> Result<(), DeployError> {
        host.stop().await?;
        let Err(error) = self.start_and_wait(host).await else {
            return host.confirm().await;
        };
        if matches!(
            error.kind(),
            DeployErrorKind::Interrupted | DeployErrorKind::Unreachable
        ) {
            // Nothing is known of the engine: the next run looks again.
            return Err(error);
        }
        tracing::warn!(host = host.label(), cause = %error, "the new engine does not come up: going back to the previous one");
        host.stop().await?;
        if !host.roll_back().await? {
            return Err(error);
        }
        let again = self.start_and_wait(host).await;
        let outcome = match &again {
            Ok(()) => "the previous engine and configuration are back and run".to_owned(),
            Err(second) => format!("the previous engine is back but does not run either: {second}"),
        };
        Err(DeployError::new(
            DeployErrorKind::EngineFailed,
            "upgrading the engine on",
            host.label(),
            format!("{error}; {outcome}"),
            error.next_step(),
        ))
    }

    async fn start_and_wait(&self, host: &Host<'_>) -> Result<(), DeployError> {
        host.start().await?;
        let until = Instant::now() + self.start_limit;
        loop {
            if host.probe().await?.running {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(record::not_ready(host.deployment(), false).on(host.label()));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

#[async_trait]
impl Deployer for SshDeployer {
    async fn inspect(&self, deployment: &Deployment) -> Result<Inspection, DeployError> {
        let bundled_sha256 = crate::file_sha256(&deployment.bundled_engine)
            .map_err(|e| DeployError::io("reading", &deployment.bundled_engine, e))?;
        let host = self.open(deployment).await?;
        let probe = host.probe().await?;
        let seen = Inspection {
            engine_sha256: probe.sha256,
            engine_version: probe.version,
            bundled_sha256,
            config_current: host.config_is_current().await?,
            running: probe.running && !probe.unconfirmed,
            engine_id: host.engine_id().await?,
            owner: Some(host.record().await?.owner).filter(|owner| !owner.is_empty()),
            host_key_fingerprint: Some(host.fingerprint()),
        };
        host.close().await;
        Ok(seen)
    }

    async fn install(
        &self,
        deployment: &Deployment,
        key: Option<&RegistrationKey>,
    ) -> Result<bool, DeployError> {
        let wanted = bundled_sha256(deployment)?;
        let host = self.open(deployment).await?;
        host.lock().await?;
        let changed = host.install(&wanted, key).await?;
        host.close().await;
        Ok(changed)
    }

    async fn start(&self, deployment: &Deployment) -> Result<(), DeployError> {
        let host = self.open(deployment).await?;
        host.lock().await?;
        let probe = host.probe().await?;
        if probe.unconfirmed {
            self.bring_up(&host).await?;
        } else if !probe.running {
            self.start_and_wait(&host).await?;
        }
        host.close().await;
        Ok(())
    }

    async fn restart(&self, deployment: &Deployment) -> Result<(), DeployError> {
        let host = self.open(deployment).await?;
        host.lock().await?;
        self.bring_up(&host).await?;
        host.close().await;
        Ok(())
    }

    async fn upgrade(&self, deployment: &Deployment) -> Result<bool, DeployError> {
        let wanted = bundled_sha256(deployment)?;
        let host = self.open(deployment).await?;
        host.lock().await?;
        let installed = host.install(&wanted, None).await?;
        let probe = host.probe().await?;
        let changed = installed || probe.unconfirmed;
        if changed {
            self.bring_up(&host).await?;
        } else if !probe.running {
            self.start_and_wait(&host).await?;
        }
        host.close().await;
        Ok(changed)
    }

    async fn wait_ready(
        &self,
        deployment: &Deployment,
        limit: Duration,
    ) -> Result<String, DeployError> {
        let host = self.open(deployment).await?;
        let until = Instant::now() + limit;
        loop {
            let running = host.probe().await?.running;
            if running && let Some(id) = host.engine_id().await? {
                host.close().await;
                return Ok(id);
            }
            if Instant::now() >= until {
                return Err(record::not_ready(deployment, running).on(host.label()));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn uninstall(&self, deployment: &Deployment) -> Result<(), DeployError> {
        let host = self.open(deployment).await?;
        host.lock().await?;
        if host.record().await?.is_of_another(&deployment.owner) {
            // Another site's engine has taken the place: ours is gone already.
            tracing::warn!(
                host = host.label(),
                "the engine there belongs to another site and stays"
            );
            host.close().await;
            return Ok(());
        }
        host.refuse_failed_over().await?;
        host.mend_config().await?;
        tracing::info!(host = host.label(), "removing the engine");
        host.stop().await?;
        if let Err(error) = host.refuse_failed_over().await {
            // A failover that was ordered meanwhile: its VM needs the engine.
            host.start().await?;
            return Err(error);
        }
        host.stop_drills().await?;
        host.remove().await?;
        host.close().await;
        Ok(())
    }
}
