//! A replica in two accounts: base in one, everything else in the other.
//!
//! ```text
//! target account   <vault_key>/<item_id>/<disk>/base.vhd    what a virtual machine boots from (premium: page blobs only)
//!                  <vault_key>/<item_id>/.journal           says which log account base belongs to
//! log account      <vault_key>/<item_id>/...                generation, manifest, journal, points, pins, verified
//! ```
//!
//! Who owns the replica is decided in the log account, by generation and manifest, as in a store that is whole. Two
//! things keep replicas of one VM with different log accounts apart: base is claimed for one log account before it is
//! made and given up by the removal of that replica only, and the manifest says where its base is. Fences follow the
//! generation, so a writer of before is refused by base itself whatever log account it looks at.

use std::path::Path;
use std::sync::Arc;

use disk_image::ImageFile;

use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::medium::{
    BaseWrite, Fence, Guard, Listed, Medium, Newer, Object, Put, Section, Staged, Still, Version,
};

/// The medium of one replica: that of base and that of everything else.
#[derive(Debug)]
pub(crate) struct ApartMedium {
    base: Arc<dyn Medium>,
    log: Arc<dyn Medium>,
}

impl ApartMedium {
    pub(crate) fn new(base: Arc<dyn Medium>, log: Arc<dyn Medium>) -> Self {
        ApartMedium { base, log }
    }

    fn of(&self, name: &str) -> &dyn Medium {
        if layout::is_base(name) {
            self.base.as_ref()
        } else {
            self.log.as_ref()
        }
    }

    /// The log account as base's claim names it: ASCII, because it is kept in a header.
    fn journal(&self) -> String {
        self.log.describe("").escape_default().to_string()
    }
}

impl Medium for ApartMedium {
    fn describe(&self, name: &str) -> String {
        if name.is_empty() {
            return format!(
                "{} (log: {})",
                self.base.describe(""),
                self.log.describe("")
            );
        }
        self.of(name).describe(name)
    }

    fn get(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>> {
        self.log.get(name)
    }

    fn get_newer(&self, name: &str, known: &Version) -> Result<Newer> {
        self.log.get_newer(name, known)
    }

    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        self.log.put_new(name, content)
    }

    fn replace(&self, name: &str, content: &[u8], seen: &Version) -> Result<Put> {
        self.log.replace(name, content, seen)
    }

    fn remove(&self, names: &[String]) -> Result<()> {
        names
            .chunk_by(|a, b| layout::is_base(a) == layout::is_base(b))
            .try_for_each(|run| self.of(run.first().map_or("", String::as_str)).remove(run))
    }

    fn remove_while(&self, names: &[String], still: Still<'_>) -> Result<()> {
        names
            .chunk_by(|a, b| layout::is_base(a) == layout::is_base(b))
            .try_for_each(|run| {
                self.of(run.first().map_or("", String::as_str))
                    .remove_while(run, still)
            })
    }

    fn clear(&self, keep: &str, still: Still<'_>) -> Result<()> {
        self.base.clear_base(&self.journal(), still)?;
        self.log.clear(keep, still)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.log.list(prefix)
    }

    fn settle(&self, prefix: &str) -> Result<()> {
        self.log.settle(prefix)
    }

    fn prepare(&self, prefixes: &[&str]) -> Result<()> {
        self.base.prepare(&[])?;
        self.log.prepare(prefixes)
    }

    fn sweep(&self, prefixes: &[&str]) -> Result<()> {
        self.base.sweep(&[""])?;
        self.log.sweep(prefixes)
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Staged>> {
        self.log.stage(name)
    }

    fn open(&self, name: &str) -> Result<Option<Arc<dyn Object>>> {
        self.of(name).open(name)
    }

    fn base_create(&self, name: &str, length: u64, footer: &[u8], fence: Fence) -> Result<()> {
        self.base.base_create(name, length, footer, fence)
    }

    fn base_fence(&self, name: &str, fence: Fence) -> Result<()> {
        self.base.base_fence(name, fence)
    }

    fn base_open(&self, name: &str, fence: Fence) -> Result<Option<Arc<dyn BaseWrite>>> {
        self.base.base_open(name, fence)
    }

    fn open_copy(&self, name: &Path) -> Result<Box<dyn ImageFile>> {
        self.base.open_copy(name)
    }

    fn base_place(&self) -> Option<String> {
        Some(self.base.describe(""))
    }

    fn base_owner(&self) -> Result<Option<String>> {
        self.base.base_owner()
    }

    fn mark_base(&self, journal: &str) -> Result<Put> {
        self.base.mark_base(journal)
    }

    fn claim_base(&self) -> Result<()> {
        let journal = self.journal();
        if self.base.base_owner()?.is_none() {
            if self.base.get(layout::MANIFEST)?.is_some() {
                return Err(StoreError::new(
                    ErrorKind::Invalid,
                    format!(
                        "{} holds a replica of this VM with its journal: protect the VM without a log storage account, or remove that replica first",
                        self.base.describe("")
                    ),
                ));
            }
            self.base.mark_base(&journal)?;
        }
        match self.base.base_owner()? {
            Some(owner) if owner == journal => Ok(()),
            owner => Err(claimed(&self.base.describe(""), owner.as_deref())),
        }
    }

    fn clear_base(&self, journal: &str, still: Still<'_>) -> Result<()> {
        self.base.clear_base(journal, still)
    }

    fn compares_fence(&self) -> bool {
        self.base.compares_fence()
    }

    fn enter(&self, section: Section, create: bool) -> Result<Box<dyn Guard>> {
        let log = self.log.enter(section, create)?;
        if section == Section::Maintenance {
            return Ok(log);
        }
        if create {
            // Somebody may have removed the folder by hand.
            self.base.prepare(&[])?;
        }
        // Whichever of the two excludes others for certain, every writer of the replica enters it.
        Ok(Box::new(Both {
            _base: self.base.enter(section, create)?,
            _log: log,
        }))
    }
}

#[derive(Debug)]
struct Both {
    _base: Box<dyn Guard>,
    _log: Box<dyn Guard>,
}

impl Guard for Both {}

/// The refusal of a replica whose base belongs to another journal.
pub(crate) fn claimed(base: &str, owner: Option<&str>) -> StoreError {
    StoreError::new(
        ErrorKind::Invalid,
        format!(
            "base in {base} belongs to a replica of this VM whose journal is in {}: protect the VM with that log storage account, or remove that replica first",
            owner.unwrap_or("another log storage account")
        ),
    )
}

/// The refusal of a replica whose manifest names another place of base than the one that was given.
pub(crate) fn elsewhere(place: &str, base: Option<&str>) -> StoreError {
    let action = match base {
        Some(base) => format!(
            "its base is at {base}: use that account as target, and this one as log storage account"
        ),
        None => "its base is in the same account: use it without a log storage account".to_owned(),
    };
    StoreError::new(
        ErrorKind::Invalid,
        format!("the replica at {place} is another one than was asked for; {action}"),
    )
}
