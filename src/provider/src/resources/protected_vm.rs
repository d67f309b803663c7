//! `siterecovery_protected_vm`: a VM whose disks are replicated without pause.
//!
//! ```text
//!  create: find the VM in the site ─► enable protection ─► wait for the first copy, with progress in the log
//!  read:   what is configured; `initial_replication_completed` once the first copy has been whole
//!  update: target settings by PATCH; goes on waiting for a first copy that an earlier run did not see the end of
//!  delete: disable protection; the replica goes too unless it shall stay
//! ```
//!
//! Running out of time, or an interrupt, during the first copy is a warning and not an error: the copy goes on, an
//! error would make Terraform throw it away, and the next apply takes up the waiting. Health, RPO and progress are not
//! in the state, because they change by themselves.

use std::time::{Duration, Instant};

use arm_client::Method;
use arm_model::neighbours::VirtualNetworkProperties;
use arm_model::policy::PolicyProperties;
use arm_model::protectable_item::ProtectableItemProperties;
use arm_model::protected_item::ProtectedItemProperties;
use arm_model::vault::VaultProperties;
use arm_model::{
    FabricId, HYPER_V_REPLICA_AZURE, PolicyId, ProtectedItemId, Resource as Answer,
    StorageAccountId, VaultId, VirtualNetworkId, validate,
};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::{
    Attribute, Change, Context, Diagnostic, Diagnostics, IdentitySchema, ImportKey, Object, Plan,
    Presence, Resource, ResourceState, Schema, Type, Value,
};

use super::association::{same_vault, site_id};
use super::policy::premium_check;
use super::protection::{container_of, is_called, names_of, protectable_items};
use crate::Session;
use crate::errors::{Fields, sentence};
use crate::plain::{identity, import_stub, stored_id};
use crate::remote::Remote;
use crate::{fields, timeouts};

const WHAT: &str = "protected VM";
const FIELDS: Fields = &[
    ("policyId", "replication_policy_id"),
    ("protectableItemId", "vm_id"),
    ("hvHostVmId", "vm_id"),
    ("vmName", "vm_name"),
    ("osType", "os_type"),
    ("vhdId", "os_disk_id"),
    ("disksToInclude", "disks_to_include"),
    ("targetStorageAccountId", "target_storage_account_id"),
    ("targetAzureV2ResourceGroupId", "target_resource_group_id"),
    ("recoveryAzureV2ResourceGroupId", "target_resource_group_id"),
    ("targetAzureNetworkId", "target_network_id"),
    ("selectedRecoveryAzureNetworkId", "target_network_id"),
    ("targetAzureSubnetId", "target_subnet_name"),
    ("targetAzureVmName", "target_vm_name"),
    ("recoveryAzureVMName", "target_vm_name"),
];
const COMPLETED: &str = "initial_replication_completed";
/// What can be changed without a new copy.
const CHANGEABLE: [&str; 4] = [
    "target_vm_name",
    "target_network_id",
    "target_subnet_name",
    "target_resource_group_id",
];
const POLL: Duration = Duration::from_secs(2);
/// How long a VM that was named may take to show up: a host tells of its VMs seconds after it has registered.
const FIRST_INVENTORY: Duration = Duration::from_secs(60);
/// How long a critical state is watched before the copy counts as stuck: hosts mend short troubles themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// The resource.
pub(crate) struct ProtectedVm;

#[async_trait]
impl Resource<Session> for ProtectedVm {
    fn type_name(&self) -> &str {
        "siterecovery_protected_vm"
    }

