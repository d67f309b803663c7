//! Microsoft Azure as the recovery side of an item: the point becomes page blobs, the page blobs a VM in Azure Compute.
//!
//! ```text
//!  item (`recoveryTarget` = `Azure`) ─► check: plan of the VM, all findings      before anything is touched
//!  records of drills and lives ─► wishes ─► work, step by step, each stored ─► report, as a recovery host's
//!                                  note ─► claim, copy, compare ─► plan ─► fence ─► make ─► tidy
//!  failback                      ─► freeze the disks ─► what differs from the replica's head ─► journal, point ─► source takes it
//! ```
//!
//! Azure is one more recovery host ([`ENGINE`]): it gets its orders from the same records as every other one, and what it has
//! done comes in as a report. So drills, failovers, plans, commit, undo and cancel are the same jobs, with the same rules of
//! who may run. It lives in the orchestrator's own process, because the site with its hosts may be gone when it is needed.
//!
//! What dies takes nothing along: each step writes what it is about to rely on into the VM's own record
//! ([`record::AzureVm`]) and looks before it writes elsewhere. Two processes can't write one page blob: each claims it under a
//! number that only one of them can get, and the service refuses the older one.

mod back;
mod blobs;
pub mod check;
mod facts;
mod frozen;
pub mod host;
mod materialise;
pub mod record;
mod settings;
mod ship;
mod spec;
mod steps;
mod trouble;
mod wish;

#[cfg(test)]
mod tests;

use arm_model::{ArmError, Extra, ResourceGroupId};
use engine_protocol::v1::{self, recovered_vm_status::State};
use serde_json::Value;

use std::sync::Arc;

use anyhow::Context as _;
use azure_compute::Target;

use crate::app::App;
use crate::fault::Fault;
use crate::store::records::Item;

pub use settings::{Settings, read};
pub use wish::desired;

/// The id under which Azure is a recovery host. Engines have GUIDs.
pub const ENGINE: &str = "azure";

/// The setting of an item that chooses its recovery side.
const SETTING: &str = "recoveryTarget";

/// Sets up the way into Azure, before jobs are run.
///
/// # Errors
/// When the client can't be made of the settings; failures of the store.
pub async fn open(app: &App, settings: Option<Settings>) -> anyhow::Result<()> {
    let Some(settings) = settings else {
        let left = record::all(app).await.context("reading the VMs in Azure")?;
        if let Some(vm) = left.first() {
            tracing::warn!(vms = left.len(), first = %vm.id, "VMs in Azure are left to themselves: start with --azure-target to take care of them");
        }
        return Ok(());
    };
    let target =
        Target::new(settings.client, settings.limits).context("setting up the Azure target")?;
    app.recover_in_azure(Arc::new(target));
    host::announce(app);
    Ok(())
}

/// Whether an item is recovered in Azure.
#[must_use]
pub fn is_wanted(item: &Item) -> bool {
    facts::text(&item.request.extra, SETTING).is_some_and(|word| word.eq_ignore_ascii_case("Azure"))
}

/// Whether a recovered VM is in Azure.
#[must_use]
pub fn is_engine(engine_id: &str) -> bool {
    engine_id == ENGINE
}

/// Whether a VM is still being made in Azure: copying its disks takes as long as they are large, so nobody gives it up for that. A
/// step that can't succeed is told as a failure, not as silence.
#[must_use]
pub fn takes_its_time(engine_id: &str, status: Option<&v1::RecoveredVmStatus>) -> bool {
    is_engine(engine_id) && status.is_some_and(|status| status.state() == State::Preparing)
}

/// The recovery host of an item that is recovered in Azure.
///
/// # Errors
/// 409 when this orchestrator has no way into Azure.
pub fn engine(app: &App) -> Result<String, Fault> {
    match app.azure() {
        Some(_) => Ok(ENGINE.to_owned()),
        None => Err(Fault::refuse(409, not_configured())),
    }
}

