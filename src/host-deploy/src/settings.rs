//! The engine's configuration file, as the deployment writes it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{DeployError, DeployErrorKind};

/// What the engine is told about its host. Written as TOML with these names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSettings {
    /// Folder with one folder for each VM; `None` on a host that only recovers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_folder: Option<PathBuf>,
    /// Folder for identity, state and configuration of the engine.
    pub data_folder: PathBuf,
    /// Folder for recovered VMs.
    pub recovery_folder: PathBuf,
    /// Whether this host may run recovered VMs.
    pub recovery_role: bool,
    /// Generations of VMs that it may run then; `None` = all that its hypervisor can run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_generations: Option<Vec<u32>>,
    /// Name that the host reports.
    pub host_name: String,
}

/// The file itself: the settings and where the key lies.
#[derive(Serialize)]
struct ConfigFile<'a> {
    #[serde(flatten)]
    settings: &'a EngineSettings,
    registration_key_file: PathBuf,
}

impl EngineSettings {
    /// Text of the configuration file.
    pub(crate) fn render(&self, key_file: PathBuf) -> Result<String, DeployError> {
        let body = toml::to_string(&ConfigFile {
            settings: self,
            registration_key_file: key_file,
        })
        .map_err(|error| {
            DeployError::new(
                DeployErrorKind::InvalidPath,
                "writing the configuration for",
                self.data_folder.display().to_string(),
                error.to_string(),
                "use folder names that are valid UTF-8",
            )
        })?;
        Ok(format!(
            "# Written by Terraform; changes are overwritten by the next apply.\n{body}"
        ))
    }

    /// Every folder must be absolute, and the data folder must not be the root or hold the VMs.
    pub(crate) fn check(&self) -> Result<(), DeployError> {
        let named = [
            ("vm_folder", self.vm_folder.as_ref()),
            ("data_folder", Some(&self.data_folder)),
            ("recovery_folder", Some(&self.recovery_folder)),
        ];
        for (name, folder) in named {
            if let Some(folder) = folder
                && (!folder.is_absolute() || folder.parent().is_none())
            {
                return Err(invalid(
                    name,
                    folder,
                    "it is not an absolute path below the root",
                ));
            }
        }
        if let Some(vms) = &self.vm_folder {
            if vms.starts_with(&self.data_folder) {
                return Err(invalid(
                    "vm_folder",
                    vms,
                    "it lies in data_folder, which is removed when the engine is uninstalled",
                ));
            }
            if vms.starts_with(&self.recovery_folder) || self.recovery_folder.starts_with(vms) {
                return Err(invalid(
                    "recovery_folder",
                    &self.recovery_folder,
                    "recovered VMs and the VMs of this host must not share a folder",
                ));
            }
        }
        Ok(())
    }
}

fn invalid(name: &str, folder: &std::path::Path, cause: &str) -> DeployError {
    DeployError::new(
        DeployErrorKind::InvalidPath,
        format!("checking {name}"),
        folder.display().to_string(),
        cause,
        "choose another folder",
    )
}
