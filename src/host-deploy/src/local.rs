//! The channel to the machine this process runs on.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::error::{DeployError, DeployErrorKind};
use crate::record::{self, RECORD, RECOVERED, Record, bundled_sha256, config_text};
use crate::recovered::{self, Recovered};
use crate::service::{self, ServiceManager};
use crate::{Deployer, Deployment, Inspection, RegistrationKey, files};

/// How often a state that can only be polled is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Deploys to this machine.
#[derive(Debug, Clone)]
pub struct LocalDeployer {
    manager: ServiceManager,
}

impl Default for LocalDeployer {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalDeployer {
    /// Uses systemd when it is process 1 and this process is root, else a detached process.
    pub fn new() -> Self {
        LocalDeployer {
            manager: ServiceManager::of_this_machine(),
        }
    }

    /// Never uses systemd.
    pub fn detached() -> Self {
        LocalDeployer {
            manager: ServiceManager::Detached,
        }
    }
}

#[async_trait]
impl Deployer for LocalDeployer {
    async fn inspect(&self, deployment: &Deployment) -> Result<Inspection, DeployError> {
        deployment.settings.check()?;
        let engine = deployment.engine_path();
        let wanted = deployment.clone();
        let (bundled_sha256, engine_sha256, config_current, engine_id, owner) =
            blocking(move || {
                Ok((
                    files::sha256(&wanted.bundled_engine)
                        .map_err(|e| DeployError::io("reading", &wanted.bundled_engine, e))?,
                    files::sha256(&wanted.engine_path())
                        .map_err(|e| DeployError::io("reading", &wanted.engine_path(), e))?,
                    files::holds(&wanted.config_path(), &config_text(&wanted)?)?,
                    engine_id(&wanted)?,
                    Some(read_record(&wanted).owner).filter(|owner| !owner.is_empty()),
                ))
            })
            .await?;
        let engine_version = match engine_sha256 {
            Some(_) => version(&engine).await,
            None => None,
        };
        let running = self.manager.running(deployment).await?;
        Ok(Inspection {
            engine_sha256,
            engine_version,
            bundled_sha256,
            config_current,
            running,
            engine_id,
            owner,
            host_key_fingerprint: None,
        })
    }

    async fn install(
        &self,
        deployment: &Deployment,
        key: Option<&RegistrationKey>,
    ) -> Result<bool, DeployError> {
        deployment.settings.check()?;
        let (wanted, key) = (deployment.clone(), key.cloned());
        blocking(move || install(&wanted, key.as_ref())).await
    }

    async fn start(&self, deployment: &Deployment) -> Result<(), DeployError> {
        if self.manager.running(deployment).await? {
            return Ok(());
        }
        self.manager.start(deployment).await
    }

    async fn restart(&self, deployment: &Deployment) -> Result<(), DeployError> {
        self.manager.stop(deployment).await?;
        self.manager.start(deployment).await
    }

    async fn wait_ready(
        &self,
        deployment: &Deployment,
        limit: Duration,
    ) -> Result<String, DeployError> {
        let until = Instant::now() + limit;
        loop {
            let running = self.manager.running(deployment).await?;
            if running && let Some(id) = engine_id(deployment)? {
                return Ok(id);
            }
            if Instant::now() >= until {
                return Err(record::not_ready(deployment, running));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn uninstall(&self, deployment: &Deployment) -> Result<(), DeployError> {
        deployment.settings.check()?;
        let wanted = deployment.clone();
        let ours = blocking(move || {
            if read_record(&wanted).is_of_another(&wanted.owner) {
                return Ok(false);
            }
            refuse_failed_over(&wanted)?;
            mend_config(&wanted)?;
            Ok(true)
        })
        .await?;
        if !ours {
            // Another site's engine has taken the place: ours is gone already.
            return Ok(());
        }
        self.manager.stop(deployment).await?;
        let wanted = deployment.clone();
        if let Err(error) = blocking(move || refuse_failed_over(&wanted)).await {
            // A failover that was ordered meanwhile: its VM needs the engine.
            self.manager.start(deployment).await?;
            return Err(error);
        }
        stop_drills(deployment).await?;
        self.manager.forget(deployment).await?;
        let wanted = deployment.clone();
        blocking(move || remove(&wanted)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DeployError> + Send + 'static,
) -> Result<T, DeployError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(DeployError::new(
                DeployErrorKind::Other,
                "working on",
                "this machine",
                error.to_string(),
                "report this as a defect",
            ))
        })
}

fn install(deployment: &Deployment, key: Option<&RegistrationKey>) -> Result<bool, DeployError> {
    let wanted = bundled_sha256(deployment)?;
    let mut record = read_record(deployment);
    let before = record.created_folders.len();
    record.refuse_another_owner(deployment)?;
    let owner_is_new = record.owner != deployment.owner;
    record.owner.clone_from(&deployment.owner);
    let settings = &deployment.settings;
    record
        .created_folders
        .extend(files::create_folders(&settings.data_folder, 0o700)?);
    record
        .created_folders
        .extend(files::create_folders(&deployment.install_folder, 0o755)?);
    if settings.recovery_role {
        record
            .created_folders
            .extend(files::create_folders(&settings.recovery_folder, 0o700)?);
    }
    if owner_is_new || record.created_folders.len() != before {
        // Before anything else is written: what was made must be known to be ours even if the next step fails.
        write_record(deployment, &record)?;
    }
    let mut changed = false;
    let engine = deployment.engine_path();
    let installed = files::sha256(&engine).map_err(|e| DeployError::io("reading", &engine, e))?;
    if installed.as_deref() != Some(wanted.as_str()) {
        let mut bundled = File::open(&deployment.bundled_engine)
            .map_err(|e| DeployError::io("reading", &deployment.bundled_engine, e))?;
        files::replace(&engine, 0o755, &mut bundled)?;
        changed = true;
    }
    let config = config_text(deployment)?;
    if !files::holds(&deployment.config_path(), &config)? {
        files::replace(&deployment.config_path(), 0o600, &mut config.as_bytes())?;
        changed = true;
    }
    if let Some(key) = key {
        files::replace(&deployment.key_path(), 0o600, &mut key.expose().as_bytes())?;
        changed = true;
    }
    Ok(changed)
}

/// A torn configuration file would keep the engine from understanding `stop`.
fn mend_config(deployment: &Deployment) -> Result<(), DeployError> {
    let path = deployment.config_path();
    let text = config_text(deployment)?;
    if path.exists() && !files::holds(&path, &text)? {
        files::replace(&path, 0o600, &mut text.as_bytes())?;
    }
    Ok(())
}

fn read_record(deployment: &Deployment) -> Record {
    Record::parse(fs::read(deployment.record_path()).ok().as_deref())
}

fn write_record(deployment: &Deployment, record: &Record) -> Result<(), DeployError> {
    let bytes = record.render(&deployment.record_path())?;
    files::replace(&deployment.record_path(), 0o600, &mut bytes.as_slice())
}

fn engine_id(deployment: &Deployment) -> Result<Option<String>, DeployError> {
    let path = deployment
        .settings
        .data_folder
        .join("identity")
        .join("engine_id");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned()).filter(|id| !id.is_empty())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DeployError::io("reading", &path, error)),
    }
}

