//! Recovered VMs on a host that is taken out of service: which of them go, and which stay.
//!
//! ```text
//! <recovery_folder>/<id>.json                          of a drill     stopped and removed
//! <recovery_folder>/failovers/<vault>/<item>/<id>.json  of a failover  nothing is uninstalled: it is the VM that counts
//! <recovery_folder>/<id>/ without a record             left to itself  runs on, with its disks and `vm.toml`
//! ```
//!
//! The engine writes a record before anything else of its VM and removes it last, so what has none was let go: after a
//! migration, or when protection was switched off at the recovery side. Names and places are the engine's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{DeployError, DeployErrorKind};
use crate::files;

const FAILOVERS: &str = "failovers";
const CONFIG: &str = "vm.toml";

/// What lies in a recovery folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Ids of the VMs of drills.
    pub(crate) drills: Vec<String>,
    /// Records of the VMs of failovers.
    pub(crate) failed_over: Vec<PathBuf>,
    /// Ids of VMs that nobody orders any more.
    pub(crate) left: Vec<String>,
}

impl Recovered {
    /// Looks at a folder of this machine. A folder that isn't there holds nothing.
    pub(crate) fn look(folder: &Path) -> Result<Self, DeployError> {
        let mut listed = entries(folder)?;
        let configs: Vec<PathBuf> = listed.iter().map(|path| path.join(CONFIG)).collect();
        listed.extend(configs.into_iter().filter(|path| path.exists()));
        for vault in entries(&folder.join(FAILOVERS))? {
            for item in entries(&vault)? {
                listed.extend(entries(&item)?);
            }
        }
        Ok(Self::of(folder, &listed.into_iter().collect()))
    }

    /// What these paths mean: all in `folder`, `vm.toml` in each folder of it, and all at the depth of records of failovers.
    pub(crate) fn of(folder: &Path, listed: &BTreeSet<PathBuf>) -> Self {
        let mut found = Self::default();
        let failovers = folder.join(FAILOVERS);
        let depth = failovers.components().count() + 3;
        found.failed_over = listed
            .iter()
            .filter(|path| path.starts_with(&failovers) && path.components().count() == depth)
            .filter(|path| record_id(path).is_some())
            .cloned()
            .collect();
        let failed_over: Vec<&str> = found
            .failed_over
            .iter()
            .filter_map(|path| record_id(path))
            .collect();
        for path in listed.iter().filter(|path| path.parent() == Some(folder)) {
            if let Some(id) = record_id(path) {
                found.drills.push(id.to_owned());
            }
            let name = path.file_name().and_then(|name| name.to_str());
            let is_vm = listed.contains(&path.join(CONFIG));
            let of_drill = |id: &str| listed.contains(&folder.join(format!("{id}.json")));
            if let Some(id) = name.filter(|_| is_vm)
                && !failed_over.contains(&id)
                && !of_drill(id)
            {
                found.left.push(id.to_owned());
            }
        }
        found.drills.sort();
        found.left.sort();
        found
    }

    /// An engine whose VM counts must not go: nobody could bring that VM back, or even see it.
    pub(crate) fn refuse_failed_over(&self) -> Result<(), DeployError> {
        let name = self
            .failed_over
            .first()
            .and_then(|record| name_in(&fs::read(record).ok()?));
        self.refuse(name)
    }

    /// The same where the first record was read elsewhere.
    pub(crate) fn refuse(&self, name: Option<String>) -> Result<(), DeployError> {
        let Some(record) = self.failed_over.first() else {
            return Ok(());
        };
        let name = name.unwrap_or_else(|| "a virtual machine".to_owned());
        let others = match self.failed_over.len() {
            1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        Err(DeployError::new(
            DeployErrorKind::InUse,
            "uninstalling the engine of",
            format!("recovered VM `{name}`{others}"),
            "it was failed over to this host and depends on the engine",
            format!(
                "fail it back and commit, or complete its migration, then destroy again; \
                 if it is not wanted any more, stop it and remove {}",
                record.display()
            ),
        ))
    }
}

/// Removes a recovery folder, but for the VMs that were left to themselves.
pub(crate) fn remove(folder: &Path) -> Result<(), DeployError> {
    let found = Recovered::look(folder)?;
    found.refuse_failed_over()?;
    if found.left.is_empty() {
        return files::remove_tree(folder);
    }
    for path in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if found.left.iter().any(|id| *id == name) {
            tracing::warn!(folder = %path.display(), "a virtual machine that was left to itself stays");
        } else if path.is_dir() && !path.is_symlink() {
            files::remove_tree(&path)?;
        } else {
            files::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The VM whose record this is. Guards and other notes beside it have a word before or after the id.
fn record_id(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
    let is_id = name.len() == 36
        && name
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_id.then_some(name)
}

/// Name of the VM in a record.
pub(crate) fn name_in(record: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(record).ok()?;
    value.get("name")?.as_str().map(ToOwned::to_owned)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, DeployError> {
    let gone = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    };
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(|error| DeployError::io("reading", folder, error)),
        Err(error) if gone(&error) => Ok(Vec::new()),
        Err(error) => Err(DeployError::io("reading", folder, error)),
    }
}
