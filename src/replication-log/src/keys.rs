//! Keys for journal objects: the active one for writers, older ones for readers.
//!
//! ```text
//! KeyRing { id -> 256-bit key }   active id: what new objects are encrypted with
//!                                 other ids: what older objects still need
//! ```
//!
//! A rotation adds a key and makes it active; objects name the key they need, so nothing is written
//! again. Key bytes are wiped when the last owner lets go of them and never appear in `Debug`.

use std::collections::BTreeMap;
use std::fmt;

use uuid::Uuid;
use zeroize::Zeroizing;

/// Length of a key, bytes.
pub const KEY_SIZE: usize = 32;

/// A key that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The active key is not in the ring.
    #[error(
        "encryption key {0} is to be active, but is not among the keys: send it with its bytes"
    )]
    UnknownActive(Uuid),
    /// A key has another length.
    #[error("encryption key {id} has {length} bytes: a key has 32")]
    Length {
        /// Which key.
        id: Uuid,
        /// Its length, bytes.
        length: usize,
    },
    /// The nil GUID means "not encrypted" in an object and can't name a key.
    #[error("an encryption key needs an id other than the nil GUID")]
    NilId,
    /// Two different keys under one id: objects of one of them could never be read.
    #[error("encryption key {0} is there already with other bytes: give the new key a new id")]
    Changed(Uuid),
}

/// The keys of a vault.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KeyRing {
    keys: BTreeMap<Uuid, Zeroizing<[u8; KEY_SIZE]>>,
    active: Option<Uuid>,
}

impl KeyRing {
    /// No keys: objects are written in the clear, and only such objects are read.
    pub fn new() -> Self {
        KeyRing::default()
    }

    /// Adds a key; the same key again is fine.
    pub fn insert(&mut self, id: Uuid, key: &[u8]) -> Result<(), KeyError> {
        if id.is_nil() {
            return Err(KeyError::NilId);
        }
        let mut bytes = Zeroizing::new([0u8; KEY_SIZE]);
        if key.len() != KEY_SIZE {
            let length = key.len();
            return Err(KeyError::Length { id, length });
        }
        bytes.copy_from_slice(key);
        match self.keys.get(&id) {
            Some(known) if *known != bytes => Err(KeyError::Changed(id)),
            _ => {
                self.keys.insert(id, bytes);
                Ok(())
            }
        }
    }

    /// Chooses what new objects are encrypted with; `None`: nothing.
    pub fn activate(&mut self, id: Option<Uuid>) -> Result<(), KeyError> {
        if let Some(id) = id
            && !self.keys.contains_key(&id)
        {
            return Err(KeyError::UnknownActive(id));
        }
        self.active = id;
        Ok(())
    }

    /// The key that new objects are encrypted with.
    pub fn active(&self) -> Option<Uuid> {
        self.active
    }

    /// All keys, in the order of their ids.
    pub fn ids(&self) -> impl Iterator<Item = Uuid> + '_ {
        self.keys.keys().copied()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn key(&self, id: Uuid) -> Option<&[u8; KEY_SIZE]> {
        self.keys.get(&id).map(|key| &**key)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("keys", &self.keys.keys())
            .field("active", &self.active)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_holds_no_key_bytes() {
        let mut ring = KeyRing::new();
        let id = Uuid::from_u128(5);
        ring.insert(id, &[0xab; 32]).unwrap();
        ring.activate(Some(id)).unwrap();
        let text = format!("{ring:?} {ring:#?}");
        assert!(text.contains(&id.to_string()));
        for secret in ["171", "ab, ab", "0xab", "abab"] {
            assert!(!text.contains(secret), "{text}");
        }
    }

    #[test]
    fn a_key_that_could_not_be_used_is_refused_with_its_id() {
        let mut ring = KeyRing::new();
        let id = Uuid::from_u128(5);
        assert_eq!(ring.activate(Some(id)), Err(KeyError::UnknownActive(id)));
        assert_eq!(ring.insert(Uuid::nil(), &[1; 32]), Err(KeyError::NilId));
        let length = 31;
        assert_eq!(
            ring.insert(id, &[1; 31]),
            Err(KeyError::Length { id, length })
        );
        ring.insert(id, &[1; 32]).unwrap();
        ring.insert(id, &[1; 32]).unwrap();
        assert_eq!(ring.insert(id, &[2; 32]), Err(KeyError::Changed(id)));
        ring.activate(Some(id)).unwrap();
        assert_eq!(ring.active(), Some(id));
        ring.activate(None).unwrap();
        assert_eq!(ring.active(), None);
    }
}
