//! The double's operations, each in the order of the service: exists, conditions, lease, limits of its own, effect.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Digest as _;

use super::auth::Needed;
use super::blobs::{Account, Blob, Data, Keep, Lease};
use super::page_operations::{page_ranges, properties, snapshot, write_pages};
use super::pages::Pages;
use super::server::{Received, Shared, lock};

/// An answer on its way.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
    pub(super) length_of_blob: Option<u64>,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        let mut reply = Reply {
            status,
            headers: BTreeMap::new(),
            body: Vec::new(),
            length_of_blob: None,
        };
        reply.set("x-ms-version", crate::SERVICE_VERSION);
        reply
    }

    pub(super) fn error(status: u16, code: &str) -> Self {
        let mut reply = Reply::new(status);
        reply.set("x-ms-error-code", code);
        reply.body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        )
        .into_bytes();
        reply
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.headers.insert(name.to_owned(), value.into());
    }
}

pub(super) type Outcome = Result<Reply, Reply>;

pub(super) fn refuse<T>(status: u16, code: &str) -> Result<T, Reply> {
    Err(Reply::error(status, code))
}

/// Rights that a call needs; `None` when there is no such call.
pub(super) fn needed(call: &Received) -> Option<Needed> {
    let container = call.blob.is_empty();
    let (any_of, account) = match (call.method.as_str(), call.query("comp"), container) {
        ("PUT", "", true) => ("cw", true),
        ("GET", "list", true) => ("l", false),
        ("GET" | "HEAD", "" | "pagelist" | "blocklist", false) => ("r", false),
        ("DELETE", "", false) => ("d", false),
        ("PUT", "" | "snapshot", false) => ("cw", false),
        ("PUT", "page" | "properties" | "block" | "blocklist", false) => ("w", false),
        ("PUT", "lease", false) => ("wd", false),
        _ => return None,
    };
    Some(Needed { any_of, account })
}

/// Carries out a call that is allowed.
pub(super) fn operate(shared: &Shared, call: &Received, now: Duration) -> Reply {
    let mut account = lock(&shared.account);
    let done = if call.blob.is_empty() {
        container(shared, &mut account, call)
    } else {
        blob(shared, &mut account, call, now)
    };
    done.unwrap_or_else(|refused| refused)
}

fn container(shared: &Shared, account: &mut Account, call: &Received) -> Outcome {
    if call.method == "PUT" {
        if account.containers.contains_key(&call.container) {
            return refuse(409, "ContainerAlreadyExists");
        }
        account
            .containers
            .insert(call.container.clone(), Keep::default());
        let mut reply = Reply::new(201);
        reply.set("etag", account.etag());
        return Ok(reply);
    }
    let keep = account
        .containers
        .get(&call.container)
        .ok_or_else(|| Reply::error(404, "ContainerNotFound"))?;
    let size = page_size(shared, call);
    let names: Vec<&String> = keep
        .blobs
        .keys()
        .filter(|name| name.starts_with(call.query("prefix")))
        .filter(|name| name.as_str() >= call.query("marker"))
        .take(size + 1)
        .collect();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"{}\"><Blobs>",
        call.container
    );
    for name in names.iter().take(size) {
        let Some(blob) = keep.blobs.get(*name) else {
            continue;
        };
        let kind = match blob.data {
            Data::Block(_) => "BlockBlob",
            Data::Page { .. } => "PageBlob",
        };
        let _ = write!(
            xml,
            "<Blob><Name>{}</Name><Properties><Content-Length>{}</Content-Length><BlobType>{kind}</BlobType><Etag>{}</Etag></Properties>",
            escape(name),
            blob.data.length(),
            escape(&blob.etag)
        );
        if call.query("include").contains("metadata") {
            xml.push_str("<Metadata>");
            for (name, value) in &blob.metadata {
                let _ = write!(xml, "<{name}>{}</{name}>", escape(value));
            }
            xml.push_str("</Metadata>");
        }
        xml.push_str("</Blob>");
        let lists = call.query("include").contains("snapshots");
        for snapshot in blob.snapshots.keys().filter(|_| lists) {
            let _ = write!(
                xml,
                "<Blob><Name>{}</Name><Snapshot>{snapshot}</Snapshot><Properties><BlobType>{kind}</BlobType></Properties></Blob>",
                escape(name)
            );
        }
    }
    let next = names.get(size).map_or(String::new(), |name| escape(name));
    let _ = write!(
        xml,
        "</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
    );
    let mut reply = Reply::new(200);
    reply.set("content-type", "application/xml");
    reply.body = xml.into_bytes();
    Ok(reply)
}

