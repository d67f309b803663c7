//! Tokens from an Entra-like authority, by client credentials; and the key that such a token lends for signatures.
//!
//! What may go wrong: the authority is away ([`ErrorKind::Unavailable`]) or refuses the client
//! ([`ErrorKind::Unauthorized`], with the authority's own words). The client's secret is in no error.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::Credential;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};

/// What a token must be good for.
pub const STORAGE_SCOPE: &str = "https://storage.azure.com/.default";

/// The public cloud's authority.
pub const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";

/// Asks for tokens in the name of one application. The secret is not shown by `Debug`.
#[derive(Clone)]
pub struct ClientCredentials {
    http: reqwest::Client,
    token_url: String,
    client_id: String,
    client_secret: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    expires_in: serde_json::Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusal {
    error: String,
    error_description: String,
}

impl ClientCredentials {
    /// `authority` is a URL such as [`PUBLIC_AUTHORITY`]; `http` brings proxy and authorities.
    pub fn new(
        http: reqwest::Client,
        authority: &str,
        tenant_id: &str,
        client_id: &str,
        client_secret: &str,
    ) -> Self {
        ClientCredentials {
            http,
            token_url: format!(
                "{}/{tenant_id}/oauth2/v2.0/token",
                authority.trim_end_matches('/')
            ),
            client_id: client_id.to_owned(),
            client_secret: client_secret.to_owned(),
        }
    }

    /// A token for the blob service.
    pub async fn token(&self, clock: &dyn Clock) -> Result<Credential> {
        let form = crate::sas::encode_pairs(&[
            ("grant_type", "client_credentials"),
            ("client_id", &self.client_id),
            ("client_secret", &self.client_secret),
            ("scope", STORAGE_SCOPE),
        ]);
        let what = format!("token of client {} from {}", self.client_id, self.token_url);
        let asked_at = clock.unix_ms();
        let unavailable = |error: reqwest::Error| {
            Error::new(ErrorKind::Unavailable, format!("{what}: no answer"))
                .caused_by(&error.without_url())
        };
        let response = self
            .http
            .post(&self.token_url)
            .header("content-type", "application/x-www-form-urlencoded")
            .timeout(Duration::from_secs(30))
            .body(form)
            .send()
            .await
            .map_err(unavailable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unavailable)?;
        if !status.is_success() {
            let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            let kind = if status.is_server_error() || status.as_u16() == 429 {
                ErrorKind::Unavailable
            } else {
                ErrorKind::Unauthorized
            };
            return Err(Error::new(
                kind,
                format!(
                    "{what} refused with {status}: {} {}",
                    refusal.error, refusal.error_description
                ),
            ));
        }
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|error| {
            Error::new(
                ErrorKind::Unavailable,
                format!("{what}: the answer is no token"),
            )
            .caused_by(&error)
        })?;
        // Some authorities write the number as text.
        let seconds = answer
            .expires_in
            .as_i64()
            .or_else(|| answer.expires_in.as_str()?.parse().ok())
            .unwrap_or(300);
        Ok(Credential::bearer(
            answer.access_token,
            asked_at.saturating_add(seconds.saturating_mul(1000)),
        ))
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("token_url", &self.token_url)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}
