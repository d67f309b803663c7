//! `siterecovery_jobs`: what the vault has done and is doing.

use arm_model::job::JobProperties;
use arm_model::{Resource as Answer, VaultId};
use async_trait::async_trait;
use tf_provider::{Attribute, Context, DataSource, Diagnostics, Nesting, Object, Schema, Value};

use crate::errors::Fields;
use crate::fields;
use crate::remote::Remote;
use crate::{Session, timeouts};

const FIELDS: Fields = &[];

/// The data source.
pub(crate) struct Jobs;

#[async_trait]
impl DataSource<Session> for Jobs {
    fn type_name(&self) -> &str {
        "siterecovery_jobs"
    }

    fn schema(&self) -> Schema {
        let text = |words: &str| Attribute::string().computed().describe(words);
        let job = [
            ("id", text("Id of the job.")),
            (
                "scenario_name",
                text("Such as `EnableDr` or `TestFailover`."),
            ),
            ("friendly_name", text("The same for people.")),
            ("target_name", text("Object that the job is about.")),
            (
                "state",
                text("`InProgress`, `Succeeded`, `Failed` or `Cancelled`."),
            ),
            ("start_time", text("Start, ISO 8601.")),
            ("end_time", text("End; null while it runs.")),
            ("error", text("Why it failed; null when it did not.")),
        ];
        Schema::new()
            .describe("Jobs of a vault, the newest first. They change by themselves: don't use them in a resource's arguments without a reason.")
            .attribute(
                "recovery_vault_id",
                fields::arm_id::<VaultId>("a vault")
                    .required()
                    .describe("Id of the vault."),
            )
            .attribute(
                "state",
                Attribute::string()
                    .optional()
                    .one_of(&["InProgress", "Succeeded", "Failed", "Cancelled"])
                    .describe("Only jobs in this state. Default: all."),
            )
            .attribute(
                "jobs",
                Attribute::nested(Nesting::List, job)
                    .computed()
                    .describe("The jobs."),
            )
            .attribute("id", text("Id of the vault."))
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics> {
        let remote = Remote::new(cx, "jobs", FIELDS, timeouts::QUICK.read)?;
        let vault = config.require_str("recovery_vault_id")?;
        let all: Vec<Answer<JobProperties>> =
            remote.list(&format!("{vault}/replicationJobs")).await?;
        let wanted = config.str("state");
        let jobs = all
            .iter()
            .filter(|job| wanted.is_none_or(|state| job.properties.state.as_str() == state))
            .map(|job| {
                let properties = &job.properties;
                let error = properties
                    .errors
                    .first()
                    .map(|error| error.service_error_details.message.as_str());
                Object::new()
                    .with("id", job.id.as_str())
                    .with("scenario_name", properties.scenario_name.as_str())
                    .with("friendly_name", properties.friendly_name.as_str())
                    .with("target_name", properties.target_object_name.as_str())
                    .with("state", properties.state.as_str())
                    .with("start_time", properties.start_time.as_str())
                    .with("end_time", properties.end_time.as_deref())
                    .with("error", error)
            });
        let jobs = Value::list(jobs);
        state.set("jobs", jobs);
        state.set("id", vault);
        Ok(())
    }
}