pub(super) fn page_size(shared: &Shared, call: &Received) -> usize {
    let asked = call.query("maxresults").parse().unwrap_or(usize::MAX);
    shared.options.page_size.min(asked).max(1)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn blob(shared: &Shared, account: &mut Account, call: &Received, now: Duration) -> Outcome {
    intact(call)?;
    let etag = account.etag();
    let premium = shared.options.premium;
    if call.method == "PUT" && call.header("x-ms-copy-source").is_some() {
        return copy(account, call, etag);
    }
    let older = earlier(account, call)?;
    let keep = account
        .containers
        .get_mut(&call.container)
        .ok_or_else(|| Reply::error(404, "ContainerNotFound"))?;
    if let Some(blob) = keep.blobs.get_mut(&call.blob)
        && blob.lease.as_ref().is_some_and(|lease| lease.until <= now)
    {
        blob.lease = None;
    }
    let writes = call.method != "GET" && call.method != "HEAD";
    let existing = keep.blobs.get(&call.blob);
    // A snapshot has no part in the lease of its blob.
    let of_blob = call.query("snapshot").is_empty();
    if writes && of_blob && !matches!(call.query("comp"), "lease" | "snapshot" | "block") {
        leased(existing, call)?;
    }
    let comp = call.query("comp");
    match (call.method.as_str(), comp) {
        ("PUT", "") => {
            conditions(existing, call)?;
            let data = match call.header("x-ms-blob-type") {
                Some("PageBlob") => Data::Page {
                    length: number(call, "x-ms-blob-content-length")
                        .filter(|length| length % 512 == 0 && *length <= 8 << 40)
                        .ok_or_else(|| Reply::error(400, "InvalidHeaderValue"))?,
                    sequence: number(call, "x-ms-blob-sequence-number").unwrap_or(0),
                    pages: Pages::default(),
                },
                Some("BlockBlob") if premium => return refuse(400, "BlobTypeNotSupported"),
                Some("BlockBlob") => Data::Block(call.body.to_vec()),
                _ => return refuse(400, "InvalidHeaderValue"),
            };
            if existing
                .is_some_and(|blob| !blob.snapshots.is_empty() && kind(&blob.data) != kind(&data))
            {
                return refuse(409, "InvalidBlobType");
            }
            put(keep, call, data, &etag);
            Ok(made(&etag))
        }
        ("PUT", "block") => {
            if premium {
                return refuse(400, "BlobTypeNotSupported");
            }
            let id = call.query("blockid").to_owned();
            let staged = keep.staged.entry(call.blob.clone()).or_default();
            if STANDARD.decode(&id).is_err() || id.is_empty() {
                return refuse(400, "InvalidQueryParameterValue");
            }
            if staged.keys().any(|other| other.len() != id.len()) {
                return refuse(400, "InvalidBlobOrBlock");
            }
            staged.insert(id, call.body.to_vec());
            Ok(Reply::new(201))
        }
        ("PUT", "blocklist") => {
            if premium {
                return refuse(400, "BlobTypeNotSupported");
            }
            conditions(existing, call)?;
            let text = String::from_utf8_lossy(&call.body);
            let staged = keep.staged.remove(&call.blob).unwrap_or_default();
            let mut whole = Vec::new();
            for id in text
                .split("<Uncommitted>")
                .chain(text.split("<Latest>"))
                .filter_map(|rest| rest.split_once("</").map(|(id, _)| id))
                .filter(|id| !id.contains('<'))
            {
                match staged.get(id.trim()) {
                    Some(block) => whole.extend_from_slice(block),
                    None => return refuse(400, "InvalidBlockList"),
                }
            }
            put(keep, call, Data::Block(whole), &etag);
            Ok(made(&etag))
        }
        ("DELETE", _) => {
            let blob = existing.ok_or_else(|| Reply::error(404, "BlobNotFound"))?;
            conditions(existing, call)?;
            if !blob.snapshots.is_empty()
                && call.header("x-ms-delete-snapshots").is_none()
                && call.query("snapshot").is_empty()
            {
                return refuse(409, "SnapshotsPresent");
            }
            delete(keep, call)
        }
        _ => {
            let blob = keep
                .blobs
                .get_mut(&call.blob)
                .ok_or_else(|| Reply::error(404, "BlobNotFound"))?;
            conditions(Some(blob), call)?;
            match (call.method.as_str(), comp) {
                ("PUT", "page") => write_pages(blob, call, etag),
                ("PUT", "properties") => properties(blob, call, etag),
                ("PUT", "snapshot") => snapshot(blob, premium, &etag, now),
                ("PUT", "lease") => lease(blob, call, now),
                (_, "pagelist") => page_ranges(shared, blob, call, older.as_ref()),
                _ => read(blob, call),
            }
        }
    }
}

/// Removes a blob with all that belongs to it, its snapshots only, or one of them.
fn delete(keep: &mut Keep, call: &Received) -> Outcome {
    let one = call.query("snapshot");
    let only = call.header("x-ms-delete-snapshots") == Some("only");
    if let Some(blob) = keep.blobs.get_mut(&call.blob)
        && (only || !one.is_empty())
    {
        if only {
            blob.snapshots.clear();
        } else if blob.snapshots.remove(one).is_none() {
            return refuse(404, "BlobNotFound");
        }
        return Ok(Reply::new(202));
    }
    keep.blobs.remove(&call.blob);
    keep.staged.remove(&call.blob);
    Ok(Reply::new(202))
}

/// The pages of an earlier state that is named by its address; it must be signed and be there.
fn earlier(account: &Account, call: &Received) -> Result<Option<Pages>, Reply> {
    let Some(address) = call.header("x-ms-previous-snapshot-url") else {
        return Ok(None);
    };
    let url = azure_core::http::Url::parse(address)
        .map_err(|_| Reply::error(400, "InvalidHeaderValue"))?;
    if !url.query_pairs().any(|(name, _)| name == "sig") {
        return refuse(403, "AuthorizationFailure");
    }
    let mut path = url.path().trim_start_matches('/').splitn(3, '/').skip(1);
    let container = path.next().unwrap_or_default();
    let name = path.next().unwrap_or_default();
    let blob = account
        .containers
        .get(container)
        .and_then(|keep| keep.blobs.get(name));
    match blob.map(|blob| &blob.data) {
        Some(Data::Page { pages, .. }) => Ok(Some(pages.clone())),
        Some(Data::Block(_)) => refuse(409, "InvalidBlobType"),
        None => refuse(404, "PreviousSnapshotNotFound"),
    }
}

fn kind(data: &Data) -> &'static str {
    match data {
        Data::Block(_) => "BlockBlob",
        Data::Page { .. } => "PageBlob",
    }
}

