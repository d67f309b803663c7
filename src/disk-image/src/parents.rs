//! The gate in front of parent images. A locator inside a differencing image is hostile input: it
//! may name any file of the machine, a device, a share of another machine, or the image itself.
//!
//! So nothing that an image names is opened unless the caller passes a [`ParentGate`], and the
//! gate decides about every single file. Whatever it opens counts as the parent only if its
//! identity is the one that the child remembers, it is no image that the chain went through
//! already, and the chain is no longer than [`MAX_CHAIN`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{ErrorKind, ImageError, ImageFile};

/// Images in a chain, the newest one included. Checkpoints give a virtual machine at most 50.
pub const MAX_CHAIN: usize = 128;
/// Characters of a locator that an error shows.
const SHOWN: usize = 200;

/// How a differencing image names its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocatorKind {
    /// Relative to the child's folder.
    Relative,
    /// `\\?\Volume{…}\…` of the machine that made the child.
    Volume,
    /// With a drive letter, or a share.
    Absolute,
    /// Only the file's name: what the other locators end with. It is tried last, because chains
    /// are moved from machine to machine, and a wrong file is found out by its identity.
    Name,
}

impl LocatorKind {
    fn text(self) -> &'static str {
        match self {
            Self::Relative => "relative path",
            Self::Volume => "volume path",
            Self::Absolute => "absolute path",
            Self::Name => "file name",
        }
    }
}

/// One place where a differencing image says its parent lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParentLocator {
    /// How to read the path.
    pub kind: LocatorKind,
    /// The path as stored, with the separators of Windows.
    pub path: String,
}

impl ParentLocator {
    /// The last component of the path.
    pub fn file_name(&self) -> &str {
        self.path.rsplit(['\\', '/']).next().unwrap_or_default()
    }
}

/// A file that a gate opened, for reading.
pub struct ParentFile {
    /// Its bytes.
    pub file: Box<dyn ImageFile>,
    /// Tells this file from others: a chain that meets the same name twice is a circle.
    pub name: String,
    /// Where it lies, so that its own parent can be found relative to it.
    pub path: Option<PathBuf>,
}

/// Decides which parents may be opened, and opens them. Only for reading: parents never change.
pub trait ParentGate: Send + Sync {
    /// Opens what `locator` of the image at `child` names. `None` when there is nothing of this
    /// name; an error when it must not be opened.
    fn open(
        &self,
        child: Option<&Path>,
        locator: &ParentLocator,
    ) -> Result<Option<ParentFile>, ImageError>;
}

/// Allows nothing. What every opening without a gate uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoParents;

impl ParentGate for NoParents {
    fn open(&self, _: Option<&Path>, _: &ParentLocator) -> Result<Option<ParentFile>, ImageError> {
        Err(refusal(
            "no parents are allowed here; allow the folder that it lies in",
        ))
    }
}

/// Parents that the caller has in hand, found by their file names.
#[derive(Clone, Default)]
pub struct SuppliedParents {
    files: Vec<(String, Arc<dyn ImageFile>)>,
}

impl SuppliedParents {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file under a name without folders; upper and lower case are the same.
    pub fn with(mut self, name: impl Into<String>, file: Arc<dyn ImageFile>) -> Self {
        self.files.push((name.into(), file));
        self
    }
}

impl ParentGate for SuppliedParents {
    fn open(
        &self,
        _child: Option<&Path>,
        locator: &ParentLocator,
    ) -> Result<Option<ParentFile>, ImageError> {
        let wanted = locator.file_name();
        let found = self
            .files
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        Ok(found.map(|(name, file)| ParentFile {
            file: Box::new(file.clone()),
            name: name.to_ascii_lowercase(),
            path: None,
        }))
    }
}

pub(crate) fn refusal(cause: impl Into<String>) -> ImageError {
    ImageError::new(ErrorKind::Parent, "parent", cause)
}

/// The way down a chain: what was met already, and who decides.
pub(crate) struct Descent<'g> {
    gate: &'g dyn ParentGate,
    met: Vec<String>,
}

