//! A medium that fails now and then, for tests: every call is done, not done, or done and reported as
//! failed, as [`Faults`] decides.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use disk_image::ImageFile;

use crate::error::{Result, StoreError};
use crate::fault::{Fault, Faults, StepKind};
use crate::layout;
use crate::medium::{
    BaseWrite, Fence, Guard, Listed, Medium, Newer, Object, Piece, Put, Section, Staged, Still,
    Version,
};

/// Asks before every call.
#[derive(Clone, Debug)]
struct Oracle(Arc<dyn Faults>);

impl Oracle {
    /// Carries out a call, or not, and says what its caller hears.
    fn act<T>(&self, kind: StepKind, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.0.before(kind, Path::new(name)) {
            Fault::None => act(),
            Fault::Fail(error) | Fault::Torn(error) => Err(failed(name, error)),
            Fault::DoneButFails(error) => {
                act()?;
                Err(failed(name, error).unknown())
            }
        }
    }
}

fn failed(name: &str, error: io::ErrorKind) -> StoreError {
    StoreError::io("reach", name, error.into())
}

/// A medium around another.
#[derive(Debug)]
pub(crate) struct FaultyMedium {
    inner: Arc<dyn Medium>,
    oracle: Oracle,
}

impl FaultyMedium {
    pub(crate) fn new(inner: Arc<dyn Medium>, faults: Arc<dyn Faults>) -> Self {
        FaultyMedium {
            inner,
            oracle: Oracle(faults),
        }
    }
}

impl Medium for FaultyMedium {
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }

    fn get(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>> {
        self.oracle
            .act(StepKind::Read, name, || self.inner.get(name))
    }

    fn get_newer(&self, name: &str, known: &Version) -> Result<Newer> {
        self.oracle
            .act(StepKind::Read, name, || self.inner.get_newer(name, known))
    }

    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        self.oracle
            .act(StepKind::Put, name, || self.inner.put_new(name, content))
    }

    fn replace(&self, name: &str, content: &[u8], seen: &Version) -> Result<Put> {
        self.oracle.act(StepKind::Replace, name, || {
            self.inner.replace(name, content, seen)
        })
    }

    fn remove(&self, names: &[String]) -> Result<()> {
        // One by one, so that a cut leaves a part.
        names.iter().try_for_each(|name| {
            self.oracle.act(StepKind::Remove, name, || {
                self.inner.remove(std::slice::from_ref(name))
            })
        })
    }

    fn remove_while(&self, names: &[String], still: Still<'_>) -> Result<()> {
        names.iter().try_for_each(|name| {
            self.oracle.act(StepKind::Remove, name, || {
                self.inner.remove_while(std::slice::from_ref(name), still)
            })
        })
    }

    fn clear(&self, keep: &str, still: Still<'_>) -> Result<()> {
        self.oracle
            .act(StepKind::Remove, "", || self.inner.clear(keep, still))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.oracle
            .act(StepKind::Read, prefix, || self.inner.list(prefix))
    }

    fn settle(&self, prefix: &str) -> Result<()> {
        self.oracle
            .act(StepKind::SyncFolder, prefix, || self.inner.settle(prefix))
    }

    fn prepare(&self, prefixes: &[&str]) -> Result<()> {
        self.oracle
            .act(StepKind::CreateFolder, "", || self.inner.prepare(prefixes))
    }

    fn sweep(&self, prefixes: &[&str]) -> Result<()> {
        self.oracle
            .act(StepKind::Remove, "", || self.inner.sweep(prefixes))
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Staged>> {
        let inner = self
            .oracle
            .act(StepKind::CreateFile, name, || self.inner.stage(name))?;
        Ok(Box::new(FaultyStaged {
            inner,
            oracle: self.oracle.clone(),
            name: name.to_owned(),
        }))
    }

    fn open(&self, name: &str) -> Result<Option<Arc<dyn Object>>> {
        self.oracle
            .act(StepKind::Read, name, || self.inner.open(name))
    }

    fn base_create(&self, name: &str, length: u64, footer: &[u8], fence: Fence) -> Result<()> {
        self.oracle.act(StepKind::CreateFile, name, || {
            self.inner.base_create(name, length, footer, fence)
        })
    }

    fn base_fence(&self, name: &str, fence: Fence) -> Result<()> {
        self.oracle
            .act(StepKind::Fence, name, || self.inner.base_fence(name, fence))
    }

    fn base_open(&self, name: &str, fence: Fence) -> Result<Option<Arc<dyn BaseWrite>>> {
        let opened = self
            .oracle
            .act(StepKind::Read, name, || self.inner.base_open(name, fence))?;
        Ok(opened.map(|inner| {
            let base: Arc<dyn BaseWrite> = Arc::new(FaultyBase {
                inner,
                oracle: self.oracle.clone(),
                name: name.to_owned(),
            });
            base
        }))
    }

    fn base_place(&self) -> Option<String> {
        self.inner.base_place()
    }

    fn open_copy(&self, name: &Path) -> Result<Box<dyn ImageFile>> {
        self.inner.open_copy(name)
    }

    fn base_owner(&self) -> Result<Option<String>> {
        self.oracle.act(StepKind::Read, layout::BASE_OWNER, || {
            self.inner.base_owner()
        })
    }

    fn mark_base(&self, journal: &str) -> Result<Put> {
        self.oracle.act(StepKind::Put, layout::BASE_OWNER, || {
            self.inner.mark_base(journal)
        })
    }

    fn claim_base(&self) -> Result<()> {
        self.oracle.act(StepKind::Put, layout::BASE_OWNER, || {
            self.inner.claim_base()
        })
    }

    fn clear_base(&self, journal: &str, still: Still<'_>) -> Result<()> {
        self.oracle.act(StepKind::Remove, layout::BASE_OWNER, || {
            self.inner.clear_base(journal, still)
        })
    }

    fn compares_fence(&self) -> bool {
        self.inner.compares_fence()
    }

    fn enter(&self, section: Section, create: bool) -> Result<Box<dyn Guard>> {
        self.oracle
            .act(StepKind::Read, "lock", || self.inner.enter(section, create))
    }
}