fn put(keep: &mut Keep, call: &Received, data: Data, etag: &str) {
    let metadata = call
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("x-ms-meta-")?;
            Some((name.to_owned(), value.to_str().ok()?.to_owned()))
        })
        .collect();
    keep.staged.remove(&call.blob);
    let old = keep.blobs.remove(&call.blob);
    let (snapshots, lease) = old.map_or_else(Default::default, |old| (old.snapshots, old.lease));
    keep.blobs.insert(
        call.blob.clone(),
        Blob {
            data,
            etag: etag.to_owned(),
            metadata,
            snapshots,
            lease,
            copied: false,
        },
    );
}

pub(super) fn made(etag: &str) -> Reply {
    let mut reply = Reply::new(201);
    reply.set("etag", etag);
    reply
}

/// A body that is not what its sender said is refused.
fn intact(call: &Received) -> Result<(), Reply> {
    if let Some(stated) = call.header("content-md5")
        && stated != STANDARD.encode(md5::Md5::digest(&call.body))
    {
        return refuse(400, "Md5Mismatch");
    }
    if let Some(stated) = call.header("x-ms-content-crc64")
        && stated != crate::integrity::crc64(&call.body)
    {
        return refuse(400, "Crc64Mismatch");
    }
    Ok(())
}

fn conditions(blob: Option<&Blob>, call: &Received) -> Result<(), Reply> {
    if let Some(wanted) = call.header("if-match") {
        match blob {
            Some(blob) if wanted == "*" || wanted == blob.etag => {}
            Some(_) => return refuse(412, "ConditionNotMet"),
            None => return refuse(412, "ConditionNotMet"),
        }
    }
    if let Some(unwanted) = call.header("if-none-match") {
        let reads = call.method == "GET" || call.method == "HEAD";
        match blob {
            Some(blob) if reads && unwanted == blob.etag => {
                let mut reply = Reply::new(304);
                reply.set("etag", blob.etag.clone());
                return Err(reply);
            }
            Some(_) if !reads && unwanted == "*" => return refuse(409, "BlobAlreadyExists"),
            Some(blob) if unwanted == blob.etag => return refuse(412, "ConditionNotMet"),
            _ => {}
        }
    }
    Ok(())
}

