//! Ephemeral `siterecovery_registration_key`: a key that lets hosts enrol, never stored.

use arm_model::FabricId;
use arm_model::fabric::RegistrationKeyProperties;
use async_trait::async_trait;
use serde_json::json;
use tf_provider::{Attribute, Context, Diagnostics, EphemeralResource, Object, Opened, Schema};

use crate::remote::Remote;
use crate::{Session, fields, timeouts};

/// The ephemeral resource.
pub(crate) struct RegistrationKey;

/// Without `Debug`: it holds the key.
#[derive(serde::Deserialize)]
struct KeyAnswer {
    properties: RegistrationKeyProperties,
}

#[async_trait]
impl EphemeralResource<Session> for RegistrationKey {
    fn type_name(&self) -> &str {
        "siterecovery_registration_key"
    }

    fn schema(&self) -> Schema {
        Schema::new()
            .describe("A registration key of a Hyper-V site, for enrolling engines that Terraform does not deploy. It is in neither plan nor state.")
            .attribute(
                "hyperv_site_id",
                fields::arm_id::<FabricId>("a Hyper-V site").required().describe("Id of the site."),
            )
            .attribute(
                "validity_in_hours",
                Attribute::number()
                    .optional()
                    .whole_in(1..=720)
                    .describe("How long hosts may be enrolled with the key, 1 to 720 hours. Default: the service's, 120."),
            )
            .attribute("key", Attribute::string().computed().sensitive().describe("The key."))
            .attribute("expires_on", Attribute::string().computed().describe("When it ends, ISO 8601."))
    }

    async fn open(
        &self,
        cx: &Context<Session>,
        config: &Object,
        opened: &mut Opened,
    ) -> Result<(), Diagnostics> {
        let remote = Remote::new(
            cx,
            "registration key",
            &[("validityInHours", "validity_in_hours")],
            timeouts::QUICK.read,
        )?;
        let site = config.require_str("hyperv_site_id")?;
        let mut body = json!({ "properties": {} });
        if let Some(hours) = config.u64("validity_in_hours") {
            body["properties"]["validityInHours"] = hours.into();
        }
        let answer: KeyAnswer = remote
            .ask(&format!("{site}/registrationKeys"), &body)
            .await?;
        opened.result.set("key", answer.properties.key);
        opened
            .result
            .set("expires_on", answer.properties.expires_on);
        Ok(())
    }
}
