//! The "remote system" of the example: a folder with one JSON file for each note.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tf_provider::Diagnostics;

/// A note as the remote system keeps it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Note {
    pub id: String,
    pub name: String,
    pub text: String,
    /// Decimal text: numbers must not lose digits.
    pub ratio: Option<String>,
    pub tags: Option<Vec<String>>,
    pub mode: Option<String>,
    pub level: Option<u64>,
    pub parts: Option<Vec<String>>,
    pub members: Option<BTreeMap<String, String>>,
    pub revision: u64,
    pub secret_length: Option<u64>,
}

/// Client of the folder.
#[derive(Debug)]
pub struct Store {
    pub root: PathBuf,
}

impl Store {
    fn path(&self, id: &str) -> Result<PathBuf, Diagnostics> {
        let plain = id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if id.is_empty() || !plain {
            return Err(Diagnostics::error(
                "Malformed id",
                format!("{id:?} is not the id of a note."),
            ));
        }
        Ok(self.root.join(format!("{id}.json")))
    }

    pub fn read(&self, id: &str) -> Result<Option<Note>, Diagnostics> {
        match std::fs::read(self.path(id)?) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Diagnostics::error("Cannot read the note", error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Diagnostics::error(
                "Cannot read the note",
                error.to_string(),
            )),
        }
    }

    pub fn write(&self, note: &Note) -> Result<(), Diagnostics> {
        let path = self.path(&note.id)?;
        let bytes = serde_json::to_vec_pretty(note)
            .map_err(|error| Diagnostics::error("Cannot write", error.to_string()))?;
        std::fs::write(path, bytes)
            .map_err(|error| Diagnostics::error("Cannot write the note", error.to_string()))
    }

    pub fn delete(&self, id: &str) -> Result<(), Diagnostics> {
        match std::fs::remove_file(self.path(id)?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Diagnostics::error(
                "Cannot delete the note",
                error.to_string(),
            )),
            _ => Ok(()),
        }
    }

    /// All notes in the order of their names.
    pub fn all(&self) -> Result<Vec<Note>, Diagnostics> {
        let failed =
            |error: std::io::Error| Diagnostics::error("Cannot list the notes", error.to_string());
        let mut notes = Vec::new();
        for entry in std::fs::read_dir(&self.root).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
                notes.extend(self.read(id)?);
            }
        }
        notes.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(notes)
    }

    /// Adds a line to a file beside the notes, for what leaves no other trace.
    pub fn log(&self, line: &str) -> Result<(), Diagnostics> {
        use std::io::Write;
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.root.join("events.log"));
        file.and_then(|mut file| writeln!(file, "{line}"))
            .map_err(|error| Diagnostics::error("Cannot write the log", error.to_string()))
    }
}
