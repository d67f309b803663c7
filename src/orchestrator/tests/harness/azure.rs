//! A stand-in for Entra ID and a blob service: it knows one client and one account key, makes containers, lends keys, and
//! remembers what it was asked. It checks what the control plane says, not what signatures are worth: that is proven
//! against a real emulator where data flows.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

pub const SECRET: &str = "entra-client-secret-of-the-test";
pub const TENANT: &str = "tenant-of-the-test";

/// How it behaves, and what happened.
#[derive(Default)]
pub struct Inner {
    /// Requests: method, path and query.
    pub requests: Vec<String>,
    /// Nobody is let in.
    pub refuses: bool,
    /// Keys lent so far.
    pub lent: usize,
}

pub struct Azure {
    pub address: SocketAddr,
    pub inner: Arc<Mutex<Inner>>,
    task: tokio::task::JoinHandle<()>,
}

impl Azure {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("address");
        let address = listener.local_addr().expect("address");
        let inner = Arc::new(Mutex::new(Inner::default()));
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&inner));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("served");
        });
        Self {
            address,
            inner,
            task,
        }
    }

    /// Blob endpoint of the account `acct`, in the form of emulators.
    pub fn endpoint(&self) -> String {
        format!("http://{}/acct", self.address)
    }

    pub fn authority(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<String> {
        self.inner.lock().expect("lock").requests.clone()
    }

    pub fn refuse(&self, refuses: bool) {
        self.inner.lock().expect("lock").refuses = refuses;
    }

    pub fn lent(&self) -> usize {
        self.inner.lock().expect("lock").lent
    }
}

impl Drop for Azure {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(inner): State<Arc<Mutex<Inner>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.expect("body");
    let text = String::from_utf8_lossy(&body).into_owned();
    let mut inner = inner.lock().expect("lock");
    let target = parts.uri.to_string();
    inner.requests.push(format!("{} {target}", parts.method));
    let error = |status: StatusCode, code: &str| {
        let xml = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        (status, xml).into_response()
    };
    if target.ends_with("/oauth2/v2.0/token") {
        let known = target.contains(TENANT) && text.contains(SECRET);
        if !known || inner.refuses {
            let body = r#"{"error":"invalid_client","error_description":"AADSTS7000215"}"#;
            return (StatusCode::UNAUTHORIZED, body).into_response();
        }
        return (
            StatusCode::OK,
            r#"{"access_token":"token-of-the-test","expires_in":3600,"token_type":"Bearer"}"#,
        )
            .into_response();
    }
    let bearer = parts
        .headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value == "Bearer token-of-the-test");
    if inner.refuses || !(bearer || target.contains("sig=")) {
        return error(StatusCode::FORBIDDEN, "AuthenticationFailed");
    }
    if target.contains("comp=userdelegationkey") {
        let part = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>")).expect("element");
            rest.split('<').next().expect("text").to_owned()
        };
        inner.lent += 1;
        let xml = format!(
            "<?xml version=\"1.0\"?><UserDelegationKey><SignedOid>oid</SignedOid><SignedTid>tid</SignedTid>\
             <SignedStart>{}</SignedStart><SignedExpiry>{}</SignedExpiry><SignedService>b</SignedService>\
             <SignedVersion>2022-11-02</SignedVersion><Value>bGVudC1rZXktb2YtdGhlLXRlc3Q=</Value></UserDelegationKey>",
            part("Start"),
            part("Expiry")
        );
        return (StatusCode::OK, xml).into_response();
    }
    if target.contains("restype=container") {
        return StatusCode::CREATED.into_response();
    }
    error(StatusCode::NOT_FOUND, "ResourceNotFound")
}
