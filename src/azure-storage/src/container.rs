//! One container, opened: whole blobs, ranges, listings, removal. Page blobs, blocks and leases are beside this file.
//!
//! Names of blobs are given as they are (`a/b c`); nothing needs to be escaped by the caller.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use azure_core::http::{
    ClientOptions, Method, Request, RetryOptions, Transport as SdkTransport, Url,
};
use azure_storage_blob::models::{
    BlobClientDeleteOptions, BlobContainerClientListBlobsOptions, DeleteSnapshotsOptionType,
    ListBlobsResponse,
};
use azure_storage_blob::{BlobClient, BlobContainerClient, BlobContainerClientOptions};
use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::clock::{Clock, SystemClock};
use crate::credential::{CredentialHandle, Secret};
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::http::http_client;
use crate::integrity::Integrity;
use crate::pace::Limits;
use crate::retry::RetryPolicy;
use crate::transport::{Answer, Figures, Transport, keeps_secrets};

/// Version of the service whose behaviour we ask for.
pub const SERVICE_VERSION: &str = "2024-11-04";

/// The service gives a checksum for ranges up to this size.
pub const CHECKED_RANGE: u64 = 4 << 20;
/// Longest blob that is read as a whole; longer ones are read in ranges.
const MAX_WHOLE: u64 = 64 << 20;

/// Where a container is and how to get there.
#[derive(Clone, Debug)]
pub struct ContainerOptions {
    /// `https://account.blob.core.windows.net`, or `http://127.0.0.1:10000/account` for emulators.
    pub endpoint: String,
    /// The container.
    pub container: String,
    /// Renewable while requests are under way.
    pub credential: CredentialHandle,
    /// HTTP proxy for this traffic; nothing = what the environment says (`HTTPS_PROXY`, `NO_PROXY`).
    pub proxy: Option<String>,
    /// Further certificate authorities, PEM.
    pub ca_pem: Vec<String>,
    /// Nothing = by the endpoint: Azure's, or an emulator's.
    pub limits: Option<Limits>,
    /// Nothing = by the endpoint.
    pub integrity: Option<Integrity>,
    /// How long to try.
    pub retry: RetryPolicy,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl ContainerOptions {
    /// With everything else as the endpoint suggests.
    pub fn new(
        endpoint: impl Into<String>,
        container: impl Into<String>,
        credential: CredentialHandle,
    ) -> Self {
        ContainerOptions {
            endpoint: endpoint.into(),
            container: container.into(),
            credential,
            proxy: None,
            ca_pem: Vec::new(),
            limits: None,
            integrity: None,
            retry: RetryPolicy::default(),
            clock: SystemClock::shared(),
        }
    }
}

/// A container of a storage account. Cheap to clone; all clones share connections, budgets and credential.
#[derive(Clone)]
pub struct Container {
    pub(crate) transport: Arc<Transport>,
    pub(crate) sdk: Arc<BlobContainerClient>,
    pub(crate) url: Url,
}

/// A blob in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedBlob {
    /// Its whole name.
    pub name: String,
    /// Bytes.
    pub length: u64,
    /// Its version, as a condition wants it.
    pub etag: String,
    /// Metadata, if the listing was asked for it.
    pub metadata: Vec<(String, String)>,
}

/// A blob, or a range of it.
#[derive(Clone, Debug)]
pub struct Content {
    /// The bytes.
    pub bytes: Bytes,
    /// Its version.
    pub etag: String,
    /// Bytes of the whole blob.
    pub blob_length: u64,
    /// Metadata, names in lower case.
    pub metadata: Vec<(String, String)>,
}

/// What is known of a blob without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Bytes.
    pub length: u64,
    /// Its version.
    pub etag: String,
    /// Of a page blob.
    pub sequence_number: Option<u64>,
    /// Metadata, names in lower case.
    pub metadata: Vec<(String, String)>,
}

/// What must hold for a write of a whole blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// Nothing.
    None,
    /// There is no blob of this name.
    NotExists,
    /// The blob is this version.
    Matches(&'a str),
}