fn leased(blob: Option<&Blob>, call: &Received) -> Result<(), Reply> {
    let Some(lease) = blob.and_then(|blob| blob.lease.as_ref()) else {
        return Ok(());
    };
    match call.header("x-ms-lease-id") {
        None => refuse(412, "LeaseIdMissing"),
        Some(id) if id.eq_ignore_ascii_case(&lease.id) => Ok(()),
        Some(_) => refuse(412, "LeaseIdMismatchWithBlobOperation"),
    }
}

pub(super) fn number(call: &Received, name: &str) -> Option<u64> {
    call.header(name)?.trim().parse().ok()
}

/// Offset and end of a range header, end exclusive.
pub(super) fn range(call: &Received) -> Option<(u64, Option<u64>)> {
    let text = call.header("x-ms-range").or_else(|| call.header("range"))?;
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let from = from.parse().ok()?;
    if to.is_empty() {
        return Some((from, None));
    }
    Some((from, Some(to.parse::<u64>().ok()?.checked_add(1)?)))
}

fn lease(blob: &mut Blob, call: &Received, now: Duration) -> Outcome {
    let id = call.header("x-ms-lease-id").unwrap_or_default().to_owned();
    let mine = blob
        .lease
        .as_ref()
        .is_some_and(|lease| lease.id.eq_ignore_ascii_case(&id));
    let mut reply = Reply::new(200);
    match call.header("x-ms-lease-action") {
        Some("acquire") => {
            let seconds = number(call, "x-ms-lease-duration").unwrap_or(0);
            if !(15..=60).contains(&seconds) {
                return refuse(400, "InvalidHeaderValue");
            }
            let proposed = call
                .header("x-ms-proposed-lease-id")
                .unwrap_or("5f0dcf0c-0000-0000-0000-000000000000")
                .to_owned();
            if blob
                .lease
                .as_ref()
                .is_some_and(|lease| !lease.id.eq_ignore_ascii_case(&proposed))
            {
                return refuse(409, "LeaseAlreadyPresent");
            }
            reply.status = 201;
            reply.set("x-ms-lease-id", proposed.clone());
            blob.lease = Some(Lease {
                id: proposed,
                seconds,
                until: now + Duration::from_secs(seconds),
            });
        }
        Some("renew") => match &mut blob.lease {
            Some(lease) if mine => {
                lease.until = now + Duration::from_secs(lease.seconds);
                reply.set("x-ms-lease-id", id);
            }
            _ => return refuse(409, "LeaseIdMismatchWithLeaseOperation"),
        },
        Some("release") if mine => blob.lease = None,
        Some("release") => return refuse(409, "LeaseIdMismatchWithLeaseOperation"),
        Some("break") if blob.lease.is_some() => {
            blob.lease = None;
            reply.status = 202;
            reply.set("x-ms-lease-time", "0");
        }
        Some("break") => return refuse(409, "LeaseNotPresentWithLeaseOperation"),
        _ => return refuse(400, "InvalidHeaderValue"),
    }
    reply.set("etag", blob.etag.clone());
    Ok(reply)
}

