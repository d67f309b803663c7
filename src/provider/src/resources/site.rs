//! `siterecovery_hyperv_site`: the group of Hyper-V hosts that are protected together.

use arm_client::Method;
use arm_model::fabric::FabricProperties;
use arm_model::{FabricId, HYPER_V_SITE, Resource as Answer, VaultId, validate};
use serde_json::{Value as Json, json};
use tf_provider::{Attribute, Change, Diagnostics, Object, Schema};

use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::plain::{Plain, Removal};

pub(crate) struct Site;

impl Plain for Site {
    const TYPE: &'static str = "siterecovery_hyperv_site";
    const WHAT: &'static str = "Hyper-V site";
    const FIELDS: Fields = &[("name", "name")];
    const KEYS: &'static [&'static str] = &["name", "recovery_vault_id"];
    const REMOVAL: Removal = Removal::Remove;
    type Properties = FabricProperties;
    type Id = FabricId;

    fn schema() -> Schema {
        Schema::new()
            .describe(
                "A Hyper-V site: stand-alone Hyper-V hosts whose VMs are protected into one vault.",
            )
            .attribute("name", fields::name("site", validate::resource_name))
            .attribute("recovery_vault_id", vault_id())
            .attribute(
                "internal_identifier",
                Attribute::string()
                    .computed()
                    .use_state_for_unknown()
                    .describe("GUID of the site, a part of its protection container's name."),
            )
    }

    fn id(_session: &Session, object: &Object) -> Result<FabricId, Diagnostics> {
        Ok(parse_vault_id(object)?.fabric(object.require_str("name")?))
    }

    fn body(_object: &Object) -> Json {
        json!({ "properties": { "customDetails": { "instanceType": HYPER_V_SITE } } })
    }

    fn change(_change: &Change) -> Option<(Method, Json)> {
        None
    }

    fn fill(id: &FabricId, answer: &Answer<FabricProperties>, object: &mut Object) {
        object.set("name", id.name());
        object.set(
            "recovery_vault_id",
            VaultId::of(id).map(|vault| vault.to_string()),
        );
        object.set(
            "internal_identifier",
            answer.properties.internal_identifier.as_str(),
        );
    }
}

/// The argument that names the vault of a resource.
pub(crate) fn vault_id() -> Attribute {
    fields::arm_id::<VaultId>("a vault")
        .required()
        .requires_replace()
        .describe("Id of the vault. Changing it makes a new resource.")
}

pub(crate) fn parse_vault_id(object: &Object) -> Result<VaultId, Diagnostics> {
    let text = object.require_str("recovery_vault_id")?;
    VaultId::parse(text).map_err(|error| {
        Diagnostics::error_at(
            "recovery_vault_id",
            "Not the id of a vault",
            format!("{error}."),
        )
    })
}
