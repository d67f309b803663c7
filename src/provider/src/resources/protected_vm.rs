//! `siterecovery_protected_vm`: a VM whose disks are replicated without pause.
//!
//! ```text
//!  create: find the VM in the site ─► enable protection ─► wait for the first copy, with progress in the log
//!  read:   what is configured; `initial_replication_completed` once the first copy has been whole
//!  update: target settings, limits, group by PATCH; disks in and out, comparisons as jobs; goes on waiting for a first
//!          copy that an earlier run did not see the end of
//!  delete: disable protection; the replica goes too unless it shall stay
//! ```
//!
//! Running out of time, or an interrupt, during the first copy is a warning and not an error: the copy goes on, an
//! error would make Terraform throw it away, and the next apply takes up the waiting. Health, RPO and progress are not
//! in the state, because they change by themselves.

mod azure;
mod checks;
mod elsewhere;
mod first_copy;
mod readiness;
mod request;

use std::time::{Duration, Instant};

use arm_client::Method;
use arm_model::protected_item::ProtectedItemProperties;
use arm_model::{
    FabricId, PolicyId, ProtectedItemId, Resource as Answer, StorageAccountId, VirtualNetworkId,
    validate,
};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::schema::Block;
use tf_provider::{
    Attribute, Change, Context, Diagnostics, IdentitySchema, ImportKey, NestedBlock, Object, Plan,
    Presence, Resource, ResourceState, Schema, Type, Value,
};

use self::checks::{check, cross_check, guid, vm_name, which_vm};
use self::first_copy::{fill, keep_spelling, settle};
use self::request::{choose, disk_changes, disks, enable, patch, taken_over};
use super::association::site_id;
use super::protection::{container_of, protectable_items};
use crate::Session;
use crate::errors::Fields;
use crate::plain::{identity, import_stub, stored_id};
use crate::remote::Remote;
use crate::{fields, limits, timeouts};

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
    ("logStorageAccountId", LOG_ACCOUNT),
    ("targetAzureV2ResourceGroupId", "target_resource_group_id"),
    ("recoveryAzureV2ResourceGroupId", "target_resource_group_id"),
    ("targetAzureNetworkId", "target_network_id"),
    ("selectedRecoveryAzureNetworkId", "target_network_id"),
    ("targetAzureSubnetId", "target_subnet_name"),
    ("targetAzureVmName", "target_vm_name"),
    ("recoveryAzureVMName", "target_vm_name"),
    ("diskIds", "disks_to_include"),
    ("multiVmGroupName", GROUP),
    ("throttles", "throttle"),
    ("seeds", "seed"),
    azure::FIELDS[0],
    azure::FIELDS[1],
    azure::FIELDS[2],
    azure::FIELDS[3],
    azure::FIELDS[4],
    azure::FIELDS[5],
    azure::FIELDS[6],
    azure::FIELDS[7],
    azure::FIELDS[8],
];
const COMPLETED: &str = "initial_replication_completed";
/// What can be changed without a new copy.
const CHANGEABLE: [&str; 4] = [
    "target_vm_name",
    "target_network_id",
    "target_subnet_name",
    "target_resource_group_id",
];
const LOG_ACCOUNT: &str = "log_storage_account_id";
const GROUP: &str = "multi_vm_group_name";
const RESYNCHRONIZE: &str = "resynchronize";
/// What can be changed too, but is no single text.
const EXTENSIONS: [&str; 3] = [GROUP, "throttle", "seed"];
/// How long a VM that was named may take to show up: a host tells of its VMs seconds after it has registered.
const FIRST_INVENTORY: Duration = Duration::from_secs(60);

/// The resource.
pub(crate) struct ProtectedVm;

#[async_trait]
impl Resource<Session> for ProtectedVm {
    fn type_name(&self) -> &str {
        "siterecovery_protected_vm"
    }

