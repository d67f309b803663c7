//! Webhooks: the context is posted until somebody takes it, with a key by which a repetition is known.
//!
//! The URL may itself be a secret (many services put a token into it), so only its host is ever told.

use std::time::Duration;

use arm_model::ArmError;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::{Of, Seen, context, elapsed_ms, millis};
use crate::fault::Fault;
use crate::saga::Run;
use crate::saga::steps::ActionStep;

/// Longest time of one try.
const ONE_TRY_MS: i64 = 15_000;
/// Pause between two tries.
const PAUSE_MS: i64 = 2_000;
/// Header that tells a repetition.
const KEY: &str = "Idempotency-Key";

/// How one try ended.
enum Try {
    Taken(StatusCode),
    /// Perhaps later.
    Later(String),
    Refused(String),
}

pub(super) async fn act(
    run: &mut Run<'_>,
    of: &Of<'_>,
    step: &ActionStep,
    url: &str,
    limit_seconds: u32,
) -> Result<Seen, Fault> {
    let memo = format!("tried {}", run.job.node);
    let now = run.app.now_ms();
    let last = run.job.recall(&memo).and_then(Value::as_i64);
    if last.is_some_and(|last| (0..PAUSE_MS).contains(&(now - last))) {
        return Ok(Seen::Waits);
    }
    let (body, key) = (
        context::of(run, of, step).await?,
        super::id(run).to_string(),
    );
    let left = (millis(limit_seconds) - elapsed_ms(run)).clamp(1_000, ONE_TRY_MS);
    let limit = Duration::from_millis(u64::try_from(left).unwrap_or_default());
    let host = host(url);
    let why = match post(url, &key, body, limit).await {
        Try::Taken(status) => return Ok(Seen::well(json!({ "status": status.as_u16() }))),
        Try::Refused(why) => why,
        Try::Later(why) if elapsed_ms(run) >= millis(limit_seconds) => {
            format!("{why}, until its {limit_seconds} s were over")
        }
        Try::Later(_) => {
            run.job.remember(&memo, run.app.now_ms());
            return Ok(Seen::Waits);
        }
    };
    let error = ArmError::new("WebhookFailed", format!("{host} {why}.")).advise(
        "The service behind the URL is away, refuses the call, or has moved.",
        "Check the URL and the service behind it, then start the plan again.",
    );
    Ok(Seen::badly(error, Value::Null))
}

async fn post(url: &str, key: &str, body: String, limit: Duration) -> Try {
    let client = Client::builder()
        .timeout(limit)
        .redirect(reqwest::redirect::Policy::none())
        .build();
    let request = match client {
        Ok(client) => client.post(url).header(KEY, key),
        Err(error) => return Try::Refused(format!("can't be called: {}", error.without_url())),
    };
    let request = request
        .header("Content-Type", "application/json")
        .body(body);
    match request.send().await {
        Ok(answer) => match answer.status() {
            status if status.is_success() => Try::Taken(status),
            status if status.is_redirection() => {
                Try::Refused(format!("sends elsewhere ({status}), which is not followed"))
            }
            status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => {
                Try::Later(format!("answers {status}"))
            }
            status => Try::Refused(format!("answers {status}")),
        },
        // The body can be sent again: the key tells whoever got it already.
        Err(error) if error.is_timeout() => Try::Later("does not answer in time".to_owned()),
        Err(_) => Try::Later("can't be reached".to_owned()),
    }
}

fn host(url: &str) -> &str {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}