fn not_configured() -> ArmError {
    ArmError::new(
        "AzureTargetNotConfigured",
        "The VM is to be recovered in Azure, and this orchestrator has no way into Azure.",
    )
    .advise(
        "The orchestrator was started without `--azure-target`.",
        "Start it with `--azure-target <file>`: a JSON file with `tenantId`, `clientId` and `clientSecretFile` of a client that may make VMs there.",
    )
}

/// What a request says of its recovery side: the choice itself, and what that one needs.
///
/// # Errors
/// 400 at the property.
pub fn check_settings(app: &App, item: &Item, at: impl Fn(&str) -> String) -> Result<(), Fault> {
    let extra = &item.request.extra;
    match extra.get(SETTING) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(word))
            if word.is_empty() || word.eq_ignore_ascii_case("RecoveryHost") =>
        {
            return Ok(());
        }
        Some(Value::String(word)) if word.eq_ignore_ascii_case("Azure") => {}
        Some(other) => {
            return Err(Fault::invalid(
                &at(SETTING),
                format!("{other} is no recovery side; use `Azure` or `RecoveryHost`."),
            ));
        }
    }
    if app.azure().is_none() {
        return Err(Fault::refuse(400, not_configured().at(at(SETTING))));
    }
    if item.azure.is_none() {
        return Err(Fault::invalid(
            &at("targetStorageAccountId"),
            "A VM in Azure is made of page blobs: its storage account must be one in Azure (`blobEndpoint`), not a folder.",
        ));
    }
    let group = item.request.target_azure_v2_resource_group_id.as_deref();
    if group.is_none_or(|id| ResourceGroupId::parse(id).is_err()) {
        return Err(Fault::invalid(
            &at("targetAzureV2ResourceGroupId"),
            "The resource group that the VM is made in, by its id in Azure, is required.",
        ));
    }
    facts::check(item).map_err(|problem| Fault::invalid(&at(problem.property), problem.text))
}

/// Settings of the recovered VM that an update brings, in the words of an update; what is absent stays.
pub fn update(item: &mut Item, of_item: &Extra, details: &Extra) {
    /// Word of an update, word of a request.
    const WORDS: [(&str, &str); 14] = [
        (SETTING, SETTING),
        ("licenseType", "licenseType"),
        ("linuxLicenseType", "linuxLicenseType"),
        ("diskType", "diskType"),
        ("recoveryAvailabilitySetId", "targetAvailabilitySetId"),
        ("targetAvailabilitySetId", "targetAvailabilitySetId"),
        ("targetAvailabilityZone", "targetAvailabilityZone"),
        (
            "targetProximityPlacementGroupId",
            "targetProximityPlacementGroupId",
        ),
        (
            "targetCapacityReservationGroupId",
            "targetCapacityReservationGroupId",
        ),
        ("targetVmTags", "targetVmTags"),
        ("targetNicTags", "targetNicTags"),
        ("targetManagedDiskTags", "targetManagedDiskTags"),
        (
            "disksToIncludeForManagedDisks",
            "disksToIncludeForManagedDisks",
        ),
        ("osName", "osName"),
    ];
    for (theirs, ours) in WORDS {
        for extra in [of_item, details] {
            if let Some(value) = extra.get(theirs) {
                item.request.extra.insert(ours.to_owned(), value.clone());
            }
        }
    }
    for extra in [of_item, details] {
        if let Some(managed) = facts::text(extra, "useManagedDisks") {
            item.request.use_managed_disks = Some(managed.to_owned());
        }
    }
}

/// The further settings of an item as answers have them, under the names of answers too.
#[must_use]
pub fn shown(item: &Item) -> Extra {
    let mut extra = item.request.extra.clone();
    if let Some(set) = extra.get("targetAvailabilitySetId").cloned() {
        extra.insert("recoveryAvailabilitySetId".to_owned(), set);
    }
    extra
}
