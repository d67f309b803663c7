//! Takes up reports: memory at once, the store when it matters.
//!
//! Stored at once: a new state of a replication or a new inventory. Stored at intervals: heartbeat, points,
//! figures; the engine repeats them, and a restart only needs to know roughly.

use std::collections::HashMap;
use std::sync::Arc;

use engine_protocol::v1::{self, replication_status::State};
use prost::Message as _;
use protection::life::Effect;
use protection::{Event, Generation, Observed, machine};
use tracing::info;

use super::enrol::encode_report;
use crate::app::App;
use crate::store::records::{self, EngineRecord, Item};
use crate::store::{Change, Expect, StoreError};

/// Heartbeat and figures are stored at most so often.
const STORE_EVERY_MS: i64 = 10_000;

/// Takes up the reports of one stream.
pub struct Intake {
    engine_id: String,
    /// (generation, state) that the item's record has already seen.
    seen: HashMap<String, (u64, i32)>,
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
            keys: HashMap::new(),
            inventory: Vec::new(),
            stored_ms: 0,
        }
    }

    /// Takes up one report.
    ///
    /// # Errors
    /// Failures of the store; the report is in memory nevertheless.
    pub async fn take(&mut self, app: &App, report: v1::EngineReport) -> Result<(), StoreError> {
        let now = app.now_ms();
        let known = app.fleet.get(&self.engine_id).map(|live| live.report);
        let report = Arc::new(match known {
            Some(known) => super::carry::carry_over(&known, report),
            None => report,
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
                self.advance(app, status).await?;
                self.seen.insert(status.item_id.clone(), present);
                news = true;
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

    /// Moves the state machine of an item.
    async fn advance(&self, app: &App, status: &v1::ReplicationStatus) -> Result<(), StoreError> {
        let Some(observed) = observed(status.state()) else {
            return Ok(());
        };
        let event = Event::Report {
            generation: Generation(status.generation),
            observed,
        };
        let store = app.store.as_ref();
        let Some((below, ours)) = self.ours(app, &status.item_id).await? else {
            return Ok(());
        };
        loop {
            let items = records::list::<Item>(store, &below).await?;
            let Some(item) = items.into_iter().find(|item| ours(&item.record)) else {
                return Ok(());
            };
            let Ok((life, effects)) = protection::step(item.record.life, event) else {
                return Ok(());
            };
            if life == item.record.life {
                return Ok(());
            }
            info!(item = %item.record.id, from = ?item.record.life.item.replication, to = ?life.item.replication, "replication state changes");
            let changes = if effects.contains(&Effect::Item(machine::Effect::RemoveRecord)) {
                let kept = life
                    .item
                    .disabled
                    .is_some_and(|disabled| !disabled.delete_replica);
                if kept && let Some(vault) = vault_of(&item.record) {
                    // The replica stays without us: what it is encrypted with must stay too.
                    crate::vault_keys::keep_for(app, &vault, &item.record).await?;
                }
                let gone = Item {
                    life,
                    ..item.record
                };
                vec![
                    Change::Delete {
                        key: item.key,
                        expect: Expect::Etag(item.etag),
                    },
                    crate::saga::fence::count(app, &gone).await?,
                ]
            } else {
                let changed = Item {
                    life,
                    ..item.record
                };
                vec![records::put(item.key, &changed, Expect::Etag(item.etag))?]
            };
            match store.apply(changes).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
            }
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