    fn schema(&self) -> Schema {
        let text = || Attribute::string().optional();
        Schema::new()
            .describe(
                "Protects a VM of a Hyper-V site: a first copy of its disks goes to the storage account, then every change, by the \
                 policy's interval. Creating it returns when the first copy is whole. When time runs out or Terraform is interrupted before, \
                 the copy goes on, a warning says so, and the next apply takes up the waiting.",
            )
            .attribute(
                "hyperv_site_id",
                fields::arm_id::<FabricId>("a Hyper-V site")
                    .required()
                    .requires_replace()
                    .describe("Id of the site. Changing it protects anew."),
            )
            .attribute(
                "replication_policy_id",
                fields::arm_id::<PolicyId>("a replication policy")
                    .required()
                    .requires_replace()
                    .describe("Id of the policy; it must be associated with the site. Changing it protects anew."),
            )
            .attribute(
                "vm_id",
                text()
                    .computed()
                    .use_state_for_unknown()
                    .requires_replace()
                    .ignore_case()
                    .check(guid)
                    .describe("GUID of the VM on its host. Give this or `vm_name`. Changing it protects anew."),
            )
            .attribute(
                "vm_name",
                text()
                    .computed()
                    .use_state_for_unknown()
                    .requires_replace()
                    .describe("Name of the VM on its host. Give this or `vm_id`. Changing it protects anew."),
            )
            .attribute(
                "target_storage_account_id",
                fields::arm_id::<StorageAccountId>("a storage account")
                    .required()
                    .requires_replace()
                    .describe("Id of the storage account for the replica, in the vault's region. Changing it protects anew."),
            )
            .attribute(
                "target_resource_group_id",
                fields::resource_group_id()
                    .required()
                    .describe("Id of the resource group in which the VM is recovered."),
            )
            .attribute(
                "target_network_id",
                fields::arm_id::<VirtualNetworkId>("a virtual network")
                    .optional()
                    .describe("Id of the virtual network after a failover, in the vault's region."),
            )
            .attribute("target_subnet_name", text().describe("Name of the subnet after a failover."))
            .attribute(
                "target_vm_name",
                text()
                    .computed()
                    .use_state_for_unknown()
                    .check(vm_name)
                    .describe("Name of the recovered VM. Default: the VM's own."),
            )
            .attribute(
                "os_type",
                text()
                    .computed()
                    .use_state_for_unknown()
                    .requires_replace()
                    .one_of(&["Linux", "Windows"])
                    .describe("`Linux` or `Windows`. Default: what the host says. Changing it protects anew."),
            )
            .attribute(
                "os_disk_id",
                text()
                    .computed()
                    .use_state_for_unknown()
                    .requires_replace()
                    .ignore_case()
                    .describe("Id of the disk with the operating system. Default: what the host says. Changing it protects anew."),
            )
            .attribute(
                "disks_to_include",
                Attribute::set(Type::String)
                    .optional()
                    .computed()
                    .use_state_for_unknown()
                    .requires_replace()
                    .describe("Ids of the disks to replicate; the one with the operating system must be among them. Default: all. Changing it protects anew."),
            )
            .attribute(
                "delete_replica_on_destroy",
                Attribute::bool()
                    .optional()
                    .default(true)
                    .describe("Whether destroying removes the replica and its recovery points from the storage account. Default: `true`."),
            )
            .attribute("id", fields::id())
            .attribute(
                COMPLETED,
                Attribute::bool()
                    .computed()
                    .use_state_for_unknown()
                    .describe("Whether the first copy has been whole. While it is `false`, an apply goes on waiting."),
            )
            .attribute("timeouts", timeouts::attribute(timeouts::COPYING))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        check(config, report);
    }

    async fn plan(&self, cx: &Context<Session>, plan: &mut Plan) -> Result<(), Diagnostics> {
        if plan.destroy {
            return Ok(());
        }
        if plan
            .prior
            .as_ref()
            .is_some_and(|prior| prior.bool(COMPLETED) != Some(true))
        {
            plan.planned.set(COMPLETED, Value::unknown());
        }
        match cx.client_if_configured() {
            Some(session) if plan.has_changes() => cross_check(&session, &plan.planned).await,
            _ => Ok(()),
        }
    }

    async fn create(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "create", timeouts::COPYING.create);
        let until = Instant::now() + limit;
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let planned = &change.planned;
        let site = site_id(planned)?;
        let container = container_of(&remote, &site).await?;
        let (wanted, at) = match (planned.str("vm_id"), planned.str("vm_name")) {
            (Some(id), _) => (id.to_owned(), "vm_id"),
            (None, Some(name)) => (name.to_owned(), "vm_name"),
            (None, None) => return Err(which_vm()),
        };
        let names = [wanted.clone()];
        let items = protectable_items(&remote, &site, &container, &names, FIRST_INVENTORY).await?;
        let vm = choose(&items, &wanted, at)?;
        let disks = disks(vm, planned)?;
        let id = container.protected_item(&vm.name);
        remote.must_not_exist(id.as_str(), at).await?;

