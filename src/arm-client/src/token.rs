//! The token of the client credentials flow: fetched when needed, kept until shortly before it ends.

use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::Mutex;

use crate::Secret;
use crate::client::ClientConfig;
use crate::error::{ClientError, ClientErrorKind};
use crate::paths::encode_segment;

/// A token is renewed this long before it ends, so that it doesn't end on its way.
const MARGIN: Duration = Duration::from_secs(60);

pub(crate) struct Tokens {
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    token: Secret,
    good_until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    #[serde(default)]
    expires_in: Seconds,
}

/// Whole seconds, which some issuers write as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(u64),
    Text(String),
}

impl Default for Seconds {
    fn default() -> Self {
        Seconds::Number(300)
    }
}

impl Tokens {
    pub(crate) fn new() -> Self {
        Tokens {
            kept: Mutex::new(None),
        }
    }

    /// Forgets a token that the service has refused.
    pub(crate) async fn forget(&self, refused: &Secret) {
        let mut kept = self.kept.lock().await;
        if kept.as_ref().is_some_and(|k| k.token == *refused) {
            *kept = None;
        }
    }

    /// The token, from the issuer if none is kept. One fetch at a time: the others wait for it.
    pub(crate) async fn get(
        &self,
        http: &reqwest::Client,
        config: &ClientConfig,
    ) -> Result<Secret, ClientError> {
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref()
            && Instant::now() < kept.good_until
        {
            return Ok(kept.token.clone());
        }
        let (token, life) = fetch(http, config).await?;
        let good_until = Instant::now() + life.saturating_sub(MARGIN).max(life / 2);
        *kept = Some(Kept {
            token: token.clone(),
            good_until,
        });
        Ok(token)
    }
}

async fn fetch(
    http: &reqwest::Client,
    config: &ClientConfig,
) -> Result<(Secret, Duration), ClientError> {
    const ACTION: &str = "fetching a token";
    let url = format!(
        "{}/{}/oauth2/v2.0/token",
        config
            .authority
            .as_deref()
            .unwrap_or(&config.endpoint)
            .trim_end_matches('/'),
        encode_segment(&config.tenant_id)
    );
    let body = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}&scope={}",
        encode_segment(&config.client_id),
        encode_segment(config.client_secret.expose()),
        encode_segment(&format!("{}/.default", config.endpoint)),
    );
    let answer = http
        .post(url)
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(body)
        .send()
        .await
        .map_err(|error| crate::client::transport_error(ACTION, error))?;
    let status = answer.status().as_u16();
    let bytes = answer
        .bytes()
        .await
        .map_err(|e| crate::client::transport_error(ACTION, e))?;
    if status >= 400 {
        let mut error = ClientError::from_answer(ACTION, status, &bytes, None);
        // 400 invalid_client, invalid_grant and the like all mean one thing to the user.
        if status < 500 && status != 429 {
            error.kind = ClientErrorKind::Unauthorized;
        }
        return Err(error);
    }
    let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|_| {
        // Without the cause: a parser may quote what it read, and that could be the token.
        ClientError::new(
            ClientErrorKind::BadAnswer,
            ACTION,
            "the answer holds no token",
        )
    })?;
    let seconds = match answer.expires_in {
        Seconds::Number(n) => n,
        Seconds::Text(text) => text.parse().unwrap_or(300),
    };
    Ok((
        Secret::new(answer.access_token),
        Duration::from_secs(seconds),
    ))
}
