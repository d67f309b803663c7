//! Seals secrets before they go into the database: AES-256-GCM under a key that lies beside the database in a file of
//! its own, so that a copy of the database alone tells nothing.
//!
//! A sealed text belongs to one name (the document that holds it) and opens under no other. What may go wrong: the key
//! file was lost or replaced ([`SealError`]); then the secrets must be given again.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

const KEY_LEN: usize = 32;

/// See the module. Not shown by `Debug`.
pub struct Sealer {
    key: LessSafeKey,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

/// What can go wrong; never holds the secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The key file is of another length.
    #[error("the file secrets.key is damaged; restore it from a backup")]
    BadKey,
    /// The system gave no random bytes.
    #[error("the system's random source failed")]
    NoRandom,
    /// Sealed under another key or for another name.
    #[error(
        "a stored secret can't be opened: the file secrets.key is not the one it was sealed with"
    )]
    NotOurs,
}

// === impl Sealer ===

impl Sealer {
    /// Bytes of a new key, for a file.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate() -> Result<Vec<u8>, SealError> {
        random(KEY_LEN)
    }

    /// From the bytes of the file.
    ///
    /// # Errors
    /// When they are no key.
    pub fn new(bytes: &[u8]) -> Result<Self, SealError> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| SealError::BadKey)?;
        Ok(Self {
            key: LessSafeKey::new(key),
        })
    }

    /// Seals a secret for a name.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn seal(&self, name: &str, secret: &[u8]) -> Result<String, SealError> {
        let nonce = random(NONCE_LEN)?;
        let mut sealed = secret.to_vec();
        let once = Nonce::try_assume_unique_for_key(&nonce).map_err(|_| SealError::NoRandom)?;
        self.key
            .seal_in_place_append_tag(once, Aad::from(name.as_bytes()), &mut sealed)
            .map_err(|_| SealError::NoRandom)?;
        let mut whole = nonce;
        whole.extend_from_slice(&sealed);
        Ok(STANDARD.encode(whole))
    }

    /// Opens what was sealed for this name.
    ///
    /// # Errors
    /// When it was sealed with another key or for another name, or is damaged.
    pub fn open(&self, name: &str, sealed: &str) -> Result<Vec<u8>, SealError> {
        let whole = STANDARD.decode(sealed).map_err(|_| SealError::NotOurs)?;
        let (nonce, rest) = whole
            .split_at_checked(NONCE_LEN)
            .ok_or(SealError::NotOurs)?;
        let once = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::NotOurs)?;
        let mut rest = rest.to_vec();
        let opened = self
            .key
            .open_in_place(once, Aad::from(name.as_bytes()), &mut rest)
            .map_err(|_| SealError::NotOurs)?;
        Ok(opened.to_vec())
    }
}

/// Random bytes.
///
/// # Errors
/// When the system has none.
pub fn random(length: usize) -> Result<Vec<u8>, SealError> {
    let mut bytes = vec![0; length];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| SealError::NoRandom)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_with_its_key_and_its_name_only() {
        let sealer = Sealer::new(&Sealer::generate().expect("key")).expect("sealer");
        let sealed = sealer.seal("a", b"secret").expect("sealed");
        assert_eq!(sealer.open("a", &sealed).expect("opens"), b"secret");
        assert!(sealer.open("b", &sealed).is_err());
        let other = Sealer::new(&Sealer::generate().expect("key")).expect("sealer");
        assert!(other.open("a", &sealed).is_err());
        assert_ne!(sealed, sealer.seal("a", b"secret").expect("sealed"));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let sealer = Sealer::new(&Sealer::generate().expect("key")).expect("sealer");
        for text in ["", "AAAA", "not base64!"] {
            assert!(sealer.open("a", text).is_err(), "{text:?}");
        }
        assert!(Sealer::new(b"short").is_err());
        assert!(!format!("{sealer:?}").contains("key"));
    }
}