        state.value.set("id", id.as_str());
        let body = enable(vm, planned, &disks);
        let operation = remote
            .begin_tracked(state, Method::Put, id.as_str(), &body)
            .await?;
        state
            .value
            .set("vm_id", keep_spelling(planned, "vm_id", &vm.name));
        state
            .value
            .set("vm_name", vm.properties.friendly_name.as_str());
        state.keep();
        remote.finish("Protecting", &operation).await?;
        settle(cx, &remote, &id, until, state).await
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        state: &mut ResourceState,
    ) -> Result<Presence, Diagnostics> {
        let limit = timeouts::of(&state.value, "read", timeouts::COPYING.read);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: ProtectedItemId = stored_id(&state.value)?;
        match remote
            .find::<Answer<ProtectedItemProperties>>(id.as_str())
            .await?
        {
            Some(item) => {
                fill(&id, &item.properties, &mut state.value);
                Ok(Presence::Present)
            }
            None => Ok(Presence::Gone),
        }
    }

    async fn update(
        &self,
        cx: &Context<Session>,
        change: &Change,
        state: &mut ResourceState,
    ) -> Result<(), Diagnostics> {
        let limit = timeouts::of(&change.planned, "update", timeouts::COPYING.update);
        let until = Instant::now() + limit;
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: ProtectedItemId = stored_id(&state.value)?;
        if CHANGEABLE.iter().any(|name| change.changed(name)) {
            let planned = &change.planned;
            let answer: Answer<ProtectedItemProperties> = remote
                .update(Method::Patch, id.as_str(), &patch(planned))
                .await?;
            let mut read = planned.clone();
            fill(&id, &answer.properties, &mut read);
            state.value = read.clone();
            state.keep();
            taken_over(planned, &read)?;
        }
        settle(cx, &remote, &id, until, state).await
    }

    async fn delete(&self, cx: &Context<Session>, change: &Change) -> Result<(), Diagnostics> {
        let prior = change.prior.clone().unwrap_or_default();
        let limit = timeouts::of(&prior, "delete", timeouts::COPYING.delete);
        let remote = Remote::new(cx, WHAT, FIELDS, limit)?;
        let id: ProtectedItemId = stored_id(&prior)?;
        let body = json!({ "properties": {
            "disableProtectionReason": "NotSpecified",
            "replicationProviderInput": { "instanceType": "DisableProtectionProviderSpecificInput" },
            "deleteReplica": prior.bool("delete_replica_on_destroy").unwrap_or(true),
        } });
        remote
            .remove(Method::Post, &format!("{id}/remove"), Some(&body))
            .await
    }

    async fn import(
        &self,
        _cx: &Context<Session>,
        key: &ImportKey,
    ) -> Result<ResourceState, Diagnostics> {
        let mut state = import_stub::<ProtectedItemId>(WHAT, key)?;
        state.value.set("delete_replica_on_destroy", true);
        Ok(state)
    }
}

fn guid(value: &Value) -> Result<(), String> {
    let shaped = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        lengths == [8, 4, 4, 4, 12] && parts.concat().bytes().all(|b| b.is_ascii_hexdigit())
    };
    match value.as_str() {
        Some(text) if !shaped(text) => {
            Err("must be the GUID of a VM; use vm_name for its name".to_owned())
        }
        _ => Ok(()),
    }
}

