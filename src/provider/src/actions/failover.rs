//! `siterecovery_planned_failover`, `siterecovery_unplanned_failover`, `siterecovery_change_recovery_point` and
//! `siterecovery_commit_failover`, of a protected VM or of a recovery plan.

use std::time::Duration;

use arm_model::failover::{
    ApplyRecoveryPoint, LATEST, LATEST_APPLICATION_CONSISTENT, LATEST_CRASH_CONSISTENT,
    LATEST_PROCESSED, PlanPlannedFailover, PlanUnplannedFailover, PlannedFailover,
    SOURCE_NOT_REQUIRED, SOURCE_REQUIRED, UnplannedFailover,
};
use arm_model::{ArmId, PlanId, ProtectedItemId, RecoveryPointId};
use async_trait::async_trait;
use serde::Serialize;
use serde_json::{Value as Json, json};
use tf_provider::{Action, Attribute, Context, Diagnostics, Object, Progress, Schema};

use super::follow::follow;
use crate::Session;
use crate::errors::Fields;
use crate::remote::Remote;
use crate::{fields, timeouts};

const PLAN: &str = "recovery_plan_id";
const VM: &str = "protected_vm_id";
const POINT: &str = "recovery_point_id";
const POINT_TYPE: &str = "recovery_point_type";
const SHUT_DOWN: &str = "shut_down_source";
const TIMEOUT: &str = "timeout";
/// A VM may take long to shut down and its last changes long to send.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
const FIELDS: Fields = &[
    ("recoveryPointId", POINT),
    ("recoveryPointType", POINT_TYPE),
    ("sourceSiteOperations", SHUT_DOWN),
];

/// An action of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailoverAction {
    /// Shut down, send the rest, start the recovered VM.
    Planned,
    /// Start the recovered VM from what is in the store.
    Unplanned,
    /// Start it from another point.
    ChangePoint,
    /// Accept the failover.
    Commit,
}

#[async_trait]
impl Action<Session> for FailoverAction {
    fn type_name(&self) -> &str {
        match self {
            Self::Planned => "siterecovery_planned_failover",
            Self::Unplanned => "siterecovery_unplanned_failover",
            Self::ChangePoint => "siterecovery_change_recovery_point",
            Self::Commit => "siterecovery_commit_failover",
        }
    }

    fn schema(&self) -> Schema {
        let schema = Schema::new().describe(self.description());
        let schema = if *self == Self::ChangePoint {
            schema.attribute(
                VM,
                fields::arm_id::<ProtectedItemId>("a protected VM")
                    .required()
                    .describe("Id of the protected VM."),
            )
        } else {
            schema
                .attribute(
                    PLAN,
                    fields::arm_id::<PlanId>("a recovery plan")
                        .optional()
                        .describe("Id of the plan. Give this or `protected_vm_id`."),
                )
                .attribute(
                    VM,
                    fields::arm_id::<ProtectedItemId>("a protected VM")
                        .optional()
                        .describe("Id of the protected VM. Give this or `recovery_plan_id`."),
                )
        };
        let point = || fields::arm_id::<RecoveryPointId>("a recovery point");
        let schema = match self {
            Self::Planned | Self::Commit => schema,
            Self::ChangePoint => schema.attribute(
                POINT,
                point()
                    .required()
                    .describe("Id of the recovery point; it belongs to the VM."),
            ),
            Self::Unplanned => schema
                .attribute(
                    POINT,
                    point()
                        .optional()
                        .describe("Id of the recovery point, for one VM. Default: the newest."),
                )
                .attribute(
                    POINT_TYPE,
                    Attribute::string()
                        .optional()
                        .one_of(&[
                            LATEST,
                            LATEST_PROCESSED,
                            LATEST_APPLICATION_CONSISTENT,
                            LATEST_CRASH_CONSISTENT,
                        ])
                        .describe(
                            "Which points the VMs of a plan use: `Latest` (the default), `LatestProcessed`, \
                             `LatestApplicationConsistent` or `LatestCrashConsistent`.",
                        ),
                )
                .attribute(
                    SHUT_DOWN,
                    Attribute::bool().optional().describe(
                        "Whether to try to shut the source down and to send its last changes first; the failover goes on when that fails. \
                         Default: `false`.",
                    ),
                ),
        };
        schema.attribute(
            TIMEOUT,
            Attribute::string()
                .optional()
                .check(|value| match value.as_str().and_then(timeouts::parse) {
                    Some(_) => Ok(()),
                    None => Err("must be a duration such as 30s, 90m or 1h30m".to_owned()),
                })
                .describe("Time to wait for the job, such as `90m`; the job itself goes on after it. Default: `24h`."),
        )
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        self.check(config, report);
    }

