//! Change tracking: which of our bitmaps a running VM has, and what they can answer.
//!
//! A bitmap `sr-<generation>-<number>` records from the freeze of that id to the next freeze of its disk, which
//! disables it and adds the next one in the same transaction. So the bitmaps from `since` on, together, hold every
//! change since `since`, even when several freezes came to nothing.
//!
//! They live in QEMU's memory: after a restart of the VM there are none.

use std::path::Path;

use serde_json::{Value, json};

use super::{FoundVm, QemuDriver, connect, from_qmp};
use crate::qmp::Qmp;
use crate::{ErrorKind, HypervisorError, TrackingId, VmId};

/// Bytes that one bit of a bitmap stands for.
pub(super) const GRANULARITY: u64 = 64 << 10;

/// One of our bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub(super) id: TrackingId,
    pub(super) recording: bool,
    busy: bool,
    /// Complete and of our granularity.
    sound: bool,
}

/// A disk's node with our bitmaps, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskNode {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// The image that this QEMU has open, in its words.
    pub(super) file: String,
    pub(super) bitmaps: Vec<Bitmap>,
}

impl DiskNode {
    /// Whether the running QEMU has `path` open as this disk: places in `vm.toml` may have changed since its start.
    pub(super) fn shows(&self, path: &Path) -> bool {
        // An overlay's name tells its backing too; only names of files can be compared.
        if self.file.starts_with("json:") {
            return self.file.contains(&*path.to_string_lossy());
        }
        let open = Path::new(self.file.strip_prefix("file:").unwrap_or(&self.file));
        let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
        open == path || same(open, path) == Some(true)
    }

    /// The bitmaps that together hold all changes since `since`; `None` when that can't be told.
    pub(super) fn chain(&self, since: TrackingId) -> Option<Vec<TrackingId>> {
        let chain: Vec<&Bitmap> = self
            .bitmaps
            .iter()
            .filter(|bitmap| bitmap.id >= since)
            .collect();
        let first = chain.first()?;
        let (newest, older) = chain.split_last()?;
        let whole = first.id == since
            && newest.recording
            && older.iter().all(|bitmap| !bitmap.recording)
            && chain.iter().all(|bitmap| bitmap.sound);
        whole.then(|| chain.iter().map(|bitmap| bitmap.id).collect())
    }
}

pub(super) fn bitmap_name(id: TrackingId) -> String {
    format!("sr-{}-{}", id.generation, id.number)
}

fn parse_bitmap_name(name: &str) -> Option<TrackingId> {
    let (generation, number) = name.strip_prefix("sr-")?.split_once('-')?;
    let id = TrackingId {
        generation: generation.parse().ok()?,
        number: number.parse().ok()?,
    };
    (bitmap_name(id) == name).then_some(id)
}

/// The disks' nodes out of QEMU's list of all nodes.
pub(super) async fn disk_nodes(
    qmp: &mut Qmp,
    found: &FoundVm,
) -> Result<Vec<DiskNode>, HypervisorError> {
    let nodes = qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await
        .map_err(|error| {
            from_qmp(
                format!("list block nodes of vm {}", found.config.name),
                error,
            )
        })?;
    Ok(parse_nodes(&nodes, found.config.disks.len()))
}

