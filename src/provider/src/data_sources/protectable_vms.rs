//! `siterecovery_protectable_vms`: the VMs that the hosts of a site report.

use std::time::Duration;

use arm_model::protectable_item::{ProtectableItemProperties, ReadinessFinding};
use arm_model::{FabricId, Resource as Answer};
use async_trait::async_trait;
use tf_provider::{
    Attribute, Context, DataSource, Diagnostics, Nesting, Object, Schema, Type, Value,
};

use crate::errors::Fields;
use crate::fields::{self, text_or_null};
use crate::remote::Remote;
use crate::resources::{container_of, protectable_items};
use crate::{Session, timeouts};

const FIELDS: Fields = &[];
/// How long the first report of a host is waited for.
const FIRST_INVENTORY: Duration = Duration::from_secs(120);

/// The data source.
pub(crate) struct ProtectableVms;

#[async_trait]
impl DataSource<Session> for ProtectableVms {
    fn type_name(&self) -> &str {
        "siterecovery_protectable_vms"
    }

    fn schema(&self) -> Schema {
        let text = |description: &str| Attribute::string().computed().describe(description);
        let disk = [
            ("id", text("Id of the disk.")),
            ("name", text("File name.")),
            (
                "size_in_mib",
                Attribute::number()
                    .computed()
                    .describe("Virtual size in MiB."),
            ),
            (
                "operating_system",
                Attribute::bool()
                    .computed()
                    .describe("Whether it holds the operating system."),
            ),
        ];
        let finding = [
            (
                "code",
                text("Code of the rule, as in the guide Checks before protection."),
            ),
            (
                "original_code",
                text("Code of Azure Site Recovery, or null when it has none."),
            ),
            (
                "severity",
                text(
                    "`Error` (protection is refused), `Warning`, or `Lifted` (only the original refuses).",
                ),
            ),
            (
                "recovery_targets",
                Attribute::list(Type::String).computed().describe(
                    "For which `recovery_target` of `siterecovery_protected_vm` it holds.",
                ),
            ),
            ("disk_id", text("Disk that it is about, or null.")),
            ("message", text("What was found.")),
            ("why", text("Why it matters.")),
            ("what_to_do", text("What to do.")),
        ];
        let vm = [
            ("id", text("ARM id of the protectable item.")),
            (
                "vm_id",
                text("GUID of the VM on its host; what `siterecovery_protected_vm` takes."),
            ),
            ("name", text("Name of the VM.")),
            (
                "generation",
                Attribute::number().computed().describe("1 or 2."),
            ),
            (
                "os_type",
                text("`Linux`, `Windows`, or null when the host doesn't know."),
            ),
            (
                "disks",
                Attribute::nested(Nesting::List, disk)
                    .computed()
                    .describe("Disks."),
            ),
            ("protection_status", text("`Unprotected` or `Protected`.")),
            (
                "errors",
                Attribute::list(Type::String)
                    .computed()
                    .describe("Why the VM can't be protected, wherever it is recovered; empty when it can."),
            ),
            (
                "findings",
                Attribute::nested(Nesting::List, finding).computed().describe(
                    "All findings of the checks before protection, for all its disks: the host's own, then the worst first.",
                ),
            ),
        ];
        Schema::new()
            .describe(
                "The VMs that the hosts of a Hyper-V site report. Waits for the first report of a new host, up to two minutes. Let it depend \
                 on the site's hosts (`depends_on`).",
            )
            .attribute(
                "hyperv_site_id",
                fields::arm_id::<FabricId>("a Hyper-V site").required().describe("Id of the site."),
            )
            .attribute(
                "names",
                Attribute::set(Type::String)
                    .optional()
                    .describe("Names of VMs that must be there; only these are given. Default: all there are."),
            )
            .attribute("vms", Attribute::nested(Nesting::List, vm).computed().describe("The VMs, by name."))
            .attribute("id", text("Id of the site."))
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics> {
        let remote = Remote::new(cx, "protectable VMs", FIELDS, timeouts::QUICK.read)?;
        let text = config.require_str("hyperv_site_id")?;
        let site = FabricId::parse(text).map_err(|error| {
            Diagnostics::error_at(
                "hyperv_site_id",
                "Not the id of a Hyper-V site",
                format!("{error}."),
            )
        })?;
        if remote
            .find::<serde_json::Value>(site.as_str())
            .await?
            .is_none()
        {
            return Err(Diagnostics::error_at(
                "hyperv_site_id",
                "There is no such Hyper-V site",
                format!("Nothing has the id {site}."),
            ));
        }
        let wanted = config.strings("names");
        let container = container_of(&remote, &site).await?;
        let found = protectable_items(&remote, &site, &container, &wanted, FIRST_INVENTORY).await?;
        let mut report = Diagnostics::new();
        for name in &wanted {
            let count = found
                .iter()
                .filter(|vm| vm.properties.friendly_name == *name)
                .count();
            let all = crate::resources::names_of(&found);
            if count == 0 {
                report.push_error(
                    "names",
                    "There is no such VM",
                    format!("No host of the site reports a VM {name:?}. The VMs it knows: {all}.\nWhat to do: check the name, and that the VM lies in the vm_folder of a host of this site."),
                );
            } else if count > 1 {
                report.push_error(
                    "names",
                    "More than one VM has this name",
                    format!("{count} VMs are called {name:?}; take them by vm_id."),
                );
            }
        }
        report.into_result()?;
        let mut vms: Vec<&Answer<ProtectableItemProperties>> = found
            .iter()
            .filter(|vm| config.is_null("names") || wanted.contains(&vm.properties.friendly_name))
            .collect();
        vms.sort_by(|a, b| {
            (&a.properties.friendly_name, &a.name).cmp(&(&b.properties.friendly_name, &b.name))
        });
        state.set("vms", Value::list(vms.into_iter().map(vm)));
        state.set("id", text);
        Ok(())
    }
}

fn vm(item: &Answer<ProtectableItemProperties>) -> Object {
    let details = &item.properties.custom_details;
    let disks = details.disk_details.iter().map(|disk| {
        Object::new()
            .with("id", disk.vhd_id.as_str())
            .with("name", disk.vhd_name.as_str())
            .with("size_in_mib", disk.max_size_mb)
            .with("operating_system", disk.vhd_type == "OperatingSystem")
    });
    Object::new()
        .with("id", item.id.as_str())
        .with("vm_id", item.name.as_str())
        .with("name", item.properties.friendly_name.as_str())
        .with("generation", details.generation.parse::<u32>().ok())
        .with(
            "os_type",
            text_or_null(details.os_details.as_ref().map(|os| os.os_type.as_str())),
        )
        .with("disks", Value::list(disks))
        .with(
            "protection_status",
            item.properties.protection_status.as_str(),
        )
        .with(
            "errors",
            item.properties.protection_readiness_errors.clone(),
        )
        .with(
            "findings",
            Value::list(item.properties.readiness_findings.iter().map(finding)),
        )
}

fn finding(finding: &ReadinessFinding) -> Object {
    Object::new()
        .with("code", finding.code.as_str())
        .with(
            "original_code",
            text_or_null(finding.original_code.as_deref()),
        )
        .with("severity", finding.severity.as_str())
        .with("recovery_targets", finding.recovery_targets.clone())
        .with("disk_id", text_or_null(finding.vhd_id.as_deref()))
        .with("message", finding.summary_message.as_str())
        .with("why", finding.possible_causes.as_str())
        .with("what_to_do", finding.recommended_action.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_vm_shows_its_disks_and_leaves_unknown_systems_null() {
        let item: Answer<ProtectableItemProperties> = serde_json::from_value(json!({
            "id": "/1", "name": "guid", "properties": {
                "friendlyName": "web01", "protectionStatus": "Unprotected",
                "customDetails": { "generation": "2", "diskDetails": [
                    { "vhdId": "D0", "vhdName": "os.vhdx", "vhdType": "OperatingSystem", "maxSizeMB": 64 } ] } }
        }))
        .unwrap();
        let vm = vm(&item);
        assert!(vm.is_null("os_type"));
        assert_eq!(vm.u64("generation"), Some(2));
        assert_eq!(vm.objects("disks")[0].bool("operating_system"), Some(true));
        assert_eq!(vm.elements("errors").len(), 0);
    }

    #[test]
    fn a_finding_says_what_for_which_disk_and_what_to_do() {
        let item: Answer<ProtectableItemProperties> = serde_json::from_value(json!({
            "id": "/1", "name": "guid", "properties": { "friendlyName": "web01", "readinessFindings": [
                { "code": "FourKNative", "severity": "Error", "recoveryTargets": ["Azure", "RecoveryHost"], "vhdId": "D0",
                  "summaryMessage": "Large sectors.", "possibleCauses": "Because.", "recommendedAction": "Copy." } ] }
        }))
        .unwrap();
        let vm = vm(&item);
        let finding = vm.objects("findings")[0];
        assert_eq!(finding.str("code"), Some("FourKNative"));
        assert_eq!(finding.str("disk_id"), Some("D0"));
        assert_eq!(finding.str("what_to_do"), Some("Copy."));
        assert_eq!(finding.strings("recovery_targets").len(), 2);
        assert!(finding.is_null("original_code"));
    }
}
