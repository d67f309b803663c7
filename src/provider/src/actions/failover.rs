//! `siterecovery_planned_failover`, `siterecovery_unplanned_failover`, `siterecovery_change_recovery_point`,
//! `siterecovery_commit_failover`, `siterecovery_failback` and `siterecovery_reverse_replicate`, of a protected VM or of a
//! recovery plan.

use arm_model::failover::{
    ApplyRecoveryPoint, CREATE_VM_IF_NOT_FOUND, FOR_DOWN_TIME, FOR_SYNCHRONIZATION, LATEST,
    LATEST_APPLICATION_CONSISTENT, LATEST_CRASH_CONSISTENT, LATEST_PROCESSED, PlanPlannedFailover,
    PlanUnplannedFailover, PlannedFailover, ReverseReplication, SOURCE_NOT_REQUIRED,
    SOURCE_REQUIRED, USE_GROUP_POINT, USE_OWN_POINT, UnplannedFailover,
};
use arm_model::{ArmId, ProtectedItemId, RecoveryPointId, ServicesProviderId};
use async_trait::async_trait;
use serde_json::Value as Json;
use tf_provider::{Action, Attribute, Context, Diagnostics, Object, Progress, Schema};

use super::arguments::{self, GROUPS, MEMBERS, PLAN, VM, properties};
use super::follow::{Ask, follow};
use super::report::{self, Report};
use crate::errors::Fields;
use crate::remote::Remote;
use crate::{Session, fields};

const POINT: &str = "recovery_point_id";
const POINT_TYPE: &str = "recovery_point_type";
const SHUT_DOWN: &str = "shut_down_source";
const COMMON_POINT: &str = "multi_vm_sync_point_option";
const DATA: &str = "data_sync_option";
const COMPLETE: &str = "complete";
const CREATE: &str = "create_vm_if_missing";
const HOST: &str = "alternate_host_id";
const FIELDS: Fields = &[
    ("recoveryPointId", POINT),
    ("recoveryPointType", POINT_TYPE),
    ("sourceSiteOperations", SHUT_DOWN),
    ("multiVmSyncPointOption", COMMON_POINT),
    ("dataSyncOption", DATA),
    ("recoveryVmCreationOption", CREATE),
    ("providerIdForAlternateRecovery", HOST),
    ("groupIds", GROUPS),
    ("protectedItemIds", MEMBERS),
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
    /// Accept the failover or the failback.
    Commit,
    /// Bring the VM back to its host.
    Failback,
    /// Protect again after a failback.
    ReverseReplicate,
}