impl Container {
    /// Checks the options; nothing is sent yet.
    pub fn open(options: &ContainerOptions) -> Result<Container> {
        let endpoint = options.endpoint.trim_end_matches('/');
        let url = Url::parse(&format!("{endpoint}/{}", options.container))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "the blob endpoint `{endpoint}` is no URL: it looks like https://account.blob.core.windows.net"
                    ),
                )
            })?;
        if matches!(
            options.credential.present().credential.secret(),
            Secret::Bearer(_)
        ) && !keeps_secrets(&url)
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("a token is never sent without TLS: `{endpoint}` must begin with https://"),
            ));
        }
        // An emulator has the account in its path, Azure in its name.
        let emulator = endpoint
            .split_once("://")
            .is_some_and(|(_, rest)| rest.contains('/'));
        let limits = options.limits.unwrap_or(if emulator {
            Limits::EMULATOR
        } else {
            Limits::AZURE
        });
        let integrity = options.integrity.unwrap_or(if emulator {
            Integrity::None
        } else {
            Integrity::Crc64
        });
        let transport = Arc::new(Transport::new(
            http_client(options.proxy.as_deref(), &options.ca_pem)?,
            options.credential.clone(),
            Arc::clone(&options.clock),
            limits,
            options.retry,
            integrity,
        ));
        let client_options = ClientOptions {
            transport: Some(SdkTransport::new(Arc::clone(&transport) as _)),
            retry: RetryOptions::none(),
            ..ClientOptions::default()
        };
        let sdk = BlobContainerClient::new(
            url.clone(),
            None,
            Some(BlobContainerClientOptions {
                client_options,
                version: SERVICE_VERSION.to_owned(),
            }),
        )
        .map_err(|error| from_sdk(error, "open the container"))?;
        Ok(Container {
            transport,
            sdk: Arc::new(sdk),
            url,
        })
    }

    /// Without credentials.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Requests and bytes since it was opened.
    pub fn figures(&self) -> Figures {
        self.transport.figures()
    }

    pub(crate) fn blob(&self, name: &str) -> BlobClient {
        self.sdk.blob_client(name)
    }

    /// Creates the container; false when it was there. Needs an account signature or a token.
    pub async fn create(&self) -> Result<bool> {
        match self.sdk.create(None).await {
            Ok(_) => Ok(true),
            Err(error) => match from_sdk(error, "create container") {
                error if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                error => Err(error),
            },
        }
    }

    /// All blobs whose name begins with `prefix`, by name.
    pub async fn list(&self, prefix: &str, metadata: bool) -> Result<Vec<ListedBlob>> {
        let failed = |error| from_sdk(error, "list blobs");
        let options = BlobContainerClientListBlobsOptions {
            prefix: (!prefix.is_empty()).then(|| prefix.to_owned()),
            include: metadata
                .then(|| vec![azure_storage_blob::models::ListBlobsIncludeItem::Metadata]),
            ..Default::default()
        };
        let mut pages = self
            .sdk
            .list_blobs(Some(options))
            .map_err(failed)?
            .into_pages();
        let mut blobs = Vec::new();
        while let Some(page) = pages.try_next().await.map_err(failed)? {
            let page: ListBlobsResponse = page.into_model().map_err(failed)?;
            for item in page.blob_items {
                let Some(name) = item.name else { continue };
                let properties = item.properties.unwrap_or_default();
                let length = properties.content_length.unwrap_or(0);
                let etag = properties.etag.map(|etag| quoted(etag.as_ref()));
                let metadata = item
                    .metadata
                    .and_then(|metadata| metadata.values)
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(name, value)| (name.to_ascii_lowercase(), value))
                    .collect();
                blobs.push(ListedBlob {
                    name,
                    length,
                    etag: etag.unwrap_or_default(),
                    metadata,
                });
            }
        }
        blobs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(blobs)
    }

    /// A whole blob; `None` when there is none.
    pub async fn get(&self, name: &str) -> Result<Option<Content>> {
        match self.whole(name, None).await? {
            Newer::Changed(content) => Ok(Some(content)),
            Newer::Unchanged | Newer::Gone => Ok(None),
        }
    }

    /// A whole blob, unless it is still this version.
    pub async fn get_newer(&self, name: &str, etag: &str) -> Result<Newer> {
        self.whole(name, Some(etag)).await
    }

    /// A whole blob, in ranges that the service has checksums for.
    async fn whole(&self, name: &str, unless: Option<&str>) -> Result<Newer> {
        loop {
            let first = match self.read(name, None, Some(0..CHECKED_RANGE), unless).await {
                // An empty blob has no range at all.
                Err(error) if error.code() == Some("InvalidRange") => {
                    self.read(name, None, None, unless).await
                }
                other => other,
            };
            let first = match none_if_missing(first)? {
                None => return Ok(Newer::Gone),
                Some(answer) if answer.status == 304 => return Ok(Newer::Unchanged),
                Some(answer) => content(name, answer)?,
            };
            let mut bytes = first.bytes.len() as u64;
            if first.blob_length > MAX_WHOLE {
                return Err(Error::new(
                    ErrorKind::TooLarge,
                    format!(
                        "blob `{name}` has {} bytes, at most 64 MiB are read as a whole",
                        first.blob_length
                    ),
                ));
            }
            if bytes >= first.blob_length {
                return Ok(Newer::Changed(first));
            }
            let mut whole = first.bytes.to_vec();
            while bytes < first.blob_length {
                let until = first.blob_length.min(bytes + CHECKED_RANGE);
                let more = none_if_missing(self.read(name, None, Some(bytes..until), None).await)?;
                let more = more.map(|answer| content(name, answer)).transpose()?;
                // Another version: from the start.
                let Some(more) = more.filter(|more| more.etag == first.etag) else {
                    break;
                };
                if more.bytes.is_empty() {
                    return Err(not_understood(name, "range"));
                }
                bytes += more.bytes.len() as u64;
                whole.extend_from_slice(&more.bytes);
            }
            if bytes == first.blob_length {
                return Ok(Newer::Changed(Content {
                    bytes: whole.into(),
                    ..first
                }));
            }
        }
    }

    /// A range of a blob, or of one of its snapshots. Shorter only at the blob's end.
    pub async fn get_range(
        &self,
        name: &str,
        snapshot: Option<&str>,
        range: Range<u64>,
    ) -> Result<Content> {
        content(name, self.read(name, snapshot, Some(range), None).await?)
    }

    async fn read(
        &self,
        name: &str,
        snapshot: Option<&str>,
        range: Option<Range<u64>>,
        unless: Option<&str>,
    ) -> Result<Answer> {
        let mut request = self.request(Method::Get, name, snapshot);
        if let Some(range) = range {
            if range.is_empty() {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("an empty range of {name}"),
                ));
            }
            request.insert_header(
                "x-ms-range",
                format!("bytes={}-{}", range.start, range.end - 1),
            );
            if self.transport.integrity == Integrity::Crc64
                && range.end - range.start <= CHECKED_RANGE
            {
                request.insert_header("x-ms-range-get-content-crc64", "true");
            }
        }
        if let Some(etag) = unless {
            request.insert_header("if-none-match", etag.to_owned());
        }
        self.transport.execute(&request).await
    }

    pub(crate) fn request(&self, method: Method, name: &str, snapshot: Option<&str>) -> Request {
        let mut url = self.blob(name).url().clone();
        if let Some(snapshot) = snapshot {
            url.query_pairs_mut().append_pair("snapshot", snapshot);
        }
        let mut request = Request::new(url, method);
        request.insert_header("x-ms-version", SERVICE_VERSION);
        request
    }

    /// What is known of a blob; `None` when there is none.
    pub async fn properties(&self, name: &str) -> Result<Option<Properties>> {
        let request = self.request(Method::Head, name, None);
        let Some(answer) = none_if_missing(self.transport.execute(&request).await)? else {
            return Ok(None);
        };
        Ok(Some(Properties {
            length: answer
                .header("content-length")
                .and_then(|length| length.parse().ok())
                .ok_or_else(|| not_understood(name, "content-length"))?,
            etag: etag(name, &answer)?,
            sequence_number: answer
                .header("x-ms-blob-sequence-number")
                .and_then(|number| number.parse().ok()),
            metadata: metadata(&answer),
        }))
    }

    /// Removes a blob with its snapshots; false when there is none. [`ErrorKind::ConditionNotMet`] when it is another
    /// version than the condition says, or, at some services, gone.
    pub async fn delete(&self, name: &str, condition: Condition<'_>) -> Result<bool> {
        let mut options = BlobClientDeleteOptions {
            delete_snapshots: Some(DeleteSnapshotsOptionType::Include),
            ..Default::default()
        };
        if let Condition::Matches(etag) = condition {
            options.if_match = Some(etag.to_owned().into());
        }
        match self.blob(name).delete(Some(options)).await {
            Ok(_) => Ok(true),
            Err(error) => match from_sdk(error, "delete blob") {
                error if error.kind() == ErrorKind::NotFound => {
                    Ok(error.outcome() == Outcome::Unknown)
                }
                error => Err(error),
            },
        }
    }

    /// Copies a blob, or a snapshot of one, of this account; ends when the copy is done.
    pub async fn copy(&self, from: &str, snapshot: Option<&str>, to: &str) -> Result<()> {
        let mut source = self.blob(from).url().clone();
        if let Some(snapshot) = snapshot {
            source.query_pairs_mut().append_pair("snapshot", snapshot);
        }
        if let Secret::Sas(signature) = self.transport.credential.present().credential.secret() {
            let query = match source.query() {
                Some(query) => format!("{query}&{signature}"),
                None => signature.clone(),
            };
            source.set_query(Some(&query));
        }
        self.blob(to)
            .start_copy_from_url(source.to_string(), None)
            .await
            .map_err(|error| from_sdk(error, "copy blob"))?;
        loop {
            let request = self.request(Method::Head, to, None);
            let answer = self.transport.execute(&request).await?;
            match answer.header("x-ms-copy-status") {
                Some("success") => return Ok(()),
                Some("pending") => self.transport.clock.sleep(Duration::from_secs(1)).await,
                status => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        format!(
                            "copy of {from} to {to} ended as {}",
                            status.unwrap_or("unknown")
                        ),
                    ));
                }
            }
        }
    }
}

