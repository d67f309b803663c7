//! Enable replication of a VM. Input: `{item}`, the record as it shall be; its generation is given here.
//!
//! ```text
//!  preflight ─► target (new fencing generation) ─► enable (record; engine is told) ─► first copy has begun
//!            ─► start the job that waits for the end of the first copy
//! ```
//!
//! When the engine can't begin (a store folder that is full or read-only), the job fails with the
//! engine's own words and the item stays: it can be removed, and the same request again mends it. A request for a VM that
//! is protected already, when it fails or is cancelled, leaves the replica and gives the item its record of before.

use arm_model::job::Task;
use arm_model::{ArmError, FabricId, ProtectedItemId, VaultId};
use async_trait::async_trait;
use engine_protocol::v1::{self, replication_status::State};
use protection::{DrillState, Event, Generation, ReplicationState};
use serde_json::json;
use uuid::Uuid;

use super::state::fresh_task;
use super::{Outcome, Run, Workflow, fence, start};
use crate::app::App;
use crate::fault::Fault;
use crate::store::records::{self, Item, Mapping, Policy, Storage};
use crate::store::{Change, Expect, StoreError};
use crate::{access, checks, immutability};

/// A first copy that reports no byte for so long counts as begun all the same.
const QUIET_START_MS: i64 = 20_000;
/// Memo: whether the job took a generation of its own.
const MINTED: &str = "minted";
/// Memo: the record that was there.
const BEFORE: &str = "before";

/// See the module.
pub struct EnableProtection;

/// Tasks, as the service names them.
#[must_use]
pub fn tasks() -> Vec<Task> {
    vec![
        fresh_task(
            "EnableProtectionPreflightChecksTask",
            "Prerequisites check for enabling protection",
        ),
        fresh_task(
            "CreateProtectionTargetTask",
            "Identifying replication target",
        ),
        fresh_task("EnableProtectionTask", "Enable replication"),
        fresh_task(
            "StartInitialReplicationTask",
            "Starting initial replication",
        ),
        fresh_task("UpdateDraStateTask", "Updating the provider states"),
    ]
}

#[async_trait]
impl Workflow for EnableProtection {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let wanted = wanted(run)?;
        match node {
            0 => preflight(run.app, &wanted).await,
            1 => {
                reach_store(run.app, &wanted).await?;
                next_generation(run, &wanted).await
            }
            2 => write_item(run, wanted).await,
            3 => first_copy_begun(run, &wanted).await,
            _ => start_completion(run, &wanted).await,
        }
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        if node != 2 || run.job.recall("keep").is_some() {
            return Ok(Outcome::Done);
        }
        let key = wanted(run)?.id.to_ascii_lowercase();
        let generation = generation(run);
        let minted = run.job.recall(MINTED).and_then(serde_json::Value::as_bool);
        match (before(run), minted) {
            // There are points, or a copy that goes on by itself: neither is this job's to take away.
            (Some(before), Some(minted)) if !minted || before.life.item.copied_once => {
                put_back(run.app, &key, generation, before, minted).await?;
                Ok(Outcome::Done)
            }
            (_, Some(true)) => retire(run, &key, generation).await,
            // A job of an older release, which did not say: nothing is taken away.
            _ => Ok(Outcome::Done),
        }
    }
}

/// The record as it was before this job.
fn before(run: &Run<'_>) -> Option<Item> {
    let memo = run.job.recall(BEFORE)?.clone();
    serde_json::from_value(memo).ok()
}

/// Gives an item that was protected before its record of then. What has been learned since stays, unless it is about the
/// activation of this job.
async fn put_back(
    app: &App,
    key: &str,
    generation: Generation,
    before: Item,
    minted: bool,
) -> Result<(), Fault> {
    records::update::<Item>(app.store.as_ref(), key, |item| {
        (item.life.item.generation == generation).then(|| {
            let learned = if minted { &before } else { item };
            Item {
                life: learned.life,
                key_ids: learned.key_ids.clone(),
                active_key_id: learned.active_key_id.clone(),
                resynchronize: item.resynchronize,
                last_test_failover: item.last_test_failover.clone(),
                drill_job: item.drill_job.clone(),
                ..before.clone()
            }
        })
    })
    .await?;
    app.ring();
    Ok(())
}

