//! What lies under Microsoft's SDK: credential, pace, checksum, sending, outcome, back-off.
//!
//! ```text
//!   request of the SDK, without credential
//!     └► budget of its blob ─► a place among those under way ─► + signature or token, + checksum ─► send
//!            ▲                                                                                       │
//!            └── pause, newer credential ◄── may it be repeated? ◄── done / not done / unknown ◄─────┘
//! ```
//!
//! Every call ends done, not done or unknown ([`crate::Outcome`]). A call that succeeds after an unknown attempt has
//! succeeded; one that is refused after an unknown attempt is unknown, since the refusal may be about our own work.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::{AsyncRawResponse, Body, HttpClient, Method, Request, Url};
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::credential::{CredentialHandle, Revision, Secret};
use crate::error::{Error, ErrorKind, Result};
use crate::integrity::{self, Integrity};
use crate::pace::{Limits, Pacer};
use crate::retry::{self, Failure, Next, Repeat, RetryPolicy};

/// Damaged bodies are sent again so many times.
const DAMAGED: u32 = 3;

/// A credential with more life than this left is not expected to be renewed soon.
const SOON_MS: i64 = 5 * 60 * 1000;

/// Figures of one container, since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    repeated: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

/// Figures of one container, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Attempts, the first ones included.
    pub requests: u64,
    /// Attempts that repeated one.
    pub repeated: u64,
    /// Bytes of bodies sent.
    pub bytes_sent: u64,
    /// Bytes of bodies received.
    pub bytes_received: u64,
}

pub(crate) struct Transport {
    pub(crate) http: reqwest::Client,
    pub(crate) credential: CredentialHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) pacer: Pacer,
    pub(crate) in_flight: Semaphore,
    pub(crate) retry: RetryPolicy,
    pub(crate) integrity: Integrity,
    pub(crate) counters: Counters,
}

/// A successful answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How one attempt ended without an answer that we want.
struct Attempt {
    failure: Failure,
    error: Error,
}

/// Whether a token may be sent there: by TLS, or to this machine.
pub(crate) fn keeps_secrets(url: &Url) -> bool {
    let this_machine = matches!(url.host_str(), Some("127.0.0.1" | "[::1]" | "localhost"));
    url.scheme() == "https" || this_machine
}

impl Transport {
    pub(crate) fn new(
        http: reqwest::Client,
        credential: CredentialHandle,
        clock: Arc<dyn Clock>,
        limits: Limits,
        retry: RetryPolicy,
        integrity: Integrity,
    ) -> Self {
        Transport {
            http,
            credential,
            clock,
            pacer: Pacer::new(limits),
            in_flight: Semaphore::new(limits.in_flight.max(1)),
            retry,
            integrity,
            counters: Counters::default(),
        }
    }

    pub(crate) fn figures(&self) -> Figures {
        let Counters {
            requests,
            repeated,
            bytes_sent,
            bytes_received,
        } = &self.counters;
        Figures {
            requests: requests.load(Ordering::Relaxed),
            repeated: repeated.load(Ordering::Relaxed),
            bytes_sent: bytes_sent.load(Ordering::Relaxed),
            bytes_received: bytes_received.load(Ordering::Relaxed),
        }
    }