    async fn invoke(
        &self,
        cx: &Context<Session>,
        config: &Object,
        progress: &Progress,
    ) -> Result<(), Diagnostics> {
        let limit = config.str(TIMEOUT).and_then(timeouts::parse);
        let remote = Remote::new(cx, self.what(), FIELDS, limit.unwrap_or(PATIENCE))?;
        let path = format!("{}/{}", subject(config)?, self.verb());
        let body = self.request(config)?;
        follow(cx, &remote, &path, body.as_ref(), progress).await
    }
}

// === impl FailoverAction ===

impl FailoverAction {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [
        Self::Planned,
        Self::Unplanned,
        Self::ChangePoint,
        Self::Commit,
    ];

    fn what(self) -> &'static str {
        match self {
            Self::Planned => "planned failover",
            Self::Unplanned => "unplanned failover",
            Self::ChangePoint => "change of the recovery point",
            Self::Commit => "commit",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Planned => "plannedFailover",
            Self::Unplanned => "unplannedFailover",
            Self::ChangePoint => "applyRecoveryPoint",
            Self::Commit => "failoverCommit",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Planned => {
                "Moves a protected VM, or the VMs of a recovery plan group by group, to the recovery side without loss: shuts the source down, \
                 sends its last changes, and starts the recovered VM. Until `siterecovery_commit_failover` the failover can be taken back."
            }
            Self::Unplanned => {
                "Starts the recovered VM of a protected VM, or those of a recovery plan, from what is in the store, because the source is lost. \
                 What changed since the recovery point is lost too."
            }
            Self::ChangePoint => {
                "Starts the recovered VM of a failover that is not committed from another recovery point. What it has written since the failover \
                 is lost."
            }
            Self::Commit => {
                "Accepts a failover: the recovered VM is the one that counts, and neither another recovery point nor a cancel is possible afterwards."
            }
        }
    }

    fn check(self, config: &Object, report: &mut Diagnostics) {
        let of_vm = !config.is_null(VM);
        let of_plan = self != Self::ChangePoint && !config.is_null(PLAN);
        let title = "A VM or a plan";
        if !of_vm && !of_plan {
            report.push_error(PLAN, title, "Give recovery_plan_id or protected_vm_id.");
        }
        if of_vm && of_plan {
            report.push_error(
                VM,
                title,
                "Give recovery_plan_id or protected_vm_id, not both.",
            );
        }
        if self == Self::Unplanned && of_plan && !config.is_null(POINT) {
            report.push_error(
                POINT,
                "One point for a whole plan",
                "A failover of a plan uses recovery_point_type.",
            );
        }
        if self == Self::Unplanned && of_vm && !config.is_null(POINT_TYPE) {
            report.push_error(
                POINT_TYPE,
                "Only for a plan",
                "A failover of one VM uses recovery_point_id.",
            );
        }
        if !matches!(self, Self::Unplanned | Self::ChangePoint) {
            return;
        }
        let owner = config
            .str(POINT)
            .and_then(|id| ArmId::parse(id).ok())
            .and_then(|id| ProtectedItemId::of(&id));
        let item = config
            .str(VM)
            .and_then(|id| ProtectedItemId::parse(id).ok());
        if let (Some(owner), Some(item)) = (owner, item)
            && owner != item
        {
            report.push_error(
                POINT,
                "A point of another VM",
                format!("It belongs to {owner}."),
            );
        }
    }

    fn request(self, config: &Object) -> Result<Option<Json>, Diagnostics> {
        let of_plan = self != Self::ChangePoint && !config.is_null(PLAN);
        let source = if config.bool(SHUT_DOWN) == Some(true) {
            SOURCE_REQUIRED
        } else {
            SOURCE_NOT_REQUIRED
        };
        match (self, of_plan) {
            (Self::Commit, _) => Ok(None),
            (Self::Planned, true) => properties(&PlanPlannedFailover::away()),
            (Self::Planned, false) => properties(&PlannedFailover::away()),
            (Self::Unplanned, true) => {
                let kind = config.str(POINT_TYPE).unwrap_or(LATEST);
                properties(&PlanUnplannedFailover::away(source, kind))
            }
            (Self::Unplanned, false) => {
                let point = config.str(POINT).map(ToOwned::to_owned);
                properties(&UnplannedFailover::away(source, point))
            }
            (Self::ChangePoint, _) => {
                properties(&ApplyRecoveryPoint::to(config.require_str(POINT)?))
            }
        }
    }
}

fn properties(body: &impl Serialize) -> Result<Option<Json>, Diagnostics> {
    match serde_json::to_value(body) {
        Ok(body) => Ok(Some(json!({ "properties": body }))),
        Err(error) => Err(Diagnostics::error(
            "The request can't be written",
            format!("{error}."),
        )),
    }
}

fn subject(config: &Object) -> Result<ArmId, Diagnostics> {
    let name = if config.is_null(VM) { PLAN } else { VM };
    ArmId::parse(config.require_str(name)?)
        .map_err(|error| Diagnostics::error_at(name, "Not an ARM id", format!("{error}.")))
}

#[cfg(test)]
mod tests;
