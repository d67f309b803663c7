//! Any request to the orchestration API, for what has no command of its own.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arm_client::{CancellationToken, Method, Wait};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::connection::Connection;
use crate::show;

/// Longest wait for an operation.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Options of `rest`.
#[derive(Args)]
pub struct Rest {
    /// Method
    #[arg(value_enum, ignore_case = true)]
    method: Verb,
    /// ARM id, perhaps with an action; `{subscription}` stands for the subscription
    path: String,
    /// Body: JSON, a file as `@file.json`, or `-` for standard input (for secrets)
    #[arg(long)]
    body: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Verb {
    Get,
    Put,
    Patch,
    Post,
    Delete,
}

/// Sends the request, waits for the end of a long one, and prints the answer.
pub async fn send(connection: &Connection, request: &Rest) -> Result<()> {
    let path = request
        .path
        .replace("{subscription}", connection.subscription());
    if !path.starts_with('/') {
        bail!("`{path}` is no ARM id: it begins with /subscriptions/");
    }
    let body = request.body.as_deref().map(read).transpose()?;
    let method = match request.method {
        Verb::Get => Method::Get,
        Verb::Put => Method::Put,
        Verb::Patch => Method::Patch,
        Verb::Post => Method::Post,
        Verb::Delete => Method::Delete,
    };
    let answer: Value = if matches!(request.method, Verb::Get) {
        connection.client.get(&path).await?
    } else {
        let wait = Wait::new(PATIENCE, CancellationToken::new());
        connection
            .client
            .operate(method, &path, body.as_ref(), &wait)
            .await?
    };
    if answer.is_null() {
        return Ok(());
    }
    show::whole(&answer)
}

fn read(body: &str) -> Result<Value> {
    let text = match body.strip_prefix('@') {
        _ if body == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("the body can't be read from standard input")?;
            text
        }
        Some(file) => {
            std::fs::read_to_string(file).with_context(|| format!("{file} can't be read"))?
        }
        None => body.to_owned(),
    };
    // The text itself may hold a secret and is not shown.
    serde_json::from_str(&text)
        .map_err(|error| anyhow::anyhow!("the body is no JSON: line {}", error.line()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_json_is_not_shown() {
        let error = read("{ \"accountKey\": SECRET }").expect_err("no JSON");
        assert!(!format!("{error:#}").contains("SECRET"));
        assert_eq!(read("{\"a\":1}").expect("JSON")["a"], 1);
    }
}
