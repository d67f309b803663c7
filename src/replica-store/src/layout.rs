//! Names of the files and folders of a replica, and nothing else.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::model::{Generation, Position, RecoveryPoint, ReplicaKey, StoreTarget};

/// Paths of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    vault: PathBuf,
    item: PathBuf,
    item_id: String,
}

impl Layout {
    pub(crate) fn new(target: &StoreTarget, key: &ReplicaKey) -> Self {
        let StoreTarget::Folder(folder) = target;
        let vault = folder.join(key.vault_key());
        Layout {
            item: vault.join(key.item_id()),
            vault,
            item_id: key.item_id().to_owned(),
        }
    }

    pub(crate) fn item_id(&self) -> &str {
        &self.item_id
    }

    pub(crate) fn vault(&self) -> &Path {
        &self.vault
    }

    pub(crate) fn item(&self) -> &Path {
        &self.item
    }

    /// Where a replica goes while it is being removed. A key never begins with a dot.
    pub(crate) fn deleting(&self) -> PathBuf {
        self.vault.join(format!(".deleting-{}", self.item_id))
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.item.join("lock")
    }

    pub(crate) fn generation(&self) -> PathBuf {
        self.item.join("generation")
    }

    pub(crate) fn manifest(&self) -> PathBuf {
        self.item.join("manifest")
    }

    pub(crate) fn disk(&self, disk: Uuid) -> PathBuf {
        self.item.join(disk.hyphenated().to_string())
    }

    pub(crate) fn base(&self, disk: Uuid) -> PathBuf {
        self.disk(disk).join("base.vhd")
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.item.join("journal")
    }

    pub(crate) fn points(&self) -> PathBuf {
        self.item.join("points")
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.item.join("pins")
    }

    /// Sorted by name = sorted by generation and position, which grow together.
    pub(crate) fn journal_object(&self, generation: Generation, position: Position) -> PathBuf {
        self.journal()
            .join(format!("{:020}-{:020}.hrl", generation.0, position.0))
    }

    pub(crate) fn point(&self, point: &RecoveryPoint) -> PathBuf {
        self.points().join(format!(
            "{:020}-{:020}-{}",
            point.time_unix_ms.max(0),
            point.position.0,
            point.id.simple()
        ))
    }

    /// Owners are free text, so their pins are named by hash.
    pub(crate) fn pin(&self, owner: &str) -> PathBuf {
        let hash = blake3::hash(owner.as_bytes()).to_hex();
        self.pins().join(&hash.as_str()[..32])
    }
}

/// Generation and position of a journal object, from its name.
pub(crate) fn parse_journal_name(name: &str) -> Option<(Generation, Position)> {
    let (generation, position) = name.strip_suffix(".hrl")?.split_once('-')?;
    let number = |text: &str| {
        let digits = text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse().ok()).flatten()
    };
    Some((Generation(number(generation)?), Position(number(position)?)))
}