/// Azure's rule for names of VMs: letters, digits, hyphens, not at the ends; 64 for Linux.
fn vm_name(value: &Value) -> Result<(), String> {
    let fits = |text: &str| {
        (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
    };
    match value.as_str() {
        Some(text) if !fits(text) => {
            Err("must be 1 to 64 letters, digits, hyphens, full stops or underscores, beginning with a letter or digit".to_owned())
        }
        _ => Ok(()),
    }
}

fn which_vm() -> Diagnostics {
    Diagnostics::error_at("vm_id", "Which VM?", "Give vm_id or vm_name.")
}

fn check(config: &Object, report: &mut Diagnostics) {
    if config.is_null("vm_id") && config.is_null("vm_name") {
        report.extend(which_vm());
    }
    if config.str("vm_id").is_some() && config.str("vm_name").is_some() {
        report.push_error(
            "vm_name",
            "Two ways to name the VM",
            "Give vm_id or vm_name, not both.",
        );
    }
    if config.is_null("target_network_id") && config.str("target_subnet_name").is_some() {
        report.push_error(
            "target_subnet_name",
            "A subnet without a network",
            "target_subnet_name needs target_network_id.",
        );
    }
    let included = config.get("disks_to_include");
    if included.as_elements().is_some_and(<[_]>::is_empty) {
        report.push_error(
            "disks_to_include",
            "No disk at all",
            "Name the disks to replicate, or leave disks_to_include out for all.",
        );
    }
    if let Some(os_disk) = config.str("os_disk_id")
        && included.as_elements().is_some()
        && included.is_wholly_known()
        && !config
            .strings("disks_to_include")
            .iter()
            .any(|disk| disk.eq_ignore_ascii_case(os_disk))
    {
        report.push_error(
            "disks_to_include",
            "The disk with the operating system is left out",
            "os_disk_id must be one of disks_to_include, or the VM could not boot.",
        );
    }
    same_vault(config, "hyperv_site_id", "replication_policy_id", report);
}

/// What is known already must fit together: one region, and no half minutes on premium storage. What can't be read
/// now is left to the service.
async fn cross_check(session: &Session, planned: &Object) -> Result<(), Diagnostics> {
    let mut report = Diagnostics::new();
    let vault = planned
        .str("hyperv_site_id")
        .and_then(|id| FabricId::parse(id).ok())
        .and_then(|id| VaultId::of(&id));
    let region = match &vault {
        Some(vault) => location::<VaultProperties>(session, vault.as_str()).await,
        None => None,
    };
    if let Some(region) = region {
        let account = planned.str("target_storage_account_id");
        let network = planned.str("target_network_id");
        for (name, id, what) in [
            ("target_storage_account_id", account, "storage account"),
            ("target_network_id", network, "virtual network"),
        ] {
            let Some(id) = id else { continue };
            if let Some(other) = location::<Json>(session, id).await
                && let Err(broken) = validate::regions_equal(&region, what, &other)
            {
                report.push_error(
                    name,
                    "Two regions",
                    format!("{} {}", broken.message, broken.advice),
                );
            }
        }
    }
    if let (Some(policy), Some(account)) = (
        planned.str("replication_policy_id"),
        planned.str("target_storage_account_id"),
    ) && let Ok(Some(policy)) = session.api.find::<Answer<PolicyProperties>>(policy).await
    {
        let interval = policy
            .properties
            .provider_specific_details
            .replication_interval;
        let checked = premium_check(
            session,
            account,
            u64::from(interval),
            "target_storage_account_id",
        )
        .await;
        report.extend(checked.err().unwrap_or_default());
    }
    if let (Some(network), Some(subnet)) = (
        planned.str("target_network_id"),
        planned.str("target_subnet_name"),
    ) && let Ok(Some(network)) = session
        .api
        .find::<Answer<VirtualNetworkProperties>>(network)
        .await
    {
        let names: Vec<&str> = network
            .properties
            .subnets
            .iter()
            .map(|s| s.name.as_str())
            .collect();
        if !names.iter().any(|name| name.eq_ignore_ascii_case(subnet)) {
            report.push_error(
                "target_subnet_name",
                "There is no such subnet",
                format!("The network's subnets are: {}.", names.join(", ")),
            );
        }
    }
    report.into_result()
}

async fn location<P: serde::de::DeserializeOwned>(session: &Session, id: &str) -> Option<String> {
    session
        .api
        .find::<Answer<P>>(id)
        .await
        .ok()
        .flatten()?
        .location
}

/// The request that changes what can be changed without a new copy.
fn patch(planned: &Object) -> Json {
    let mut properties = json!({
        "recoveryAzureVMName": planned.str("target_vm_name"),
        "selectedRecoveryAzureNetworkId": planned.str("target_network_id"),
        "providerSpecificDetails": {
            "instanceType": HYPER_V_REPLICA_AZURE,
            "recoveryAzureV2ResourceGroupId": planned.str("target_resource_group_id"),
        },
    });
    if let Some(subnet) = planned.str("target_subnet_name") {
        properties["vmNics"] =
            json!([{ "ipConfigs": [{ "isPrimary": true, "recoverySubnetName": subnet }] }]);
    }
    json!({ "properties": properties })
}

/// A service that quietly leaves out a part of a change must not look as if it had made it.
fn taken_over(planned: &Object, read: &Object) -> Result<(), Diagnostics> {
    let mut report = Diagnostics::new();
    for name in CHANGEABLE {
        if planned.get(name) != read.get(name) {
            report.push_error(
                name,
                "The service has not taken over the change",
                format!(
                    "{name} is still {:?}.\nWhat to do: protect the VM anew (terraform apply -replace), or take the change back.",
                    read.str(name).unwrap_or_default()
                ),
            );
        }
    }
    report.into_result()
}

type Vm = Answer<ProtectableItemProperties>;

fn choose<'a>(items: &'a [Vm], wanted: &str, at: &str) -> Result<&'a Vm, Diagnostics> {
    let found: Vec<&Vm> = items
        .iter()
        .filter(|item| is_called(item, wanted))
        .collect();
    let vm = match found.as_slice() {
        [vm] => *vm,
        [] => {
            return Err(Diagnostics::error_at(
                at,
                "There is no such VM",
                format!(
                    "No host of the site reports a VM {wanted:?}. The VMs it knows: {}.\nWhat to do: check the name, and that the \
                     VM lies in the vm_folder of a host of this site.",
                    names_of(items)
                ),
            ));
        }
        several => {
            return Err(Diagnostics::error_at(
                at,
                "More than one VM has this name",
                format!(
                    "{} VMs are called {wanted:?}.\nWhat to do: name the VM by vm_id.",
                    several.len()
                ),
            ));
        }
    };
    let errors = &vm.properties.protection_readiness_errors;
    if errors.is_empty() {
        return Ok(vm);
    }
    let reasons: Vec<String> = errors
        .iter()
        .map(|text| format!("- {}", sentence(text)))
        .collect();
    Err(Diagnostics::error_at(
        at,
        "The VM can't be protected",
        format!(
            "The host says of {:?}:\n{}",
            vm.properties.friendly_name,
            reasons.join("\n")
        ),
    ))
}

