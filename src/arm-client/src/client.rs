//! One request with its token, its retries and its answer.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Secret;
use crate::error::{ClientError, ClientErrorKind, Retry};
use crate::paths::{describe, path_and_query, with_api_version};
use crate::token::Tokens;

/// How the service is reached and who asks.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Address of the service, without a path: `https://host:port`. Plain HTTP is accepted for this machine only.
    pub endpoint: String,
    /// Certificates (PEM) that the service's certificate is verified against, in place of the system's.
    pub ca_pem: Option<String>,
    /// Address of the token issuer when it is another one than the service, without a path, such as
    /// `https://login.microsoftonline.com`.
    pub authority: Option<String>,
    /// Tenant the token is asked for.
    pub tenant_id: String,
    /// Name of the client (application id).
    pub client_id: String,
    /// Its secret.
    pub client_secret: Secret,
    /// How often a request is tried in all; at least 1.
    pub attempts: u32,
    /// First pause between attempts; it doubles each time, up to 20 times this value.
    pub back_off: Duration,
    /// Time limit of one attempt.
    pub request_timeout: Duration,
}

impl ClientConfig {
    /// Usual limits: 5 attempts, half a second, 60 seconds.
    pub fn new(
        endpoint: impl Into<String>,
        tenant_id: impl Into<String>,
        client_id: impl Into<String>,
        client_secret: Secret,
    ) -> Self {
        ClientConfig {
            endpoint: endpoint.into().trim_end_matches('/').to_owned(),
            ca_pem: None,
            authority: None,
            tenant_id: tenant_id.into(),
            client_id: client_id.into(),
            client_secret,
            attempts: 5,
            back_off: Duration::from_millis(500),
            request_timeout: Duration::from_secs(60),
        }
    }
}

/// The methods of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Create or replace; may be sent again.
    Put,
    /// Change.
    Patch,
    /// Act; is not sent again when its outcome is unknown.
    Post,
    /// Remove; may be sent again.
    Delete,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }

    fn may_be_repeated(self) -> bool {
        !matches!(self, Method::Post)
    }
}

/// An answer below 400.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body; `Null` when there was none.
    pub body: Value,
    /// `Location`, if any.
    pub location: Option<String>,
    /// `Azure-AsyncOperation`, if any.
    pub async_operation: Option<String>,
    /// `Retry-After`, if any.
    pub retry_after: Option<Duration>,
    /// Id of the request in the service's log.
    pub request_id: Option<String>,
}

/// The client. Cheap to clone; clones share connections and the token.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    http: reqwest::Client,
    config: ClientConfig,
    tokens: Arc<Tokens>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.inner.config.endpoint)
            .finish()
    }
}

impl Client {
    /// Checks the configuration; nothing is sent yet.
    pub fn new(config: ClientConfig) -> Result<Client, ClientError> {
        const ACTION: &str = "configuring the client";
        let wrong = |text: &str| ClientError::new(ClientErrorKind::Configuration, ACTION, text);
        let secure = |address: &str| -> Result<bool, ClientError> {
            let parsed = reqwest::Url::parse(address)
                .map_err(|e| wrong("the endpoint is not a URL").caused_by(e))?;
            let host = parsed.host_str().unwrap_or_default();
            let this_machine = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
            Ok(parsed.scheme() == "https" || parsed.scheme() == "http" && this_machine)
        };
        if !secure(&config.endpoint)? {
            return Err(wrong("the endpoint must begin with https://"));
        }
        if let Some(authority) = &config.authority
            && !secure(authority)?
        {
            return Err(wrong("the authority must begin with https://"));
        }
        // Another part of the program may have installed one already; either is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .timeout(config.request_timeout)
            .connect_timeout(Duration::from_secs(10))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("siterecovery/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = &config.ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|e| wrong("the CA certificates can't be read as PEM").caused_by(e))?;
            if certificates.is_empty() {
                return Err(wrong("the CA file holds no certificate"));
            }
            builder = builder.tls_certs_only(certificates);
        }
        let http = builder
            .build()
            .map_err(|e| wrong("TLS can't be set up with these certificates").caused_by(e))?;
        Ok(Client {
            inner: Arc::new(Inner {
                http,
                config,
                tokens: Arc::new(Tokens::new()),
            }),
        })
    }

    /// The same client, connections and token, with another number of attempts: 1 for callers that look at what became
    /// of a request before they send it again.
    pub fn with_attempts(&self, attempts: u32) -> Client {
        let mut config = self.inner.config.clone();
        config.attempts = attempts.max(1);
        Client {
            inner: Arc::new(Inner {
                http: self.inner.http.clone(),
                config,
                tokens: Arc::clone(&self.inner.tokens),
            }),
        }
    }

    /// The configured endpoint.
    pub fn endpoint(&self) -> &str {
        &self.inner.config.endpoint
    }