    fn schema(&self) -> Schema {
        let text = || Attribute::string().optional();
        azure::schema(Schema::new())
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
                    // A data source that waits for a host with a change of its own is not known while planning; no replica may be
                    // thrown away over that.
                    .keep_until_known()
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
                LOG_ACCOUNT,
                fields::arm_id::<StorageAccountId>("a storage account")
                    .optional()
                    .requires_replace()
                    .describe(
                        "Id of a standard storage account for the change log and the recovery points, in the vault's region; the target account \
                         then holds the base disks only. Required when the target account is premium. Changing it protects anew.",
                    ),
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
                    .describe("Id of the virtual network after a failover, in the vault's region. Without it the VM belongs to the network that its virtual switch is mapped to (`siterecovery_network_mapping`), if any."),
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
                    .describe(
                        "Ids of the disks to replicate; the one with the operating system must be among them. Default: all that the VM has when it \
                         is protected. Adding and removing disks later copies nothing of the others, and older recovery points stay as they were.",
                    ),
            )
            .attribute(
                GROUP,
                fields::checked(text(), validate::resource_name).describe(
                    "VMs of one group take their recovery points at one instant; they are on one host. Default: alone.",
                ),
            )
            .attribute(
                RESYNCHRONIZE,
                text().describe(
                    "Any text. When it changes, the disks are compared with the replica and differences are sent; the apply waits for the end.",
                ),
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
            .block("throttle", limits::throttle_blocks("this VM"))
            .block("seed", NestedBlock::list(seed_block()))
    }

    fn identity(&self) -> Option<IdentitySchema> {
        Some(identity())
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        check(config, report);
    }

    async fn plan(&self, cx: &Context<Session>, plan: &mut Plan) -> Result<(), Diagnostics> {
        elsewhere::guard(cx, plan).await?;
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
        let Some(session) = cx.client_if_configured().filter(|_| plan.has_changes()) else {
            return Ok(());
        };
        let mut report = cross_check(&session, &plan.planned)
            .await
            .err()
            .unwrap_or_default();
        if plan.is_create() {
            readiness::at_plan(cx, &session, &plan.config, &mut report).await;
        }
        report.into_result()
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
        let path = format!("{}{}", vm.id, readiness::query(&change.config));
        if let Some(judged) = remote.find(&path).await? {
            readiness::diagnostics(&judged, at).into_result()?;
        }
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
                elsewhere::tell(cx, &item.properties);
                fill(&id, &item.properties, &mut state.value);
                Ok(Presence::Present)
            }
            None => {
                elsewhere::tell_migrated(cx, &remote, &id).await?;
                Ok(Presence::Gone)
            }
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
        let changed = |name: &&str| change.changed(name);
        let of_azure = azure::attributes().any(|name| change.changed(name));
        if of_azure || CHANGEABLE.iter().any(&changed) || EXTENSIONS.iter().any(changed) {
            let planned = &change.planned;
            let body = patch(planned, |name| change.changed(name));
            let answer: Answer<ProtectedItemProperties> =
                remote.update(Method::Patch, id.as_str(), &body).await?;
            let mut read = planned.clone();
            fill(&id, &answer.properties, &mut read);
            state.value = read.clone();
            fields::keep_without(state, change.prior.as_ref(), &[RESYNCHRONIZE]);
            taken_over(planned, &read)?;
        }
        for (action, body) in disk_changes(change) {
            let _item: Json = remote
                .update(Method::Post, &format!("{id}/{action}"), &body)
                .await?;
        }
        if change.changed(RESYNCHRONIZE) && !change.planned.is_null(RESYNCHRONIZE) {
            let path = format!("{id}/repairReplication");
            let _item: Json = remote.update(Method::Post, &path, &json!({})).await?;
        }
        state
            .value
            .set(RESYNCHRONIZE, change.planned.get(RESYNCHRONIZE).clone());
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

fn seed_block() -> Block {
    Block::new()
        .describe(
            "A copy of a disk that was brought to the store's side: the first copy compares with it and sends differences only.",
        )
        .attribute(
            "disk_id",
            Attribute::string()
                .required()
                .describe("Id of the disk."),
        )
        .attribute(
            "path",
            Attribute::string().required().describe(
                "The copy (VHDX, VHD or raw): a file on a machine that has the store's folder, or for an account in Azure a blob of its container.",
            ),
        )
}

#[cfg(test)]
mod tests;
