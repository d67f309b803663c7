//! What a run has made, in a record that is durable before it makes anything: so whoever comes after a run that was killed finds
//! all of it, and nothing else.
//!
//! ```text
//!   <folder>/siterecovery-qualify/record.json   which run, which VMs
//!                                 <run>/vms/    their folders      <run>/store, state, scratch
//! ```
//!
//! A VM is deleted only when the record names its id and its name is the one that this run gives.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hypervisor::{Hypervisor, PowerState, Stop, VmId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::assumptions::Kind;
use crate::durable::{self, Access};
use crate::instance::InstanceLock;

/// Begins the name of every VM that this command makes.
pub const PREFIX: &str = "siterecovery-qualify-";
const VERSION: u32 = 1;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Eight hexadecimal digits, in the names of all that the run makes.
    pub run: String,
    /// Which driver made it.
    pub driver: Kind,
    /// The VM that is protected.
    pub source: Uuid,
    /// The one that is made out of the replica.
    pub back: Uuid,
}

impl Record {
    /// Of a new run.
    pub fn new(driver: Kind) -> Self {
        let run = Uuid::new_v4().simple().to_string();
        Self {
            version: VERSION,
            run: run.get(..8).unwrap_or_default().to_owned(),
            driver,
            source: Uuid::new_v4(),
            back: Uuid::new_v4(),
        }
    }

    fn is_of_us(&self) -> bool {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        self.run.len() == 8 && self.run.bytes().all(is_digit)
    }

    /// Name of a VM of this run.
    pub fn name(&self, which: &str) -> String {
        format!("{PREFIX}{}-{which}", self.run)
    }
}

/// The folder of this command; held by one process at a time.
pub struct Place {
    folder: PathBuf,
    _lock: InstanceLock,
}

impl Place {
    /// Below `folder`, which is made when it is missing.
    ///
    /// # Errors
    /// When it can't be made, or another run is at it.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let folder = std::path::absolute(folder)
            .with_context(|| format!("find {}", folder.display()))?
            .join("siterecovery-qualify");
        durable::create_folder(&folder).with_context(|| format!("make {}", folder.display()))?;
        let lock = InstanceLock::take(&folder).context("another qualify runs in this folder")?;
        Ok(Self {
            folder,
            _lock: lock,
        })
    }

    fn file(&self) -> PathBuf {
        self.folder.join("record.json")
    }

    /// The folder of a run.
    pub fn of(&self, record: &Record) -> PathBuf {
        self.folder.join(&record.run)
    }

    /// What an earlier run left.
    ///
    /// # Errors
    /// When the record can't be read or is of a newer version.
    pub fn left(&self) -> anyhow::Result<Option<Record>> {
        let file = self.file();
        let record: Option<Record> = durable::read_json(&file).with_context(|| {
            format!(
                "read {}: what an earlier run made is not known",
                file.display()
            )
        })?;
        match record {
            Some(record) if record.version != VERSION => bail!(
                "read {}: it is of version {}; clean up with the engine that wrote it",
                file.display(),
                record.version
            ),
            // It becomes a path that is deleted, and the folder may be one that others write to.
            Some(record) if !record.is_of_us() => bail!(
                "read {}: {:?} is no name of a run; somebody else wrote it, so nothing is touched",
                file.display(),
                record.run
            ),
            other => Ok(other),
        }
    }

    /// Makes the record of a run durable, then its folders.
    ///
    /// # Errors
    /// When they can't be made.
    pub fn begin(&self, record: &Record) -> anyhow::Result<PathBuf> {
        durable::replace_json(&self.file(), record, Access::Plain)
            .with_context(|| format!("write {}", self.file().display()))?;
        let folder = self.of(record);
        for name in ["vms", "store", "state", "scratch"] {
            let folder = folder.join(name);
            durable::create_folder(&folder)
                .with_context(|| format!("make {}", folder.display()))?;
        }
        Ok(folder)
    }

    /// Takes away all that a run has made, its record last. To be repeated when it fails.
    ///
    /// # Errors
    /// What could not be taken away, and why.
    pub async fn clean_up(&self, record: &Record, driver: &dyn Hypervisor) -> anyhow::Result<()> {
        for (id, which) in [(record.source, "source"), (record.back, "back")] {
            let name = record.name(which);
            remove(driver, VmId(id), &name).await?;
            is_gone(driver, &name, &self.of(record).join("vms").join(which)).await?;
        }
        let folder = self.of(record);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("delete {}", folder.display()));
            }
            _ => {}
        }
        durable::remove(&self.file()).with_context(|| format!("delete {}", self.file().display()))
    }

    /// Deletes the folder of this command, when nothing is in it any more.
    pub fn close(self) {
        let Self {
            folder,
            _lock: lock,
        } = self;
        if folder.join("record.json").exists() {
            return;
        }
        // On Windows a file that is held open can't be deleted. A run that begins right now keeps what it makes: only the lock's file and
        // an empty folder go.
        drop(lock);
        let done = durable::remove(&InstanceLock::file(&folder))
            .and_then(|()| std::fs::remove_dir(&folder));
        if let Err(error) = done {
            tracing::warn!(%error, "the folder of qualify stays");
        }
    }
}

/// That a VM which is listed no more is not there under another id either, as one is whose marks were lost: its disks would go.
async fn is_gone(driver: &dyn Hypervisor, name: &str, folder: &Path) -> anyhow::Result<()> {
    let all = driver.virtual_machines().await;
    let all = all.with_context(|| format!("look whether {name} is gone"))?;
    if all.iter().any(|one| one.name == name) {
        bail!("{name} is still there, under another id; delete it by hand, then clean up again");
    }
    // Configurations of Hyper-V, which a listing may not show to this account.
    for file in walk(folder).with_context(|| format!("look into {}", folder.display()))? {
        let end = file.extension().unwrap_or_default();
        if end.eq_ignore_ascii_case("vmcx") {
            bail!(
                "{name} has a configuration, {}, although it is not listed; run as an account that may list it, then clean up again",
                file.display()
            );
        }
    }
    Ok(())
}

/// All files below a folder; none when it is not there.
fn walk(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        let entries = match std::fs::read_dir(&next) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    Ok(files)
}

async fn remove(driver: &dyn Hypervisor, vm: VmId, name: &str) -> anyhow::Result<()> {
    let step = || format!("delete virtual machine {name}");
    let all = driver.virtual_machines().await.with_context(step)?;
    let Some(found) = all.into_iter().find(|one| one.id == vm) else {
        return Ok(());
    };
    if found.name != name {
        bail!(
            "{}: the virtual machine of that id is called {:?}, so it is not touched; look at it, and delete it by hand if it is of this command",
            step(),
            found.name
        );
    }
    // Where these are what is broken, the VM goes all the same.
    for done in [driver.clean_up(vm).await, driver.forget_all(vm).await] {
        if let Err(error) = done {
            tracing::warn!(
                ?error,
                name,
                "a throw-away VM is deleted with what is left in it"
            );
        }
    }
    if found.power_state == PowerState::Running {
        driver.stop(vm, Stop::TurnOff).await.with_context(step)?;
    }
    driver.remove(vm).await.with_context(step)
}