pub(super) fn chosen<'a>(blob: &'a Blob, call: &Received) -> Result<&'a Data, Reply> {
    match call.query("snapshot") {
        "" => Ok(&blob.data),
        name => blob
            .snapshots
            .get(name)
            .map(|(data, _)| data)
            .ok_or_else(|| Reply::error(404, "BlobNotFound")),
    }
}

fn read(blob: &Blob, call: &Received) -> Outcome {
    let data = chosen(blob, call)?;
    let length = data.length();
    let mut reply = Reply::new(200);
    reply.set("etag", blob.etag.clone());
    reply.set("x-ms-blob-type", kind(data));
    if let Data::Page { sequence, .. } = data {
        reply.set("x-ms-blob-sequence-number", sequence.to_string());
    }
    if blob.copied {
        reply.set("x-ms-copy-status", "success");
    }
    for (name, value) in &blob.metadata {
        reply.set(&format!("x-ms-meta-{name}"), value.clone());
    }
    reply.length_of_blob = Some(length);
    if call.method == "HEAD" {
        return Ok(reply);
    }
    match range(call) {
        None => reply.body = data.read(0..length),
        Some((from, to)) => {
            let to = to.unwrap_or(length).min(length);
            if from >= to {
                return refuse(416, "InvalidRange");
            }
            reply.status = 206;
            reply.set("content-range", format!("bytes {from}-{}/{length}", to - 1));
            reply.body = data.read(from..to);
            if call.header("x-ms-range-get-content-crc64") == Some("true") {
                if to - from > 4 << 20 {
                    return refuse(400, "OutOfRangeInput");
                }
                reply.set("x-ms-content-crc64", crate::integrity::crc64(&reply.body));
            }
        }
    }
    Ok(reply)
}

fn copy(account: &mut Account, call: &Received, etag: String) -> Outcome {
    let source = call.header("x-ms-copy-source").unwrap_or_default();
    let url = azure_core::http::Url::parse(source)
        .map_err(|_| Reply::error(400, "InvalidHeaderValue"))?;
    let mut path = url.path().trim_start_matches('/').splitn(3, '/').skip(1);
    let container = path.next().unwrap_or_default();
    let name = path.next().unwrap_or_default().replace("%2F", "/");
    let from = account
        .containers
        .get(container)
        .and_then(|keep| keep.blobs.get(&name))
        .ok_or_else(|| Reply::error(404, "CannotVerifyCopySource"))?;
    let snapshot = url
        .query_pairs()
        .find(|(name, _)| name == "snapshot")
        .map(|(_, value)| value.into_owned());
    let data = match snapshot {
        None => from.data.clone(),
        Some(name) => match from.snapshots.get(&name) {
            Some((data, _)) => data.clone(),
            None => return refuse(404, "CannotVerifyCopySource"),
        },
    };
    let keep = account
        .containers
        .get_mut(&call.container)
        .ok_or_else(|| Reply::error(404, "ContainerNotFound"))?;
    conditions(keep.blobs.get(&call.blob), call)?;
    leased(keep.blobs.get(&call.blob), call)?;
    put(keep, call, data, &etag);
    if let Some(blob) = keep.blobs.get_mut(&call.blob) {
        blob.copied = true;
    }
    let mut reply = Reply::new(202);
    reply.set("etag", etag);
    reply.set("x-ms-copy-id", "copy");
    reply.set("x-ms-copy-status", "success");
    Ok(reply)
}
