//! The built-in OAuth 2 issuer: discovery, keys, token by client credentials. It answers errors as OAuth
//! words them, not as ARM does.

use std::collections::HashMap;

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use serde_json::{Value, json};
use tracing::warn;

use super::{clients, secret};
use crate::app::App;

/// Whether a path belongs to the token service.
#[must_use]
pub fn owns(path: &str) -> bool {
    let rest = path
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .map(|(_, rest)| rest.to_ascii_lowercase());
    rest.is_some_and(|rest| {
        matches!(
            rest.as_str(),
            "v2.0/.well-known/openid-configuration"
                | ".well-known/openid-configuration"
                | "discovery/v2.0/keys"
                | "oauth2/v2.0/token"
                | "oauth2/token"
        )
    })
}

/// Answers a request of the token service, when it is one. The path is `/{tenant}/…`.
pub async fn answer(
    app: &App,
    method: &str,
    path: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Option<(StatusCode, Value)> {
    let (tenant, rest) = path.strip_prefix('/')?.split_once('/')?;
    let rest = rest.to_ascii_lowercase();
    if !owns(path) {
        return None;
    }
    if !tenant.eq_ignore_ascii_case(&app.tenant_id) {
        return Some(refuse(
            StatusCode::BAD_REQUEST,
            "invalid_tenant",
            "this tenant is not known here; see SITERECOVERY_TENANT_ID",
        ));
    }
    Some(match (method, rest.as_str()) {
        ("GET", "discovery/v2.0/keys") => (StatusCode::OK, app.tokens.key_set()),
        ("GET", document) if document.ends_with("openid-configuration") => {
            (StatusCode::OK, discovery(app))
        }
        ("POST", "oauth2/v2.0/token" | "oauth2/token") => token(app, headers, body).await,
        _ => refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request",
            "method is not possible here",
        ),
    })
}

fn discovery(app: &App) -> Value {
    let base = format!("{}/{}", app.public_url, app.tenant_id);
    json!({
        "issuer": app.tokens.issuer(),
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "tenant_region_scope": null,
        "cloud_instance_name": "siterecovery",
    })
}

async fn token(app: &App, headers: &HeaderMap, body: &[u8]) -> (StatusCode, Value) {
    let form = form(body);
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    if field("grant_type") != "client_credentials" {
        return refuse(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "only client_credentials is possible",
        );
    }
    let (client_id, given) = match basic(headers) {
        Some(pair) => pair,
        None => (
            field("client_id").to_owned(),
            field("client_secret").to_owned(),
        ),
    };
    let client = match clients::find(app.store.as_ref(), &client_id).await {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "client can't be read"
            );
            return refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "the metadata store failed",
            );
        }
    };
    let Some(client) = client.filter(|client| secret::verify(&given, &client.hash)) else {
        warn!("token refused: unknown client or wrong secret");
        return refuse(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            "client id or client secret is wrong",
        );
    };
    match app.tokens.issue(&client, app.now().unix_timestamp()) {
        Ok(token) => {
            let life = super::token::LIFE_SECONDS;
            let answer = json!({ "token_type": "Bearer", "expires_in": life, "ext_expires_in": life, "access_token": token });
            (StatusCode::OK, answer)
        }
        Err(error) => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            &error.to_string(),
        ),
    }
}

fn refuse(status: StatusCode, error: &str, description: &str) -> (StatusCode, Value) {
    (
        status,
        json!({ "error": error, "error_description": description }),
    )
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text.strip_prefix("Basic ")?)
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (client, secret) = text.split_once(':')?;
    Some((decode(client), decode(secret)))
}

/// Reads a form-encoded body or a query; of a repeated name the last one counts.
#[must_use]
pub fn form(body: &[u8]) -> HashMap<String, String> {
    let text = String::from_utf8_lossy(body);
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// Undoes form encoding; malformed escapes stay as they are.
#[must_use]
pub fn decode(text: &str) -> String {
    percent(&text.replace('+', " "))
}

/// A value of a query, percent encoded.
#[must_use]
pub fn escaped(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// Undoes percent encoding; malformed escapes stay as they are.
#[must_use]
pub fn percent(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escape = (byte == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let value = escape
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match value {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_with_their_escapes() {
        let form = form(b"grant_type=client_credentials&client_secret=a%2Bb+c%zz&x");
        assert_eq!(form["client_secret"], "a+b c%zz");
        assert_eq!(form["x"], "");
        let text = "jobStatus eq 'a+b' & c=ü";
        assert_eq!(decode(&escaped(text)), text);
    }
}
