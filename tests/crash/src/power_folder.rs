//! A folder whose power fails: looks over the store's shoulder and says, before each of its durable steps,
//! which trees of files a power loss may leave.
//!
//! ```text
//! sync of a file    what it holds now survives
//! sync of a folder  the names that are in it now survive
//! neither           any earlier list of names since the last sync; any 4 KiB of a file, old or new
//! ```
//!
//! Names in one folder change in order, as in file systems with a journal; folders do not wait for each
//! other. Files and folders are told apart by their inode, which is held open so that it is not used again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use replica_store::fault::{Fault, Faults, StepKind};

use crate::random::Random;

const BLOCK: usize = 4096;

/// A tree of files that may be there after the power came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<OsString, Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Folder(Tree),
    File(Vec<u8>),
}

impl Tree {
    /// Makes the tree in an empty folder.
    pub fn restore(&self, folder: &Path) -> io::Result<()> {
        for (name, node) in &self.entries {
            let path = folder.join(name);
            match node {
                Node::File(bytes) => fs::write(path, bytes)?,
                Node::Folder(tree) => {
                    fs::create_dir(&path)?;
                    tree.restore(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// The power fails before this step.
pub struct Cut {
    /// Which step, such as "41 Rename manifest".
    pub step: String,
    /// Rule and tree of each state.
    pub states: Vec<(String, Tree)>,
}

type Listing = BTreeMap<OsString, Found>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    inode: u64,
    folder: bool,
}

#[derive(Default)]
struct State {
    steps: u64,
    before: Option<(StepKind, PathBuf)>,
    /// Names in each folder since its last sync, the synced ones first.
    names: BTreeMap<u64, Vec<Listing>>,
    /// Synced content of each file; none: it was never synced.
    durable: BTreeMap<u64, Vec<u8>>,
    /// Where each file is now, as long as it has a name.
    paths: BTreeMap<u64, PathBuf>,
    held: BTreeMap<u64, File>,
    random: Option<Random>,
}

/// Faults that never strike but look at each step.
pub struct PowerFolder {
    root: PathBuf,
    state: Mutex<State>,
    on_cut: Box<dyn Fn(Cut) + Send + Sync>,
}

impl PowerFolder {
    /// Looks at this folder, which is as it would be after a power loss now.
    pub fn new(root: &Path, seed: u64, on_cut: Box<dyn Fn(Cut) + Send + Sync>) -> io::Result<Self> {
        let mut state = State {
            random: Some(Random::new(seed)),
            ..State::default()
        };
        state.look(root)?;
        let all: Vec<u64> = state.names.keys().copied().collect();
        for folder in all {
            state.synced_folder(folder);
        }
        Ok(PowerFolder {
            root: root.to_owned(),
            state: Mutex::new(state),
            on_cut,
        })
    }

    /// The power fails after the last step.
    pub fn end(&self) {
        self.cut("at the end".to_owned(), None);
    }

    fn cut(&self, step: String, next: Option<(StepKind, PathBuf)>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let states = state.advance(&self.root, next);
        drop(state);
        match states {
            Ok(states) => (self.on_cut)(Cut { step, states }),
            Err(error) => (self.on_cut)(Cut {
                step: format!("{step}: the double can't look: {error}"),
                states: Vec::new(),
            }),
        }
    }
}

impl std::fmt::Debug for PowerFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PowerFolder").finish_non_exhaustive()
    }
}

impl Faults for PowerFolder {
    fn before(&self, kind: StepKind, path: &Path) -> Fault {
        let name = path.strip_prefix(&self.root).unwrap_or(path);
        let step = format!("before {kind:?} {}", name.display());
        self.cut(step, Some((kind, path.to_owned())));
        Fault::None
    }
}

impl State {
    /// Takes in what the last step did, and gives the states that a power loss may leave now.
    fn advance(
        &mut self,
        root: &Path,
        next: Option<(StepKind, PathBuf)>,
    ) -> io::Result<Vec<(String, Tree)>> {
        self.look(root)?;
        match self.before.take() {
            Some((StepKind::Sync, path)) => {
                let inode = fs::metadata(&path)?.ino();
                self.durable.insert(inode, fs::read(&path)?);
            }
            Some((StepKind::SyncFolder, path)) => {
                let inode = fs::metadata(&path)?.ino();
                self.synced_folder(inode);
            }
            _ => {}
        }
        self.before = next;
        self.steps += 1;
        let root = fs::metadata(root)?.ino();
        let mut random = self.random.take().unwrap_or_else(|| Random::new(0));
        let mut states: Vec<(String, Tree)> = Vec::new();
        let rules: [(&str, &mut Choice<'_>); 4] = [
            ("all", &mut |_| Pick::New),
            ("none", &mut |_| Pick::Old),
            ("names without content", &mut |what| match what {
                What::Names(_) => Pick::New,
                What::Content => Pick::Old,
            }),
            ("reordered", &mut |what| match what {
                What::Names(count) => Pick::At(random.below(count as u64) as usize),
                What::Content if random.chance(70) => Pick::Mixed(random.number()),
                What::Content => Pick::New,
            }),
        ];
        for (rule, choose) in rules {
            let tree = self.tree(root, choose)?;
            if states.iter().all(|(_, other)| *other != tree) {
                states.push((rule.to_owned(), tree));
            }
        }
        self.random = Some(random);
        Ok(states)
    }

    /// Notes the names that each folder has now.
    fn look(&mut self, folder: &Path) -> io::Result<()> {
        let inode = fs::metadata(folder)?.ino();
        let mut listing = Listing::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let found = Found {
                inode: metadata.ino(),
                folder: metadata.is_dir(),
            };
            if let std::collections::btree_map::Entry::Vacant(slot) = self.held.entry(found.inode) {
                slot.insert(File::open(entry.path())?);
            }
            self.paths.insert(found.inode, entry.path());
            if found.folder {
                self.look(&entry.path())?;
            }
            listing.insert(entry.file_name(), found);
        }
        let history = self.names.entry(inode).or_default();
        if history.is_empty() {
            // A new folder has no names that would survive.
            history.push(Listing::new());
        }
        if history.last() != Some(&listing) {
            history.push(listing);
        }
        Ok(())
    }

    fn synced_folder(&mut self, inode: u64) {
        if let Some(history) = self.names.get_mut(&inode)
            && let Some(last) = history.pop()
        {
            *history = vec![last];
        }
    }

    fn tree(&self, folder: u64, choose: &mut Choice<'_>) -> io::Result<Tree> {
        let mut entries = BTreeMap::new();
        let none = vec![Listing::new()];
        let history = self.names.get(&folder).unwrap_or(&none);
        let at = match choose(What::Names(history.len())) {
            Pick::Old => 0,
            Pick::At(at) => at.min(history.len() - 1),
            Pick::New | Pick::Mixed(_) => history.len() - 1,
        };
        for (name, found) in &history[at] {
            let node = if found.folder {
                Node::Folder(self.tree(found.inode, choose)?)
            } else {
                Node::File(self.content(found.inode, choose)?)
            };
            entries.insert(name.clone(), node);
        }
        Ok(Tree { entries })
    }

    fn content(&self, inode: u64, choose: &mut Choice<'_>) -> io::Result<Vec<u8>> {
        let old = self.durable.get(&inode);
        let pick = choose(What::Content);
        if let (Pick::Old, Some(old)) = (&pick, old) {
            return Ok(old.clone());
        }
        // Removed files are still read through the handle that is held.
        let mut new = Vec::new();
        if let Some(file) = self.held.get(&inode) {
            let length = file.metadata()?.len() as usize;
            new.resize(length, 0);
            std::os::unix::fs::FileExt::read_exact_at(file, &mut new, 0)?;
        }
        let empty = Vec::new();
        let old = old.unwrap_or(&empty);
        match pick {
            Pick::New | Pick::At(_) => Ok(new),
            Pick::Old => Ok(Vec::new()),
            Pick::Mixed(seed) => {
                let mut random = Random::new(seed);
                let length = if random.chance(50) {
                    old.len()
                } else {
                    new.len()
                };
                let mut mixed = vec![0; length];
                for at in (0..length).step_by(BLOCK) {
                    let source = if random.chance(50) { old } else { &new };
                    // What never was there is zero.
                    if let Some(rest) = source.get(at..) {
                        let count = rest.len().min(BLOCK).min(length - at);
                        mixed[at..at + count].copy_from_slice(&rest[..count]);
                    }
                }
                Ok(mixed)
            }
        }
    }
}

enum What {
    Names(usize),
    Content,
}

enum Pick {
    Old,
    New,
    At(usize),
    Mixed(u64),
}

type Choice<'a> = dyn FnMut(What) -> Pick + 'a;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn names(tree: &Tree) -> Vec<String> {
        tree.entries
            .iter()
            .map(|(name, node)| match node {
                Node::File(bytes) => format!("{}={}", name.display(), bytes.len()),
                Node::Folder(tree) => format!("{}{:?}", name.display(), names(tree)),
            })
            .collect()
    }

    /// The double itself must forget, or the enumeration proves nothing.
    #[test]
    fn names_and_content_that_were_not_synced_are_lost() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("kept"), b"kept").unwrap();
        let cuts = Arc::new(Mutex::new(Vec::new()));
        let noted = cuts.clone();
        let on_cut = Box::new(move |cut: Cut| {
            let states = cut
                .states
                .iter()
                .map(|(rule, tree)| (rule.clone(), names(tree)));
            noted
                .lock()
                .unwrap()
                .push(states.collect::<BTreeMap<_, _>>());
        });
        let double = PowerFolder::new(root, 1, on_cut).unwrap();
        let (new, named) = (root.join("new"), root.join("named"));
        double.before(StepKind::CreateFile, &new);
        fs::write(&new, b"content").unwrap();
        double.before(StepKind::Sync, &new);
        double.before(StepKind::Rename, &named);
        fs::rename(&new, &named).unwrap();
        double.before(StepKind::SyncFolder, root);
        double.end();
        let cuts = cuts.lock().unwrap();
        // A file that was there before is as good as never synced: only its name is sure.
        assert_eq!(cuts[0]["none"], ["kept=0"]);
        assert_eq!(cuts[1]["none"], ["kept=0"]);
        assert_eq!(cuts[1]["all"], ["kept=4", "new=7"]);
        assert_eq!(cuts[1]["names without content"], ["kept=0", "new=0"]);
        assert_eq!(cuts[2]["names without content"], ["kept=0", "new=7"]);
        assert_eq!(cuts[3]["none"], ["kept=0"], "named, but not durably");
        assert_eq!(cuts[4]["none"], ["kept=0", "named=7"]);
    }
}