/// A blob that was seen before.
#[derive(Clone, Debug)]
pub enum Newer {
    /// It is still that version.
    Unchanged,
    /// It is not there any more.
    Gone,
    /// It is another one.
    Changed(Content),
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

pub(crate) fn content(name: &str, answer: Answer) -> Result<Content> {
    let blob_length = match answer.header("content-range") {
        Some(range) => range
            .rsplit_once('/')
            .and_then(|(_, length)| length.parse().ok())
            .ok_or_else(|| not_understood(name, "content-range"))?,
        None => answer.body.len() as u64,
    };
    Ok(Content {
        etag: etag(name, &answer)?,
        blob_length,
        metadata: metadata(&answer),
        bytes: answer.body,
    })
}

fn metadata(answer: &Answer) -> Vec<(String, String)> {
    answer
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-ms-meta-")?;
            Some((name.to_owned(), value.to_str().ok()?.to_owned()))
        })
        .collect()
}

pub(crate) fn metadata_of(pairs: &[(&str, String)]) -> Option<HashMap<String, String>> {
    (!pairs.is_empty()).then(|| {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect()
    })
}

fn etag(name: &str, answer: &Answer) -> Result<String> {
    answer
        .header("etag")
        .map(str::to_owned)
        .ok_or_else(|| not_understood(name, "etag"))
}

pub(crate) fn not_understood(name: &str, part: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("the answer about blob {name} has no proper {part}: is there a blob service behind the endpoint?"),
    )
    .unknown()
}

/// The error of our transport inside the SDK's, or the SDK's own: an answer that it can't read.
pub(crate) fn from_sdk(error: azure_core::Error, doing: &str) -> Error {
    match error.into_downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::new(
            // It may be a proxy that speaks in the service's place for a while.
            ErrorKind::Unavailable,
            format!(
                "{doing}: the answer can't be read: is there a blob service behind the endpoint?"
            ),
        )
        .caused_by(&error)
        .unknown(),
    }
}

/// Listings give entity tags without the quotes that headers and conditions have.
fn quoted(etag: &str) -> String {
    if etag.starts_with('"') || etag.starts_with("W/") {
        etag.to_owned()
    } else {
        format!("\"{etag}\"")
    }
}

pub(crate) fn none_if_missing<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error)
            if error.kind() == ErrorKind::NotFound && error.code() != Some("ContainerNotFound") =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