    /// Carries a request to its end.
    pub(crate) async fn execute(&self, request: &Request) -> Result<Answer> {
        let url = request.url();
        let comp = url
            .query_pairs()
            .find(|(name, _)| name == "comp")
            .map(|(_, value)| value.into_owned());
        let header = |name: &'static str| {
            request
                .headers()
                .get_optional_str(&HeaderName::from_static(name))
        };
        let repeat = Repeat::of(
            request.method().as_str(),
            comp.as_deref(),
            header("x-ms-copy-source").is_some(),
        );
        let Body::Bytes(body) = request.body().clone() else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a body must be whole, so that it can be sent again",
            ));
        };
        let carries_data = !body.is_empty()
            && request.method() == Method::Put
            && (matches!(comp.as_deref(), Some("page" | "block" | "blocklist"))
                || comp.is_none() && header("x-ms-blob-type").is_some());
        let crc =
            (carries_data && self.integrity == Integrity::Crc64).then(|| integrity::crc64(&body));
        let moved = if body.is_empty() {
            header("range")
                .or_else(|| header("x-ms-range"))
                .and_then(range_length)
                .filter(|_| repeat == Repeat::Read)
                .unwrap_or(0)
        } else {
            body.len() as u64
        };
        let what = format!("{} {}", request.method().as_str(), plain(url));
        let began = self.clock.monotonic();
        let mut unknown = false;
        let mut damaged = 0;
        for attempt in 1u32.. {
            let wait = self
                .pacer
                .reserve(self.clock.monotonic(), url.path(), moved);
            if !wait.is_zero() {
                self.clock.sleep(wait).await;
            }
            let revision = self.credential.present();
            let end = {
                // Closed never: the semaphore lives as long as we do.
                let _place = self.in_flight.acquire().await;
                self.attempt(
                    request,
                    &body,
                    crc.as_deref(),
                    &revision,
                    repeat,
                    moved,
                    &what,
                )
                .await
            };
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            if attempt > 1 {
                self.counters.repeated.fetch_add(1, Ordering::Relaxed);
            }
            let Attempt { failure, error } = match end {
                Ok(answer) => return Ok(answer),
                Err(end) => end,
            };
            unknown |= failure.maybe_done;
            let finish = |error: Error| if unknown { error.unknown() } else { error };
            let spent = self.clock.monotonic().saturating_sub(began);
            let pause = match failure.next {
                Next::Stop => return Err(finish(error)),
                Next::NewerCredential => {
                    if !self.wait_for_newer(&revision).await {
                        return Err(finish(error));
                    }
                    continue;
                }
                Next::Again if damaged < DAMAGED => {
                    damaged += 1;
                    Duration::ZERO
                }
                Next::Again => return Err(finish(error)),
                Next::WaitFor(wait) => wait,
                Next::BackOff => retry::pause(&self.retry, attempt, random()),
            };
            if spent + pause > self.retry.give_up_after {
                return Err(finish(error));
            }
            tracing::debug!(
                call = what,
                attempt,
                kind = ?failure.kind,
                pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "blob service: trying again"
            );
            self.clock.sleep(pause).await;
        }
        Err(Error::new(ErrorKind::Unavailable, what).unknown())
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one attempt")]
    async fn attempt(
        &self,
        request: &Request,
        body: &Bytes,
        crc: Option<&str>,
        revision: &Revision,
        repeat: Repeat,
        moved: u64,
        what: &str,
    ) -> std::result::Result<Answer, Attempt> {
        let timeout = self.retry.attempt_timeout + Duration::from_secs(moved >> 20);
        let mut url = request.url().clone();
        let mut bearer = None;
        match revision.credential.secret() {
            Secret::Sas(signature) => {
                let query = match url.query() {
                    Some(query) if !query.is_empty() => format!("{query}&{signature}"),
                    _ => signature.clone(),
                };
                url.set_query(Some(&query));
            }
            // A credential may be renewed as one of another kind.
            Secret::Bearer(_) if !keeps_secrets(&url) => {
                return Err(Attempt {
                    failure: Failure {
                        kind: ErrorKind::Invalid,
                        maybe_done: false,
                        next: Next::Stop,
                    },
                    error: Error::new(
                        ErrorKind::Invalid,
                        format!("{what}: a token is never sent without TLS"),
                    ),
                });
            }
            Secret::Bearer(token) => bearer = Some(token),
        }
        let method = request.method();
        let writes = matches!(method, Method::Put | Method::Post);
        let method =
            reqwest::Method::from_bytes(method.as_str().as_bytes()).unwrap_or(reqwest::Method::GET);
        let mut builder = self.http.request(method, url).timeout(timeout);
        for (name, value) in request.headers().iter() {
            if name.as_str() != "content-length" {
                builder = builder.header(name.as_str(), value.as_str());
            }
        }
        if let Some(crc) = crc {
            builder = builder.header("x-ms-content-crc64", crc);
        }
        if let Some(token) = bearer {
            builder = builder.bearer_auth(token);
        }
        if writes {
            builder = builder
                .header("content-length", body.len())
                .body(body.clone());
        }
        let lost = |error: reqwest::Error| {
            let connected = !error.is_connect() && !error.is_builder();
            let failure = if error.is_builder() {
                Failure {
                    kind: ErrorKind::Invalid,
                    maybe_done: false,
                    next: Next::Stop,
                }
            } else {
                retry::judge_transport(connected, repeat)
            };
            let why = if error.is_timeout() {
                "no answer in time"
            } else if connected {
                "the connection was lost"
            } else {
                "no connection: check network, proxy and the endpoint's name"
            };
            Attempt {
                error: Error::new(failure.kind, format!("{what}: {why}"))
                    .caused_by(&error.without_url()),
                failure,
            }
        };
        self.counters
            .bytes_sent
            .fetch_add(body.len() as u64, Ordering::Relaxed);
        let response = builder.send().await.map_err(lost)?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = match response.bytes().await {
            Ok(body) => body,
            // The head said that the write was done; nothing in its body matters.
            Err(_) if repeat != Repeat::Read && (200..300).contains(&status) => Bytes::new(),
            Err(error) => return Err(lost(error)),
        };
        self.counters
            .bytes_received
            .fetch_add(body.len() as u64, Ordering::Relaxed);
        let answer = Answer {
            status,
            headers,
            body,
        };
        if (200..300).contains(&status) || status == 304 {
            return self.verify(answer, repeat, what);
        }
        let code = answer
            .header("x-ms-error-code")
            .map(str::to_owned)
            .or_else(|| code_of(&answer.body))
            .unwrap_or_default();
        let failure = retry::judge_status(status, &code, retry_after(&answer), repeat);
        let advice = advice(failure.kind);
        Err(Attempt {
            error: Error::new(failure.kind, format!("{what}: {status} {code}{advice}"))
                .with_code(&code),
            failure,
        })
    }

    /// Compares the body of a read with the checksum that came with it.
    fn verify(
        &self,
        answer: Answer,
        repeat: Repeat,
        what: &str,
    ) -> std::result::Result<Answer, Attempt> {
        let stated = answer.header("x-ms-content-crc64");
        let wrong = repeat == Repeat::Read
            && self.integrity == Integrity::Crc64
            && stated.is_some_and(|stated| stated != integrity::crc64(&answer.body));
        if !wrong {
            return Ok(answer);
        }
        Err(Attempt {
            failure: Failure {
                kind: ErrorKind::IntegrityMismatch,
                maybe_done: false,
                next: Next::Again,
            },
            error: Error::new(
                ErrorKind::IntegrityMismatch,
                format!("{what}: the bytes that came are not those that were sent"),
            ),
        })
    }

    /// Whether a credential newer than the refused one is there, or comes in time.
    async fn wait_for_newer(&self, refused: &Revision) -> bool {
        let expires = refused.credential.expires_unix_ms();
        let soon = expires == 0 || expires < self.clock.unix_ms().saturating_add(SOON_MS);
        let patience = if soon {
            self.retry.credential_wait
        } else {
            // It should still be good: somebody may be changing keys, more likely it is wrong.
            self.retry.credential_wait.min(Duration::from_secs(5))
        };
        tokio::select! {
            biased;
            _ = self.credential.newer_than(refused.number) => true,
            () = self.clock.sleep(patience) => false,
        }
    }
}

