//! Takes up reports: memory at once, the store when it matters.
//!
//! Stored at once: a new state of a replication or a new inventory. Stored at intervals: heartbeat, points,
//! figures; the engine repeats them, and a restart only needs to know roughly.

use std::collections::HashMap;
use std::sync::Arc;

use engine_protocol::orders;
use engine_protocol::v1::{self, replication_status::State};
use prost::Message as _;
use protection::life::{Event as LifeEvent, Phase, SourceSaid};
use protection::{Event, Generation, Observed};
use tracing::warn;
use uuid::Uuid;

use super::enrol::encode_report;
use crate::alternate_host;
use crate::app::App;
use crate::azure_target;
use crate::evidence;
use crate::failover;
use crate::store::StoreError;
use crate::store::records::{self, EngineRecord, Item, RecoverySide};

/// Heartbeat and figures are stored at most so often.
const STORE_EVERY_MS: i64 = 10_000;

/// Takes up the reports of one stream.
pub struct Intake {
    engine_id: String,
    /// (generation, state) that the item's record has already seen.
    seen: HashMap<String, (u64, i32)>,
    /// What was said of orders, by item or recovered VM, that the record has already seen.
    said: HashMap<String, (u64, i32)>,
    /// Encryption keys that the item's record already knows of.
    keys: HashMap<String, (String, Vec<String>)>,
    inventory: Vec<u8>,
    stored_ms: i64,
}

// === impl Intake ===

impl Intake {
    /// Knows nothing: the first report is stored whole.
    #[must_use]
    pub fn new(engine_id: &str) -> Self {
        Self {
            engine_id: engine_id.to_owned(),
            seen: HashMap::new(),
            said: HashMap::new(),
            keys: HashMap::new(),
            inventory: Vec::new(),
            stored_ms: 0,
        }
    }

    /// Takes up one report.
    ///
    /// # Errors
    /// Failures of the store; the report is in memory nevertheless.
    pub async fn take(
        &mut self,
        app: &App,
        mut report: v1::EngineReport,
    ) -> Result<(), StoreError> {
        let now = app.now_ms();
        // Kept beside the drill's job, neither in memory nor with the engine.
        let evidence = report.evidence.take();
        let known = app.fleet.get(&self.engine_id).map(|live| live.report);
        let report = Arc::new(match known {
            Some(known) => super::carry::carry_over(&known, report),
            None => {
                report.gone_machines.clear();
                report
            }
        });
        let inventory = v1::EngineReport {
            host: report.host.clone().map(|host| v1::Host {
                free_bytes: 0,
                ..host
            }),
            virtual_machines: report.virtual_machines.clone(),
            ..v1::EngineReport::default()
        }
        .encode_to_vec();
        app.fleet.observe(&self.engine_id, Arc::clone(&report), now);
        let mut news = inventory != self.inventory;
        for status in &report.replications {
            let present = (status.generation, status.state);
            if self.seen.get(&status.item_id) != Some(&present) {
                // What is said of replication while the VM is elsewhere counts when it is back.
                if self.advance(app, status).await? {
                    self.seen.insert(status.item_id.clone(), present);
                }
                news = true;
            }
            if let Some(source) = &status.source {
                let said = (source.epoch, source.said);
                if self.said.get(&status.item_id) != Some(&said) {
                    self.source_said(app, status, source).await?;
                    self.said.insert(status.item_id.clone(), said);
                    news = true;
                }
            }
            let keys = (status.active_key_id.clone(), status.key_ids.clone());
            if self
                .keys
                .get(&status.item_id)
                .map_or(keys.0.is_empty() && keys.1.is_empty(), |known| {
                    *known == keys
                })
            {
                continue;
            }
            self.note_keys(app, status).await?;
            self.keys.insert(status.item_id.clone(), keys);
        }
        for status in &report.recovered_vms {
            if let Some(recovery) = &status.recovery {
                let said = (recovery.epoch, recovery.said);
                if self.said.get(&status.id) != Some(&said) {
                    self.recovery_said(app, status, recovery).await?;
                    self.said.insert(status.id.clone(), said);
                    news = true;
                }
            }
        }
        if news || now - self.stored_ms >= STORE_EVERY_MS {
            records::update::<EngineRecord>(
                app.store.as_ref(),
                &records::engine_key(&self.engine_id),
                |engine| {
                    Some(EngineRecord {
                        report: encode_report(&report),
                        last_seen_unix_ms: now,
                        ..engine.clone()
                    })
                },
            )
            .await?;
            self.inventory = inventory;
            self.stored_ms = now;
        }
        if let Some(evidence) = evidence
            && let Err(error) = evidence::take(app, &self.engine_id, evidence).await
        {
            warn!(
                engine = %self.engine_id,
                error = &error as &dyn std::error::Error,
                "evidence of a drill can't be stored; the engine sends it again"
            );
        }
        app.ring();
        Ok(())
    }

