//! An in-process blob service for tests, written from the documented contract of Azure's, to enforce what emulators do not.
//!
//! Facts it is built on (blob service REST reference):
//! - *pages*: offsets and lengths are multiples of 512; Put Page takes at most 4 MiB (413 `RequestBodyTooLarge`);
//!   conditions on the sequence number are `le`, `lt`, `eq` (412 `SequenceNumberConditionNotMet`); Set Blob Properties sets
//!   length or sequence number (`max`, `update`, `increment`).
//! - *versions*: every write gives a new ETag; `If-Match`, `If-None-Match` (412 `ConditionNotMet`, 409 `BlobAlreadyExists`).
//! - *blocks*: staged blocks have no effect until a block list names them; a commit discards the others; block ids of
//!   one blob have one length (400 `InvalidBlobOrBlock`); an unknown id is 400 `InvalidBlockList`.
//! - *checksums*: a wrong Content-MD5 or x-ms-content-crc64 is 400 `Md5Mismatch`, `Crc64Mismatch`.
//! - *leases*: 15 to 60 seconds; a write without the lease's id is 412 `LeaseIdMissing`.
//! - *signatures*: fields under the signature of version 2020-12-06 and later; expired or wrong: 403 `AuthenticationFailed`;
//!   a right that is not given: 403 `AuthorizationPermissionMismatch`. *Tokens*: unknown or expired: 401.
//! - *limits*: 500 requests and 60 MiB a second of one blob, above it 503 `ServerBusy`.
//! - *premium page blob accounts*: no block blobs; 100 snapshots a blob, one in ten minutes.
//! - *paging*: listings and page ranges come in parts with a marker; ranges since a snapshot with `prevsnapshot`, since
//!   another blob, as snapshots of managed disks are, with `x-ms-previous-snapshot-url`.
//! - *removal*: one snapshot, all snapshots (`x-ms-delete-snapshots: only`), or the blob with them.
//!
//! [`Faults`] adds what networks and regions do. Everything is in memory and ends with the [`Double`].

mod auth;
mod blobs;
mod faults;
mod hands;
mod limits;
mod operations;
mod page_operations;
mod pages;
mod server;

pub use faults::{Call, Fault, Faults, Rule};
pub use server::{Double, DoubleOptions, Look, ManualClock};
