//! JSON web tokens signed with ES256: the little of JOSE that the built-in issuer needs. `alg` is fixed,
//! so that a token can't choose how it is checked.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Longest token that is looked at.
const MAX_TOKEN: usize = 8 << 10;

/// What can go wrong with keys and tokens.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtError {
    /// The key can't be made or read.
    #[error("signing key is unusable")]
    Key,
    /// The text is no token.
    #[error("token is malformed")]
    Malformed,
    /// The token was not signed with our key.
    #[error("signature of the token is not ours")]
    Signature,
}

/// A signing key.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    key_id: String,
}

// === impl SigningKey ===

impl SigningKey {
    /// Makes a new key; gives its PKCS #8 form.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn generate() -> Result<Vec<u8>, JwtError> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|document| document.as_ref().to_vec())
            .map_err(|_| JwtError::Key)
    }

    /// Takes up a key made earlier.
    ///
    /// # Errors
    /// When the bytes are no key.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, JwtError> {
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            bytes,
            &SystemRandom::new(),
        )
        .map_err(|_| JwtError::Key)?;
        let digest = Sha256::digest(pair.public_key().as_ref());
        let key_id = URL_SAFE_NO_PAD.encode(&digest[..16]);
        Ok(Self { pair, key_id })
    }

    /// Signs claims.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn sign(&self, claims: &Value) -> Result<String, JwtError> {
        let header = json!({ "typ": "JWT", "alg": "ES256", "kid": self.key_id });
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| JwtError::Key)?;
        Ok(format!(
            "{signed}.{}",
            URL_SAFE_NO_PAD.encode(signature.as_ref())
        ))
    }

    /// Checks the signature and gives the claims. Times and names are the caller's to check.
    ///
    /// # Errors
    /// When the text is no token of ours.
    pub fn open(&self, token: &str) -> Result<Value, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| JwtError::Malformed)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| JwtError::Signature)?;
        let header: Value = decode(header)?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err(JwtError::Malformed);
        }
        decode(claims)
    }

    /// The public key as a JSON web key set.
    #[must_use]
    pub fn key_set(&self) -> Value {
        // Uncompressed point: 04, x, y.
        let point = self.pair.public_key().as_ref();
        let coordinate =
            |from: usize| URL_SAFE_NO_PAD.encode(point.get(from..from + 32).unwrap_or_default());
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_id,
            "x": coordinate(1), "y": coordinate(33),
        }] })
    }
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decode(text: &str) -> Result<Value, JwtError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().expect("random")).expect("own key")
    }

    #[test]
    fn claims_survive_and_every_changed_character_is_noticed() {
        let key = key();
        let claims = json!({ "sub": "me", "exp": 5 });
        let token = key.sign(&claims).expect("signed");
        assert_eq!(key.open(&token).expect("own token"), claims);
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ascii");
            // The last character of a base64 group holds bits that don't count.
            assert!(
                key.open(&changed).is_err() || at + 1 == token.len(),
                "character {at}"
            );
        }
    }

    #[test]
    fn a_token_of_another_key_or_without_a_signature_is_refused() {
        let token = key().sign(&json!({})).expect("signed");
        assert_eq!(key().open(&token), Err(JwtError::Signature));
        let none = format!(
            "{}.{}.",
            encode(&json!({"alg": "none"})),
            encode(&json!({}))
        );
        assert!(key().open(&none).is_err());
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in ".{0,120}") {
            let _ = key().open(&text);
        }
    }
}