    /// Remembers which encryption keys an item's objects need, so that none is dropped too early.
    async fn note_keys(&self, app: &App, status: &v1::ReplicationStatus) -> Result<(), StoreError> {
        let Some((below, ours)) = self.ours(app, &status.item_id).await? else {
            return Ok(());
        };
        let store = app.store.as_ref();
        let items = records::list::<Item>(store, &below).await?;
        let Some(item) = items.into_iter().find(|item| ours(&item.record)) else {
            return Ok(());
        };
        records::update::<Item>(store, &item.key, |item| {
            let current = item.life.item.generation.0 == status.generation;
            let changed =
                item.key_ids != status.key_ids || item.active_key_id != status.active_key_id;
            (current && changed).then(|| Item {
                key_ids: status.key_ids.clone(),
                active_key_id: status.active_key_id.clone(),
                ..item.clone()
            })
        })
        .await?;
        Ok(())
    }

    /// Where the items of this engine's site are, and how to tell the one of this name.
    async fn ours(
        &self,
        app: &App,
        item_id: &str,
    ) -> Result<Option<(String, impl Fn(&Item) -> bool)>, StoreError> {
        let key = records::engine_key(&self.engine_id);
        let Some(engine) = records::get::<EngineRecord>(app.store.as_ref(), &key).await? else {
            return Ok(None);
        };
        let below = format!("{}/", engine.record.fabric_id.to_ascii_lowercase());
        let (engine_id, item_id) = (self.engine_id.clone(), item_id.to_owned());
        let ours = move |item: &Item| {
            item.engine_id == engine_id
                && item
                    .id
                    .rsplit('/')
                    .next()
                    .is_some_and(|name| name.eq_ignore_ascii_case(&item_id))
        };
        Ok(Some((below, ours)))
    }

    /// Takes up the state of a replication. `false` = not now: the VM is elsewhere.
    async fn advance(&self, app: &App, status: &v1::ReplicationStatus) -> Result<bool, StoreError> {
        let Some(observed) = observed(status.state()) else {
            return Ok(true);
        };
        let event = Event::Report {
            generation: Generation(status.generation),
            observed,
        };
        let Some((below, ours)) = self.ours(app, &status.item_id).await? else {
            return Ok(true);
        };
        let side = |item: &Item| item.recovery.clone();
        let phase = step(app, &below, ours, event.into(), side).await?;
        Ok(phase.is_none_or(|phase| matches!(phase, Phase::AtSource | Phase::Gone)))
    }

