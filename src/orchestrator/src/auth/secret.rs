//! Secrets of clients and registration keys: 256 random bits, kept as a salted hash. A slow hash would
//! add nothing: nobody can try 2^256 values.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// The random source of the system failed.
#[derive(Debug, thiserror::Error)]
#[error("random source failed")]
pub struct NoRandom;

/// Random bytes as text.
///
/// # Errors
/// When the random source fails.
pub fn random_text() -> Result<String, NoRandom> {
    let mut bytes = [0u8; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// A new secret and what is kept of it.
///
/// # Errors
/// When the random source fails.
pub fn generate() -> Result<(String, String), NoRandom> {
    let secret = random_text()?;
    let hash = hash(&secret)?;
    Ok((secret, hash))
}

/// What is kept of a secret.
///
/// # Errors
/// When the random source fails.
pub fn hash(secret: &str) -> Result<String, NoRandom> {
    let salt = random_text()?;
    let tag = hmac::sign(&key(&salt), secret.as_bytes());
    Ok(format!("{salt}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref())))
}

/// Whether a secret is the one; takes the same time for every wrong one.
#[must_use]
pub fn verify(secret: &str, kept: &str) -> bool {
    let Some((salt, tag)) = kept.split_once('.') else {
        return false;
    };
    let Ok(tag) = URL_SAFE_NO_PAD.decode(tag) else {
        return false;
    };
    hmac::verify(&key(salt), secret.as_bytes(), &tag).is_ok()
}

fn key(salt: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, salt.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_itself_fits_and_the_kept_form_does_not_hold_it() {
        let (secret, kept) = generate().expect("random");
        assert!(verify(&secret, &kept));
        assert!(!verify("other", &kept) && !verify("", &kept) && !verify(&secret, "broken"));
        assert!(!kept.contains(&secret));
        assert_ne!(hash(&secret).expect("random"), kept, "salted");
    }
}
