//! The two calls that the control plane makes to a storage account itself: make a container, borrow a key. No disk data
//! passes here. Errors name host, status and Azure's own code, never a query or a header.

use std::time::Duration;

use arm_model::ArmError;
use azure_storage::sas::UserDelegationKey;
use reqwest::{Client, RequestBuilder, StatusCode};

use super::Account;
use crate::fault::Fault;
use crate::store::records::AzurePlace;

/// Service version; emulators and every region know it.
const VERSION: &str = "2022-11-02";
const PATIENCE: Duration = Duration::from_secs(20);

/// How a call is allowed.
pub(super) enum Access {
    /// A signature.
    Sas(String),
    /// A token.
    Bearer(String),
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No client can be made of the account's settings.
    #[error("proxy or certificate authorities of the account can't be used")]
    Settings,
    /// No answer.
    #[error("`{host}` can't be reached: {why}")]
    Unreachable {
        /// Host.
        host: String,
        /// Why, without an address.
        why: String,
    },
    /// A refusal.
    #[error("`{host}` refused with status {status} ({code})")]
    Refused {
        /// Host.
        host: String,
        /// HTTP status.
        status: u16,
        /// Azure's code.
        code: String,
    },
    /// An answer of another shape.
    #[error("`{host}` gave an answer that is no key: it is no blob service, or an old one")]
    Unreadable {
        /// Host.
        host: String,
    },
}

/// The error of a job or a request whose storage account can't be used.
pub(super) fn refusal(account: &str, property: &str, why: &str) -> Fault {
    Fault::refuse(
        409,
        ArmError::new(
            "StorageAccountNotReachable",
            format!("The storage account `{account}` can't be used: {why}."),
        )
        .at(format!("properties.providerSpecificDetails.{property}"))
        .advise(
            "Endpoint, credential, proxy or firewall of the storage account don't fit, or the clocks differ by more than 15 minutes.",
            "Check them on the storage account, then repeat the request.",
        ),
    )
}

/// A client that goes through the account's proxy and trusts its authorities.
pub(super) fn http(account: &Account) -> Result<Client, CallError> {
    let mut builder = Client::builder()
        .timeout(PATIENCE)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(proxy) = &account.proxy_url {
        builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(|_| CallError::Settings)?);
    }
    if let Some(pem) = &account.ca_pem {
        let authorities = reqwest::Certificate::from_pem_bundle(pem.as_bytes());
        builder = builder.tls_certs_merge(authorities.map_err(|_| CallError::Settings)?);
    }
    builder.build().map_err(|_| CallError::Settings)
}

/// Makes a container; one that is there is fine.
pub(super) async fn create_container(
    http: &Client,
    place: &AzurePlace,
    access: &Access,
) -> Result<(), CallError> {
    let url = format!("{}/{}?restype=container", place.endpoint, place.container);
    let request = match access {
        Access::Sas(query) => http.put(format!("{url}&{query}")),
        Access::Bearer(token) => http.put(url).bearer_auth(token),
    };
    match send(&place.endpoint, request).await {
        Err(CallError::Refused { code, .. }) if code == "ContainerAlreadyExists" => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Borrows a key in the name of a client, from `start` to `expiry` (ISO 8601).
pub(super) async fn borrow_key(
    http: &Client,
    endpoint: &str,
    token: &str,
    start: &str,
    expiry: &str,
) -> Result<UserDelegationKey, CallError> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><KeyInfo><Start>{start}</Start><Expiry>{expiry}</Expiry></KeyInfo>"
    );
    let request = http
        .post(format!(
            "{endpoint}/?restype=service&comp=userdelegationkey"
        ))
        .bearer_auth(token)
        .header("content-type", "application/xml")
        .body(body);
    let answer = send(endpoint, request).await?;
    let part = |name: &str| element(&answer, name);
    let key = || {
        Some(UserDelegationKey {
            signed_oid: part("SignedOid")?,
            signed_tid: part("SignedTid")?,
            signed_start: part("SignedStart")?,
            signed_expiry: part("SignedExpiry")?,
            signed_service: part("SignedService")?,
            signed_version: part("SignedVersion")?,
            value: part("Value")?,
        })
    };
    key().ok_or_else(|| CallError::Unreadable {
        host: host_of(endpoint),
    })
}

async fn send(endpoint: &str, request: RequestBuilder) -> Result<String, CallError> {
    let host = host_of(endpoint);
    let unreachable = |error: reqwest::Error| CallError::Unreachable {
        host: host_of(endpoint),
        why: deepest(&error.without_url()),
    };
    let response = request
        .header("x-ms-version", VERSION)
        .send()
        .await
        .map_err(unreachable)?;
    let status = response.status();
    let body = response.text().await.map_err(unreachable)?;
    if status.is_success() || status == StatusCode::CREATED {
        return Ok(body);
    }
    Err(CallError::Refused {
        host,
        status: status.as_u16(),
        code: element(&body, "Code").unwrap_or_else(|| "no code".to_owned()),
    })
}

/// The innermost cause, which says most.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn host_of(endpoint: &str) -> String {
    let rest = endpoint
        .split_once("://")
        .map_or(endpoint, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}

/// The text of an XML element; these answers have neither attributes nor repeated names.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    (!text.contains('<')).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_host_and_nothing_that_is_secret() {
        assert_eq!(
            host_of("https://acct.blob.core.windows.net/x?sig=abc"),
            "acct.blob.core.windows.net"
        );
        let xml = "<Error><Code>AuthenticationFailed</Code><Message>m</Message></Error>";
        assert_eq!(
            element(xml, "Code").as_deref(),
            Some("AuthenticationFailed")
        );
        assert_eq!(element(xml, "Error"), None);
        assert_eq!(element("", "Code"), None);
    }
}