    /// Fetches a token now, so that wrong credentials show up at once.
    pub async fn sign_in(&self) -> Result<(), ClientError> {
        let inner = &self.inner;
        let mut attempt = 1;
        loop {
            match inner.tokens.get(&inner.http, &inner.config).await {
                Ok(_) => return Ok(()),
                Err(error) if error.retry() != Retry::No && attempt < inner.config.attempts => {
                    self.pause(attempt, None, &error).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a resource.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.request(Method::Get, path, None).await?;
        decode(&describe("GET", path), answer.body)
    }

    /// Reads a resource; `None` when it doesn't exist.
    pub async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ClientError> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads all pages of a list.
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let action = describe("GET", path);
        let mut all = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut next = Some(path.to_owned());
        while let Some(at) = next {
            let (page, following) = self.page(&at).await?;
            for entry in page {
                all.push(decode(&action, entry)?);
            }
            if let Some(link) = &following
                && !seen.insert(link.clone())
            {
                let text = "the pages of the list lead back to one another";
                return Err(ClientError::new(ClientErrorKind::BadAnswer, action, text));
            }
            next = following;
        }
        Ok(all)
    }

    /// Reads one page of a list: its entries and the path of the next page.
    pub async fn page(&self, path: &str) -> Result<(Vec<Value>, Option<String>), ClientError> {
        let mut answer = self.request(Method::Get, path, None).await?;
        let next = match answer.body.get("nextLink") {
            Some(Value::String(link)) if !link.is_empty() => Some(path_and_query(link).to_owned()),
            _ => None,
        };
        match answer.body.get_mut("value").map(Value::take) {
            Some(Value::Array(entries)) => Ok((entries, next)),
            _ => Err(ClientError::new(
                ClientErrorKind::BadAnswer,
                describe("GET", path),
                "the answer is not a list",
            )),
        }
    }

    /// Sends one request, again and again as far as that is safe, and gives back the first answer below 400.
    /// `path` begins with a slash; without `api-version` the usual one is added.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let config = &self.inner.config;
        let action = describe(method.name(), path);
        let url = format!(
            "{}{}",
            config.endpoint,
            with_api_version(path_and_query(path))
        );
        let request_id = uuid::Uuid::new_v4().to_string();
        let (mut attempt, mut renewed, mut outcome_unknown) = (1, false, false);
        loop {
            let (error, wait) = match self.attempt(method, &url, &action, body, &request_id).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Refused(token)) if !renewed => {
                    // The token may have been revoked or the issuer's key changed: one new one, then give up.
                    renewed = true;
                    self.inner.tokens.forget(&token).await;
                    continue;
                }
                Err(Failed::Refused(_)) => {
                    let text = "the service refuses the token it has just issued";
                    let mut error = ClientError::new(ClientErrorKind::Unauthorized, action, text);
                    error.marks.status = Some(401);
                    error.marks.request_id = Some(request_id);
                    return Err(error);
                }
                Err(Failed::Error(error, wait)) => (error, wait),
            };
            // A DELETE whose answer was lost has been carried out if the thing is gone now.
            if outcome_unknown && method == Method::Delete && error.is_not_found() {
                return Ok(Answer::nothing(204));
            }
            let unknown = error.retry() == Retry::UnknownOutcome || is_gateway_error(&error);
            outcome_unknown |= unknown;
            let repeat = match error.retry() {
                Retry::No => false,
                _ if unknown => method.may_be_repeated(),
                _ => true,
            };
            if !repeat || attempt >= config.attempts {
                if unknown && !method.may_be_repeated() {
                    let mut error = error;
                    error.kind = ClientErrorKind::UnknownOutcome;
                    return Err(error);
                }
                return Err(error);
            }
            self.pause(attempt, wait, &error).await;
            attempt += 1;
        }
    }

    async fn pause(&self, attempt: u32, wait: Option<Duration>, error: &ClientError) {
        let back_off = self.inner.config.back_off;
        let doubled = back_off.saturating_mul(1 << (attempt - 1).min(10));
        let pause = wait.unwrap_or(doubled.min(back_off.saturating_mul(20)));
        tracing::debug!(%error, attempt, pause_ms = pause.as_millis() as u64, "trying again");
        tokio::time::sleep(pause).await;
    }

    async fn attempt(
        &self,
        method: Method,
        url: &str,
        action: &str,
        body: Option<&Value>,
        request_id: &str,
    ) -> Result<Answer, Failed> {
        let inner = &self.inner;
        let token = inner
            .tokens
            .get(&inner.http, &inner.config)
            .await
            .map_err(|error| Failed::Error(error, None))?;
        let verb = match method {
            Method::Get => reqwest::Method::GET,
            Method::Put => reqwest::Method::PUT,
            Method::Patch => reqwest::Method::PATCH,
            Method::Post => reqwest::Method::POST,
            Method::Delete => reqwest::Method::DELETE,
        };
        let mut request = inner
            .http
            .request(verb, url)
            .bearer_auth(token.expose())
            .header("Accept", "application/json")
            .header("x-ms-client-request-id", request_id);
        request = match body {
            Some(body) => request.json(body),
            None if method == Method::Post => request.header("Content-Length", "0"),
            None => request,
        };
        let failed = |error| Failed::Error(transport_error(action, error), None);
        let response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|v| v.to_str().ok())
                .map(ToOwned::to_owned)
        };
        let (location, async_operation) = (header("location"), header("azure-asyncoperation"));
        // A page for people, where one was asked for; a proxy's comes with JSON asked for.
        let page = url.contains("format=html")
            && header("content-type").is_some_and(|kind| kind.starts_with("text/html"));
        let retry_after = header("retry-after")
            .and_then(|text| text.trim().parse().ok())
            .map(Duration::from_secs);
        let request_id = header("x-ms-request-id").or_else(|| Some(request_id.to_owned()));
        let bytes = response.bytes().await.map_err(failed)?;
        if status == 401 {
            return Err(Failed::Refused(token));
        }
        if status == 408 || status >= 400 {
            let mut error = ClientError::from_answer(action, status, &bytes, request_id);
            if status == 408 {
                error.kind = ClientErrorKind::Service;
            }
            // A server in trouble may ask for very long pauses; nobody waits longer than two minutes at a time.
            let retry_after = retry_after.map(|w| w.min(Duration::from_secs(120)));
            error.marks.retry_after = retry_after;
            return Err(Failed::Error(error, retry_after));
        }
        if (300..400).contains(&status) {
            let text = format!("the service answered {status}, a redirection");
            let error = ClientError::new(ClientErrorKind::BadAnswer, action, text);
            return Err(Failed::Error(error, None));
        }
        let body = if bytes.iter().all(u8::is_ascii_whitespace) {
            Value::Null
        } else if page {
            Value::String(String::from_utf8_lossy(&bytes).into_owned())
        } else {
            serde_json::from_slice(&bytes).map_err(|error| {
                let text = "the answer is not JSON; is the endpoint right?";
                let error =
                    ClientError::new(ClientErrorKind::BadAnswer, action, text).caused_by(error);
                Failed::Error(error, None)
            })?
        };
        tracing::debug!(action, status, "answered");
        Ok(Answer {
            status,
            body,
            location,
            async_operation,
            retry_after,
            request_id,
        })
    }
}