    /// Takes up what a source says of its order.
    async fn source_said(
        &self,
        app: &App,
        status: &v1::ReplicationStatus,
        report: &v1::SourceReport,
    ) -> Result<(), StoreError> {
        let Some((epoch, said)) = orders::source_said(report) else {
            return Ok(());
        };
        alternate_host::said(app, &self.engine_id, &status.item_id, (epoch, said)).await?;
        if said == SourceSaid::Shipped && report.point_id.is_empty() {
            // A failover without loss needs to know which point has every write.
            warn!(item = %status.item_id, "the source has shipped the rest and names no recovery point");
            return Ok(());
        }
        let point = status
            .recovery_points
            .iter()
            .find(|point| point.id == report.point_id)
            .map_or(0, |point| point.time_unix_ms);
        let point = Some((report.point_id.clone(), point)).filter(|(id, _)| !id.is_empty());
        let Some((below, ours)) = self.ours(app, &status.item_id).await? else {
            return Ok(());
        };
        let side = |item: &Item| failover::with_last_point(item, (epoch, said), point.clone());
        step(app, &below, ours, LifeEvent::Source { epoch, said }, side).await?;
        Ok(())
    }

    /// Takes up what a recovery side says of its order.
    async fn recovery_said(
        &self,
        app: &App,
        status: &v1::RecoveredVmStatus,
        report: &v1::RecoveryReport,
    ) -> Result<(), StoreError> {
        let (Some((epoch, said)), Ok(id)) =
            (orders::recovery_said(report), status.id.parse::<Uuid>())
        else {
            return Ok(());
        };
        let Some(below) = vault_of_engine(app, &self.engine_id).await? else {
            return Ok(());
        };
        let ours = |item: &Item| {
            let here = item.recovery.as_ref();
            here.is_some_and(|side| side.engine_id == self.engine_id)
                && failover::vm_id(item) == Some(id)
        };
        let side = |item: &Item| item.recovery.clone();
        step(app, &below, ours, LifeEvent::Recovery { epoch, said }, side).await?;
        Ok(())
    }
}

/// The key below which everything of an engine's vault is.
///
/// # Errors
/// Failures of the store.
pub async fn vault_of_engine(app: &App, engine_id: &str) -> Result<Option<String>, StoreError> {
    if azure_target::is_engine(engine_id) {
        // It serves every vault.
        return Ok(Some(String::new()));
    }
    let key = records::engine_key(engine_id);
    let engine = records::get::<EngineRecord>(app.store.as_ref(), &key).await?;
    let fabric = engine.and_then(|engine| arm_model::ArmId::parse(&engine.record.fabric_id).ok());
    let vault = fabric.and_then(|fabric| arm_model::VaultId::of(&fabric));
    Ok(vault.map(|vault| format!("{}/", vault.key())))
}

/// Moves the life of the one item that is meant; gives the phase that it is in then.
async fn step(
    app: &App,
    below: &str,
    meant: impl Fn(&Item) -> bool,
    event: LifeEvent,
    side: impl Fn(&Item) -> Option<RecoverySide>,
) -> Result<Option<Phase>, StoreError> {
    loop {
        let items = records::list::<Item>(app.store.as_ref(), below).await?;
        let Some(item) = items.into_iter().find(|item| meant(&item.record)) else {
            return Ok(None);
        };
        let phase = item.record.life.phase;
        let Ok(step) = protection::step(item.record.life, event) else {
            return Ok(Some(phase));
        };
        if step.0 == item.record.life {
            return Ok(Some(phase));
        }
        let side = side(&item.record);
        match failover::write(app, item, step, side).await {
            Ok(next) => return Ok(Some(next.life.phase)),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

/// The vault of an item.
#[must_use]
pub fn vault_of(item: &Item) -> Option<arm_model::VaultId> {
    let id = arm_model::ArmId::parse(&item.id).ok()?;
    arm_model::VaultId::of(&id)
}

fn observed(state: State) -> Option<Observed> {
    Some(match state {
        // What a held VM's engine has to say is in its report of the order.
        State::Unspecified | State::Held => return None,
        State::Starting => Observed::Starting,
        State::InitialReplication => Observed::InitialReplication,
        State::Protected => Observed::Protected,
        State::Comparing => Observed::Comparing,
        State::Blocked => Observed::Blocked,
        State::Retired => Observed::Retired,
        State::Fenced => Observed::Fenced,
    })
}
