//! Rules of a protected item that are more than the shape of its body: disks, groups, limits, seeds, resource groups.

use arm_model::protected_item::{DiskSeed, EnableDetails};
use arm_model::window::Throttle;
use arm_model::{ResourceGroupId, validate};
use engine_protocol::v1;

use super::entry::Call;
use crate::azure_target;
use crate::fault::Fault;
use crate::store::records::{self, Item};

/// Most limits of a VM or a host.
pub const MAX_THROTTLES: usize = 32;

/// Disks to replicate, in the order of the host.
///
/// # Errors
/// 400 for a disk that the VM doesn't have, and without the operating system disk.
pub fn disks(
    wanted: &[String],
    machine: &v1::VirtualMachine,
    target: &str,
) -> Result<Vec<String>, Fault> {
    if let Some(disk) = wanted.iter().find(|disk| !has(machine, disk)) {
        return Err(no_disk(machine, disk, target));
    }
    let chosen: Vec<_> = machine
        .disks
        .iter()
        .filter(|disk| wanted.iter().any(|one| one.eq_ignore_ascii_case(&disk.id)))
        .collect();
    if !chosen.iter().any(|disk| disk.operating_system) {
        return Err(Fault::invalid(
            target,
            "The operating system disk must be replicated: without it nothing boots.",
        ));
    }
    Ok(chosen.into_iter().map(|disk| disk.id.clone()).collect())
}

/// Whether the VM has a disk.
#[must_use]
pub fn has(machine: &v1::VirtualMachine, wanted: &str) -> bool {
    machine
        .disks
        .iter()
        .any(|disk| disk.id.eq_ignore_ascii_case(wanted))
}

/// 400 for a disk that the VM doesn't have.
#[must_use]
pub fn no_disk(machine: &v1::VirtualMachine, disk: &str, target: &str) -> Fault {
    Fault::invalid(
        target,
        format!("The VM `{}` has no disk `{disk}`.", machine.name),
    )
}

/// VMs of one group take their points at one instant, so they are on one host.
///
/// # Errors
/// 400 with the VM that is elsewhere.
pub async fn group(
    call: &Call<'_>,
    vault_key: &str,
    item_id: &str,
    engine_id: &str,
    name: &str,
    target: &str,
) -> Result<(), Fault> {
    validate::resource_name(name)
        .map_err(|violation| Fault::refuse(400, violation.into_error(target)))?;
    let items = records::list::<Item>(call.app.store.as_ref(), &format!("{vault_key}/")).await?;
    let elsewhere = items.iter().map(|item| &item.record).find(|item| {
        item.request
            .multi_vm_group_name
            .as_deref()
            .is_some_and(|group| group.eq_ignore_ascii_case(name))
            && item.engine_id != engine_id
            && !item.id.eq_ignore_ascii_case(item_id)
    });
    match elsewhere {
        None => Ok(()),
        Some(other) => Err(Fault::refuse(
            400,
            arm_model::ArmError::new(
                "MultiVmGroupAcrossHosts",
                format!(
                    "The VM `{}` of group `{name}` is on another host: VMs of a group share their recovery points, so they are on one.",
                    other.vm_name
                ),
            )
            .at(target)
            .advise("", "Use another group, or move the VMs to one host."),
        )),
    }
}

/// Rate limits.
///
/// # Errors
/// 400 at the limit that can't be read.
pub fn throttles(throttles: &[Throttle], target: &str) -> Result<(), Fault> {
    if throttles.len() > MAX_THROTTLES {
        return Err(Fault::invalid(
            target,
            format!("There can be {MAX_THROTTLES} throttles at most."),
        ));
    }
    for (index, throttle) in throttles.iter().enumerate() {
        throttle.parse().map_err(|violation| {
            Fault::refuse(400, violation.into_error(&format!("{target}[{index}]")))
        })?;
    }
    Ok(())
}

/// Seeds: of disks that are replicated, at a place that the store's side can have.
///
/// # Errors
/// 400 at the seed.
pub fn seeds(
    seeds: &[DiskSeed],
    disks: &[String],
    in_azure: bool,
    target: &str,
) -> Result<(), Fault> {
    for (index, seed) in seeds.iter().enumerate() {
        let target = format!("{target}[{index}]");
        if !disks
            .iter()
            .any(|disk| disk.eq_ignore_ascii_case(&seed.disk_id))
        {
            return Err(Fault::invalid(
                &format!("{target}.diskId"),
                format!("`{}` is no disk that is replicated.", seed.disk_id),
            ));
        }
        if seeds
            .iter()
            .take(index)
            .any(|other| other.disk_id.eq_ignore_ascii_case(&seed.disk_id))
        {
            return Err(Fault::invalid(
                &format!("{target}.diskId"),
                format!("The disk `{}` has two seeds.", seed.disk_id),
            ));
        }
        let path = &seed.path;
        let refuse = |message: &str| {
            Err(Fault::invalid(
                &format!("{target}.path"),
                format!("`{path}` can't be a seed: {message}."),
            ))
        };
        if in_azure {
            let climbs = path.split('/').any(|part| matches!(part, "" | "." | ".."));
            if climbs || path.contains('\\') || path.chars().any(char::is_control) {
                return refuse("it is the name of a blob in the account's container");
            }
        } else if validate::storage_folder(path).is_err() {
            return refuse(
                "it is an absolute path without `..`, on a machine with the store's folder",
            );
        }
    }
    Ok(())
}

/// The group in which a VM is recovered.
///
/// # Errors
/// 400 for what is no group, 403 for one outside of the client's scope.
pub fn resource_group(call: &Call<'_>, wanted: &str, target: &str) -> Result<(), Fault> {
    let id = ResourceGroupId::parse(wanted)
        .map_err(|error| Fault::invalid(target, format!("{error}.")))?;
    call.may_use(id.as_arm(), target)
}

/// All of it, for a request that enables protection.
///
/// # Errors
/// 400 at the property.
pub async fn all(
    call: &Call<'_>,
    vault_key: &str,
    item: &Item,
    details: &EnableDetails,
    at: impl Fn(&str) -> String,
) -> Result<(), Fault> {
    if let Some(name) = details
        .multi_vm_group_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        let target = at("multiVmGroupName");
        group(call, vault_key, &item.id, &item.engine_id, name, &target).await?;
    }
    azure_target::check_settings(call.app, item, &at)?;
    throttles(
        details.throttles.as_deref().unwrap_or_default(),
        &at("throttles"),
    )?;
    seeds(
        details.seeds.as_deref().unwrap_or_default(),
        &item.disk_ids,
        item.azure.is_some(),
        &at("seeds"),
    )?;
    if let Some(group) = &details.target_azure_v2_resource_group_id {
        resource_group(call, group, &at("targetAzureV2ResourceGroupId"))?;
    }
    Ok(())
}
