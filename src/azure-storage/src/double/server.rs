//! The double's server: takes calls off sockets, lets faults happen, asks who calls, and answers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::auth::{self, Presented};
use super::blobs::{Account, Data, Keep};
use super::faults::{Call, Fault, Faults};
use super::limits::Buckets;
use super::operations::{self, Reply};
use crate::clock::{Clock, SystemClock};
use crate::credential::{Credential, CredentialHandle};
use crate::sas::{self, AccountKey, Permissions, Protocols, SasRequest};

const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "c2l0ZS1yZWNvdmVyeS1kb3VibGUta2V5LW9mLXRoZS10ZXN0cw==";

/// How the double behaves.
#[derive(Clone, Debug)]
pub struct DoubleOptions {
    /// A premium page blob account: no block blobs, few snapshots.
    pub premium: bool,
    /// Whether blobs have limits.
    pub limits: bool,
    /// Entries of one page of a listing, and of page ranges.
    pub page_size: usize,
    /// Time for limits, leases and expiry.
    pub clock: Arc<dyn Clock>,
}

impl Default for DoubleOptions {
    fn default() -> Self {
        DoubleOptions {
            premium: false,
            limits: true,
            page_size: 5,
            clock: SystemClock::shared(),
        }
    }
}

/// A blob, see [`Double::look`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Bytes.
    pub length: u64,
    /// A page blob, not a block blob.
    pub is_page_blob: bool,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// A clock that stands still until it is moved; whoever sleeps moves it.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ms: AtomicU64,
}

impl ManualClock {
    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.now_ms.fetch_add(by.max(1), Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now_ms.load(Ordering::SeqCst))
    }

    fn unix_ms(&self) -> i64 {
        1_764_000_000_000 + i64::try_from(self.now_ms.load(Ordering::SeqCst)).unwrap_or(0)
    }

    async fn sleep(&self, duration: Duration) {
        self.advance(duration);
        tokio::task::yield_now().await;
    }
}

pub(super) struct Shared {
    pub(super) account: Mutex<Account>,
    pub(super) key: AccountKey,
    pub(super) options: DoubleOptions,
    tokens: Mutex<HashMap<String, i64>>,
    buckets: Mutex<Buckets>,
    skew_ms: AtomicI64,
    faults: Faults,
}

impl Shared {
    fn unix_ms(&self) -> i64 {
        self.options.clock.unix_ms() + self.skew_ms.load(Ordering::SeqCst)
    }

    fn issue(&self, lifetime_ms: i64) -> String {
        let token = format!("token-{}", uuid::Uuid::new_v4().simple());
        lock(&self.tokens).insert(token.clone(), self.unix_ms() + lifetime_ms);
        token
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running blob service with one account. It ends when this is dropped.
pub struct Double {
    address: SocketAddr,
    pub(super) shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Double {
    /// Starts it on a free port of this machine.
    pub async fn start(options: DoubleOptions) -> io::Result<Double> {
        let key = AccountKey::new(ACCOUNT, KEY).map_err(io::Error::other)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            account: Mutex::default(),
            key,
            options,
            tokens: Mutex::default(),
            buckets: Mutex::default(),
            skew_ms: AtomicI64::new(0),
            faults: Faults::default(),
        });
        let server = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Double {
            address,
            shared,
            server,
        })
    }

    /// Blob endpoint, account in the path.
    pub fn endpoint(&self) -> String {
        format!("http://{}/{ACCOUNT}", self.address)
    }