fn parse_nodes(nodes: &Value, disks: usize) -> Vec<DiskNode> {
    let wanted: Vec<String> = (0..disks).map(super::machine::node_name).collect();
    let mut found = Vec::new();
    for node in nodes.as_array().map(Vec::as_slice).unwrap_or_default() {
        let Some(name) = node["node-name"]
            .as_str()
            .filter(|name| wanted.iter().any(|wanted| wanted == name))
        else {
            continue;
        };
        let mut bitmaps: Vec<Bitmap> = node["dirty-bitmaps"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter_map(|bitmap| {
                Some(Bitmap {
                    id: parse_bitmap_name(bitmap["name"].as_str()?)?,
                    recording: bitmap["recording"].as_bool()?,
                    busy: bitmap["busy"].as_bool()?,
                    sound: bitmap["granularity"].as_u64() == Some(GRANULARITY)
                        && bitmap["inconsistent"].as_bool() != Some(true),
                })
            })
            .collect();
        bitmaps.sort_by_key(|bitmap| bitmap.id);
        found.push(DiskNode {
            name: name.to_owned(),
            size_bytes: node["image"]["virtual-size"].as_u64().unwrap_or_default(),
            file: node["image"]["filename"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            bitmaps,
        });
    }
    found
}

impl QemuDriver {
    pub(super) async fn tracking_ids(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        let found = self.find(vm)?;
        let mut ids = self.still.tracking(vm);
        let nodes = match connect(&found).await {
            Ok(mut qmp) => disk_nodes(&mut qmp, &found).await?,
            Err(error) if error.kind() == ErrorKind::VmNotRunning => Vec::new(),
            Err(error) => return Err(error),
        };
        ids.extend(
            nodes
                .iter()
                .flat_map(|node| node.bitmaps.iter().map(|bitmap| bitmap.id)),
        );
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// Drops the bitmaps older than the given id, or all.
    pub(super) async fn drop_tracking(
        &self,
        vm: VmId,
        older_than: Option<TrackingId>,
    ) -> Result<(), HypervisorError> {
        match older_than {
            Some(older_than) => self.still.forget(vm, older_than),
            None => self.still.forget_all(vm),
        }
        let found = match self.find(vm) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::VmNotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut qmp = match connect(&found).await {
            Ok(qmp) => qmp,
            // With QEMU its bitmaps went.
            Err(error) if error.kind() == ErrorKind::VmNotRunning => return Ok(()),
            Err(error) => return Err(error),
        };
        let name = &found.config.name;
        let nodes = disk_nodes(&mut qmp, &found).await?;
        let mut actions = Vec::new();
        for node in &nodes {
            for bitmap in &node.bitmaps {
                // A disk that was left out of later freezes is still recorded by an older bitmap: its only record.
                let drop = older_than.is_none_or(|limit| bitmap.id < limit && !bitmap.recording);
                if drop && bitmap.busy {
                    return Err(HypervisorError::new(
                        ErrorKind::Busy,
                        format!(
                            "drop tracking {} of vm {name}: a frozen point still uses it",
                            bitmap.id
                        ),
                    ));
                }
                if drop {
                    actions.push(json!({
                        "type": "block-dirty-bitmap-remove",
                        "data": { "node": node.name, "name": bitmap_name(bitmap.id) },
                    }));
                }
            }
        }
        if actions.is_empty() {
            return Ok(());
        }
        qmp.execute("transaction", json!({ "actions": actions }))
            .await
            .map_err(|error| from_qmp(format!("drop tracking of vm {name}"), error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(generation: u64, number: u64) -> TrackingId {
        TrackingId { generation, number }
    }

    fn bitmap(number: u64, recording: bool) -> Bitmap {
        Bitmap {
            id: id(1, number),
            recording,
            busy: false,
            sound: true,
        }
    }

    fn node(bitmaps: Vec<Bitmap>) -> DiskNode {
        DiskNode {
            name: "disk0".to_owned(),
            size_bytes: 1 << 20,
            file: String::new(),
            bitmaps,
        }
    }

    #[test]
    fn bitmaps_since_an_id_answer_together() {
        let node = node(vec![bitmap(1, false), bitmap(2, false), bitmap(5, true)]);
        assert_eq!(node.chain(id(1, 2)), Some(vec![id(1, 2), id(1, 5)]));
        assert_eq!(node.chain(id(1, 5)), Some(vec![id(1, 5)]));
    }

    #[test]
    fn a_chain_that_is_not_whole_answers_nothing() {
        assert_eq!(node(vec![]).chain(id(1, 1)), None);
        assert_eq!(
            node(vec![bitmap(2, true)]).chain(id(1, 1)),
            None,
            "since is unknown"
        );
        assert_eq!(
            node(vec![bitmap(1, false)]).chain(id(1, 1)),
            None,
            "nothing records"
        );
        assert_eq!(
            node(vec![bitmap(1, true), bitmap(2, true)]).chain(id(1, 1)),
            None,
            "an older one records"
        );
        let broken = Bitmap {
            sound: false,
            ..bitmap(1, false)
        };
        assert_eq!(
            node(vec![broken, bitmap(2, true)]).chain(id(1, 1)),
            None,
            "a bitmap is incomplete"
        );
    }

    #[test]
    fn only_names_of_ours_are_ids() {
        assert_eq!(parse_bitmap_name("sr-3-14"), Some(id(3, 14)));
        for name in [
            "sr-3",
            "sr-3-",
            "sr-03-1",
            "sr-3-1-2",
            "bitmap0",
            "sr--1-2",
            "sr-99999999999999999999-1",
        ] {
            assert_eq!(parse_bitmap_name(name), None, "{name}");
        }
    }

    #[test]
    fn nodes_of_others_and_odd_answers_are_passed_over() {
        let answer = json!([
            { "node-name": "disk0", "image": { "virtual-size": 1024 }, "dirty-bitmaps": [
                { "name": "sr-1-2", "recording": true, "busy": false, "granularity": 65536 },
                { "name": "sr-1-1", "recording": false, "busy": true, "granularity": 4096 },
                { "name": "theirs", "recording": true, "busy": false, "granularity": 65536 },
                { "name": "sr-1-3" },
            ]},
            { "node-name": "pflash-code" },
            "nonsense",
        ]);
        let nodes = parse_nodes(&answer, 1);
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].size_bytes, 1024);
        assert_eq!(
            nodes[0]
                .bitmaps
                .iter()
                .map(|bitmap| bitmap.id)
                .collect::<Vec<_>>(),
            [id(1, 1), id(1, 2)]
        );
        assert!(!nodes[0].bitmaps[0].sound);
        assert!(parse_nodes(&json!({"x": 1}), 1).is_empty());
    }
}