fn wanted(run: &Run<'_>) -> Result<Item, Fault> {
    let item = run.job.input.get("item").cloned().unwrap_or_default();
    serde_json::from_value(item).map_err(|error| {
        Fault::refuse(
            500,
            ArmError::new(
                "InternalError",
                format!("The stored request can't be read: {error}."),
            ),
        )
    })
}

fn generation(run: &Run<'_>) -> Generation {
    Generation(
        run.job
            .recall("generation")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or_default(),
    )
}

/// What must hold before anything is done.
async fn preflight(app: &App, wanted: &Item) -> Result<Outcome, Fault> {
    let live = app
        .fleet
        .get(&wanted.engine_id)
        .filter(|live| live.connected(app.now_ms()));
    let Some(live) = live else {
        return Err(host_disconnected(app, &wanted.engine_id));
    };
    let Some(machine) = live.machine(&wanted.vm_id) else {
        return Err(Fault::refuse(
            404,
            ArmError::new(
                "VirtualMachineNotFound",
                format!(
                    "The VM `{}` is not on host `{}` any more.",
                    wanted.vm_name,
                    live.host_name()
                ),
            )
            .at("properties.protectableItemId")
            .advise(
                "The VM was removed or moved to another host.",
                "Refresh the list of protectable items and choose again.",
            ),
        ));
    };
    let key = wanted.id.to_ascii_lowercase();
    let present = records::get::<Item>(app.store.as_ref(), &key).await?;
    let asked = checks::Asked::of_item(wanted, log_quota(app, wanted).await?);
    let is_repeated = present.is_some_and(|present| {
        checks::is_repeated(&present.record, &asked, &wanted.vm_id, &wanted.disk_ids)
    });
    if !is_repeated {
        checks::allow(machine, &asked, "properties.protectableItemId")?;
    }
    if !any_mapping(app, wanted).await? {
        return Err(Fault::refuse(
            409,
            ArmError::new(
                "PolicyNotAssociated",
                "The policy is not associated with the site's container any more.",
            )
            .at("properties.policyId"),
        ));
    }
    Ok(Outcome::Done)
}

/// Of the item's policy, in percent.
async fn log_quota(app: &App, wanted: &Item) -> Result<u32, Fault> {
    let key = wanted.policy_id.to_ascii_lowercase();
    let policy = records::get::<Policy>(app.store.as_ref(), &key).await?;
    Ok(policy.map_or(0, |policy| policy.record.details.log_quota_in_percent))
}

async fn any_mapping(app: &App, wanted: &Item) -> Result<bool, Fault> {
    let container = wanted.id.to_ascii_lowercase();
    let container = container
        .rsplit_once("/replicationprotecteditems/")
        .map_or("", |(container, _)| container);
    let mappings = records::list::<Mapping>(app.store.as_ref(), &format!("{container}/")).await?;
    let policy =
        records::get::<Policy>(app.store.as_ref(), &wanted.policy_id.to_ascii_lowercase()).await?;
    Ok(policy.is_some()
        && mappings.iter().any(|mapping| {
            mapping
                .record
                .policy_id
                .eq_ignore_ascii_case(&wanted.policy_id)
        }))
}

/// Makes sure that each container in Azure is there and lets us in; a folder is the engine's business.
async fn reach_store(app: &App, wanted: &Item) -> Result<(), Fault> {
    for (place, property) in wanted.places() {
        let Some(container) = place.azure else {
            continue;
        };
        let key = place.storage_id.to_ascii_lowercase();
        let account = records::get::<Storage>(app.store.as_ref(), &key)
            .await?
            .ok_or_else(|| Fault::not_found(place.storage_id))?;
        access::prepare(app, &account.record, container, property).await?;
    }
    Ok(())
}

