//! PUT on a protected item: everything is checked here, so that a wrong request is told at its property
//! and makes no job.

use arm_model::protected_item::{EnableDetails, EnableProtection};
use arm_model::{
    ArmError, HYPER_V_REPLICA_AZURE, PolicyId, ProtectableItemId, StorageAccountId, VaultId,
    VirtualNetworkId, validate,
};
use engine_protocol::v1;
use protection::Generation;
use protection::life::Phase;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::entry::Call;
use super::load::{self, Located};
use super::reply::Reply;
use super::storage_accounts::{folder_of, sku_of};
use super::{item_actions, item_rules, nics};
use crate::access::Account;
use crate::alternate_host;
use crate::checks;
use crate::fault::Fault;
use crate::gateway::desired::hex;
use crate::immutability;
use crate::networks;
use crate::saga::start::{self, NewJob};
use crate::saga::{enable_protection, fence};
use crate::store::records::{self, Item, LogStore, Mapping, Network, Policy, Storage};

/// Enables replication.
///
/// # Errors
/// What is refused, at its property.
pub async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let located = load::container(call).await?;
    let (_, vault) = load::vault(call).await?;
    let region = vault.record.0.location;
    let name = load::name(call, "replicationProtectedItems")?;
    // An item of before is left its name; a new one must be able to name its replica.
    let id = located.item(&name);
    if call.app.store.get(&id.key()).await?.is_none() {
        validate::item_name(&name)
            .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    }
    let body: EnableProtection = call.properties()?;
    let mut details = body.provider_specific_details.unwrap_or_default();
    // An empty text says that there is none, as in an update.
    for name in [
        &mut details.target_azure_network_id,
        &mut details.target_azure_subnet_id,
    ] {
        *name = name.take().filter(|name| !name.is_empty());
    }
    if details.instance_type != HYPER_V_REPLICA_AZURE {
        return Err(Fault::invalid(
            &at("instanceType"),
            format!(
                "An item of type `{}` is not possible here; use `{HYPER_V_REPLICA_AZURE}`.",
                details.instance_type
            ),
        ));
    }
    let policy = policy(
        call,
        &located,
        body.policy_id.as_deref().unwrap_or_default(),
    )
    .await?;
    let stored = records::get::<Item>(call.app.store.as_ref(), &id.key()).await?;
    let vm = body.protectable_item_id.as_deref().unwrap_or_default();
    let mut left = alternate_host::left_at(call.app).await?;
    if let Some(present) = &stored {
        let item = &present.record;
        let formers = item.formers.iter();
        left.extend(formers.map(|former| (former.engine_id.clone(), item.vm_id.clone())));
    }
    let own = stored.as_ref().map(|present| &*present.record.engine_id);
    let (engine_id, machine) = machine(call, &located, vm, own, &left)?;
    let asked = checks::Asked::of(&details, policy.details.log_quota_in_percent);
    let is_repeated = stored.as_ref().is_some_and(|present| {
        disks(&details, &machine)
            .is_ok_and(|wanted| checks::is_repeated(&present.record, &asked, &machine.id, &wanted))
    });
    if !is_repeated {
        checks::allow(&machine, &asked, "properties.protectableItemId")?;
    }
    checks::note_accepted(&machine, &asked, &mut details);
    if let Some(wanted) = &details.hv_host_vm_id
        && !wanted.eq_ignore_ascii_case(&machine.id)
    {
        return Err(Fault::invalid(
            &at("hvHostVmId"),
            format!(
                "The VM of the protectable item has the id `{}`.",
                machine.id
            ),
        ));
    }
    let disk_ids = disks(&details, &machine)?;
    let storage = storage(call, &details, &policy, &region).await?;
    let log = log_storage(call, &details, &storage, &region).await?;
    if let Some(wanted) = &details.target_azure_network_id {
        network(call, wanted, &region, &at("targetAzureNetworkId")).await?;
    }
    let target = details
        .target_azure_vm_name
        .clone()
        .unwrap_or_else(|| machine.name.clone());
    target_name(&target)?;
    call.precondition(stored.as_ref().map(|stored| stored.etag))?;
    if let Some(present) = &stored
        && present.record.vm_id.eq_ignore_ascii_case(&machine.id)
    {
        keep_adapters(&mut details, &present.record.request, &machine);
    }
    let item = Item {
        id: stored
            .as_ref()
            .map_or_else(|| id.as_str().to_owned(), |stored| stored.record.id.clone()),
        life: protection::Life::new(Generation(0)),
        engine_id,
        vm_id: machine.id.clone(),
        vm_name: machine.name.clone(),
        disk_ids,
        policy_id: policy.id.clone(),
        storage_id: storage.0.id.clone(),
        folder: folder_of(&storage),
        azure: Account::of(&storage).map(|account| account.place(&vault_key(&located.vault))),
        log: log.and_then(|log| log_store(&storage, &log, &vault_key(&located.vault))),
        vault_key: vault_key(&located.vault),
        resynchronize: 0,
        key_ids: Vec::new(),
        active_key_id: String::new(),
        request: EnableDetails {
            target_azure_vm_name: Some(target),
            ..details
        },
        last_test_failover: None,
        drill_job: None,
        recovery: None,
        formers: Vec::new(),
        last_failover: None,
        correlation_id: Uuid::new_v4().to_string(),
    };
    item_rules::all(call, &located.vault.key(), &item, &item.request, at).await?;
    nics::check(call, &item, "properties.providerSpecificDetails").await?;
    if let Some(present) = &stored
        && present.record.life.item.copied_once
        && present.record.disk_ids != item.disk_ids
        && enable_protection::goes_on(
            &present.record,
            &Item {
                disk_ids: present.record.disk_ids.clone(),
                ..item.clone()
            },
        )
    {
        return item_actions::change_disks(call, &located.vault, &id, present, &item.disk_ids)
            .await;
    }
    present_allows(stored.as_ref().map(|stored| &stored.record), &item)?;
    elsewhere(call, &located, &item).await?;
    fence::alone(call.app, &item).await?;
    if let Some(present) = &stored {
        immutability::allows_policy(call.app, &present.record, &policy).await?;
    }
    let job = start::start(
        call.app,
        NewJob {
            vault: &located.vault,
            resource: &id,
            removes: false,
            scenario: "EnableDr",
            friendly_name: "Enable replication",
            target_name: &machine.name,
            target_type: "ProtectionEntity",
            workflow: "enableProtection",
            input: json!({ "item": item }),
            tasks: enable_protection::tasks(),
            details: super::item_answer::job_details(&item),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: Vec::new(),
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, &id))
}