async fn version(engine: &Path) -> Option<String> {
    let outcome = service::run(engine, &["--version".as_ref()]).await.ok()?;
    if !outcome.success {
        return None;
    }
    record::version_in(&outcome.text)
}

/// See [`Recovered::refuse_failed_over`]. An earlier deployment may have had the usual folder.
fn refuse_failed_over(deployment: &Deployment) -> Result<(), DeployError> {
    let settings = &deployment.settings;
    for folder in [
        &settings.recovery_folder,
        &settings.data_folder.join(RECOVERED),
    ] {
        Recovered::look(folder)?.refuse_failed_over()?;
    }
    Ok(())
}

/// A drill's VM outlives the engine. When the host is taken out of service, none may stay running unseen.
async fn stop_drills(deployment: &Deployment) -> Result<(), DeployError> {
    let folder = &deployment.settings.recovery_folder;
    let engine = [deployment.engine_path(), deployment.bundled_engine.clone()]
        .into_iter()
        .find(|path| path.exists());
    let Some(engine) = engine else {
        return Ok(());
    };
    for name in Recovered::look(folder)?.drills {
        if !folder.join(&name).join("vm.toml").exists() {
            continue;
        }
        tracing::warn!(vm = name, "stopping the VM of a drill that was left over");
        let arguments: [&std::ffi::OsStr; 5] = [
            "vm".as_ref(),
            "stop".as_ref(),
            "--vm-folder".as_ref(),
            folder.as_os_str(),
            name.as_ref(),
        ];
        let outcome = service::run(&engine, &arguments).await?;
        if !outcome.success {
            return Err(DeployError::new(
                DeployErrorKind::EngineFailed,
                "stopping the recovered VM",
                name,
                outcome.text.trim().to_owned(),
                "end its process by hand, then destroy again",
            ));
        }
    }
    Ok(())
}

fn remove_data(folder: &Path) -> Result<(), DeployError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DeployError::io("reading", folder, error)),
    };
    let mut foreign = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|error| DeployError::io("reading", folder, error))?
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == RECORD {
            continue;
        }
        if !record::is_ours(&name) {
            foreign.push(name.into_owned());
        } else if name == RECOVERED {
            recovered::remove(&path)?;
        } else if path.is_dir() && !path.is_symlink() {
            files::remove_tree(&path)?;
        } else {
            files::remove_file(&path)?;
        }
    }
    files::remove_file(&folder.join(RECORD))?;
    if !foreign.is_empty() {
        tracing::warn!(folder = %folder.display(), ?foreign, "files that are not the engine's stay");
    }
    Ok(())
}

fn remove(deployment: &Deployment) -> Result<(), DeployError> {
    let record = read_record(deployment);
    let settings = &deployment.settings;
    if settings.recovery_role && record.created_folders.contains(&settings.recovery_folder) {
        recovered::remove(&settings.recovery_folder)?;
        files::remove_if_empty(&settings.recovery_folder);
    }
    files::remove_file(&deployment.engine_path())?;
    // The record lies in the data folder, so this comes last: until then a second run still knows it all.
    remove_data(&settings.data_folder)?;
    for folder in record.created_folders.iter().rev() {
        files::remove_if_empty(folder);
    }
    Ok(())
}
