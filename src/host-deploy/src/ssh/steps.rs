//! The single steps on a host; each looks before it changes anything. `mod.rs` says in which order they go.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use russh_sftp::client::SftpSession;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::protocol::{OpenFlags, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::connection::SshConnection;
use super::linux::{self, SystemdFolders};
use super::session::{Ended, SshSession};
use super::shell::path as text;
use super::upload;
use crate::error::{DeployError, DeployErrorKind};
use crate::record::{RECORD, RECOVERED, Record, config_text, version_in};
use crate::recovered::{Recovered, name_in};
use crate::service::{UNIT, config_word, unit_text};
use crate::{Deployment, ENGINE_BINARY, RegistrationKey};

/// How long a deployment waits for another one on the same host, unless a command may not take that long.
const LOCK_LIMIT: Duration = Duration::from_secs(300);
/// The host lets go of the lock of a client that it has not heard of for so many seconds.
const LOCK_LIFE: &str = "90";
const BEAT: Duration = Duration::from_secs(15);
/// No file that is read as a whole is longer.
const MOST: u64 = 1 << 20;

/// What one look has found.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) sha256: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) running: bool,
    /// An upgrade has replaced something and has not been seen to come up.
    pub(crate) unconfirmed: bool,
    /// The unit, where systemd runs.
    unit: Option<String>,
}