#[derive(Debug)]
struct FaultyStaged {
    inner: Box<dyn Staged>,
    oracle: Oracle,
    name: String,
}

impl Write for FaultyStaged {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.oracle.0.before(StepKind::Write, Path::new(&self.name)) {
            Fault::None => self.inner.write(data),
            Fault::Fail(error) => Err(error.into()),
            Fault::Torn(error) => {
                self.inner.write_all(&data[..data.len() / 2])?;
                Err(error.into())
            }
            Fault::DoneButFails(error) => {
                self.inner.write_all(data)?;
                Err(error.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Staged for FaultyStaged {
    fn seal(&mut self) -> Result<()> {
        let oracle = self.oracle.clone();
        oracle.act(StepKind::Sync, &self.name, || self.inner.seal())
    }

    fn publish(self: Box<Self>) -> Result<Put> {
        let FaultyStaged {
            inner,
            oracle,
            name,
        } = *self;
        oracle.act(StepKind::Publish, &name, || inner.publish())
    }
}

#[derive(Debug)]
struct FaultyBase {
    inner: Arc<dyn BaseWrite>,
    oracle: Oracle,
    name: String,
}

impl BaseWrite for FaultyBase {
    fn length(&self) -> Result<u64> {
        self.oracle
            .act(StepKind::Read, &self.name, || self.inner.length())
    }

    fn write(&self, pieces: &[Piece]) -> Result<()> {
        match self.oracle.0.before(StepKind::Write, Path::new(&self.name)) {
            Fault::None => self.inner.write(pieces),
            Fault::Fail(error) => Err(failed(&self.name, error)),
            Fault::Torn(error) => {
                self.inner.write(&pieces[..pieces.len() / 2])?;
                Err(failed(&self.name, error).unknown())
            }
            Fault::DoneButFails(error) => {
                self.inner.write(pieces)?;
                Err(failed(&self.name, error).unknown())
            }
        }
    }

    fn flush(&self) -> Result<()> {
        self.oracle
            .act(StepKind::Sync, &self.name, || self.inner.flush())
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.oracle.act(StepKind::SetLength, &self.name, || {
            self.inner.resize(length)
        })
    }
}