/// What was chosen for the adapters stays when a request says nothing of them: ASR takes such choices with an update only, so
/// its clients repeat an enable without them. An empty id takes the choice of the primary adapter back, as in an update.
fn keep_adapters(
    details: &mut EnableDetails,
    present: &EnableDetails,
    machine: &v1::VirtualMachine,
) {
    let adapters = machine.network_adapters.iter();
    let ids: Vec<String> = adapters
        .map(|adapter| networks::nic_id(&machine.id, &adapter.id))
        .collect();
    if details.vm_nics.is_none() {
        let mut kept = present.vm_nics.clone();
        if let Some(choices) = &mut kept {
            choices.retain(|choice| ids.contains(&choice.nic_id));
        }
        details.vm_nics = kept;
    }
    details.selected_source_nic_id = match details.selected_source_nic_id.take() {
        None => {
            let kept = present.selected_source_nic_id.clone();
            kept.filter(|id| ids.contains(id))
        }
        chosen => chosen.filter(|id| !id.is_empty()),
    };
}

fn at(property: &str) -> String {
    format!("properties.providerSpecificDetails.{property}")
}

/// The policy, which must be associated with the container.
async fn policy(call: &Call<'_>, located: &Located, wanted: &str) -> Result<Policy, Fault> {
    let target = "properties.policyId";
    let id =
        PolicyId::parse(wanted).map_err(|error| Fault::invalid(target, format!("{error}.")))?;
    call.may_use(id.as_arm(), target)?;
    let store = call.app.store.as_ref();
    let policy = records::get::<Policy>(store, &id.key()).await?;
    let policy = policy.filter(|_| VaultId::of(&id).is_some_and(|vault| vault == located.vault));
    let Some(policy) = policy else {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "PolicyNotFound",
                format!("The vault has no policy `{}`.", id.name()),
            )
            .at(target)
            .advise("", "Make the policy in the same vault first."),
        ));
    };
    let mappings =
        records::list::<Mapping>(store, &format!("{}/", located.container.key())).await?;
    if !mappings
        .iter()
        .any(|mapping| mapping.record.policy_id.eq_ignore_ascii_case(id.as_str()))
    {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "PolicyNotAssociated",
                format!(
                    "The policy `{}` is not associated with the site `{}`.",
                    id.name(),
                    located.fabric.name()
                ),
            )
            .at(target)
            .advise("", "Associate the policy with the site's container first."),
        ));
    }
    Ok(policy.record)
}

