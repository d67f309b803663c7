//! `siterecovery_test_failover` as an action: a drill from its start to its report, with nothing left behind.
//!
//! The resource of the same name keeps the test VMs until it is destroyed, for people to look at them.

use arm_model::RecoveryPointId;
use async_trait::async_trait;
use serde_json::json;
use tf_provider::{Action, Attribute, Context, Diagnostics, Object, Progress, Schema};

use super::arguments;
use super::drill_end::{Drill, PATIENCE};
use super::follow::{self, Ask, Followed};
use super::report::{self, Report};
use crate::errors::Fields;
use crate::remote::Remote;
use crate::resources::test_failover as drill;
use crate::{Session, fields};

const CLEAN: &str = "clean_up";
const COMMENT: &str = "cleanup_comment";
const FIELDS: Fields = &[
    ("recoveryPointId", "recovery_point_id"),
    ("recoveryPointType", "recovery_point_type"),
    ("groupIds", arguments::GROUPS),
    ("protectedItemIds", arguments::MEMBERS),
];

/// The action.
pub(crate) struct DrillAction;

#[async_trait]
impl Action<Session> for DrillAction {
    fn type_name(&self) -> &str {
        "siterecovery_test_failover"
    }

    fn schema(&self) -> Schema {
        let schema = Schema::new().describe(
            "A drill from beginning to end: boots the replicas of a recovery plan, or of one protected VM, as new VMs that are isolated, \
             writes the report, and removes the VMs again. The originals and the replication go on. For test VMs that stay until they are \
             destroyed use the resource `siterecovery_test_failover`.",
        );
        let schema = arguments::add_part(arguments::add_subject(schema))
            .attribute(
                "recovery_point_id",
                fields::arm_id::<RecoveryPointId>("a recovery point")
                    .optional()
                    .describe("Id of the recovery point, for a drill of one VM. Default: the newest."),
            )
            .attribute(
                "recovery_point_type",
                Attribute::string()
                    .optional()
                    .one_of(&["Latest", "LatestProcessed", "LatestApplicationConsistent"])
                    .describe("Which points a drill of a plan uses: `Latest` (the default), `LatestProcessed` or `LatestApplicationConsistent`."),
            )
            .attribute(
                CLEAN,
                Attribute::bool().optional().describe(
                    "`false`: the test VMs stay until `siterecovery test-failover cleanup`. Default: `true`.",
                ),
            )
            .attribute(
                COMMENT,
                Attribute::string()
                    .optional()
                    .describe("What the cleanup's job and the report say. Default: `Removed by Terraform.`"),
            );
        arguments::add_timeout(report::add(schema))
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        drill::check(config, report);
        arguments::check_part(config, report);
        if config.bool(CLEAN) == Some(false) && !config.is_null(COMMENT) {
            report.push_error(
                COMMENT,
                "A comment on nothing",
                "With clean_up = false nothing is removed.",
            );
        }
    }

    async fn invoke(
        &self,
        cx: &Context<Session>,
        config: &Object,
        progress: &Progress,
    ) -> Result<(), Diagnostics> {
        let remote = Remote::new(cx, "test failover", FIELDS, arguments::limit(config))?;
        let report = Report::asked(config).await?;
        let subject = arguments::subject(config)?;
        let mut body = drill::request(config);
        arguments::set_part(config, &mut body);
        let begun = drill::begin(cx, &remote, &subject, &body).await?;
        let cleans = config.bool(CLEAN) != Some(false);
        let mut drilled = match (begun.operation, begun.unheard) {
            (Ok(operation), _) => {
                let path = format!("{subject}/testFailover");
                let ask = Ask::new(&path, Some(&body));
                follow::follow_begun(cx, &remote, &ask, &operation, progress).await
            }
            (Err(error), Some(job)) => Followed {
                job: job.to_string(),
                outcome: Err(error),
            },
            (Err(error), None) => return Err(error),
        };
        let comment = config.str(COMMENT).unwrap_or("Removed by Terraform.");
        let clean_up = json!({ "properties": { "comments": comment } });
        // One that failed has taken its VMs back itself.
        if drilled.outcome.is_ok() && cleans {
            let path = format!("{subject}/testFailoverCleanup");
            let ask = Ask::new(&path, Some(&clean_up));
            let cleaned = follow::begin_and_follow(cx, &remote, &ask, progress).await;
            drilled.outcome = cleaned.and_then(|cleaned| cleaned.outcome);
        }
        if let Err(error) = drilled.outcome {
            let drill = Drill {
                subject: &subject,
                job: &drilled.job,
                clean_up: cleans.then_some(&clean_up),
                patience: PATIENCE,
            };
            drilled.outcome = Err(drill.end(&remote, error, progress).await);
        }
        follow::file(&remote, drilled, report.as_ref(), progress).await
    }
}

#[cfg(test)]
mod tests;
