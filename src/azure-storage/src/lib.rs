//! The blob service of Azure Storage, as an engine that replicates disks needs it.
//!
//! ```text
//!   Container ── page blobs, block blobs, leases, listings        typed calls (container, page, block, lease)
//!      │  Microsoft's SDK builds the request and reads the answer
//!      ▼
//!   transport ── credential ─ pace ─ send ─ outcome ─ back off    every call ends done, not done or unknown
//!      │
//!      ▼
//!   reqwest, rustls with ring, HTTP/1.1 keep-alive, proxy, further authorities
//! ```
//!
//! **What Microsoft's SDK does, and what it does not.** `azure_storage_blob` 1.1 knows the requests and their
//! answers, so every call that it has goes through it; it is built without its own HTTP client and without its
//! retries, because its transport is a trait and ours is behind it. Own code here, and why:
//! - *transport*: the SDK's client brings another TLS provider, takes no proxy and no further authorities;
//! - *retries*: the SDK tells neither whether a failed call may have happened, nor does it know which may be repeated;
//! - *credentials*: a signature in its URL can't be renewed while a request waits, and it makes none (no Shared Key);
//! - *limits*: requests and bytes a second of one blob;
//! - *one range*: its download splits and spawns, and its upload carries no checksum;
//! - *ranges that changed since a snapshot*: it has no call for that.
//!
//! What may go wrong: [`Error`] says what ([`ErrorKind`]) and whether it may have happened ([`Outcome`]). No error
//! and no log line carries a credential.

mod block;
pub mod clock;
mod container;
pub mod credential;
#[cfg(feature = "double")]
pub mod double;
#[cfg(feature = "double")]
pub mod emulator;
mod error;
mod http;
mod integrity;
mod lease;
pub mod oauth;
mod pace;
mod page;
mod redact;
mod retry;
pub mod sas;
mod snapshots;
mod transport;

pub use container::{
    CHECKED_RANGE, Condition, Container, ContainerOptions, Content, ListedBlob, Newer, Properties,
    SERVICE_VERSION,
};
pub use credential::{Credential, CredentialHandle};
pub use error::{Error, ErrorKind, Outcome};
pub use http::http_client;
pub use integrity::Integrity;
pub use pace::Limits;
pub use page::{ChangedRanges, MAX_PUT_PAGE, Older, PAGE, SequenceCondition};
pub use retry::RetryPolicy;
pub use transport::Figures;