/// The VM and the engine of its host. `own`: the engine that the item has by now; `left`: copies that were left behind, by engine and VM.
fn machine(
    call: &Call<'_>,
    located: &Located,
    wanted: &str,
    own: Option<&str>,
    left: &[(String, String)],
) -> Result<(String, v1::VirtualMachine), Fault> {
    let target = "properties.protectableItemId";
    let id = ProtectableItemId::parse(wanted)
        .map_err(|error| Fault::invalid(target, format!("{error}.")))?;
    call.may_use(id.as_arm(), target)?;
    let found = located
        .engines
        .iter()
        .filter(|_| {
            id.parent()
                .is_some_and(|parent| parent == *located.container.as_arm())
        })
        .filter_map(|engine| {
            let live = call.app.fleet.get(&engine.engine_id)?;
            let machine = live.machine(id.name())?.clone();
            Some((engine.engine_id.clone(), live, machine))
        })
        .filter(|(engine_id, _, machine)| {
            let is_it = |(engine, vm): &(String, String)| {
                engine == engine_id && vm.eq_ignore_ascii_case(&machine.id)
            };
            !left.iter().any(is_it)
        })
        // A host that the VM went away from may still have it, off.
        .min_by_key(|(engine_id, _, machine)| {
            let is_off = machine.power_state() != v1::PowerState::Running;
            (own != Some(engine_id.as_str()), is_off)
        });
    let Some((engine_id, live, machine)) = found else {
        return Err(Fault::refuse(
            404,
            ArmError::new(
                "ProtectableItemNotFound",
                format!(
                    "The site `{}` has no VM with the id `{}`.",
                    located.fabric.name(),
                    id.name()
                ),
            )
            .at(target)
            .advise(
                "The VM was removed, or its host is not registered in this site.",
                "Choose one of the protectable items of the site's container.",
            ),
        ));
    };
    if !live.connected(call.app.now_ms()) {
        return Err(enable_protection::host_disconnected(call.app, &engine_id));
    }
    Ok((engine_id, machine))
}

/// Disks to replicate, in the order of the host.
fn disks(details: &EnableDetails, machine: &v1::VirtualMachine) -> Result<Vec<String>, Fault> {
    if let Some(disk) = &details.vhd_id
        && !item_rules::has(machine, disk)
    {
        return Err(item_rules::no_disk(machine, disk, &at("vhdId")));
    }
    match &details.disks_to_include {
        None => Ok(machine.disks.iter().map(|disk| disk.id.clone()).collect()),
        Some(wanted) => item_rules::disks(wanted, machine, &at("disksToInclude")),
    }
}

/// The storage account: of the vault's region, of a kind that suits the policy.
async fn storage(
    call: &Call<'_>,
    details: &EnableDetails,
    policy: &Policy,
    region: &str,
) -> Result<Storage, Fault> {
    let target = at("targetStorageAccountId");
    let wanted = details
        .target_storage_account_id
        .as_ref()
        .or(policy.details.active_storage_account_id.as_ref());
    let Some(wanted) = wanted else {
        return Err(Fault::invalid(
            &target,
            "A storage account is required, here or in the policy.",
        ));
    };
    let account = account(call, wanted, region, "storage account", &target).await?;
    validate::interval_with_storage(policy.details.replication_interval, &sku_of(&account))
        .map_err(|violation| Fault::refuse(400, violation.into_error(&target)))?;
    Ok(account)
}

/// The log storage account: of the vault's region and of a standard kind; a premium target can't do without.
async fn log_storage(
    call: &Call<'_>,
    details: &EnableDetails,
    target: &Storage,
    region: &str,
) -> Result<Option<Storage>, Fault> {
    let at = at("logStorageAccountId");
    let wanted = details.log_storage_account_id.as_deref();
    let log = match wanted.filter(|id| !id.is_empty()) {
        None => None,
        Some(wanted) => Some(account(call, wanted, region, "log storage account", &at).await?),
    };
    let log_sku = log.as_ref().map(sku_of);
    validate::log_storage(&sku_of(target), log_sku.as_deref())
        .map_err(|violation| Fault::refuse(400, violation.into_error(&at)))?;
    Ok(log)
}

/// What is kept of a log storage account; nothing when it is the target's own place.
fn log_store(target: &Storage, log: &Storage, vault_key: &str) -> Option<LogStore> {
    let place = |storage: &Storage| {
        let azure = Account::of(storage).map(|account| account.place(vault_key));
        (folder_of(storage), azure)
    };
    let (folder, azure) = place(log);
    (place(target) != (folder.clone(), azure.clone())).then(|| LogStore {
        storage_id: log.0.id.clone(),
        folder,
        azure,
    })
}

