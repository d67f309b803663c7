//! Runs the engine: as a systemd unit where systemd is process 1 and may be told so, else as a detached process.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::error::{DeployError, DeployErrorKind};
use crate::{Deployment, files};

pub(crate) const UNIT: &str = "siterecovery-engine.service";
/// Starting and stopping take seconds at most; more means that something hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Who keeps the engine running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServiceManager {
    /// systemd, with its folder for units.
    Systemd(PathBuf),
    /// The engine detaches itself and leaves a pid file.
    Detached,
}

impl ServiceManager {
    /// What this machine has: systemd only counts when it runs and this user may write units.
    pub(crate) fn of_this_machine() -> Self {
        let units = Path::new("/etc/systemd/system");
        if Path::new("/run/systemd/system").is_dir()
            && units.is_dir()
            && nix::unistd::geteuid().is_root()
        {
            ServiceManager::Systemd(units.to_owned())
        } else {
            ServiceManager::Detached
        }
    }

    pub(crate) async fn start(&self, deployment: &Deployment) -> Result<(), DeployError> {
        match self {
            ServiceManager::Systemd(folder) => {
                let unit = folder.join(UNIT);
                let text = unit_text(deployment);
                if unit.exists() && !is_ours(&unit, deployment)? {
                    return Err(DeployError::new(
                        DeployErrorKind::InUse,
                        "starting",
                        UNIT,
                        "it runs an engine of another data folder",
                        "a host has one engine: remove that one first",
                    ));
                }
                if !files::holds(&unit, &text)? {
                    files::replace(&unit, 0o644, &mut text.as_bytes())?;
                    systemctl(&["daemon-reload"]).await?;
                }
                systemctl(&["enable", "--now", UNIT]).await
            }
            ServiceManager::Detached => {
                let outcome = engine(deployment, &deployment.engine_path(), "start").await?;
                if outcome.success {
                    return Ok(());
                }
                Err(failed(
                    "starting",
                    &deployment.engine_path(),
                    &outcome,
                    &engine_log(deployment),
                ))
            }
        }
    }

    /// Stops the engine; one that doesn't run is fine.
    pub(crate) async fn stop(&self, deployment: &Deployment) -> Result<(), DeployError> {
        if let ServiceManager::Systemd(folder) = self
            && is_ours(&folder.join(UNIT), deployment)?
        {
            systemctl(&["disable", "--now", UNIT]).await?;
        }
        // Also where systemd is in charge: the engine may have been started before it was.
        let Some(binary) = any_engine(deployment) else {
            return Ok(());
        };
        if !deployment.config_path().exists() {
            return Ok(());
        }
        let outcome = engine(deployment, &binary, "stop").await?;
        if outcome.success || !self.running(deployment).await? {
            return Ok(());
        }
        Err(failed(
            "stopping",
            &binary,
            &outcome,
            &engine_log(deployment),
        ))
    }

    pub(crate) async fn running(&self, deployment: &Deployment) -> Result<bool, DeployError> {
        let Some(binary) = any_engine(deployment) else {
            return Ok(false);
        };
        if !deployment.config_path().exists() {
            return Ok(false);
        }
        Ok(engine(deployment, &binary, "status").await?.success)
    }

    /// Takes away what start has added.
    pub(crate) async fn forget(&self, deployment: &Deployment) -> Result<(), DeployError> {
        if let ServiceManager::Systemd(folder) = self {
            let unit = folder.join(UNIT);
            if is_ours(&unit, deployment)? {
                files::remove_file(&unit)?;
                systemctl(&["daemon-reload"]).await?;
            }
        }
        Ok(())
    }
}

/// An engine that can be asked about a running process, or told to stop it. The bundled one is known to be whole; the
/// installed one may be damaged, and is asked only when there is no other.
fn any_engine(deployment: &Deployment) -> Option<PathBuf> {
    [deployment.bundled_engine.clone(), deployment.engine_path()]
        .into_iter()
        .find(|p| p.exists())
}

fn engine_log(deployment: &Deployment) -> PathBuf {
    deployment.settings.data_folder.join("engine.log")
}

/// A path as one word of a unit. Variables are expanded in arguments, not in the program's own path (systemd.service(5)).
fn unit_word(path: &Path) -> String {
    let escaped = path
        .display()
        .to_string()
        .replace('\\', "\\\\")
        .replace('"', "\\\"");
    format!("\"{}\"", escaped.replace('%', "%%"))
}

/// The configuration as it stands in the unit: what tells our unit from another engine's.
pub(crate) fn config_word(deployment: &Deployment) -> String {
    unit_word(&deployment.config_path()).replace('$', "$$")
}

