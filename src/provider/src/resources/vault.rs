//! `siterecovery_vault`: a Recovery Services vault, the root of everything that is protected.

use arm_client::Method;
use arm_model::vault::VaultProperties;
use arm_model::{Resource as Answer, VaultId, validate};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::{Attribute, Change, Diagnostics, Object, Schema, Value};

use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::plain::{Plain, Removal};
use crate::remote::Remote;

pub(crate) struct Vault;

const ROTATION: &str = "encryption_key_rotation";
const KEY_ID: &str = "encryption_key_id";
const KEY_CREATED: &str = "encryption_key_created";

#[async_trait]
impl Plain for Vault {
    const TYPE: &'static str = "siterecovery_vault";
    const WHAT: &'static str = "vault";
    const FIELDS: Fields = &[
        ("name", "name"),
        ("location", "location"),
        ("sku", "sku"),
        ("tags", "tags"),
    ];
    const KEYS: &'static [&'static str] = &["name", "resource_group_name"];
    const REMOVAL: Removal = Removal::Delete;
    const HAS_MORE_AFTER_A_CHANGE: bool = true;
    const LATER: &'static [&'static str] = &[ROTATION];
    type Properties = VaultProperties;
    type Id = VaultId;

    fn schema() -> Schema {
        Schema::new()
            .describe(
                "A Recovery Services vault: it holds sites, policies, protected VMs and recovery plans of one region.",
            )
            .attribute("name", fields::name("vault", validate::vault_name))
            .attribute("resource_group_name", fields::resource_group_name())
            .attribute("location", fields::location())
            .attribute(
                "sku",
                Attribute::string()
                    .optional()
                    .default("Standard")
                    .one_of(&["Standard", "RS0"])
                    .describe("Kind of the vault: `Standard` (the default) or `RS0`."),
            )
            .attribute("tags", fields::tags())
            .attribute(
                ROTATION,
                Attribute::string().optional().describe(
                    "Any text, such as a month. When it changes, the vault gets a new encryption key for new recovery points; older keys stay for as \
                     long as points need them.",
                ),
            )
            .attribute(
                KEY_ID,
                Attribute::string().computed().describe(
                    "Id of the encryption key, never the key itself. Null until a policy of the vault with `encryption_enabled` needs one.",
                ),
            )
            .attribute(
                KEY_CREATED,
                Attribute::string().computed().describe("When that key was made."),
            )
    }

    fn id(session: &Session, object: &Object) -> Result<VaultId, Diagnostics> {
        let group = session.group(object.require_str("resource_group_name")?);
        Ok(group.vault(object.require_str("name")?))
    }

    fn body(object: &Object) -> Json {
        json!({
            "location": object.string("location"),
            "sku": { "name": object.string("sku") },
            "tags": object.string_map("tags"),
            "properties": { "publicNetworkAccess": "Enabled" },
        })
    }

    fn change(change: &Change) -> Option<(Method, Json)> {
        let changed = change.changed("sku") || change.changed("tags");
        let body = json!({
            "sku": { "name": change.planned.string("sku") },
            "tags": change.planned.string_map("tags"),
            "properties": {},
        });
        changed.then_some((Method::Patch, body))
    }

    fn fill(id: &VaultId, answer: &Answer<VaultProperties>, object: &mut Object) {
        object.set("name", id.name());
        object.set("resource_group_name", id.resource_group());
        object.set("location", answer.location.as_deref());
        object.set(
            "sku",
            answer.extra.get("sku").and_then(|sku| sku["name"].as_str()),
        );
        let key = answer.properties.replication_encryption_key.as_ref();
        object.set(KEY_ID, key.map(|key| key.key_id.as_str()));
        object.set(KEY_CREATED, key.map(|key| key.created_time.as_str()));
        super::vault::set_tags(answer, object);
    }

    async fn after_change(
        remote: &Remote<'_>,
        id: &VaultId,
        change: &Change,
    ) -> Result<(), Diagnostics> {
        if change.changed(ROTATION) && !change.planned.is_null(ROTATION) {
            let _told: Json = remote
                .ask(&format!("{id}/rotateEncryptionKey"), &json!({}))
                .await?;
        }
        Ok(())
    }
}

/// Tags from an answer: no tags and an empty map of tags are the same to the service, but not to Terraform.
pub(crate) fn set_tags<P>(answer: &Answer<P>, object: &mut Object) {
    let tags = answer.tags.clone().unwrap_or_default();
    if tags.is_empty() {
        if !object.string_map("tags").is_empty() || object.get("tags").is_unknown() {
            object.set("tags", Value::Null);
        }
    } else {
        object.set("tags", tags);
    }
}
