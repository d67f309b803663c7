//! The double's operations on page blobs: pages, length and sequence number, snapshots, ranges.

use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use super::blobs::{Blob, Data};
use super::operations::{Outcome, Reply, chosen, made, number, page_size, range, refuse};
use super::pages::Pages;
use super::server::{Received, Shared};

pub(super) fn write_pages(blob: &mut Blob, call: &Received, etag: String) -> Outcome {
    let Data::Page {
        length,
        sequence,
        pages,
    } = &mut blob.data
    else {
        return refuse(409, "InvalidBlobType");
    };
    let Some((from, Some(to))) = range(call) else {
        return refuse(400, "InvalidHeaderValue");
    };
    if from % 512 != 0 || to % 512 != 0 || from >= to {
        return refuse(416, "InvalidPageRange");
    }
    if to > *length {
        return refuse(416, "InvalidPageRange");
    }
    let holds = |name, test: fn(u64, u64) -> bool| {
        number(call, name).is_none_or(|number| test(*sequence, number))
    };
    if !(holds("x-ms-if-sequence-number-le", |have, wanted| have <= wanted)
        && holds("x-ms-if-sequence-number-lt", |have, wanted| have < wanted)
        && holds("x-ms-if-sequence-number-eq", |have, wanted| have == wanted))
    {
        return refuse(412, "SequenceNumberConditionNotMet");
    }
    match call.header("x-ms-page-write") {
        Some("update") => {
            if call.body.len() > 4 << 20 {
                return refuse(413, "RequestBodyTooLarge");
            }
            if call.body.len() as u64 != to - from {
                return refuse(400, "InvalidHeaderValue");
            }
            pages.write(from, &call.body);
        }
        Some("clear") if call.body.is_empty() => pages.clear(from..to),
        _ => return refuse(400, "InvalidHeaderValue"),
    }
    let sequence = sequence.to_string();
    blob.etag = etag;
    let mut reply = made(&blob.etag);
    reply.set("x-ms-blob-sequence-number", sequence);
    Ok(reply)
}

pub(super) fn properties(blob: &mut Blob, call: &Received, etag: String) -> Outcome {
    let Data::Page {
        length,
        sequence,
        pages,
    } = &mut blob.data
    else {
        return refuse(409, "InvalidBlobType");
    };
    if let Some(wanted) = number(call, "x-ms-blob-content-length") {
        if wanted % 512 != 0 {
            return refuse(400, "InvalidHeaderValue");
        }
        if wanted < *length {
            pages.clear(wanted..*length);
        }
        *length = wanted;
    }
    let wanted = number(call, "x-ms-blob-sequence-number");
    match (call.header("x-ms-sequence-number-action"), wanted) {
        (None, None) => {}
        (Some("max"), Some(wanted)) => *sequence = (*sequence).max(wanted),
        (Some("update"), Some(wanted)) => *sequence = wanted,
        (Some("increment"), None) => *sequence += 1,
        _ => return refuse(400, "InvalidHeaderValue"),
    }
    let sequence = sequence.to_string();
    blob.etag = etag;
    let mut reply = Reply::new(200);
    reply.set("etag", blob.etag.clone());
    reply.set("x-ms-blob-sequence-number", sequence);
    Ok(reply)
}

pub(super) fn snapshot(blob: &mut Blob, premium: bool, etag: &str, now: Duration) -> Outcome {
    if premium {
        if blob.snapshots.len() >= 100 {
            return refuse(409, "SnapshotCountExceeded");
        }
        let newest = blob.snapshots.values().map(|(_, at)| *at).max();
        if newest.is_some_and(|at| now < at + Duration::from_secs(600)) {
            return refuse(409, "SnapshotOperationRateExceeded");
        }
    }
    // Any text that names it and sorts by time will do.
    let name = format!(
        "2026-01-01T00:00:00.{:0>7}Z",
        etag.trim_matches('"')
            .trim_start_matches("0x8DD")
            .trim_start_matches('0')
    );
    blob.snapshots
        .insert(name.clone(), (blob.data.clone(), now));
    let mut reply = made(&blob.etag);
    reply.set("x-ms-snapshot", name);
    Ok(reply)
}

pub(super) fn page_ranges(
    shared: &Shared,
    blob: &Blob,
    call: &Received,
    earlier: Option<&Pages>,
) -> Outcome {
    let Data::Page { length, pages, .. } = chosen(blob, call)? else {
        return refuse(409, "InvalidBlobType");
    };
    let within = match range(call) {
        Some((from, to)) => from..to.unwrap_or(*length).min(*length),
        None => 0..*length,
    };
    let mut entries: Vec<(Range<u64>, &str)> = Vec::new();
    let older = match call.query("prevsnapshot") {
        "" => earlier,
        name => match blob.snapshots.get(name) {
            Some((Data::Page { pages, .. }, _)) => Some(pages),
            _ => return refuse(404, "PreviousSnapshotNotFound"),
        },
    };
    match older {
        None => entries.extend(
            pages
                .ranges(within)
                .into_iter()
                .map(|range| (range, "PageRange")),
        ),
        Some(older) => {
            let (written, cleared) = pages.since(older, within);
            entries.extend(written.into_iter().map(|range| (range, "PageRange")));
            entries.extend(cleared.into_iter().map(|range| (range, "ClearRange")));
            entries.sort_by_key(|(range, _)| range.start);
        }
    }
    let from: u64 = call.query("marker").parse().unwrap_or(0);
    let size = page_size(shared, call);
    let rest: Vec<_> = entries
        .into_iter()
        .filter(|(range, _)| range.start >= from)
        .collect();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><PageList>");
    for (range, kind) in rest.iter().take(size) {
        let _ = write!(
            xml,
            "<{kind}><Start>{}</Start><End>{}</End></{kind}>",
            range.start,
            range.end - 1
        );
    }
    if let Some((next, _)) = rest.get(size) {
        let _ = write!(xml, "<NextMarker>{}</NextMarker>", next.start);
    }
    xml.push_str("</PageList>");
    let mut reply = Reply::new(200);
    reply.set("content-type", "application/xml");
    reply.set("etag", blob.etag.clone());
    reply.set("x-ms-blob-content-length", length.to_string());
    reply.body = xml.into_bytes();
    Ok(reply)
}