/// The disks to replicate, in the order of the VM; every named one must be there.
fn disks(vm: &Vm, planned: &Object) -> Result<Vec<String>, Diagnostics> {
    let all: Vec<String> = vm
        .properties
        .custom_details
        .disk_details
        .iter()
        .map(|d| d.vhd_id.clone())
        .collect();
    let named = planned.strings("disks_to_include");
    let has = |id: &String| all.iter().any(|own| own.eq_ignore_ascii_case(id));
    if let Some(missing) = named.iter().find(|id| !has(id)) {
        return Err(Diagnostics::error_at(
            "disks_to_include",
            "The VM has no such disk",
            format!(
                "{missing:?} is not a disk of {:?}. Its disks: {}.",
                vm.properties.friendly_name,
                all.join(", ")
            ),
        ));
    }
    if let Some(os_disk) = planned
        .str("os_disk_id")
        .map(ToOwned::to_owned)
        .filter(|id| !has(id))
    {
        return Err(Diagnostics::error_at(
            "os_disk_id",
            "The VM has no such disk",
            format!(
                "{os_disk:?} is not a disk of {:?}. Its disks: {}.",
                vm.properties.friendly_name,
                all.join(", ")
            ),
        ));
    }
    if named.is_empty() {
        return Ok(all);
    }
    Ok(all
        .into_iter()
        .filter(|own| named.iter().any(|id| id.eq_ignore_ascii_case(own)))
        .collect())
}

fn enable(vm: &Vm, planned: &Object, disks: &[String]) -> Json {
    let details = &vm.properties.custom_details;
    let system_disk = details
        .disk_details
        .iter()
        .find(|d| d.vhd_type == "OperatingSystem");
    let os_disk = planned
        .str("os_disk_id")
        .map(ToOwned::to_owned)
        .or_else(|| system_disk.map(|d| d.vhd_id.clone()))
        .or_else(|| disks.first().cloned());
    let os_type = planned
        .str("os_type")
        .map(ToOwned::to_owned)
        .or_else(|| details.os_details.as_ref().map(|os| os.os_type.clone()))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "Linux".to_owned());
    let mut specific = json!({
        "instanceType": HYPER_V_REPLICA_AZURE,
        "hvHostVmId": vm.name,
        "vmName": vm.properties.friendly_name,
        "osType": os_type,
        "vhdId": os_disk,
        "disksToInclude": disks,
        "targetStorageAccountId": planned.str("target_storage_account_id"),
        "targetAzureV2ResourceGroupId": planned.str("target_resource_group_id"),
        "targetAzureVmName": planned.str("target_vm_name").unwrap_or(&vm.properties.friendly_name),
    });
    let optional = [
        ("targetAzureNetworkId", "target_network_id"),
        ("targetAzureSubnetId", "target_subnet_name"),
    ];
    for (property, attribute) in optional {
        if let Some(text) = planned.str(attribute) {
            specific[property] = Json::from(text);
        }
    }
    json!({ "properties": {
        "policyId": planned.str("replication_policy_id"),
        "protectableItemId": vm.id,
        "providerSpecificDetails": specific,
    } })
}

