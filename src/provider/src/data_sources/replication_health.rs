//! `siterecovery_replication_health`: how well every protected VM of a vault is replicated now.

use arm_model::protected_item::ProtectedItemProperties;
use arm_model::{Resource as Answer, VaultId};
use async_trait::async_trait;
use tf_provider::{Attribute, Context, DataSource, Diagnostics, Nesting, Object, Schema, Value};

use crate::errors::Fields;
use crate::fields;
use crate::remote::Remote;
use crate::{Session, timeouts};

const FIELDS: Fields = &[];
/// Health from best to worst.
const ORDER: [&str; 4] = ["None", "Normal", "Warning", "Critical"];

/// The data source.
pub(crate) struct ReplicationHealth;

#[async_trait]
impl DataSource<Session> for ReplicationHealth {
    fn type_name(&self) -> &str {
        "siterecovery_replication_health"
    }

    fn schema(&self) -> Schema {
        let text = |words: &str| Attribute::string().computed().describe(words);
        let number = |words: &str| Attribute::number().computed().describe(words);
        let error = [
            ("code", text("Code for programs.")),
            ("level", text("`Error` or `Warning`.")),
            ("message", text("What is wrong.")),
            ("possible_causes", text("What may have led to it.")),
            ("recommended_action", text("What to do next.")),
        ];
        let disk = [
            ("disk_id", text("Id of the disk.")),
            (
                "tracking_state",
                text(
                    "`Tracked`, `Suspect` (changes may be unknown) or `Comparing`; null before the first report.",
                ),
            ),
            ("tracking_reason", text("Why it is suspect.")),
        ];
        let vm = [
            ("id", text("Id of the protected VM.")),
            ("vm_name", text("Name of the VM.")),
            ("health", text("`Normal`, `Warning`, `Critical` or `None`.")),
            ("protection_state", text("Such as `Protected`.")),
            (
                "rpo_in_seconds",
                number("Age of the newest recovery point; null without one."),
            ),
            (
                "backlog_bytes",
                number("Bytes captured but not yet in the store."),
            ),
            (
                "eta_in_seconds",
                number(
                    "Seconds until backlog, first copy or comparison are done; null when there is nothing to do or it is not known.",
                ),
            ),
            (
                "bytes_per_second",
                number("Bytes to the store in a second, over the last minute."),
            ),
            (
                "effective_replication_interval_in_seconds",
                number(
                    "Seconds between recovery points as they really are; null before the first report.",
                ),
            ),
            (
                "degraded_reason",
                text("Why that is longer than the policy's; null when it is not."),
            ),
            (
                "last_recovery_point_time",
                text("Instant of the newest point."),
            ),
            (
                "last_app_consistent_time",
                text("Instant of the newest application-consistent point."),
            ),
            (
                "last_verified_time",
                text("When every kept point was last proven readable."),
            ),
            (
                "disks",
                Attribute::nested(Nesting::List, disk)
                    .computed()
                    .describe("How far the changes of each disk are known."),
            ),
            (
                "errors",
                Attribute::nested(Nesting::List, error)
                    .computed()
                    .describe("What is wrong."),
            ),
        ];
        Schema::new()
            .describe(
                "How well the protected VMs of a vault are replicated now. The figures change by themselves: use them in checks and outputs, not in a \
                 resource's arguments.",
            )
            .attribute(
                "recovery_vault_id",
                fields::arm_id::<VaultId>("a vault")
                    .required()
                    .describe("Id of the vault."),
            )
            .attribute("health", text("The worst health of all VMs; `Normal` when there is none."))
            .attribute(
                "virtual_machines",
                Attribute::nested(Nesting::List, vm)
                    .computed()
                    .describe("The protected VMs, by name."),
            )
            .attribute("id", text("Id of the vault."))
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics> {
        let remote = Remote::new(cx, "protected VMs", FIELDS, timeouts::QUICK.read)?;
        let vault = config.require_str("recovery_vault_id")?;
        let mut items: Vec<Answer<ProtectedItemProperties>> = remote
            .list(&format!("{vault}/replicationProtectedItems"))
            .await?;
        items.sort_by(|a, b| a.properties.friendly_name.cmp(&b.properties.friendly_name));
        let healths = items
            .iter()
            .map(|item| item.properties.replication_health.as_str());
        state.set("health", worst(healths));
        state.set("virtual_machines", Value::list(items.iter().map(vm)));
        state.set("id", vault);
        Ok(())
    }
}

fn worst<'a>(healths: impl Iterator<Item = &'a str>) -> &'static str {
    let rank = |health: &str| ORDER.iter().position(|known| *known == health);
    let worst = healths.filter_map(rank).fold(1, usize::max);
    ORDER.get(worst).copied().unwrap_or("Normal")
}

fn vm(item: &Answer<ProtectedItemProperties>) -> Object {
    let properties = &item.properties;
    let details = &properties.provider_specific_details;
    let disks = details.azure_vm_disk_details.iter().map(|disk| {
        Object::new()
            .with("disk_id", disk.vhd_id.as_str())
            .with("tracking_state", disk.tracking_state.as_deref())
            .with("tracking_reason", disk.tracking_reason.as_deref())
    });
    let errors = properties.health_errors.iter().map(|error| {
        Object::new()
            .with("code", error.error_code.as_deref())
            .with("level", error.error_level.as_deref())
            .with("message", error.error_message.as_deref())
            .with("possible_causes", error.possible_causes.as_deref())
            .with("recommended_action", error.recommended_action.as_deref())
    });
    Object::new()
        .with("id", item.id.as_str())
        .with("vm_name", properties.friendly_name.as_str())
        .with("health", properties.replication_health.as_str())
        .with("protection_state", properties.protection_state.as_str())
        .with("rpo_in_seconds", details.rpo_in_seconds)
        .with("backlog_bytes", details.backlog_bytes)
        .with("eta_in_seconds", details.eta_in_seconds)
        .with("bytes_per_second", details.bytes_per_second)
        .with(
            "effective_replication_interval_in_seconds",
            details.effective_replication_interval_in_seconds,
        )
        .with("degraded_reason", details.degraded_reason.as_deref())
        .with(
            "last_recovery_point_time",
            details.last_recovery_point_received.as_deref(),
        )
        .with(
            "last_app_consistent_time",
            details.last_app_consistent_time.as_deref(),
        )
        .with("last_verified_time", details.last_verified_time.as_deref())
        .with("disks", Value::list(disks))
        .with("errors", Value::list(errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_health_counts_and_an_unknown_one_does_not() {
        assert_eq!(worst([].into_iter()), "Normal");
        assert_eq!(
            worst(["Normal", "Critical", "Warning"].into_iter()),
            "Critical"
        );
        assert_eq!(worst(["None", "Strange"].into_iter()), "Normal");
    }
}
