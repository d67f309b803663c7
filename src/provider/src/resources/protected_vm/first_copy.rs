//! Waiting for the first copy, and the state that an answer of the service makes.

use std::time::{Duration, Instant};

use arm_model::protected_item::ProtectedItemProperties;
use arm_model::{FabricId, ProtectedItemId, Resource as Answer};
use tf_provider::{Context, Diagnostic, Diagnostics, Object, ResourceState, Value};

use super::COMPLETED;
use crate::Session;
use crate::errors::sentence;
use crate::remote::Remote;
use crate::{fields, limits};

const POLL: Duration = Duration::from_secs(2);
/// How long a critical state is watched before the copy counts as stuck: hosts mend short troubles themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// The configured spelling when it means the same.
pub(super) fn keep_spelling(planned: &Object, name: &str, value: &str) -> String {
    match planned.str(name) {
        Some(own) if own.eq_ignore_ascii_case(value) => own.to_owned(),
        _ => value.to_owned(),
    }
}

/// Waits until the first copy is whole and fills the state.
pub(super) async fn settle(
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

pub(super) fn unfinished(
    cx: &Context<Session>,
    why: &str,
    progress: &str,
    state: &mut ResourceState,
) {
    state.value.set(COMPLETED, false);
    cx.warn(Diagnostic::warning(
        "The first copy is not whole yet",
        format!("{why} while the first copy was being made ({progress}). It goes on by itself.\nWhat to do: apply again to wait for its end."),
    ));
}

/// The first copy is behind the VM once it is protected, whatever happens to it later.
pub(super) fn is_completed(item: &ProtectedItemProperties) -> bool {
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
pub(super) fn progress(item: &ProtectedItemProperties) -> String {
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

pub(super) fn why_stuck(item: &ProtectedItemProperties) -> Diagnostics {
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

pub(super) fn fill(id: &ProtectedItemId, item: &ProtectedItemProperties, object: &mut Object) {
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
    let log = details
        .recovery_azure_log_storage_account_id
        .as_deref()
        .filter(|id| !id.is_empty());
    object.set(
        super::LOG_ACCOUNT,
        log.map(|id| keep_spelling(object, super::LOG_ACCOUNT, id)),
    );
    if let Some(group) = &details.recovery_azure_resource_group_id {
        object.set(
            "target_resource_group_id",
            keep_spelling(object, "target_resource_group_id", group),
        );
    }
    // A network that follows from a mapping is not the VM's own.
    let network = details
        .selected_recovery_azure_network_id
        .as_deref()
        .filter(|id| !id.is_empty() && details.recovery_network_source.is_none());
    object.set(
        "target_network_id",
        network.map(|id| keep_spelling(object, "target_network_id", id)),
    );
    let subnet = network.and_then(|_| subnet_of(item));
    object.set(
        "target_subnet_name",
        subnet.map(|subnet| keep_spelling(object, "target_subnet_name", &subnet)),
    );
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
    object.set(
        super::GROUP,
        fields::text_or_null(details.multi_vm_group_name.as_deref()),
    );
    super::azure::fill(details, object);
    limits::set_throttles(&details.throttles, object);
    let seeds = details.seeds.iter().map(|seed| {
        Object::new()
            .with("disk_id", seed.disk_id.as_str())
            .with("path", seed.path.as_str())
    });
    object.set("seed", Value::list(seeds));
    object.set(COMPLETED, is_completed(item));
}

pub(super) fn subnet_of(item: &ProtectedItemProperties) -> Option<String> {
    let details = &item.provider_specific_details;
    let from_nic = details
        .vm_nics
        .iter()
        .find_map(|nic| nic.ip_configs.first()?["recoverySubnetName"].as_str());
    // An adapter may have a subnet of its own; the VM's is told apart from it, except by a service that knows no other.
    details
        .target_azure_subnet_id
        .as_deref()
        .or(from_nic)
        .filter(|name| !name.is_empty())
        .map(ToOwned::to_owned)
}