/// One host for the length of one operation.
pub(crate) struct Host<'a> {
    session: SshSession,
    sftp: SftpSession,
    deployment: &'a Deployment,
    systemd: &'a SystemdFolders,
    engine: String,
    config: String,
    data: String,
    install: String,
    recovery: String,
    lock: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl<'a> Host<'a> {
    pub(crate) async fn open(
        connection: &SshConnection,
        systemd: &'a SystemdFolders,
        deployment: &'a Deployment,
    ) -> Result<Self, DeployError> {
        let engine = text(&deployment.engine_path())?.to_owned();
        let config = text(&deployment.config_path())?.to_owned();
        let data = text(&deployment.settings.data_folder)?.to_owned();
        let install = text(&deployment.install_folder)?.to_owned();
        let recovery = text(&deployment.settings.recovery_folder)?.to_owned();
        if !deployment.install_folder.is_absolute() {
            return Err(DeployError::new(
                DeployErrorKind::InvalidPath,
                "checking install_folder",
                install,
                "it is not an absolute path",
                "choose another folder",
            ));
        }
        let session = SshSession::open(connection).await?;
        let sftp = session.sftp().await?;
        Ok(Host {
            session,
            sftp,
            deployment,
            systemd,
            engine,
            config,
            data,
            install,
            recovery,
            lock: Mutex::new(None),
        })
    }

    /// Says good-bye. What is still open on the host ends with the connection anyway.
    pub(crate) async fn close(self) {
        self.unlock();
        let _ = self.sftp.close().await;
        self.session.close().await;
    }

    fn unlock(&self) {
        let held = self
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(held) = held {
            held.abort();
        }
    }

    pub(crate) fn label(&self) -> &str {
        self.session.label()
    }

    pub(crate) fn fingerprint(&self) -> String {
        self.session.fingerprint().to_owned()
    }

    pub(crate) fn deployment(&self) -> &Deployment {
        self.deployment
    }

    async fn run(
        &self,
        step: &str,
        object: &str,
        script: &str,
        arguments: &[&str],
    ) -> Result<Ended, DeployError> {
        let ended = self.session.run(step, script, arguments).await?;
        match ended.code {
            0 => Ok(ended),
            _ => Err(linux::fault(step, object, &ended).on(self.label())),
        }
    }

    /// Keeps other deployments of this user away until the connection ends.
    pub(crate) async fn lock(&self) -> Result<(), DeployError> {
        let step = "locking";
        let seconds = LOCK_LIMIT.min(self.session.limit() * 3 / 4).as_secs();
        let wait = seconds.to_string();
        let arguments = [wait.as_str(), LOCK_LIFE];
        match self.session.hold(step, linux::LOCK, &arguments).await? {
            Ok(channel) => {
                let beats = tokio::spawn(async move {
                    while channel.data(&b"\n"[..]).await.is_ok() {
                        tokio::time::sleep(BEAT).await;
                    }
                });
                *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(beats);
                Ok(())
            }
            Err(ended) if ended.code == 75 => Err(DeployError::new(
                DeployErrorKind::InUse,
                step,
                self.label(),
                format!("another deployment has been at work there for {seconds} seconds"),
                "wait for it to end, then run this again",
            )),
            Err(ended) => Err(linux::fault(step, "the deployments", &ended).on(self.label())),
        }
    }

    pub(crate) async fn probe(&self) -> Result<Probe, DeployError> {
        let ended = self.look().await?;
        let out = ended.text();
        let facts = linux::facts(&out);
        let has = |name: &str| facts.contains_key(name);
        Ok(Probe {
            sha256: facts.get("sha256").map(|&sum| sum.to_owned()),
            version: facts.get("version").and_then(|words| version_in(words)),
            running: has("running"),
            unconfirmed: has("unconfirmed"),
            unit: has("systemd").then(|| format!("{}/{UNIT}", self.systemd.units)),
        })
    }

    async fn look(&self) -> Result<Ended, DeployError> {
        let arguments = [
            self.engine.as_str(),
            &self.config,
            &self.systemd.runs,
            &self.systemd.units,
        ];
        self.run("looking at", &self.engine, linux::PROBE, &arguments)
            .await
    }

    /// A whole small file; `None` when it isn't there.
    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, DeployError> {
        let failed = |cause: String| {
            if self.session.is_closed() {
                return self.session.lost(&format!("reading {path} on"), cause);
            }
            DeployError::new(
                DeployErrorKind::PermissionDenied,
                "reading",
                format!("{path} on {}", self.label()),
                cause,
                "sign in as the user that the engine was installed with",
            )
        };
        let file = match self.sftp.open(path).await {
            Ok(file) => file,
            Err(SftpError::Status(status)) if status.status_code == StatusCode::NoSuchFile => {
                return Ok(None);
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        let mut bytes = Vec::new();
        let read = file.take(MOST).read_to_end(&mut bytes).await;
        read.map_err(|error| failed(error.to_string()))?;
        Ok(Some(bytes))
    }

    /// Replaces a small file in one step.
    async fn write(
        &self,
        path: &str,
        mode: u32,
        bytes: &[u8],
        keep: bool,
    ) -> Result<(), DeployError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let new = format!("{folder}/.{name}.new");
        // A leftover may have another mode.
        let _ = self.sftp.remove_file(&new).await;
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let written = async {
            let mut file = upload::create(&self.session, &self.sftp, &new, flags, 0o600).await?;
            let failed = |error| upload::write_failed(&self.session, &new, &error);
            file.write_all(bytes).await.map_err(failed)?;
            upload::finish(&self.session, file, &new).await
        };
        if let Err(error) = written.await {
            if !self.session.is_closed() {
                upload::refuse_full(&self.session, &self.sftp, &new, bytes.len() as u64 + 4096)
                    .await?;
            }
            return Err(error);
        }
        self.place(&new, path, mode, keep).await
    }

    async fn place(&self, new: &str, path: &str, mode: u32, keep: bool) -> Result<(), DeployError> {
        let keep = if keep { "keep" } else { "" };
        self.run(
            "replacing",
            path,
            linux::PLACE,
            &[new, &format!("{mode:o}"), path, keep],
        )
        .await?;
        Ok(())
    }

    pub(crate) async fn record(&self) -> Result<Record, DeployError> {
        let path = format!("{}/{RECORD}", self.data);
        Ok(Record::parse(self.read(&path).await?.as_deref()))
    }

    pub(crate) async fn engine_id(&self) -> Result<Option<String>, DeployError> {
        let path = format!("{}/identity/engine_id", self.data);
        let id = self.read(&path).await?;
        Ok(id
            .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
            .filter(|id| !id.is_empty()))
    }

    pub(crate) async fn config_is_current(&self) -> Result<bool, DeployError> {
        let wanted = config_text(self.deployment)?;
        Ok(self.read(&self.config).await?.as_deref() == Some(wanted.as_bytes()))
    }

    /// A torn configuration file would keep the engine from understanding `stop`.
    pub(crate) async fn mend_config(&self) -> Result<(), DeployError> {
        let wanted = config_text(self.deployment)?;
        match self.read(&self.config).await? {
            Some(found) if found != wanted.as_bytes() => {
                self.write(&self.config, 0o600, wanted.as_bytes(), false)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Folders, record, engine, configuration, key, in this order. Gives back whether anything was changed.
    pub(crate) async fn install(
        &self,
        sha256: &str,
        key: Option<&RegistrationKey>,
    ) -> Result<bool, DeployError> {
        let mut record = self.record().await?;
        record
            .refuse_another_owner(self.deployment)
            .map_err(|error| error.on(self.label()))?;
        let ended = self.look().await?;
        self.check_platform(&ended)?;
        self.refuse_neighbour(linux::facts(&ended.text()).contains_key("systemd"))
            .await?;
        let before = record.clone();
        record.owner.clone_from(&self.deployment.owner);
        let mut folders = vec!["700", &self.data, "755", &self.install];
        if self.deployment.settings.recovery_role {
            folders.extend(["700", &self.recovery]);
        }
        let made = self
            .run("creating folders for", &self.data, linux::FOLDERS, &folders)
            .await?;
        let made = linux::paths(&made.out);
        record
            .created_folders
            .extend(made.iter().map(PathBuf::from));
        if record != before {
            // Before anything else is written: what was made must be known to be ours even if the next step fails.
            let path = format!("{}/{RECORD}", self.data);
            let bytes = record.render(Path::new(&path))?;
            self.write(&path, 0o600, &bytes, false).await?;
        }
        let owner = format!("{}/.{ENGINE_BINARY}.owner", self.install);
        let wanted = format!("{}\n{}\n", self.deployment.owner, self.data);
        if self.read(&owner).await?.as_deref() != Some(wanted.as_bytes()) {
            self.write(&owner, 0o644, wanted.as_bytes(), false).await?;
        }
        let mut changed = false;
        let out = ended.text();
        if linux::facts(&out).get("sha256") != Some(&sha256) {
            let part = format!("{}/.{ENGINE_BINARY}-{}.part", self.install, &sha256[..16]);
            let local = &self.deployment.bundled_engine;
            upload::upload(&self.session, &self.sftp, local, &part, sha256).await?;
            self.place(&part, &self.engine, 0o755, true).await?;
            self.run(
                "removing old uploads in",
                &self.install,
                linux::REMOVE_PARTS,
                &[&self.install, ENGINE_BINARY],
            )
            .await?;
            tracing::info!(host = self.label(), "the engine is in its place");
            changed = true;
        }
        if !self.config_is_current().await? {
            let wanted = config_text(self.deployment)?;
            self.write(&self.config, 0o600, wanted.as_bytes(), true)
                .await?;
            changed = true;
        }
        if let Some(key) = key {
            let path = self.deployment.key_path();
            self.write(text(&path)?, 0o600, key.expose().as_bytes(), false)
                .await?;
            changed = true;
        }
        Ok(changed)
    }

    /// One service a host, and one engine in a folder: those of another data folder are not replaced under it.
    async fn refuse_neighbour(&self, systemd: bool) -> Result<(), DeployError> {
        let in_use = |cause: String, next: &str| {
            DeployError::new(
                DeployErrorKind::InUse,
                "installing on",
                self.label(),
                cause,
                next,
            )
        };
        let owner = format!("{}/.{ENGINE_BINARY}.owner", self.install);
        if let Some(found) = self.read(&owner).await? {
            let found = String::from_utf8_lossy(&found).into_owned();
            let data = found.lines().nth(1).unwrap_or_default();
            if data != self.data {
                return Err(in_use(
                    format!(
                        "the engine in {} is that of data folder {data}",
                        self.install
                    ),
                    "choose another install_folder; or remove that engine first",
                ));
            }
        }
        let unit = format!("{}/{UNIT}", self.systemd.units);
        if systemd
            && let Some(found) = self.read(&unit).await?
            && !String::from_utf8_lossy(&found).contains(&config_word(self.deployment))
        {
            return Err(in_use(
                format!("{UNIT} runs an engine of another data folder"),
                "a host has one engine: remove that one first, or give this one its data_folder",
            ));
        }
        Ok(())
    }

    fn check_platform(&self, looked: &Ended) -> Result<(), DeployError> {
        let local = &self.deployment.bundled_engine;
        let mut header = [0; 64];
        let count = std::fs::File::open(local)
            .and_then(|mut file| file.read(&mut header))
            .map_err(|error| DeployError::io("reading", local, error))?;
        let out = looked.text();
        linux::check_platform(&linux::facts(&out), &header[..count]).map_err(|(cause, next)| {
            DeployError::new(
                DeployErrorKind::Unsupported,
                "installing on",
                self.label(),
                cause,
                next,
            )
        })
    }

    pub(crate) async fn start(&self) -> Result<(), DeployError> {
        let unit = self.probe().await?.unit.unwrap_or_default();
        self.refuse_neighbour(!unit.is_empty()).await?;
        if !unit.is_empty() {
            let wanted = unit_text(self.deployment);
            if self.read(&unit).await?.as_deref() != Some(wanted.as_bytes()) {
                self.write(&unit, 0o644, wanted.as_bytes(), false).await?;
            }
        }
        tracing::info!(host = self.label(), "starting the engine");
        let arguments = [self.engine.as_str(), &self.config, &unit];
        let ended = self
            .session
            .run("starting", linux::START, &arguments)
            .await?;
        if ended.code == 0 {
            return Ok(());
        }
        let fault = linux::fault("starting", &self.engine, &ended);
        let log = format!("{}/engine.log", self.data);
        let next = match unit.is_empty() {
            true => format!("look at {log} on the host"),
            false => format!("look at `journalctl -u {UNIT}` on the host"),
        };
        Err(fault.engine_failed(next).on(self.label()))
    }

    pub(crate) async fn stop(&self) -> Result<(), DeployError> {
        let unit = self.probe().await?.unit.unwrap_or_default();
        let config = config_word(self.deployment);
        let arguments = [
            self.engine.as_str(),
            &self.config,
            &self.data,
            &unit,
            &config,
        ];
        self.run("stopping", &self.engine, linux::STOP, &arguments)
            .await?;
        Ok(())
    }

    pub(crate) async fn confirm(&self) -> Result<(), DeployError> {
        let targets = [self.engine.as_str(), &self.config];
        self.run("confirming", &self.engine, linux::CONFIRM, &targets)
            .await?;
        Ok(())
    }

    /// Gives back whether there was something to go back to.
    pub(crate) async fn roll_back(&self) -> Result<bool, DeployError> {
        let targets = [self.engine.as_str(), &self.config];
        let step = "going back to the previous";
        let ended = self.session.run(step, linux::ROLL_BACK, &targets).await?;
        match ended.code {
            0 => Ok(true),
            3 => Ok(false),
            _ => Err(linux::fault(step, &self.engine, &ended).on(self.label())),
        }
    }

    async fn recovered(&self, folder: &str) -> Result<Recovered, DeployError> {
        let ended = self
            .run("reading", folder, linux::LIST_RECOVERED, &[folder])
            .await?;
        let listed: BTreeSet<PathBuf> = linux::paths(&ended.out)
            .into_iter()
            .map(PathBuf::from)
            .collect();
        Ok(Recovered::of(Path::new(folder), &listed))
    }

    /// See [`Recovered::refuse_failed_over`]. An earlier deployment may have had the usual folder.
    pub(crate) async fn refuse_failed_over(&self) -> Result<(), DeployError> {
        for folder in [self.recovery.clone(), format!("{}/{RECOVERED}", self.data)] {
            let found = self.recovered(&folder).await?;
            let name = match found.failed_over.first() {
                Some(record) => self
                    .read(text(record)?)
                    .await?
                    .and_then(|bytes| name_in(&bytes)),
                None => None,
            };
            found.refuse(name).map_err(|error| error.on(self.label()))?;
        }
        Ok(())
    }

    /// A drill's VM outlives the engine. When the host is taken out of service, none may stay running unseen.
    pub(crate) async fn stop_drills(&self) -> Result<(), DeployError> {
        for name in self.recovered(&self.recovery).await?.drills {
            tracing::warn!(host = self.label(), vm = name, "stopping the VM of a drill");
            let arguments = [self.engine.as_str(), &self.recovery, &name];
            self.run(
                "stopping the recovered VM",
                &name,
                linux::STOP_VM,
                &arguments,
            )
            .await?;
        }
        Ok(())
    }

    /// All that was installed, the record last: until then a second run still knows it all.
    pub(crate) async fn remove(&self) -> Result<(), DeployError> {
        if let Some(unit) = self.probe().await?.unit {
            self.run(
                "removing",
                &unit,
                linux::FORGET,
                &[&unit, &config_word(self.deployment)],
            )
            .await?;
        }
        let record = self.record().await?;
        let settings = &self.deployment.settings;
        let mut folders = vec![format!("{}/{RECOVERED}", self.data)];
        if settings.recovery_role && record.created_folders.contains(&settings.recovery_folder) {
            folders.insert(0, self.recovery.clone());
        }
        for folder in folders {
            let left = self.recovered(&folder).await?.left;
            if !left.is_empty() {
                tracing::warn!(
                    host = self.label(),
                    folder,
                    "virtual machines that were left to themselves stay"
                );
            }
            let mut arguments = vec![folder.as_str()];
            arguments.extend(left.iter().map(String::as_str));
            self.run("removing", &folder, linux::REMOVE_RECOVERED, &arguments)
                .await?;
        }
        let mut arguments = vec![self.install.as_str(), ENGINE_BINARY, &self.data, RECORD];
        for folder in record.created_folders.iter().rev() {
            arguments.push(text(folder)?);
        }
        let ended = self
            .run("removing", &self.data, &linux::remove(), &arguments)
            .await?;
        let foreign = linux::paths(&ended.out);
        if !foreign.is_empty() {
            tracing::warn!(
                host = self.label(),
                ?foreign,
                "files that are not the engine's stay"
            );
        }
        Ok(())
    }
}