/// The configured spelling when it means the same.
fn keep_spelling(planned: &Object, name: &str, value: &str) -> String {
    match planned.str(name) {
        Some(own) if own.eq_ignore_ascii_case(value) => own.to_owned(),
        _ => value.to_owned(),
    }
}

/// Waits until the first copy is whole and fills the state.
async fn settle(
    cx: &Context<Session>,
    remote: &Remote<'_>,
    id: &ProtectedItemId,
    until: Instant,
    state: &mut ResourceState,
) -> Result<(), Diagnostics> {
    let mut critical_since: Option<Instant> = None;
    let mut shown = String::new();
    loop {
        let found = remote
            .find::<Answer<ProtectedItemProperties>>(id.as_str())
            .await;
        let Some(item) = (match found {
            Err(_) if remote.interrupted() => {
                unfinished(cx, "Terraform was interrupted", &shown, state);
                return Ok(());
            }
            other => other?,
        }) else {
            return Err(Diagnostics::error(
                "Protection has ended",
                "The protected VM was removed by somebody while its first copy was being made.\nWhat to do: apply again.",
            ));
        };
        let item = item.properties;
        fill(id, &item, &mut state.value);
        state.keep();
        if is_completed(&item) {
            return Ok(());
        }
        let line = progress(&item);
        if line != shown {
            tracing::info!("{line}");
            shown = line;
        }
        let stuck =
            item.protection_state.ends_with("Failed") || item.replication_health == "Critical";
        match (stuck, critical_since) {
            (false, _) => critical_since = None,
            (true, None) => critical_since = Some(Instant::now()),
            (true, Some(since)) if since.elapsed() >= PATIENCE => return Err(why_stuck(&item)),
            (true, Some(_)) => {}
        }
        if item.protection_state.ends_with("Failed") {
            return Err(why_stuck(&item));
        }
        if Instant::now() >= until {
            unfinished(cx, "The time allowed is over", &shown, state);
            return Ok(());
        }
        if remote.pause(POLL).await.is_err() {
            unfinished(cx, "Terraform was interrupted", &shown, state);
            return Ok(());
        }
    }
}

fn unfinished(cx: &Context<Session>, why: &str, progress: &str, state: &mut ResourceState) {
    state.value.set(COMPLETED, false);
    cx.warn(Diagnostic::warning(
        "The first copy is not whole yet",
        format!("{why} while the first copy was being made ({progress}). It goes on by itself.\nWhat to do: apply again to wait for its end."),
    ));
}

/// The first copy is behind the VM once it is protected, whatever happens to it later.
fn is_completed(item: &ProtectedItemProperties) -> bool {
    let begin = [
        "",
        "Unprotected",
        "Enabling",
        "InitialReplication",
        "Disabling",
    ];
    let state = item.provider_specific_details.vm_protection_state.as_str();
    let state = if state.is_empty() {
        item.protection_state.as_str()
    } else {
        state
    };
    !begin.iter().any(|word| {
        if word.is_empty() {
            state.is_empty()
        } else {
            state.starts_with(word)
        }
    })
}

/// `web01: initial replication 43 % (12 of 28 MiB)`
fn progress(item: &ProtectedItemProperties) -> String {
    let details = &item.provider_specific_details;
    let percent = details
        .initial_replication_details
        .initial_replication_progress_percentage
        .as_str();
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let (done, total) = (details.progress_done_bytes, details.progress_total_bytes);
    let figures = if total > 0 {
        format!(" ({} of {} MiB)", mib(done), mib(total))
    } else {
        String::new()
    };
    let percent = if percent.is_empty() { "0" } else { percent };
    format!(
        "{}: initial replication {percent} %{figures}",
        item.friendly_name
    )
}