/// Whether the unit is there and runs the engine of this data folder.
fn is_ours(unit: &Path, deployment: &Deployment) -> Result<bool, DeployError> {
    match std::fs::read_to_string(unit) {
        Ok(text) => Ok(text.contains(&config_word(deployment))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DeployError::io("reading", unit, error)),
    }
}

pub(crate) fn unit_text(deployment: &Deployment) -> String {
    format!(
        "# Written by Terraform.\n\
         [Unit]\n\
         Description=Site Recovery replication engine\n\
         After=network-online.target\n\
         Wants=network-online.target\n\n\
         [Service]\n\
         ExecStart={} run --config {}\n\
         Restart=always\n\
         RestartSec=2\n\
         # Virtual machines are children of the engine and outlive it.\n\
         KillMode=process\n\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        unit_word(&deployment.engine_path()),
        config_word(deployment),
    )
}

/// How a command ended, with the last of what it said.
pub(crate) struct Outcome {
    pub(crate) success: bool,
    pub(crate) text: String,
}

/// Runs one subcommand of the engine.
pub(crate) async fn engine(
    deployment: &Deployment,
    binary: &Path,
    word: &str,
) -> Result<Outcome, DeployError> {
    let config = deployment.config_path();
    run(
        binary,
        &[word.as_ref(), "--config".as_ref(), config.as_os_str()],
    )
    .await
}

async fn systemctl(arguments: &[&str]) -> Result<(), DeployError> {
    let arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(|a| a.as_ref()).collect();
    let program = Path::new("systemctl");
    let outcome = run(program, &arguments).await?;
    if outcome.success {
        return Ok(());
    }
    Err(DeployError::new(
        DeployErrorKind::EngineFailed,
        "asking systemd about",
        UNIT,
        last_lines(&outcome.text),
        format!("look at `journalctl -u {UNIT}`"),
    ))
}

/// Runs a command to its end. Its output goes to a file and not to a pipe, because a process that it leaves
/// behind would keep a pipe open and the end would never be seen.
pub(crate) async fn run(
    program: &Path,
    arguments: &[&std::ffi::OsStr],
) -> Result<Outcome, DeployError> {
    let io = |error| DeployError::io("running", program, error);
    let output = tempfile::tempfile().map_err(io)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(io)?)
        .stderr(output.try_clone().map_err(io)?)
        // An interrupt at the terminal is meant for Terraform, not for the engine.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(io)?;
    let status = match tokio::time::timeout(COMMAND_LIMIT, child.wait()).await {
        Ok(status) => status.map_err(io)?,
        Err(_) => {
            return Err(DeployError::new(
                DeployErrorKind::TimedOut,
                "running",
                program.display().to_string(),
                format!("it did not end within {} seconds", COMMAND_LIMIT.as_secs()),
                "look at the load of the host and at the engine's log, then try again",
            ));
        }
    };
    Ok(Outcome {
        success: status.success(),
        text: read_tail(output).map_err(io)?,
    })
}

fn read_tail(mut file: std::fs::File) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(8 * 1024)))?;
    let mut bytes = Vec::new();
    file.take(16 * 1024).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn failed(step: &str, binary: &Path, outcome: &Outcome, log: &Path) -> DeployError {
    DeployError::new(
        DeployErrorKind::EngineFailed,
        step,
        binary.display().to_string(),
        last_lines(&outcome.text),
        format!("look at {}", log.display()),
    )
}

pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    if lines.is_empty() {
        return "it ended with an error and said nothing".to_owned();
    }
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineSettings;

    fn deployment() -> Deployment {
        Deployment {
            bundled_engine: "/b".into(),
            install_folder: "/opt/my tools".into(),
            settings: EngineSettings {
                vm_folder: None,
                data_folder: "/var/50%$X".into(),
                recovery_folder: "/var/r".into(),
                recovery_role: true,
                recovery_generations: None,
                host_name: "hv1".into(),
            },
            owner: "site".into(),
        }
    }

    #[tokio::test]
    async fn a_unit_of_another_data_folder_is_neither_taken_nor_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let unit = folder.path().join(UNIT);
        let mut other = deployment();
        other.settings.data_folder = "/var/other".into();
        std::fs::write(&unit, unit_text(&other)).unwrap();
        let manager = ServiceManager::Systemd(folder.path().to_owned());
        let error = manager.start(&deployment()).await.unwrap_err();
        assert_eq!(error.kind(), DeployErrorKind::InUse);
        manager.stop(&deployment()).await.unwrap();
        manager.forget(&deployment()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&unit).unwrap(), unit_text(&other));
    }

    #[test]
    fn a_unit_quotes_folders_with_blanks_percent_signs_and_variables() {
        let text = unit_text(&deployment());
        assert!(text.contains(
            "ExecStart=\"/opt/my tools/siterecovery-engine\" run --config \"/var/50%%$$X/engine.toml\"\n"
        ));
    }
}
