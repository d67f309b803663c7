//! `siterecovery_recovery_points`: the points that a protected VM can be recovered to.

use arm_model::recovery_point::RecoveryPointProperties;
use arm_model::{ProtectedItemId, Resource as Answer};
use async_trait::async_trait;
use tf_provider::{Attribute, Context, DataSource, Diagnostics, Nesting, Object, Schema, Value};

use crate::errors::Fields;
use crate::fields;
use crate::remote::Remote;
use crate::{Session, timeouts};

const FIELDS: Fields = &[];

/// The data source.
pub(crate) struct RecoveryPoints;

#[async_trait]
impl DataSource<Session> for RecoveryPoints {
    fn type_name(&self) -> &str {
        "siterecovery_recovery_points"
    }

    fn schema(&self) -> Schema {
        let point = [
            (
                "id",
                Attribute::string().computed().describe("Id of the point."),
            ),
            (
                "time",
                Attribute::string()
                    .computed()
                    .describe("Instant of the point, ISO 8601."),
            ),
            (
                "type",
                Attribute::string()
                    .computed()
                    .describe("`CrashConsistent` or `ApplicationConsistent`."),
            ),
            (
                "changed_bytes",
                Attribute::number()
                    .computed()
                    .describe("Bytes that the guest changed since the point before."),
            ),
            (
                "group_point_id",
                Attribute::string().computed().describe(
                    "Shared by the points that the VMs of one group took at one instant; null for a VM alone.",
                ),
            ),
            (
                "sent_bytes",
                Attribute::number()
                    .computed()
                    .describe("Bytes that went to the store for it."),
            ),
        ];
        Schema::new()
            .describe(
                "The recovery points of a protected VM. They change with every cycle: don't use them in a resource's arguments without a reason.",
            )
            .attribute(
                "protected_vm_id",
                fields::arm_id::<ProtectedItemId>("a protected VM").required().describe("Id of the protected VM."),
            )
            .attribute(
                "recovery_points",
                Attribute::nested(Nesting::List, point).computed().describe("The points, the newest first."),
            )
            .attribute("id", Attribute::string().computed().describe("Id of the protected VM."))
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics> {
        let remote = Remote::new(cx, "recovery points", FIELDS, timeouts::QUICK.read)?;
        let id = config.require_str("protected_vm_id")?;
        if remote.find::<serde_json::Value>(id).await?.is_none() {
            return Err(Diagnostics::error_at(
                "protected_vm_id",
                "There is no such protected VM",
                format!("Nothing has the id {id}."),
            ));
        }
        let mut points: Vec<Answer<RecoveryPointProperties>> =
            remote.list(&format!("{id}/recoveryPoints")).await?;
        points.sort_by(|a, b| {
            b.properties
                .recovery_point_time
                .cmp(&a.properties.recovery_point_time)
        });
        let values = points.iter().map(|point| {
            let details = &point.properties.provider_specific_details;
            Object::new()
                .with("id", point.id.as_str())
                .with("time", point.properties.recovery_point_time.as_str())
                .with("type", point.properties.recovery_point_type.as_str())
                .with("changed_bytes", details.changed_bytes)
                .with("sent_bytes", details.sent_bytes)
                .with("group_point_id", details.group_point_id.as_deref())
        });
        state.set("recovery_points", Value::list(values));
        state.set("id", id);
        Ok(())
    }
}