fn why_stuck(item: &ProtectedItemProperties) -> Diagnostics {
    let mut text = format!(
        "{:?} is in state {}.",
        item.friendly_name, item.protection_state
    );
    let mut storage = false;
    for error in &item.health_errors {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let summary = given(&error.error_message)
            .or_else(|| given(&error.summary_message))
            .unwrap_or_default();
        let code = given(&error.error_code).unwrap_or_default();
        text.push_str(&format!("\n- {} (code {code})", sentence(&summary)));
        if let Some(causes) = given(&error.possible_causes) {
            text.push_str(&format!("\n  Possible cause: {}", sentence(&causes)));
        }
        if let Some(action) = given(&error.recommended_action) {
            text.push_str(&format!("\n  What to do: {}", sentence(&action)));
        }
        storage |= format!("{code} {summary}").to_lowercase().contains("stor");
    }
    text.push_str("\nThe next apply protects the VM anew.");
    let diagnostic = Diagnostic::error("The first copy can't be made", text);
    if storage {
        diagnostic.at("target_storage_account_id").into()
    } else {
        diagnostic.into()
    }
}

fn fill(id: &ProtectedItemId, item: &ProtectedItemProperties, object: &mut Object) {
    let details = &item.provider_specific_details;
    object.set("id", id.as_str());
    object.set(
        "hyperv_site_id",
        keep_spelling(
            object,
            "hyperv_site_id",
            &FabricId::of(id).map(|s| s.to_string()).unwrap_or_default(),
        ),
    );
    object.set(
        "replication_policy_id",
        keep_spelling(object, "replication_policy_id", &item.policy_id),
    );
    object.set("vm_id", keep_spelling(object, "vm_id", &details.vm_id));
    object.set("vm_name", item.friendly_name.as_str());
    object.set(
        "target_storage_account_id",
        keep_spelling(
            object,
            "target_storage_account_id",
            &details.recovery_azure_storage_account,
        ),
    );
    if let Some(group) = &details.recovery_azure_resource_group_id {
        object.set(
            "target_resource_group_id",
            keep_spelling(object, "target_resource_group_id", group),
        );
    }
    let network = details
        .selected_recovery_azure_network_id
        .as_deref()
        .filter(|id| !id.is_empty());
    object.set(
        "target_network_id",
        network.map(|id| keep_spelling(object, "target_network_id", id)),
    );
    if network.is_none() {
        object.set("target_subnet_name", Value::Null);
    } else if let Some(subnet) = subnet_of(item) {
        object.set(
            "target_subnet_name",
            keep_spelling(object, "target_subnet_name", &subnet),
        );
    }
    object.set("target_vm_name", details.recovery_azure_vm_name.as_str());
    if let Some(os) = &details.os_details
        && !os.os_type.is_empty()
    {
        object.set("os_type", os.os_type.as_str());
    } else if object.get("os_type").is_unknown() {
        object.set("os_type", Value::Null);
    }
    let disks = &details.azure_vm_disk_details;
    if let Some(disk) = disks.iter().find(|disk| disk.vhd_type == "OperatingSystem") {
        object.set(
            "os_disk_id",
            keep_spelling(object, "os_disk_id", &disk.vhd_id),
        );
    } else if object.get("os_disk_id").is_unknown() {
        object.set("os_disk_id", Value::Null);
    }
    let before = object.strings("disks_to_include");
    let ids = disks.iter().map(|disk| {
        before
            .iter()
            .find(|own| own.eq_ignore_ascii_case(&disk.vhd_id))
            .cloned()
            .unwrap_or_else(|| disk.vhd_id.clone())
    });
    object.set("disks_to_include", Value::set(ids));
    object.set(COMPLETED, is_completed(item));
}

fn subnet_of(item: &ProtectedItemProperties) -> Option<String> {
    let details = &item.provider_specific_details;
    let from_nic = details
        .vm_nics
        .iter()
        .find_map(|nic| nic.ip_configs.first()?["recoverySubnetName"].as_str());
    let echoed = details
        .extra
        .get("targetAzureSubnetId")
        .and_then(Json::as_str);
    from_nic
        .or(echoed)
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
}

#[cfg(test)]
#[path = "protected_vm_tests.rs"]
mod tests;
