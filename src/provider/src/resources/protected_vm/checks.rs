//! Checks of a protected VM's arguments: against one another, and against what exists already.

use arm_model::neighbours::VirtualNetworkProperties;
use arm_model::policy::PolicyProperties;
use arm_model::vault::VaultProperties;
use arm_model::{FabricId, Resource as Answer, VaultId, validate};
use serde_json::Value as Json;
use tf_provider::{Diagnostics, Object, Value};

use super::LOG_ACCOUNT;
use crate::Session;
use crate::limits;
use crate::resources::association::same_vault;
use crate::resources::policy::{premium_check, sku_of};

pub(super) fn guid(value: &Value) -> Result<(), String> {
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
pub(super) fn vm_name(value: &Value) -> Result<(), String> {
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

pub(super) fn which_vm() -> Diagnostics {
    Diagnostics::error_at("vm_id", "Which VM?", "Give vm_id or vm_name.")
}

pub(super) fn check(config: &Object, report: &mut Diagnostics) {
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
    limits::check_throttles(config, report);
    same_vault(config, "hyperv_site_id", "replication_policy_id", report);
}

/// What is known already must fit together: one region, and no half minutes on premium storage. What can't be read
/// now is left to the service.
pub(super) async fn cross_check(session: &Session, planned: &Object) -> Result<(), Diagnostics> {
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
            (LOG_ACCOUNT, planned.str(LOG_ACCOUNT), "log storage account"),
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
    if let Err(broken) = log_check(session, planned).await {
        report.push_error(
            LOG_ACCOUNT,
            "Where does the change log go?",
            format!("{} {}", broken.message, broken.advice),
        );
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

/// Premium accounts and logs, as far as the accounts can be read already.
async fn log_check(session: &Session, planned: &Object) -> Result<(), validate::Violation> {
    let log = match planned.get(LOG_ACCOUNT) {
        id if id.is_null() => None,
        // Unknown until it is made, or not readable now: the service says when it is wrong.
        _ => match planned.str(LOG_ACCOUNT) {
            Some(id) => match sku_of(session, id).await {
                Some(sku) => Some(sku),
                None => return Ok(()),
            },
            None => return Ok(()),
        },
    };
    let target = match planned.str("target_storage_account_id") {
        Some(id) => sku_of(session, id).await.unwrap_or_default(),
        None => String::new(),
    };
    validate::log_storage(&target, log.as_deref())
}

pub(super) async fn location<P: serde::de::DeserializeOwned>(
    session: &Session,
    id: &str,
) -> Option<String> {
    session
        .api
        .find::<Answer<P>>(id)
        .await
        .ok()
        .flatten()?
        .location
}
