//! A replica in a store: its state, disks, recovery points and pins.

use std::path::Path;

use anyhow::Context as _;
use replica_store::{
    PointKind, RecoveryPoint, ReplicaKey, ReplicaReader, ReplicaState, StoreTarget,
};
use serde_json::{Value, json};

use super::rfc3339;
use crate::location;

/// The replica at `<store>/<vault>/<item>`, folder or URL.
pub async fn whole(place: &str) -> anyhow::Result<Value> {
    let (store, key) = location::replica(place)?;
    describe(&store, &key)
        .await
        .with_context(|| format!("{place} is not the place of a replica (<store>/<vault>/<item>)"))
}

/// The points of a replica, as `inspect` of its folder shows them.
pub async fn points(store: &Path, vault_key: &str, item: &str) -> anyhow::Result<Value> {
    let store = std::path::absolute(store).context("store folder")?;
    describe(
        &StoreTarget::Folder(store),
        &ReplicaKey::new(vault_key, item)?,
    )
    .await
}

async fn describe(store: &StoreTarget, key: &ReplicaKey) -> anyhow::Result<Value> {
    let reader = ReplicaReader::open(store, key)
        .await
        .with_context(|| format!("open replica {key}"))?;
    let state = reader.state().await.context("look at the replica")?;
    let disks = reader.disks().await.context("list the disks")?;
    let points = reader.points().await.context("list the recovery points")?;
    let pins = reader.pins().await.context("list the pins")?;
    Ok(json!({
        "kind": "replica",
        "vaultKey": key.vault_key(),
        "item": key.item_id(),
        "state": match state {
            ReplicaState::Empty => json!({ "initialReplication": "not begun" }),
            ReplicaState::Partial => json!({ "initialReplication": "not finished" }),
            ReplicaState::Complete { base_position, head_position } => json!({
                "initialReplication": "complete",
                "basePosition": base_position.0,
                "headPosition": head_position.0,
            }),
        },
        "disks": disks.iter().map(|disk| json!({
            "id": disk.id,
            "name": disk.name,
            "sizeBytes": disk.size_bytes,
        })).collect::<Vec<_>>(),
        "pins": pins.iter().map(|pin| json!({
            "owner": pin.owner,
            "point": pin.point_id,
            "position": pin.position.0,
        })).collect::<Vec<_>>(),
        "points": points.iter().map(point).collect::<Vec<_>>(),
    }))
}

/// A point for people and scripts.
pub fn point(point: &RecoveryPoint) -> Value {
    json!({
        "id": point.id,
        "time": rfc3339(point.time_unix_ms),
        "timeUnixMs": point.time_unix_ms,
        "kind": match point.kind {
            PointKind::Crash => "CrashConsistent",
            PointKind::Application => "ApplicationConsistent",
        },
        "position": point.position.0,
        "changedBytes": point.changed_bytes,
        "sentBytes": point.sent_bytes,
    })
}
