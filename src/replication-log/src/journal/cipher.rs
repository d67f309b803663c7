//! The cipher of one object: a key derived for it alone, nonces that count.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use uuid::Uuid;

use super::format::DIGEST;
use super::{JournalError, JournalErrorKind};
use crate::KeyRing;

/// Bytes that sealing adds.
pub(super) const TAG: usize = 16;
pub(super) const SALT: usize = 32;

/// Separates this use of a vault's key from any other.
const CONTEXT: &[u8] = b"site-recovery journal object 2";
const FRAME_DOMAIN: u8 = 0;
const INDEX_DOMAIN: u8 = 1;

/// What the header says about encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Envelope {
    /// Nil: in the clear.
    pub(super) key_id: Uuid,
    pub(super) salt: [u8; SALT],
}

impl Envelope {
    /// For a new object: the ring's active key and a fresh salt.
    pub(super) fn new(keys: Option<&KeyRing>) -> Result<Envelope, JournalError> {
        let Some(key_id) = keys.and_then(KeyRing::active) else {
            return Ok(Envelope::default());
        };
        let mut salt = [0u8; SALT];
        SystemRandom::new().fill(&mut salt).map_err(|_| {
            JournalError::new(
                JournalErrorKind::Io,
                "the operating system gave no random numbers",
            )
        })?;
        Ok(Envelope { key_id, salt })
    }

    pub(super) fn key(&self) -> Option<Uuid> {
        (!self.key_id.is_nil()).then_some(self.key_id)
    }
}

/// Seals and opens the parts of one object.
pub(super) struct ObjectCipher {
    key_id: Uuid,
    key: LessSafeKey,
    prelude: [u8; DIGEST],
}

impl ObjectCipher {
    /// `None`: the object is in the clear.
    pub(super) fn derive(
        envelope: &Envelope,
        prelude: &[u8; DIGEST],
        keys: &KeyRing,
    ) -> Result<Option<ObjectCipher>, JournalError> {
        let Some(key_id) = envelope.key() else {
            return Ok(None);
        };
        let Some(vault_key) = keys.key(key_id) else {
            return Err(JournalError::new(
                JournalErrorKind::MissingKey,
                format!(
                    "it is encrypted with key {key_id}, which was not given to this program: \
                     put that key back among the vault's keys, where it must stay until no \
                     recovery point needs it"
                ),
            ));
        };
        let failed = |_| JournalError::invalid("no key can be derived");
        let info = [CONTEXT, prelude];
        let secret = Salt::new(HKDF_SHA256, &envelope.salt).extract(vault_key);
        let key = secret.expand(&info, &AES_256_GCM).map_err(failed)?;
        Ok(Some(ObjectCipher {
            key_id,
            key: LessSafeKey::new(UnboundKey::from(key)),
            prelude: *prelude,
        }))
    }

    /// Appends the tag to `data`, which becomes unreadable. Every frame number at most once.
    pub(super) fn seal_frame(&self, number: u32, data: &mut Vec<u8>) -> Result<(), JournalError> {
        self.seal(nonce(FRAME_DOMAIN, number), &[], data)
    }

    /// Once in an object; `numbers` is what the trailer says of the index.
    pub(super) fn seal_index(
        &self,
        numbers: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<(), JournalError> {
        self.seal(nonce(INDEX_DOMAIN, 0), numbers, data)
    }

    /// Opens in place and cuts the tag off.
    pub(super) fn open_frame(&self, number: u32, data: &mut Vec<u8>) -> Result<(), JournalError> {
        self.open(nonce(FRAME_DOMAIN, number), &[], data, "a frame")
    }

    pub(super) fn open_index(
        &self,
        numbers: &[u8],
        data: &mut Vec<u8>,
    ) -> Result<(), JournalError> {
        self.open(nonce(INDEX_DOMAIN, 0), numbers, data, "its index")
    }

    fn seal(&self, nonce: Nonce, more: &[u8], data: &mut Vec<u8>) -> Result<(), JournalError> {
        self.key
            .seal_in_place_append_tag(nonce, self.aad(more), data)
            .map_err(|_| JournalError::invalid("too much data to encrypt at once"))
    }

    fn open(
        &self,
        nonce: Nonce,
        more: &[u8],
        data: &mut Vec<u8>,
        what: &str,
    ) -> Result<(), JournalError> {
        match self.key.open_in_place(nonce, self.aad(more), data) {
            Ok(plain) => {
                let length = plain.len();
                data.truncate(length);
                Ok(())
            }
            Err(_) => Err(JournalError::corrupt(format!(
                "{what} does not decrypt with key {}: it was damaged or forged, or other key \
                 bytes go by that id",
                self.key_id
            ))),
        }
    }

    fn aad(&self, more: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([&self.prelude, more].concat())
    }
}

impl fmt::Debug for ObjectCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectCipher")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

fn nonce(domain: u8, number: u32) -> Nonce {
    let mut bytes = [0u8; NONCE_LEN];
    bytes[0] = domain;
    bytes[NONCE_LEN - 4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