#[async_trait]
impl HttpClient for Transport {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let answer = self
            .execute(request)
            .await
            .map_err(|error| azure_core::Error::new(azure_core::error::ErrorKind::Other, error))?;
        let headers: HashMap<HeaderName, HeaderValue> = answer
            .headers
            .iter()
            .filter_map(|(name, value)| {
                let value = value.to_str().ok()?.to_owned();
                Some((HeaderName::from(name.as_str().to_owned()), value.into()))
            })
            .collect();
        Ok(AsyncRawResponse::from_bytes(
            answer.status.into(),
            Headers::from(headers),
            answer.body,
        ))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("credential", &self.credential)
            .field("figures", &self.figures())
            .finish_non_exhaustive()
    }
}

/// The URL without its query, which may carry more than a reader of logs should see.
fn plain(url: &Url) -> String {
    let mut url = url.clone();
    let comp = url
        .query_pairs()
        .find(|(name, _)| name == "comp")
        .map(|(_, value)| value.into_owned());
    url.set_query(comp.map(|comp| format!("comp={comp}")).as_deref());
    url.to_string()
}

fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unauthorized => {
            ": the credential was refused or has expired; the orchestrator sends a new one when it is reachable"
        }
        ErrorKind::Forbidden => {
            ": the credential doesn't allow it, or the account's firewall refuses this host"
        }
        ErrorKind::Throttled => ": the account is at its limit",
        _ => "",
    }
}

/// `bytes=a-b` to b - a + 1.
fn range_length(range: &str) -> Option<u64> {
    let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
    to.checked_sub(from)?.checked_add(1)
}

fn retry_after(answer: &Answer) -> Option<Duration> {
    let number = |name| answer.header(name)?.trim().parse::<u64>().ok();
    number("x-ms-retry-after-ms")
        .or_else(|| number("retry-after-ms"))
        .map(Duration::from_millis)
        .or_else(|| number("retry-after").map(Duration::from_secs))
        .map(|wait| wait.min(Duration::from_secs(300)))
}

/// `<Code>` of an error body, for services behind something that eats headers.
fn code_of(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body.get(..body.len().min(4096))?).ok()?;
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    (code.len() <= 100).then(|| code.to_owned())
}

fn random() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}
