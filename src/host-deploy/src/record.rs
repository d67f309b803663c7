//! What a deployment leaves on a host and notes about it: the same whatever channel it went through.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{DeployError, DeployErrorKind};
use crate::{Deployment, files};

/// What was made is noted here, in the data folder.
pub(crate) const RECORD: &str = "deployment.json";
/// Where recovered VMs lie unless the deployment names another place.
pub(crate) const RECOVERED: &str = "recovered";

/// What engine and deployment put into the data folder. Anything else there is not ours: a replica store, or the files of
/// somebody who named a folder that was in use.
pub(crate) const DATA: &[&str] = &[
    "identity",
    "state",
    "scratch",
    RECOVERED,
    "engine.toml",
    "engine.toml.previous",
    "engine.sock",
    "engine.lock",
    "engine.pid",
    "engine.log",
    "engine.start.log",
    "supervisor.pid",
    "registration.key",
];

/// What the deployment has made, so that removing it leaves nothing behind and takes nothing that was there before.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(default)]
    pub(crate) owner: String,
    pub(crate) created_folders: BTreeSet<PathBuf>,
}

impl Record {
    /// Out of the file's bytes.
    pub(crate) fn parse(bytes: Option<&[u8]>) -> Self {
        // A record that is missing or torn only means that empty folders stay: no reason to fail.
        bytes
            .and_then(|bytes| serde_json::from_slice(bytes).ok())
            .unwrap_or_default()
    }

    pub(crate) fn render(&self, path: &Path) -> Result<Vec<u8>, DeployError> {
        serde_json::to_vec_pretty(self)
            .map_err(|error| DeployError::io("writing", path, io::Error::other(error)))
    }

    pub(crate) fn is_of_another(&self, owner: &str) -> bool {
        !self.owner.is_empty() && self.owner != owner
    }

    pub(crate) fn refuse_another_owner(&self, deployment: &Deployment) -> Result<(), DeployError> {
        if !self.is_of_another(&deployment.owner) {
            return Ok(());
        }
        Err(DeployError::new(
            DeployErrorKind::InUse,
            "installing into",
            deployment.settings.data_folder.display().to_string(),
            format!("the engine there belongs to {}", self.owner),
            "choose another data_folder, or destroy that host first",
        ))
    }
}

/// Whether this name in the data folder is the engine's or the deployment's.
pub(crate) fn is_ours(name: &str) -> bool {
    DATA.contains(&name) || (name.starts_with('.') && name.ends_with(".new"))
}

/// Hash of the engine to install.
pub(crate) fn bundled_sha256(deployment: &Deployment) -> Result<String, DeployError> {
    let path = &deployment.bundled_engine;
    let found = files::sha256(path).map_err(|e| DeployError::io("reading", path, e))?;
    found.ok_or_else(|| {
        DeployError::new(
            DeployErrorKind::Missing,
            "reading",
            path.display().to_string(),
            "the engine to install is not there",
            "put siterecovery-engine beside the provider, or set engine_path in the provider configuration",
        )
    })
}

/// Text of the configuration file.
pub(crate) fn config_text(deployment: &Deployment) -> Result<String, DeployError> {
    deployment.settings.render(deployment.key_path())
}

/// The version in what `--version` prints: "siterecovery-engine 0.1.0".
pub(crate) fn version_in(text: &str) -> Option<String> {
    text.split_whitespace().nth(1).map(ToOwned::to_owned)
}

/// The engine was waited for and is not there, or has no identity.
pub(crate) fn not_ready(deployment: &Deployment, running: bool) -> DeployError {
    let (kind, cause) = if running {
        (
            DeployErrorKind::TimedOut,
            "the engine runs but has made no identity",
        )
    } else {
        (
            DeployErrorKind::EngineFailed,
            "the engine was started and has ended",
        )
    };
    DeployError::new(
        kind,
        "waiting for",
        deployment.engine_path().display().to_string(),
        cause,
        format!(
            "look at {}",
            deployment.settings.data_folder.join("engine.log").display()
        ),
    )
}