/// Takes a new fencing generation, or the present one of an activation that only has to go on. Which of both, and what is
/// there before anything is written, is remembered: it decides what is taken back.
async fn next_generation(run: &mut Run<'_>, wanted: &Item) -> Result<Outcome, Fault> {
    let key = wanted.id.to_ascii_lowercase();
    let present = records::get::<Item>(run.app.store.as_ref(), &key).await?;
    if let Some(present) = &present {
        let before = serde_json::to_value(&present.record).unwrap_or_default();
        run.job.remember(BEFORE, before);
        if goes_on(&present.record, wanted) && !is_stuck(run.app, &present.record) {
            let generation = present.record.life.item.generation.0;
            run.job.remember("generation", generation);
            run.job.remember(MINTED, false);
            return Ok(Outcome::Done);
        }
    }
    let next = fence::next(run.app, wanted).await?;
    run.job.remember("generation", next);
    run.job.remember(MINTED, true);
    Ok(Outcome::Done)
}

/// Whether the present activation already does what is wanted.
#[must_use]
pub fn goes_on(present: &Item, wanted: &Item) -> bool {
    present.life.item.is_active()
        && present.life.item.replication != ReplicationState::Fenced
        && present.vm_id.eq_ignore_ascii_case(&wanted.vm_id)
        && present.engine_id == wanted.engine_id
        && same_place(present, wanted)
        && present.disk_ids == wanted.disk_ids
}

/// Whether both replicate to one place in one store.
#[must_use]
pub fn same_place(present: &Item, wanted: &Item) -> bool {
    present.folder == wanted.folder
        && present.azure == wanted.azure
        && present.log == wanted.log
        && present.vault_key == wanted.vault_key
}

/// Whether the first copy can't begin. Then a new activation makes the engine try at once, and its answer
/// can't be mistaken for the one of before.
fn is_stuck(app: &App, present: &Item) -> bool {
    let live = app.fleet.get(&present.engine_id).unwrap_or_default();
    let status = live.replication(item_name(&present.id));
    !present.life.item.copied_once && status.is_some_and(|status| status.state() == State::Blocked)
}

async fn write_item(run: &mut Run<'_>, mut wanted: Item) -> Result<Outcome, Fault> {
    let app = run.app;
    let store = app.store.as_ref();
    let key = wanted.id.to_ascii_lowercase();
    let generation = generation(run);
    let present = records::get::<Item>(store, &key).await?;
    let expect = match &present {
        None => {
            wanted.life = protection::Life::new(generation);
            Expect::Absent
        }
        Some(present) => {
            wanted.life = present.record.life;
            if same_place(&present.record, &wanted) {
                wanted.key_ids.clone_from(&present.record.key_ids);
                wanted
                    .active_key_id
                    .clone_from(&present.record.active_key_id);
            } else {
                // In another store nothing has been copied yet: there is no replica that must be there.
                wanted.life.item.copied_once = false;
            }
            wanted.resynchronize = present.record.resynchronize;
            wanted
                .correlation_id
                .clone_from(&present.record.correlation_id);
            wanted
                .last_test_failover
                .clone_from(&present.record.last_test_failover);
            wanted.drill_job.clone_from(&present.record.drill_job);
            wanted.recovery.clone_from(&present.record.recovery);
            wanted.formers.clone_from(&present.record.formers);
            wanted
                .last_failover
                .clone_from(&present.record.last_failover);
            if present.record.life.item.generation != generation {
                match protection::step(wanted.life, Event::Activate { generation }) {
                    Ok((life, _)) => wanted.life = life,
                    // What was stuck has gone on by itself in the meantime: nothing is left to be activated anew.
                    Err(_) if goes_on(&present.record, &wanted) => {
                        let present = present.record.life.item.generation.0;
                        run.job.remember("generation", present);
                        run.job.remember(MINTED, false);
                    }
                    Err(refusal) => return Err(refusal.into()),
                }
            }
            Expect::Etag(present.etag)
        }
    };
    let policy_key = wanted.policy_id.to_ascii_lowercase();
    let policy = records::get::<Policy>(store, &policy_key)
        .await?
        .ok_or_else(|| vanished(&policy_key))?;
    if let Some(present) = &present {
        immutability::allows_policy(app, &present.record, &policy.record).await?;
    }
    let mut changes = vec![Change::Check {
        key: policy_key,
        expect: Expect::Etag(policy.etag),
    }];
    // An item below a site, or of a host or an account, that is gone could be reached by no request any more.
    let needed = needed(&wanted);
    changes.extend(needed.iter().map(|key| Change::Check {
        key: key.clone(),
        expect: Expect::Present,
    }));
    changes.push(fence::hold(app, &wanted).await?);
    changes.push(records::put(key, &wanted, expect)?);
    match store.apply(changes).await {
        Ok(_) => Ok(Outcome::Done),
        Err(StoreError::Conflict { key }) if needed.contains(&key) => Err(vanished(&key)),
        Err(error) => Err(error.into()),
    }
}