impl<'g> Descent<'g> {
    /// A descent from the image at `top`.
    pub(crate) fn new(gate: &'g dyn ParentGate, top: Option<&Path>) -> Self {
        let name = top.and_then(|path| std::fs::canonicalize(path).ok());
        Self {
            gate,
            met: vec![name.map_or_else(String::new, |path| path.display().to_string())],
        }
    }

    /// Opens the parent of `child`: the first place that the gate allows and `open` finds to be
    /// the right image. `identity` names the parent in errors.
    pub(crate) fn parent<T>(
        &mut self,
        child: Option<&Path>,
        identity: &str,
        locators: &[ParentLocator],
        mut open: impl FnMut(ParentFile, &mut Self) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        if self.met.len() >= MAX_CHAIN {
            return Err(refusal(format!(
                "the chain has more than {MAX_CHAIN} images"
            )));
        }
        let mut reasons: Vec<String> = Vec::new();
        let mut names: Vec<ParentLocator> = Vec::new();
        for locator in locators {
            let name = locator.file_name().to_owned();
            if !name.is_empty() && names.iter().all(|known| known.path != name) {
                names.push(ParentLocator {
                    kind: LocatorKind::Name,
                    path: name,
                });
            }
        }
        for locator in locators.iter().chain(&names) {
            let reason = match self.gate.open(child, locator) {
                Ok(Some(file)) if !file.name.is_empty() && self.met.contains(&file.name) => {
                    return Err(refusal(format!(
                        "{} is met twice: the chain is a circle",
                        shown(&file.name)
                    )));
                }
                Ok(Some(file)) => {
                    self.met.push(file.name.clone());
                    let opened = open(file, self);
                    if let Ok(opened) = opened {
                        return Ok(opened);
                    }
                    self.met.pop();
                    match opened {
                        Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                        Err(error) => error.to_string(),
                        Ok(_) => continue,
                    }
                }
                Ok(None) => "nothing is there".to_owned(),
                Err(error) if error.kind() == ErrorKind::Io => return Err(error),
                Err(error) => error.cause().to_owned(),
            };
            // What every place has in common is said once.
            let place = format!("{} {}", locator.kind.text(), shown(&locator.path));
            match reasons.last_mut() {
                Some(last) if last.ends_with(&format!(": {reason}")) => {
                    let at = last.len() - reason.len() - 2;
                    last.insert_str(at, &format!(", {place}"));
                }
                _ => reasons.push(format!("{place}: {reason}")),
            }
        }
        if reasons.is_empty() {
            reasons.push("it names no place".to_owned());
        }
        Err(ImageError::new(
            ErrorKind::Parent,
            "differencing disk",
            format!(
                "its parent {identity} was not opened ({})",
                reasons.join("; ")
            ),
        ))
    }
}

/// What a new child at `child` remembers of the place of its parent.
pub(crate) fn locators_from(child: &Path, parent: &Path) -> Result<Vec<ParentLocator>, ImageError> {
    let real = |path: &Path| {
        std::fs::canonicalize(path)
            .map_err(|e| ImageError::io(path.display().to_string(), 0, "find the file", e))
    };
    let parent = real(parent)?;
    let folder = match child.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => real(folder)?,
        _ => real(Path::new("."))?,
    };
    let (mut from, mut to) = (
        folder.components().peekable(),
        parent.components().peekable(),
    );
    while from.peek().is_some() && from.peek() == to.peek() {
        from.next();
        to.next();
    }
    let up = from.map(|_| "..".to_owned());
    let down = to.map(|part| part.as_os_str().to_string_lossy().into_owned());
    let mut path: Vec<String> = up.chain(down).collect();
    if path.first().is_none_or(|first| first != "..") {
        path.insert(0, ".".to_owned());
    }
    let mut locators = vec![ParentLocator {
        kind: LocatorKind::Relative,
        path: path.join("\\"),
    }];
    if cfg!(windows) {
        let absolute = parent.display().to_string();
        locators.push(ParentLocator {
            kind: LocatorKind::Absolute,
            path: absolute.trim_start_matches("\\\\?\\").to_owned(),
        });
    }
    Ok(locators)
}

/// A hostile text as an error may show it.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", short.escape_debug())
}
