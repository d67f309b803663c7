//! Taking a frozen point away: exports, filters, nodes, files of ours, outermost first.
//!
//! Works for a point of this process and for what one that died left behind, at whatever step; and for one of an
//! earlier release, which froze by backup jobs.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{FoundVm, QemuDriver, connect, from_qmp, hold, is_ours, machine};
use crate::qmp::{Qmp, QmpError};
use crate::{ErrorKind, HypervisorError, VmId};

/// For exports and jobs to go away: a job has to finish the copies it is at.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a sweep whose connection broke is begun anew.
const CONNECTIONS: u32 = 5;
/// QEMU has no event for all of what a sweep waits for.
const POLL: Duration = Duration::from_millis(10);

/// How the names of nodes begin that read through a filter.
pub(super) const ACCESS: &str = "sr-access-";

/// What of a frozen point is in a QEMU.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    exports: Vec<String>,
    jobs: Vec<String>,
    nodes: Vec<String>,
}

impl QemuDriver {
    /// Releases whatever point of a VM is frozen, and lets its guest go on if a freeze left it held. A VM that is off or
    /// gone has only files left.
    pub(super) async fn sweep_vm(&self, vm: VmId) -> Result<(), HypervisorError> {
        let found = match self.find(vm) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::VmNotFound => return self.remove_scratch(vm),
            Err(error) => return Err(error),
        };
        let mut tries = CONNECTIONS;
        loop {
            match self.sweep_found(&found).await {
                // Said of a connection that broke, too: only a QEMU that has ended holds nothing.
                Err(error) if error.kind() == ErrorKind::VmNotRunning => {
                    if found.folder.running_pid().is_none() {
                        return self.remove_scratch(vm);
                    }
                    tries -= 1;
                    if tries == 0 {
                        return Err(error);
                    }
                    debug!(vm = %found.config.name, ?error, "a sweep begins anew");
                    sleep(POLL).await;
                }
                other => return other,
            }
        }
    }

    async fn sweep_found(&self, found: &FoundVm) -> Result<(), HypervisorError> {
        // A guest first: it waits.
        let woken = hold::wake_soon(found).await;
        let mut qmp = connect(found).await?;
        self.sweep(found, &mut qmp).await.and(woken)
    }

    /// Exports, server, jobs, filters, nodes and files of ours, in this order; each step only when the one before is done.
    pub(super) async fn sweep(
        &self,
        found: &FoundVm,
        qmp: &mut Qmp,
    ) -> Result<(), HypervisorError> {
        let failed = |error| {
            from_qmp(
                format!("release the frozen point of vm {}", found.config.name),
                error,
            )
        };
        let deadline = Instant::now() + SWEEP_TIMEOUT;
        loop {
            let left = ours(qmp).await.map_err(failed)?;
            if left.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(failed(QmpError::Timeout {
                    step: left.describe(),
                }));
            }
            left.push_on(found, qmp).await.map_err(failed)?;
            // Most of it is gone by now; only the end of an export or a job takes its time.
            if !ours(qmp).await.map_err(failed)?.is_empty() {
                sleep(POLL).await;
            }
        }
        // "not running" is the only refusal.
        match qmp.execute("nbd-server-stop", Value::Null).await {
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
        // QEMU removes it; after a crash of QEMU in the middle it may be left.
        let _ = std::fs::remove_file(found.folder.nbd_socket());
        self.remove_scratch(found.id())
    }

    pub(super) fn remove_scratch(&self, vm: VmId) -> Result<(), HypervisorError> {
        let folder = self.scratch_of(vm);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(HypervisorError::with_source(
                    ErrorKind::Io,
                    format!("delete scratch folder {}", folder.display()),
                    error,
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Takes our filters from between the guest's devices and what they stand on.
async fn detach(found: &FoundVm, qmp: &mut Qmp) -> Result<(), QmpError> {
    for index in 0..found.config.disks.len() {
        if let Some(filter) = top(qmp, index)
            .await?
            .filter(|name| name.starts_with("sr-"))
        {
            let below = below(qmp, &filter).await?;
            let node = below.unwrap_or_else(|| machine::node_name(index));
            attach(qmp, index, &node).await?;
        }
    }
    Ok(())
}

/// The node that a device stands on: its disk, or the filter of somebody's block job above it. A disk that was added to
/// the configuration after the start has no device.
pub(super) async fn top(qmp: &mut Qmp, index: usize) -> Result<Option<String>, QmpError> {
    let drive = json!({ "path": device_path(index), "property": "drive" });
    match qmp.execute("qom-get", drive).await {
        Ok(value) => Ok(value
            .as_str()
            .filter(|name| !name.is_empty())
            .map(str::to_owned)),
        Err(QmpError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The node that a filter stands on now: somebody's block job may have come or gone below it.
async fn below(qmp: &mut Qmp, filter: &str) -> Result<Option<String>, QmpError> {
    match qmp.execute("x-debug-query-block-graph", Value::Null).await {
        Ok(graph) => Ok(child(&graph, filter)),
        Err(QmpError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn child(graph: &Value, parent: &str) -> Option<String> {
    let nodes = graph["nodes"].as_array()?;
    let parent = nodes.iter().find(|node| node["name"] == parent)?;
    let edge = graph["edges"]
        .as_array()?
        .iter()
        .find(|edge| edge["parent"] == parent["id"] && edge["name"] == "file")?;
    let child = nodes.iter().find(|node| node["id"] == edge["child"])?;
    child["name"]
        .as_str()
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
}

/// Puts a device onto a node.
pub(super) async fn attach(qmp: &mut Qmp, index: usize, node: &str) -> Result<(), QmpError> {
    let arguments = json!({ "path": device_path(index), "property": "drive", "value": node });
    qmp.execute("qom-set", arguments).await.map(drop)
}

fn device_path(index: usize) -> String {
    format!("/machine/peripheral/{}", machine::device_name(index))
}

/// The names of ours in a list that QEMU gives.
async fn list(
    qmp: &mut Qmp,
    query: &str,
    arguments: Value,
    field: &str,
) -> Result<Vec<String>, QmpError> {
    let answer = qmp.execute(query, arguments).await?;
    let items = answer.as_array().ok_or_else(|| QmpError::Protocol {
        step: query.to_owned(),
        problem: "the answer is no list".to_owned(),
    })?;
    Ok(items
        .iter()
        .filter_map(|item| is_ours(item, field))
        .collect())
}

/// What of ours is in a QEMU.
pub(super) async fn ours(qmp: &mut Qmp) -> Result<Leftovers, QmpError> {
    let mut left = Leftovers {
        exports: list(qmp, "query-block-exports", Value::Null, "id").await?,
        jobs: list(qmp, "query-block-jobs", Value::Null, "device").await?,
        nodes: list(
            qmp,
            "query-named-block-nodes",
            json!({ "flat": true }),
            "node-name",
        )
        .await?,
    };
    // Their names are made so that a node comes before those it stands on.
    left.nodes.sort();
    Ok(left)
}

impl Leftovers {
    pub(super) fn is_empty(&self) -> bool {
        self.exports.is_empty() && self.jobs.is_empty() && self.nodes.is_empty()
    }

    /// Exports, jobs and nodes, by their names.
    pub(super) fn names(&self) -> Vec<String> {
        [&self.exports[..], &self.jobs[..], &self.nodes[..]].concat()
    }

    fn describe(&self) -> String {
        format!("the end of {}", self.names().join(", "))
    }

    /// Asks the outermost layer that is left to go. Repeating it while it goes is refused, which is no failure.
    async fn push_on(&self, found: &FoundVm, qmp: &mut Qmp) -> Result<(), QmpError> {
        let (access, below): (Vec<String>, Vec<String>) = self
            .nodes
            .iter()
            .cloned()
            .partition(|name| name.starts_with(ACCESS));
        let (command, field, names, extra) = if !self.exports.is_empty() {
            (
                "block-export-del",
                "id",
                &self.exports,
                json!({ "mode": "hard" }),
            )
        } else if !self.jobs.is_empty() {
            (
                "block-job-cancel",
                "device",
                &self.jobs,
                json!({ "force": true }),
            )
        } else if !access.is_empty() {
            ("blockdev-del", "node-name", &access, json!({}))
        } else {
            // While it is read through, a filter allows no write past it.
            detach(found, qmp).await?;
            ("blockdev-del", "node-name", &below, json!({}))
        };
        for name in names {
            let mut arguments = extra.clone();
            arguments[field] = json!(name);
            match qmp.execute(command, arguments).await {
                Ok(_) => {}
                Err(error @ QmpError::Refused { .. }) => debug!(%error, "will be asked again"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_below_a_filter_is_found_by_its_file_edge() {
        let graph = json!({
            "nodes": [
                { "id": 1, "type": "block-driver", "name": "disk0" },
                { "id": 2, "type": "block-driver", "name": "sr-cbw-0" },
                { "id": 3, "type": "block-driver", "name": "sr-fl-0" },
            ],
            "edges": [
                { "parent": 2, "child": 3, "name": "target" },
                { "parent": 2, "child": 1, "name": "file" },
            ],
        });
        assert_eq!(child(&graph, "sr-cbw-0").as_deref(), Some("disk0"));
        assert_eq!(child(&graph, "sr-cbw-1"), None);
        assert_eq!(child(&json!("nonsense"), "sr-cbw-0"), None);
    }
}