/// Keys of what an item can't be without.
fn needed(item: &Item) -> Vec<String> {
    let site = ProtectedItemId::parse(&item.id)
        .ok()
        .and_then(|id| FabricId::of(&id))
        .map(|site| site.key());
    let accounts = item
        .places()
        .map(|(place, _)| place.storage_id.to_ascii_lowercase());
    site.into_iter()
        .chain([records::engine_key(&item.engine_id)])
        .chain(accounts)
        .collect()
}

/// What the request named was there, and is gone before the item is written.
fn vanished(key: &str) -> Fault {
    Fault::refuse(
        409,
        ArmError::new(
            "DependencyRemoved",
            format!("`{key}` was removed while protection was being enabled."),
        )
        .at(key)
        .advise(
            "Somebody removed it at the same time.",
            "Make it again, or name another one, and repeat the request.",
        ),
    )
}

async fn first_copy_begun(run: &mut Run<'_>, wanted: &Item) -> Result<Outcome, Fault> {
    let app = run.app;
    let key = wanted.id.to_ascii_lowercase();
    let Some(item) = records::get::<Item>(app.store.as_ref(), &key).await? else {
        return Err(Fault::refuse(
            409,
            ArmError::new(
                "ItemRemoved",
                "Protection was switched off while it was being enabled.",
            ),
        ));
    };
    if item.record.life.item.copied_once {
        return Ok(Outcome::Done);
    }
    let live = app.fleet.get(&wanted.engine_id).unwrap_or_default();
    let status = live
        .replication(item_name(&wanted.id))
        .filter(|status| status.generation == generation(run).0);
    match status {
        Some(status) => match status.state() {
            State::Protected | State::Comparing => return Ok(Outcome::Done),
            State::InitialReplication if status.progress_done_bytes > 0 => {
                return Ok(Outcome::Done);
            }
            State::InitialReplication
                if run.waited_ms() > QUIET_START_MS
                    && status.findings.iter().all(|f| !f.critical) =>
            {
                return Ok(Outcome::Done);
            }
            State::Blocked => {
                run.job.remember("keep", true);
                let error = status.findings.first().map_or_else(
                    || {
                        ArmError::new(
                            "ReplicationBlocked",
                            "The engine can't begin the first copy and gave no reason.",
                        )
                    },
                    |finding| {
                        from_finding(
                            finding,
                            "properties.providerSpecificDetails.targetStorageAccountId",
                        )
                    },
                );
                return Err(Fault::refuse(409, error));
            }
            State::Fenced => {
                run.job.remember("keep", true);
                return Err(Fault::refuse(409, ArmError::new("StaleActivation", "The store holds a newer activation of this VM.")
                    .advise("Another vault or an older backup of this one replicates into the same folder.", "Use another storage account, or remove the replica in the folder.")));
            }
            _ => {}
        },
        None if !live.connected(app.now_ms()) => {
            if run.waited_ms() > app.patience.engine_ms {
                run.job.remember("keep", true);
                return Err(host_disconnected(app, &wanted.engine_id));
            }
            return Ok(Outcome::Wait);
        }
        None => {}
    }
    if run.waited_ms() > app.patience.engine_ms {
        run.job.remember("keep", true);
        return Err(Fault::refuse(
            504,
            ArmError::new(
                "EngineSilent",
                format!(
                    "The engine on `{}` did not begin the first copy.",
                    live.host_name()
                ),
            )
            .advise(
                "The engine is busy or can't read the VM's disks.",
                "See the engine's log on the host; the same request again goes on waiting.",
            ),
        ));
    }
    Ok(Outcome::Wait)
}