#[async_trait]
impl Action<Session> for FailoverAction {
    fn type_name(&self) -> &str {
        match self {
            Self::Planned => "siterecovery_planned_failover",
            Self::Unplanned => "siterecovery_unplanned_failover",
            Self::ChangePoint => "siterecovery_change_recovery_point",
            Self::Commit => "siterecovery_commit_failover",
            Self::Failback => "siterecovery_failback",
            Self::ReverseReplicate => "siterecovery_reverse_replicate",
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
            arguments::add_subject(schema)
        };
        let schema = if self.takes_part() {
            arguments::add_part(schema)
        } else {
            schema
        };
        let point = || fields::arm_id::<RecoveryPointId>("a recovery point");
        let schema = match self {
            Self::Commit | Self::ReverseReplicate => schema,
            Self::Planned => report::add(schema),
            Self::Failback => schema
                .attribute(
                    DATA,
                    Attribute::string()
                        .optional()
                        .one_of(&[FOR_DOWN_TIME, FOR_SYNCHRONIZATION])
                        .describe(
                            "`ForDownTime` (the default): the data comes back while the recovered VM runs, and a short rest when it is off. \
                             `ForSynchronization`: the recovered VM is shut down first.",
                        ),
                )
                .attribute(
                    CREATE,
                    Attribute::bool().optional().describe(
                        "Whether a VM that is gone from its host, or disks of it that are, are made again. Default: `false`, and such a failback is \
                         refused; `true` with `alternate_host_id`.",
                    ),
                )
                .attribute(
                    HOST,
                    fields::arm_id::<ServicesProviderId>("a Hyper-V host")
                        .optional()
                        .describe(
                            "Id of another host of the site (`siterecovery_hyperv_host`), for one VM: it has the VM from then on. The host that the VM came \
                             from may be lost; when it returns, its VM is kept off. Default: the host that the VM came from.",
                        ),
                )
                .attribute(
                    COMPLETE,
                    Attribute::bool().optional().describe(
                        "With `ForDownTime`: whether the recovered VM is shut down and the short rest follows as soon as the data is there. `false`: the \
                         action ends then, the recovered VM runs on, and the job waits for `siterecovery failover complete`. Default: `true`.",
                    ),
                ),
            Self::ChangePoint => schema.attribute(
                POINT,
                point()
                    .required()
                    .describe("Id of the recovery point; it belongs to the VM."),
            ),
            Self::Unplanned => report::add(schema)
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
                    COMMON_POINT,
                    Attribute::string()
                        .optional()
                        .one_of(&[USE_GROUP_POINT, USE_OWN_POINT])
                        .describe(
                            "Plan: `UsePerVmRecoveryPoint` (the default), or `UseMultiVmSyncRecoveryPoint`: VMs that share their points \
                             (`multi_vm_group_name`) go to the newest one that they have in common.",
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
        arguments::add_timeout(schema)
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
        let remote = Remote::new(cx, self.what(), FIELDS, arguments::limit(config))?;
        let report = Report::asked(config).await?;
        let path = format!("{}/{}", arguments::subject(config)?, self.verb());
        let body = self.request(config)?;
        let ask = Ask {
            says_go: config.bool(COMPLETE) != Some(false),
            ..Ask::new(&path, body.as_ref())
        };
        follow(cx, &remote, &ask, report.as_ref(), progress).await
    }
}

// === impl FailoverAction ===

impl FailoverAction {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::Planned,
        Self::Unplanned,
        Self::ChangePoint,
        Self::Commit,
        Self::Failback,
        Self::ReverseReplicate,
    ];

    /// Whether it is possible for a part of a plan.
    fn takes_part(self) -> bool {
        matches!(self, Self::Planned | Self::Unplanned | Self::Failback)
    }

    fn what(self) -> &'static str {
        match self {
            Self::Planned => "planned failover",
            Self::Unplanned => "unplanned failover",
            Self::ChangePoint => "change of the recovery point",
            Self::Commit => "commit",
            Self::Failback => "failback",
            Self::ReverseReplicate => "reverse replication",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Planned | Self::Failback => "plannedFailover",
            Self::Unplanned => "unplannedFailover",
            Self::ChangePoint => "applyRecoveryPoint",
            Self::Commit => "failoverCommit",
            Self::ReverseReplicate => "reProtect",
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
                "Accepts a failover: the recovered VM is the one that counts, and neither another recovery point nor a cancel is possible afterwards. \
                 Accepts a failback: the recovered VM and its disks are removed."
            }
            Self::Failback => {
                "Brings a protected VM, or the VMs of a recovery plan, back to its host with what changed since the failover. Until \
                 `siterecovery_commit_failover` the recovered VM is kept, off, and `siterecovery_cancel` takes the failback back."
            }
            Self::ReverseReplicate => {
                "Protects a protected VM, or the VMs of a recovery plan, again after a committed failback, as before the failover."
            }
        }
    }

    fn check(self, config: &Object, report: &mut Diagnostics) {
        if self != Self::ChangePoint {
            arguments::check_subject(config, report);
        }
        if self.takes_part() {
            arguments::check_part(config, report);
        }
        let of_vm = !config.is_null(VM);
        let of_plan = self != Self::ChangePoint && !config.is_null(PLAN);
        if self == Self::Failback
            && config.str(DATA) == Some(FOR_SYNCHRONIZATION)
            && !config.is_null(COMPLETE)
        {
            report.push_error(
                COMPLETE,
                "Nothing to complete",
                "With data_sync_option = \"ForSynchronization\" the failback goes on by itself.",
            );
        }
        if self == Self::Failback && of_plan && !config.is_null(HOST) {
            report.push_error(
                HOST,
                "One host for a whole plan",
                "A VM goes to another host alone: give protected_vm_id.",
            );
        }
        if self == Self::Unplanned && of_plan && !config.is_null(POINT) {
            report.push_error(
                POINT,
                "One point for a whole plan",
                "A failover of a plan uses recovery_point_type.",
            );
        }
        for name in [POINT_TYPE, COMMON_POINT] {
            if self == Self::Unplanned && of_vm && !config.is_null(name) {
                report.push_error(
                    name,
                    "Only for a plan",
                    "A failover of one VM uses recovery_point_id.",
                );
            }
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
        let of_plan = self != Self::ChangePoint && arguments::is_plan(config);
        let source = if config.bool(SHUT_DOWN) == Some(true) {
            SOURCE_REQUIRED
        } else {
            SOURCE_NOT_REQUIRED
        };
        let data = config.str(DATA).unwrap_or(FOR_DOWN_TIME);
        let mut body = match (self, of_plan) {
            (Self::Commit, _) | (Self::ReverseReplicate, true) => return Ok(None),
            (Self::ReverseReplicate, false) => properties(&ReverseReplication::as_before())?,
            (Self::Planned, true) => properties(&PlanPlannedFailover::away())?,
            (Self::Planned, false) => properties(&PlannedFailover::away())?,
            (Self::Failback, true) => properties(&PlanPlannedFailover::back(data))?,
            (Self::Failback, false) => properties(&PlannedFailover::back(data))?,
            (Self::Unplanned, true) => {
                let kind = config.str(POINT_TYPE).unwrap_or(LATEST);
                let mut body = PlanUnplannedFailover::away(source, kind);
                for details in &mut body.provider_specific_details {
                    details.multi_vm_sync_point_option =
                        config.str(COMMON_POINT).map(ToOwned::to_owned);
                }
                properties(&body)?
            }
            (Self::Unplanned, false) => {
                let point = config.str(POINT).map(ToOwned::to_owned);
                properties(&UnplannedFailover::away(source, point))?
            }
            (Self::ChangePoint, _) => {
                properties(&ApplyRecoveryPoint::to(config.require_str(POINT)?))?
            }
        };
        if self == Self::Failback {
            let host = config.str(HOST);
            let create = config.bool(CREATE).unwrap_or(host.is_some());
            let details = &mut body["properties"]["providerSpecificDetails"];
            let details = if of_plan { &mut details[0] } else { details };
            if create {
                details["recoveryVmCreationOption"] = CREATE_VM_IF_NOT_FOUND.into();
            }
            if let Some(host) = host {
                details["providerIdForAlternateRecovery"] = host.into();
            }
        }
        arguments::set_part(config, &mut body);
        Ok(Some(body))
    }
}

#[cfg(test)]
mod tests;
