//! Access tokens of the built-in issuer.

use serde_json::{Value, json};

use super::jwt::{JwtError, SigningKey};
use super::roles::Role;
use crate::store::records::Client;

/// Life of a token, in seconds.
pub const LIFE_SECONDS: i64 = 3_600;
/// Clocks may differ by so much, in seconds.
const SKEW_SECONDS: i64 = 60;
/// Audience of every token, whatever scope was asked for.
pub const AUDIENCE: &str = "https://management.azure.com";

/// Who makes a request.
#[derive(Debug, Clone)]
pub struct Principal {
    /// Client id.
    pub client_id: String,
    /// Role.
    pub role: Role,
    /// Scope, lower case.
    pub scope: String,
}

/// Why a token doesn't count.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Signature or form.
    #[error("the access token is not valid: {0}")]
    Jwt(#[from] JwtError),
    /// Too old, or not yet valid.
    #[error("the access token has expired")]
    Expired,
    /// Issued for something else.
    #[error("the access token was issued for something else")]
    Foreign,
}

/// See the module.
pub struct TokenIssuer {
    key: SigningKey,
    issuer: String,
    tenant_id: String,
}

// === impl TokenIssuer ===

impl TokenIssuer {
    /// With a key and our public URL.
    #[must_use]
    pub fn new(key: SigningKey, public_url: &str, tenant_id: &str) -> Self {
        Self {
            key,
            issuer: format!("{public_url}/{tenant_id}/v2.0"),
            tenant_id: tenant_id.to_owned(),
        }
    }

    /// Issuer as in tokens.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Public keys.
    #[must_use]
    pub fn key_set(&self) -> Value {
        self.key.key_set()
    }

    /// A token for a client.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn issue(&self, client: &Client, now_unix: i64) -> Result<String, JwtError> {
        self.key.sign(&json!({
            "iss": self.issuer, "aud": AUDIENCE, "tid": self.tenant_id, "ver": "2.0", "idtyp": "app",
            "sub": client.client_id, "oid": client.client_id, "appid": client.client_id, "azp": client.client_id,
            "roles": [client.role.as_str()],
            "iat": now_unix, "nbf": now_unix, "exp": now_unix + LIFE_SECONDS,
        }))
    }

    /// Checks a token; gives the client id. Role and scope are looked up, so that a removed client is out
    /// at once.
    ///
    /// # Errors
    /// When the token doesn't count.
    pub fn check(&self, token: &str, now_unix: i64) -> Result<String, TokenError> {
        let claims = self.key.open(token)?;
        let number = |name: &str| claims.get(name).and_then(Value::as_i64);
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let lives = number("exp").is_some_and(|end| now_unix < end + SKEW_SECONDS)
            && number("nbf").is_some_and(|begin| now_unix >= begin - SKEW_SECONDS);
        if !lives {
            return Err(TokenError::Expired);
        }
        if text("iss") != Some(&self.issuer) || text("aud") != Some(AUDIENCE) {
            return Err(TokenError::Foreign);
        }
        text("appid").map(str::to_owned).ok_or(TokenError::Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(url: &str, pkcs8: &[u8]) -> TokenIssuer {
        TokenIssuer::new(SigningKey::from_pkcs8(pkcs8).expect("key"), url, "t")
    }

    #[test]
    fn a_token_counts_until_it_expires_and_only_for_its_issuer() {
        let pkcs8 = SigningKey::generate().expect("random");
        let ours = issuer("https://a", &pkcs8);
        let client = Client {
            client_id: "c".to_owned(),
            name: "n".to_owned(),
            hash: String::new(),
            role: Role::Reader,
            scope: "/".to_owned(),
        };
        let token = ours.issue(&client, 1_000).expect("issued");
        assert_eq!(ours.check(&token, 1_500).expect("valid"), "c");
        assert!(matches!(
            ours.check(&token, 1_000 + LIFE_SECONDS + 61),
            Err(TokenError::Expired)
        ));
        assert!(matches!(ours.check(&token, 900), Err(TokenError::Expired)));
        assert!(matches!(
            issuer("https://b", &pkcs8).check(&token, 1_500),
            Err(TokenError::Foreign)
        ));
    }
}