/// A storage account of the vault's region that the caller may use.
async fn account(
    call: &Call<'_>,
    wanted: &str,
    region: &str,
    what: &str,
    target: &str,
) -> Result<Storage, Fault> {
    let id = StorageAccountId::parse(wanted)
        .map_err(|error| Fault::invalid(target, format!("{error}.")))?;
    call.may_use(id.as_arm(), target)?;
    let account = records::get::<Storage>(call.app.store.as_ref(), &id.key())
        .await?
        .ok_or_else(|| {
            Fault::refuse(
                400,
                ArmError::new(
                    "StorageAccountNotFound",
                    format!("There is no storage account `{}`.", id.name()),
                )
                .at(target),
            )
        })?
        .record;
    validate::regions_equal(region, what, &account.0.location)
        .map_err(|violation| Fault::refuse(400, violation.into_error(target)))?;
    Ok(account)
}

/// A network of the vault's region.
///
/// # Errors
/// 400 at `target`.
pub async fn network(
    call: &Call<'_>,
    wanted: &str,
    region: &str,
    target: &str,
) -> Result<Network, Fault> {
    let id = VirtualNetworkId::parse(wanted)
        .map_err(|error| Fault::invalid(target, format!("{error}.")))?;
    call.may_use(id.as_arm(), target)?;
    let network = records::get::<Network>(call.app.store.as_ref(), &id.key())
        .await?
        .ok_or_else(|| {
            Fault::refuse(
                400,
                ArmError::new(
                    "NetworkNotFound",
                    format!("There is no virtual network `{}`.", id.name()),
                )
                .at(target),
            )
        })?
        .record;
    validate::regions_equal(region, "virtual network", &network.0.location)
        .map_err(|violation| Fault::refuse(400, violation.into_error(target)))?;
    Ok(network)
}

/// Name of the recovery VM; it becomes a folder on the recovery host.
///
/// # Errors
/// 400.
pub fn target_name(name: &str) -> Result<(), Fault> {
    validate::resource_name(name)
        .map_err(|violation| Fault::refuse(400, violation.into_error(&at("targetAzureVmName"))))
}

/// Whether what is there lets the request through: a failed or interrupted activation is taken up again, a
/// running one with the same parameters is left as it is.
fn present_allows(present: Option<&Item>, wanted: &Item) -> Result<(), Fault> {
    let Some(present) = present else {
        return Ok(());
    };
    let refuse = |message: &str, advice: &str| {
        Err(Fault::conflict(
            "AlreadyProtected",
            &present.id,
            message,
            advice,
        ))
    };
    if !present.life.item.is_active() {
        return refuse(
            "Protection of the VM is being switched off.",
            "Wait until that has ended.",
        );
    }
    if present.life.phase != Phase::AtSource {
        let (state, _) = present.life.texts();
        return refuse(
            &format!("The VM is in state `{state}`: it is not at its source, or on its way."),
            "End the failover first: `allowedOperations` of the item tells how.",
        );
    }
    if enable_protection::goes_on(present, wanted) {
        return Ok(());
    }
    if !present.vm_id.eq_ignore_ascii_case(&wanted.vm_id) {
        return refuse(
            "The name belongs to another protected VM.",
            "Use another name for the item.",
        );
    }
    if present.place() == wanted.place() && present.log != wanted.log {
        // Base is claimed for its log account until the replica is removed.
        return refuse(
            "The VM is protected with another log storage account.",
            "Switch protection off first.",
        );
    }
    if present.life.item.copied_once
        && present.life.item.replication != protection::ReplicationState::Fenced
    {
        return refuse(
            "The VM is protected with other disks or another storage account.",
            "Switch protection off first.",
        );
    }
    Ok(())
}

/// A VM is protected once.
async fn elsewhere(call: &Call<'_>, located: &Located, wanted: &Item) -> Result<(), Fault> {
    let items = records::list::<Item>(
        call.app.store.as_ref(),
        &format!("{}/", located.container.key()),
    )
    .await?;
    let other = items.iter().find(|item| {
        item.record.vm_id.eq_ignore_ascii_case(&wanted.vm_id)
            && !item.record.id.eq_ignore_ascii_case(&wanted.id)
    });
    match other {
        None => Ok(()),
        Some(other) => Err(Fault::conflict(
            "AlreadyProtected",
            "properties.protectableItemId",
            format!(
                "The VM `{}` is protected already, as `{}`.",
                wanted.vm_name, other.record.id
            ),
            "Use that item, or switch its protection off first.",
        )),
    }
}

/// The vault's folder name in the store.
#[must_use]
pub fn vault_key(vault: &VaultId) -> String {
    let digest = hex(&Sha256::digest(vault.key().as_bytes()));
    format!("{}-{}", vault.name(), digest.get(..8).unwrap_or_default())
}
