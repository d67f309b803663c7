//! The registration key: all that a new engine needs to find and trust its orchestrator.
//!
//! Text `srk1.` + base64url(JSON). It is a secret until it expires: it holds the enrolment secret.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::ProtocolError;

const PREFIX: &str = "srk1.";
/// A key is a certificate and a few short fields; anything longer is not one of ours.
const MAX_TEXT: usize = 64 << 10;

/// Contents of a registration key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationKey {
    /// `host:port` of the engine gateway.
    pub gateway: String,
    /// The orchestrator's CA; the gateway's certificate must chain to it.
    pub ca_pem: String,
    /// Enrolment secret; the orchestrator keeps only its hash.
    pub secret: String,
    /// Refused from this second on (Unix time).
    pub expires_unix: i64,
}

// === impl RegistrationKey ===

impl RegistrationKey {
    /// The key as text for a file or an argument.
    #[must_use]
    pub fn encode(&self) -> String {
        // A struct of strings and an integer always serialises.
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }

    /// Reads the text form; surrounding white space is fine.
    ///
    /// # Errors
    /// [`ProtocolError::MalformedKey`] says what is wrong without repeating the secret.
    pub fn decode(text: &str) -> Result<Self, ProtocolError> {
        let text = text.trim();
        if text.len() > MAX_TEXT {
            return Err(ProtocolError::MalformedKey("too long"));
        }
        let body = text
            .strip_prefix(PREFIX)
            .ok_or(ProtocolError::MalformedKey("does not begin with `srk1.`"))?;
        let json = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| ProtocolError::MalformedKey("not base64url; was it copied whole?"))?;
        let key: Self = serde_json::from_slice(&json)
            .map_err(|_| ProtocolError::MalformedKey("a field is missing; was it copied whole?"))?;
        if key.gateway.is_empty()
            || key.secret.is_empty()
            || !key.ca_pem.contains("BEGIN CERTIFICATE")
        {
            return Err(ProtocolError::MalformedKey(
                "gateway, CA or secret is empty",
            ));
        }
        Ok(key)
    }
}

impl std::fmt::Debug for RegistrationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrationKey")
            .field("gateway", &self.gateway)
            .field("expires_unix", &self.expires_unix)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> RegistrationKey {
        RegistrationKey {
            gateway: "dr.example:8444".to_owned(),
            ca_pem: "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n".to_owned(),
            secret: "s3cret".to_owned(),
            expires_unix: 1_800_000_000,
        }
    }

    #[test]
    fn survives_the_round_trip_through_text() {
        let text = format!("  {}\n", key().encode());
        assert_eq!(RegistrationKey::decode(&text).expect("own key"), key());
    }

    #[test]
    fn debug_form_keeps_the_secret_to_itself() {
        assert!(!format!("{:?}", key()).contains("s3cret"));
    }

    #[test]
    fn every_truncation_is_refused_without_repeating_the_text() {
        let text = key().encode();
        for end in 0..text.len() {
            let error = RegistrationKey::decode(&text[..end]).expect_err("a cut key");
            assert!(end < 10 || !error.to_string().contains(&text[5..end]));
        }
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in ".{0,200}") {
            let _ = RegistrationKey::decode(&text);
            let _ = RegistrationKey::decode(&format!("srk1.{text}"));
        }
    }
}
