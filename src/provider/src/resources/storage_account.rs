//! `siterecovery_storage_account`: where replicas are kept; here a folder that the hosts can write.

use arm_client::Method;
use arm_model::neighbours::StorageAccountProperties;
use arm_model::{Resource as Answer, StorageAccountId, validate};
use serde_json::{Value as Json, json};
use tf_provider::{Attribute, Change, Diagnostics, Object, Schema};

use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::plain::{Plain, Removal};

pub(crate) struct StorageAccount;

impl Plain for StorageAccount {
    const TYPE: &'static str = "siterecovery_storage_account";
    const WHAT: &'static str = "storage account";
    const FIELDS: Fields = &[
        ("name", "name"),
        ("location", "location"),
        ("folder", "folder"),
        ("sku", "account_replication_type"),
        ("tags", "tags"),
    ];
    const KEYS: &'static [&'static str] = &["name", "resource_group_name"];
    const REMOVAL: Removal = Removal::Delete;
    type Properties = StorageAccountProperties;
    type Id = StorageAccountId;

    fn schema() -> Schema {
        let folder = Attribute::string().required().requires_replace();
        Schema::new()
            .describe(
                "A storage account for replicas: journal, base images and recovery points of the protected VMs. \
                 The account is a folder that the hosts can write.",
            )
            .attribute("name", fields::name("storage account", validate::storage_account_name))
            .attribute("resource_group_name", fields::resource_group_name())
            .attribute("location", fields::location())
            .attribute(
                "account_tier",
                Attribute::string()
                    .optional()
                    .default("Standard")
                    .one_of(&["Standard", "Premium"])
                    .requires_replace()
                    .describe(
                        "`Standard` (the default) or `Premium`. With premium storage the shortest replication interval is \
                         300 seconds. Changing it makes a new one.",
                    ),
            )
            .attribute(
                "account_replication_type",
                Attribute::string()
                    .optional()
                    .default("LRS")
                    .one_of(&["LRS", "ZRS", "GRS", "RAGRS", "GZRS", "RAGZRS"])
                    .describe("How the account's data is kept safe: `LRS` (the default), `ZRS`, `GRS`, `RAGRS`, `GZRS` or `RAGZRS`."),
            )
            .attribute(
                "folder",
                fields::checked(folder, validate::storage_folder).describe(
                    "Folder of the account, an absolute path as the hosts see it; it must exist or be creatable there. \
                     Changing it makes a new one.",
                ),
            )
            .attribute("tags", fields::tags())
    }

    fn id(session: &Session, object: &Object) -> Result<StorageAccountId, Diagnostics> {
        let group = session.group(object.require_str("resource_group_name")?);
        Ok(group.storage_account(object.require_str("name")?))
    }

    fn body(object: &Object) -> Json {
        json!({
            "location": object.string("location"),
            "kind": "StorageV2",
            "sku": { "name": sku(object), "tier": object.string("account_tier") },
            "tags": object.string_map("tags"),
            "properties": { "folder": object.string("folder") },
        })
    }

    fn change(change: &Change) -> Option<(Method, Json)> {
        let changed = change.changed("account_replication_type") || change.changed("tags");
        changed.then(|| (Method::Put, Self::body(&change.planned)))
    }

    fn fill(id: &StorageAccountId, answer: &Answer<StorageAccountProperties>, object: &mut Object) {
        object.set("name", id.name());
        object.set("resource_group_name", id.resource_group());
        object.set("location", answer.location.as_deref());
        object.set("folder", answer.properties.folder.as_deref());
        let sku = answer
            .extra
            .get("sku")
            .and_then(|sku| sku["name"].as_str())
            .unwrap_or_default();
        if let Some((tier, replication)) = sku.split_once('_') {
            object.set("account_tier", tier);
            object.set("account_replication_type", replication);
        }
        super::vault::set_tags(answer, object);
    }

    fn validate(config: &Object, report: &mut Diagnostics) {
        let premium = config.str("account_tier") == Some("Premium");
        let replication = config.str("account_replication_type");
        if premium && replication.is_some_and(|r| !matches!(r, "LRS" | "ZRS")) {
            report.push_error(
                "account_replication_type",
                "Premium storage has no such replication",
                "With account_tier = \"Premium\" it must be LRS or ZRS.",
            );
        }
    }
}

fn sku(object: &Object) -> String {
    format!(
        "{}_{}",
        object.string("account_tier"),
        object.string("account_replication_type")
    )
}
