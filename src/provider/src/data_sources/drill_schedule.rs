//! `siterecovery_drill_schedule`: a schedule with its drills, so that a configuration can ask how the last one went.

use arm_model::Resource as Answer;
use arm_model::drill_schedule::{DrillRun, DrillScheduleProperties};
use async_trait::async_trait;
use tf_provider::{Attribute, Context, DataSource, Diagnostics, Nesting, Object, Schema, Value};

use crate::Session;
use crate::plain::{ByName, Plain};
use crate::resources::DrillSchedule as Schedule;

/// The data source.
pub(crate) struct DrillSchedule;

#[async_trait]
impl DataSource<Session> for DrillSchedule {
    fn type_name(&self) -> &str {
        Schedule::TYPE
    }

    fn schema(&self) -> Schema {
        let text = |words: &str| Attribute::string().computed().describe(words);
        let run = [
            ("due_time", text("When it was due, ISO 8601.")),
            (
                "missed_drills",
                Attribute::number()
                    .computed()
                    .describe("How many older due times it stands for, because nothing ran then."),
            ),
            (
                "job_id",
                text("Id of its job; null when there was no drill."),
            ),
            (
                "skipped_reason",
                text("Why there was no drill; null when there was one."),
            ),
            (
                "verdict",
                text(
                    "Verdict of its report: `Passed`, `PassedWithRemarks`, `NotChecked`, `Failed` or `Cancelled`; `Unknown` when its job is gone; null while it is not over.",
                ),
            ),
            (
                "cleaned_up",
                Attribute::bool()
                    .computed()
                    .describe("Whether nothing is left of it to be removed."),
            ),
            (
                "cleanup_problem",
                text("Why its VMs could not be removed at the last try; null when they could."),
            ),
        ];
        ByName::<Schedule>::new()
            .schema()
            .describe(
                "Reads a schedule of drills with its drills. They change by themselves: don't use them in a resource's arguments without a reason.",
            )
            .attribute(
                "next_drill_time",
                text("When the next drill starts, ISO 8601; null while the schedule is off."),
            )
            .attribute(
                "runs",
                Attribute::nested(Nesting::List, run)
                    .computed()
                    .describe("Its last 30 drills, the newest first."),
            )
    }

    async fn read(
        &self,
        cx: &Context<Session>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics> {
        let found: Answer<DrillScheduleProperties> =
            ByName::<Schedule>::new().find(cx, config, state).await?;
        let properties = found.properties;
        state.set("next_drill_time", properties.next_drill_time);
        state.set("runs", Value::list(properties.runs.iter().map(told)));
        Ok(())
    }
}

fn told(run: &DrillRun) -> Object {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Object::new()
        .with("due_time", run.due_time.as_deref())
        .with("missed_drills", run.missed_drills)
        .with("job_id", some(&run.job_id))
        .with("skipped_reason", some(&run.skipped_reason))
        .with("verdict", some(&run.verdict))
        .with("cleaned_up", run.cleanup.done)
        .with("cleanup_problem", some(&run.cleanup.problem))
}