    /// Authority for [`crate::oauth::ClientCredentials`]; any client whose secret is `secret` gets a token.
    pub fn authority(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The account's key.
    pub fn key(&self) -> &AccountKey {
        &self.shared.key
    }

    /// Makes a container, as the orchestrator would have.
    pub fn make_container(&self, name: &str) {
        lock(&self.shared.account)
            .containers
            .insert(name.to_owned(), Keep::default());
    }

    /// A signature for a container, of the double's own time.
    pub fn sas(&self, container: &str, permissions: Permissions, lifetime_ms: i64) -> Credential {
        let request = SasRequest {
            container: container.to_owned(),
            permissions,
            protocols: Protocols::HttpsAndHttp,
            now_unix_ms: self.shared.unix_ms(),
            lifetime_ms,
        };
        sas::mint(&self.shared.key, &request).credential()
    }

    /// A handle with a signature for an hour.
    pub fn credential(&self, container: &str) -> CredentialHandle {
        CredentialHandle::new(self.sas(container, Permissions::REPLICATE, 3_600_000))
    }

    /// A token.
    pub fn token(&self, lifetime_ms: i64) -> Credential {
        Credential::bearer(
            self.shared.issue(lifetime_ms),
            self.shared.unix_ms() + lifetime_ms,
        )
    }

    /// Moves the double's wall clock: credentials made before grow old.
    pub fn pass(&self, milliseconds: i64) {
        self.shared
            .skew_ms
            .fetch_add(milliseconds, Ordering::SeqCst);
    }

    /// A blob as who reads it without us finds it, by its address; `None` when there is none.
    pub fn look(&self, uri: &str) -> Option<Look> {
        let path = uri.strip_prefix(&self.endpoint())?.strip_prefix('/')?;
        let (container, name) = path.split_once('/')?;
        let account = lock(&self.shared.account);
        let data = &account.containers.get(container)?.blobs.get(name)?.data;
        let length = data.length();
        Some(Look {
            length,
            is_page_blob: matches!(data, Data::Page { .. }),
            bytes: data.read(0..length),
        })
    }

    /// Faults to inject, calls that came.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }
}

impl fmt::Debug for Double {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Double")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the server.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { answer(&shared, request).await }
            });
            // An error here is a dropped connection, which is what a fault asked for or a client did.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

type Answer = Response<BoxBody<Bytes, io::Error>>;