/// Starts the job that ends with the first copy; its name follows from ours, so that a repeat finds it.
async fn start_completion(run: &mut Run<'_>, wanted: &Item) -> Result<Outcome, Fault> {
    let id = ProtectedItemId::parse(&wanted.id)
        .map_err(|error| Fault::invalid("id", error.to_string()))?;
    let vault = VaultId::of(&id).ok_or_else(|| Fault::not_found(&wanted.id))?;
    let name = Uuid::new_v5(&Uuid::NAMESPACE_URL, run.job.id.as_bytes()).to_string();
    let job_key = vault.job(&name).key();
    if run.app.store.get(&job_key).await?.is_none() {
        start::start(
            run.app,
            start::NewJob {
                vault: &vault,
                resource: &id,
                removes: false,
                scenario: "IrCompletion",
                friendly_name: "Finalize protection on the virtual machine",
                target_name: &wanted.vm_name,
                target_type: "ProtectionEntity",
                workflow: "initialReplication",
                input: json!({ "item": wanted.id, "generation": generation(run).0 }),
                tasks: super::initial_replication::tasks(),
                details: run.job.properties.custom_details.clone(),
                locks: Vec::new(),
                request_id: "",
                changes: Vec::new(),
                name: Some(name),
            },
        )
        .await?;
    }
    Ok(Outcome::Done)
}

/// Takes an activation back: the engine forgets it and the replica, then the record goes. With the host
/// away the record goes at once.
pub async fn retire(
    run: &mut Run<'_>,
    key: &str,
    generation: Generation,
) -> Result<Outcome, Fault> {
    let app = run.app;
    let Some(item) = records::get::<Item>(app.store.as_ref(), key).await? else {
        return Ok(Outcome::Done);
    };
    if item.record.life.item.generation != generation
        || item.record.life.item.drill != DrillState::None
    {
        return Ok(Outcome::Done);
    }
    let away = !app.fleet.connected(&item.record.engine_id, app.now_ms());
    if away || run.waited_ms() > app.patience.removal_ms {
        if let Some(vault) = crate::gateway::reports::vault_of(&item.record) {
            crate::vault_keys::keep_for(app, &vault, &item.record).await?;
        }
        let counted = fence::count(app, &item.record).await?;
        let mut changes = crate::alternate_host::left_behind(key, &item.record)?;
        changes.push(Change::Delete {
            key: key.to_owned(),
            expect: Expect::Etag(item.etag),
        });
        changes.push(counted);
        app.store.apply(changes).await?;
        return Ok(Outcome::Done);
    }
    if item.record.life.item.is_active() {
        // Points that nobody may delete yet stay in the store, whatever the reason.
        let delete_replica = crate::immutability::until(app, &item.record)
            .await?
            .is_none();
        let (life, _) = protection::step(item.record.life, Event::Disable { delete_replica })?;
        let changed = Item {
            life,
            ..item.record
        };
        app.store
            .apply(vec![records::put(key, &changed, Expect::Etag(item.etag))?])
            .await?;
        app.ring();
    }
    Ok(Outcome::Wait)
}

/// The item's name: last segment of its id.
#[must_use]
pub fn item_name(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}

/// A host that doesn't report.
#[must_use]
pub fn host_disconnected(app: &App, engine_id: &str) -> Fault {
    let name = app
        .fleet
        .get(engine_id)
        .map(|live| live.host_name().to_owned())
        .unwrap_or_default();
    Fault::refuse(
        409,
        ArmError::new("HostDisconnected", format!("The host `{name}` has not reported for 30 seconds."))
            .at("properties.recoveryServicesProviderId")
            .advise("The engine on the host is stopped, or the host can't reach the gateway.", "Start the engine and check the way from the host to the gateway; then repeat the request."),
    )
}

/// A finding of an engine as an ARM error.
#[must_use]
pub fn from_finding(finding: &v1::Finding, target: &str) -> ArmError {
    ArmError::new(&finding.code, finding.summary.clone())
        .at(target)
        .advise(&finding.possible_causes, &finding.recommended_action)
}