impl Answer {
    pub(crate) fn nothing(status: u16) -> Self {
        Answer {
            status,
            body: Value::Null,
            location: None,
            async_operation: None,
            retry_after: None,
            request_id: None,
        }
    }
}

enum Failed {
    /// The token was refused.
    Refused(Secret),
    /// Anything else, with the pause the service asks for.
    Error(ClientError, Option<Duration>),
}

/// 502 and 504 come from something in between: whether the service got the request is unknown. 500 as well.
fn is_gateway_error(error: &ClientError) -> bool {
    matches!(error.marks.status, Some(500 | 502 | 504))
}

/// Sorts what happened below HTTP.
pub(crate) fn transport_error(action: &str, error: reqwest::Error) -> ClientError {
    // Who was called is told, without path and query: the action names those that matter.
    let place = error.url().map_or_else(String::new, |url| {
        format!(" at {}", url.origin().ascii_serialization())
    });
    let error = error.without_url();
    let mut chain = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(inner) = cause {
        chain = inner.to_string();
        cause = inner.source();
    }
    let untrusted = chain.contains("certificate") || chain.contains("UnknownIssuer");
    let (kind, text) = if error.is_connect() && untrusted {
        (
            ClientErrorKind::Untrusted,
            format!("the certificate of the service{place} is not accepted: {chain}"),
        )
    } else if error.is_connect() {
        (
            ClientErrorKind::Unreachable,
            format!("the service{place} can't be reached: {chain}"),
        )
    } else if error.is_timeout() {
        (
            ClientErrorKind::UnknownOutcome,
            "no answer came in time".to_owned(),
        )
    } else if error.is_builder() {
        (
            ClientErrorKind::Configuration,
            "the request can't be built".to_owned(),
        )
    } else {
        (
            ClientErrorKind::UnknownOutcome,
            format!("the connection broke before the answer: {chain}"),
        )
    };
    ClientError::new(kind, action, text).caused_by(error)
}

pub(crate) fn decode<T: DeserializeOwned>(action: &str, body: Value) -> Result<T, ClientError> {
    serde_json::from_value(body).map_err(|error| {
        let text = "the answer has another shape than expected";
        ClientError::new(ClientErrorKind::BadAnswer, action, text).caused_by(error)
    })
}
