//! REST client of the orchestration API: tokens, retries, paging, long-running operations.
//!
//! ```text
//!  Client ── request ──► token (cached, renewed) ──► retries with back-off ──► answer or ClientError
//!         ── list ─────► follows nextLink to the end
//!         ── operate ──► request, then Azure-AsyncOperation until it is final, then the result from Location
//! ```
//!
//! Every error says what kind it is, whether trying again makes sense ([`Retry`]), and carries the service's code,
//! message, details and request id. A request whose answer was lost is told apart from one that was refused: reads,
//! PUT and DELETE are simply sent again, a POST is not, because it may have begun its work.
//!
//! Secrets (client secret, tokens) are in no error, no log line and no `Debug` output. Addresses that the service
//! sends (next page, operation status) are asked on the configured endpoint only, so a token goes nowhere else.

mod client;
mod error;
mod operation;
mod paths;
mod token;

pub use client::{Answer, Client, ClientConfig, Method};
pub use error::{ClientError, ClientErrorKind, ErrorDetail, Retry};
pub use operation::{Operation, Progress, TaskProgress, Wait};
pub use paths::{api_version_for, encode_segment, job_path, vault_path_of};
pub use tokio_util::sync::CancellationToken;

/// A text that no `Debug` output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no text at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}
