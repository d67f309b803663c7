//! Settings of a VM that is recovered in Azure: which attribute, and its words in requests and answers.

use arm_model::protected_item::ReplicationDetails;
use serde_json::{Value as Json, json};
use tf_provider::{Attribute, Object, Schema};

use super::first_copy::keep_spelling;

/// One setting, a text; an empty one in a request takes it out.
struct Setting {
    attribute: &'static str,
    /// Word of a request that protects, and of an answer.
    word: &'static str,
    /// Word of an update, and whether it stands beside the Hyper-V part.
    update: (&'static str, bool),
    values: &'static [&'static str],
    describe: &'static str,
}

const SIZE: &str = "target_vm_size";

const SETTINGS: [Setting; 7] = [
    Setting {
        attribute: "recovery_target",
        word: "recoveryTarget",
        update: ("recoveryTarget", false),
        values: &["Azure", "RecoveryHost"],
        describe: "Where the VM is recovered: `RecoveryHost`, a host of the vault with the recovery role, or `Azure`, in Azure Compute. `Azure` needs a \
                   storage account in Azure and an orchestrator with `--azure-target`; `target_resource_group_id`, `target_network_id` and \
                   `target_storage_account_id` are then ids in that subscription. Default: `RecoveryHost`.",
    },
    Setting {
        attribute: SIZE,
        word: "targetVmSize",
        update: ("recoveryAzureVMSize", true),
        values: &[],
        describe: "Size of the VM in Azure, such as `Standard_D2s_v3`. Default: the smallest with the source's processors and memory.",
    },
    Setting {
        attribute: "target_disk_type",
        word: "diskType",
        update: ("diskType", false),
        values: &[
            "Standard_LRS",
            "StandardSSD_LRS",
            "Premium_LRS",
            "StandardSSD_ZRS",
            "Premium_ZRS",
        ],
        describe: "Type of its managed disks. Default: `StandardSSD_LRS`.",
    },
    Setting {
        attribute: "target_availability_set_id",
        word: "targetAvailabilitySetId",
        update: ("recoveryAvailabilitySetId", true),
        values: &[],
        describe: "Id of an availability set; not together with `target_availability_zone`.",
    },
    Setting {
        attribute: "target_availability_zone",
        word: "targetAvailabilityZone",
        update: ("targetAvailabilityZone", false),
        values: &[],
        describe: "Zone, such as `1`.",
    },
    Setting {
        attribute: "target_proximity_placement_group_id",
        word: "targetProximityPlacementGroupId",
        update: ("targetProximityPlacementGroupId", false),
        values: &[],
        describe: "Id of a proximity placement group.",
    },
    Setting {
        attribute: "license_type",
        word: "licenseType",
        update: ("licenseType", true),
        values: &["NoLicenseType", "WindowsServer"],
        describe: "`WindowsServer` for the Azure Hybrid Benefit. Default: no licence is brought along.",
    },
];

/// Names of the attributes, which can be changed without a new copy.
pub(super) fn attributes() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.attribute)
}

/// Words of requests with the attributes that they come from.
pub(super) const FIELDS: [(&str, &str); 9] = [
    ("recoveryTarget", "recovery_target"),
    ("targetVmSize", SIZE),
    ("recoveryAzureVMSize", SIZE),
    ("diskType", "target_disk_type"),
    ("targetAvailabilitySetId", "target_availability_set_id"),
    ("recoveryAvailabilitySetId", "target_availability_set_id"),
    ("targetAvailabilityZone", "target_availability_zone"),
    (
        "targetProximityPlacementGroupId",
        "target_proximity_placement_group_id",
    ),
    ("licenseType", "license_type"),
];

/// Adds the attributes.
pub(super) fn schema(schema: Schema) -> Schema {
    SETTINGS.iter().fold(schema, |schema, setting| {
        let attribute = Attribute::string().optional().describe(setting.describe);
        let attribute = if setting.values.is_empty() {
            attribute
        } else {
            attribute.one_of(setting.values)
        };
        schema.attribute(setting.attribute, attribute)
    })
}

/// What is set goes into the request that protects.
pub(super) fn enable(planned: &Object, specific: &mut Json) {
    for setting in &SETTINGS {
        if let Some(text) = planned.str(setting.attribute) {
            specific[setting.word] = Json::from(text);
        }
    }
}

/// What has changed goes into an update; what was taken out, as an empty text.
pub(super) fn patch(planned: &Object, changed: impl Fn(&str) -> bool, properties: &mut Json) {
    for setting in SETTINGS.iter().filter(|setting| changed(setting.attribute)) {
        let text = json!(planned.str(setting.attribute).unwrap_or_default());
        let (word, beside) = setting.update;
        if beside {
            properties[word] = text;
        } else {
            properties["providerSpecificDetails"][word] = text;
        }
    }
}

/// Takes over what the answer has.
pub(super) fn fill(details: &ReplicationDetails, object: &mut Object) {
    for setting in &SETTINGS {
        let told = match setting.attribute {
            SIZE => details.recovery_azure_vm_size.as_deref(),
            _ => details.extra.get(setting.word).and_then(Json::as_str),
        };
        let told = told.filter(|text| !text.is_empty());
        let kept = told.map(|text| keep_spelling(object, setting.attribute, text));
        object.set(setting.attribute, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_sent_read_back_and_taken_out_again() {
        let planned = Object::new()
            .with("recovery_target", "Azure")
            .with(SIZE, "Standard_D2s_v3")
            .with("license_type", "WindowsServer");
        let mut specific = json!({});
        enable(&planned, &mut specific);
        let wanted = json!({ "recoveryTarget": "Azure", "targetVmSize": "Standard_D2s_v3", "licenseType": "WindowsServer" });
        assert_eq!(specific, wanted);
        let answer = json!({ "recoveryTarget": "azure", "recoveryAzureVMSize": "Standard_D2s_v3", "licenseType": "WindowsServer" });
        let details = serde_json::from_value(answer).unwrap();
        let mut read = planned.clone();
        fill(&details, &mut read);
        for name in ["recovery_target", SIZE, "license_type"] {
            assert_eq!(read.get(name), planned.get(name), "{name}");
        }
        assert!(read.is_null("target_availability_zone"));
        let mut body = json!({ "providerSpecificDetails": {} });
        patch(
            &Object::new(),
            |name| name == SIZE || name == "recovery_target",
            &mut body,
        );
        let wanted = json!({ "recoveryAzureVMSize": "", "providerSpecificDetails": { "recoveryTarget": "" } });
        assert_eq!(body, wanted);
    }
}