pub(super) struct Received {
    pub(super) method: String,
    pub(super) container: String,
    pub(super) blob: String,
    pub(super) query: HashMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Received {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn query(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> io::Result<Answer> {
    let (parts, body) = request.into_parts();
    let mut body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if parts.uri.path().ends_with("/oauth2/v2.0/token") {
        return Ok(respond(&token(shared, &body), false));
    }
    let mut path = parts
        .uri
        .path()
        .trim_start_matches('/')
        .splitn(3, '/')
        .map(unescape);
    let (account, container, blob) = (
        path.next().unwrap_or_default(),
        path.next().unwrap_or_default(),
        path.next().unwrap_or_default(),
    );
    let query: HashMap<String, String> = azure_core::http::Url::parse(&format!(
        "http://double/?{}",
        parts.uri.query().unwrap_or_default()
    ))
    .map(|url| url.query_pairs().into_owned().collect())
    .unwrap_or_default();
    let call = Call {
        method: parts.method.to_string(),
        blob: blob.clone(),
        comp: query.get("comp").cloned().unwrap_or_default(),
        body_length: body.len(),
    };
    let fault = shared.faults.of(&call);
    match &fault {
        Some(Fault::DropBefore) => return Err(io::Error::other("dropped")),
        Some(Fault::Refuse {
            status,
            code,
            retry_after_seconds,
        }) => {
            let mut reply = Reply::error(*status, code);
            if let Some(seconds) = retry_after_seconds {
                reply.set("retry-after", seconds.to_string());
            }
            return Ok(respond(&reply, false));
        }
        Some(Fault::Hold(gate)) => {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
        }
        Some(Fault::Damage) if !body.is_empty() => {
            let mut damaged = body.to_vec();
            if let Some(byte) = damaged.last_mut() {
                *byte ^= 1;
            }
            body = damaged.into();
        }
        _ => {}
    }
    let received = Received {
        method: call.method,
        container,
        blob,
        query,
        headers: parts.headers,
        body,
    };
    let mut reply = decide(shared, &account, &received);
    match fault {
        Some(Fault::DropAfter) => return Err(io::Error::other("dropped")),
        Some(Fault::DoneBut { status, code }) => {
            return Ok(respond(&Reply::error(status, code), false));
        }
        // A body that is damaged on its way out still carries the checksum of what it was.
        Some(Fault::Damage) if reply.headers.contains_key("x-ms-content-crc64") => {
            if let Some(byte) = reply.body.last_mut() {
                *byte ^= 1;
            }
        }
        _ => {}
    }
    let head = received.method == "HEAD";
    if head {
        let length = reply.length_of_blob.unwrap_or(0);
        reply.set("content-length", length.to_string());
        reply.body.clear();
    }
    Ok(respond(&reply, matches!(fault, Some(Fault::CutBody))))
}

fn decide(shared: &Shared, account: &str, received: &Received) -> Reply {
    if account != shared.key.account() {
        return Reply::error(400, "InvalidUri");
    }
    let Some(needed) = operations::needed(received) else {
        return Reply::error(400, "UnsupportedHttpVerb");
    };
    let presented = Presented {
        query: &received.query,
        authorization: received.header("authorization"),
        container: &received.container,
        https: false,
    };
    let allowed = auth::check(
        &presented,
        needed,
        &shared.key,
        &lock(&shared.tokens),
        shared.unix_ms(),
    );
    if let Err(refusal) = allowed {
        return Reply::error(refusal.status, refusal.code);
    }
    let now = shared.options.clock.monotonic();
    if shared.options.limits && !received.blob.is_empty() {
        let moved = received.body.len();
        let name = format!("{}/{}", received.container, received.blob);
        if !lock(&shared.buckets).take(now, &name, moved) {
            return Reply::error(503, "ServerBusy");
        }
    }
    operations::operate(shared, received, now)
}

fn token(shared: &Shared, body: &[u8]) -> Reply {
    let form: HashMap<String, String> =
        azure_core::http::Url::parse(&format!("http://double/?{}", String::from_utf8_lossy(body)))
            .map(|url| url.query_pairs().into_owned().collect())
            .unwrap_or_default();
    let right = form.get("client_secret").map(String::as_str) == Some("secret")
        && form.get("grant_type").map(String::as_str) == Some("client_credentials")
        && form.get("scope").map(String::as_str) == Some(crate::oauth::STORAGE_SCOPE);
    if !right {
        let mut reply = Reply::new(401);
        reply.body =
            br#"{"error":"invalid_client","error_description":"the secret is wrong"}"#.to_vec();
        return reply;
    }
    let mut reply = Reply::new(200);
    reply.body = format!(
        r#"{{"token_type":"Bearer","expires_in":3600,"access_token":"{}"}}"#,
        shared.issue(3_600_000)
    )
    .into_bytes();
    reply
}

fn respond(reply: &Reply, cut: bool) -> Answer {
    let mut builder = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        builder = builder.header(name.as_str(), value.as_str());
    }
    let bytes = Bytes::from(reply.body.clone());
    let body: BoxBody<Bytes, io::Error> = if cut && bytes.len() > 1 {
        builder = builder.header("content-length", bytes.len());
        let half = bytes.slice(..bytes.len() / 2);
        let frames =
            futures::stream::iter([Ok(Frame::data(half))]).chain(futures::stream::once(async {
                Err(io::Error::other("cut"))
            }));
        BodyExt::boxed(StreamBody::new(frames))
    } else {
        Full::new(bytes)
            .map_err(|never: Infallible| match never {})
            .boxed()
    };
    builder.body(body).unwrap_or_else(|_| {
        Response::new(
            Full::new(Bytes::new())
                .map_err(|never: Infallible| match never {})
                .boxed(),
        )
    })
}

fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next().unwrap_or(b'0'), bytes.next().unwrap_or(b'0')];
        let value = std::str::from_utf8(&digits)
            .ok()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        out.push(value.unwrap_or(b'?'));
    }
    String::from_utf8_lossy(&out).into_owned()
}
