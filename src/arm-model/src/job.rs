//! Jobs and their task tree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;
use crate::error::ArmError;
use crate::test_failover::DrillVm;

/// `instanceType` of the details of a job that tells nothing more.
pub const PLAIN_DETAILS: &str = "AsrJobDetails";
/// `instanceType` of the details of a drill.
pub const DRILL_DETAILS: &str = "TestFailoverJobDetails";
/// `instanceType` of the details of a failover or failback; its VMs are told as those of a drill are.
pub const FAILOVER_DETAILS: &str = "FailoverJobDetails";

/// State of a job or a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Waits for its turn.
    #[default]
    NotStarted,
    /// Goes on.
    InProgress,
    /// Ended well.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Ended by request (two l here, one in the operation's status).
    Cancelled,
    /// Waits for a person.
    Suspended,
    /// Anything else.
    #[serde(other)]
    Other,
}

// === impl JobState ===

impl JobState {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Text on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "NotStarted",
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Suspended => "Suspended",
            Self::Other => "Other",
        }
    }
}

/// Properties of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobProperties {
    /// `<client request id> ActivityId: <guid>`.
    pub activity_id: String,
    /// Such as `EnableDr`.
    pub scenario_name: String,
    /// Such as `Enable replication`.
    pub friendly_name: String,
    /// State.
    pub state: JobState,
    /// Such as `Completed`, `InProgress`.
    pub state_description: String,
    /// Tasks; empty in lists.
    pub tasks: Vec<Task>,
    /// Errors.
    pub errors: Vec<JobError>,
    /// Start.
    pub start_time: String,
    /// End; absent while running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// `Cancel` while running, `Resume` while it waits for a person.
    pub allowed_actions: Vec<String>,
    /// Name of the object that the job is about.
    pub target_object_id: String,
    /// The same for people.
    pub target_object_name: String,
    /// Such as `ProtectionEntity`.
    pub target_instance_type: String,
    /// More about the job.
    pub custom_details: JobDetails,
    /// Extension: 0 to 100, where a copy runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent_complete: Option<f64>,
}

/// More about a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobDetails {
    /// [`PLAIN_DETAILS`], [`DRILL_DETAILS`] or [`FAILOVER_DETAILS`].
    pub instance_type: String,
    /// Objects concerned.
    pub affected_object_details: BTreeMap<String, String>,
    /// Drill: `Active` while the test VMs run, `Completed` afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_failover_status: Option<String>,
    /// Drill: what was said at the cleanup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comments: Option<String>,
    /// Drill: network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_name: Option<String>,
    /// Drill: network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_type: Option<String>,
    /// Drill, failover: its VMs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protected_item_details: Option<Vec<DrillVm>>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One task of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    /// Such as `EnableProtectionTask`.
    pub task_id: String,
    /// The same.
    pub name: String,
    /// For people.
    pub friendly_name: String,
    /// Empty.
    pub task_type: String,
    /// State.
    pub state: JobState,
    /// Such as `Completed`.
    pub state_description: String,
    /// Start.
    pub start_time: String,
    /// End.
    pub end_time: String,
    /// Empty.
    pub allowed_actions: Vec<String>,
    /// The VM that the task is about.
    pub custom_details: Option<TaskDetails>,
    /// Children of a plan's group.
    pub group_task_custom_details: Option<GroupTaskDetails>,
    /// Errors.
    pub errors: Vec<JobError>,
}

/// The VM that a task is about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskDetails {
    /// `VirtualMachineTaskDetails`.
    pub instance_type: String,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Children of a plan's group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupTaskDetails {
    /// `RecoveryPlanGroupTaskDetails`.
    pub instance_type: String,
    /// One per VM.
    pub child_tasks: Vec<Task>,
    /// Group name.
    pub name: String,
    /// Group id.
    pub group_id: String,
    /// `Boot`.
    pub rp_group_type: String,
}

/// Why a job or a task failed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobError {
    /// As the service sees it.
    pub service_error_details: ServiceError,
    /// As the host's engine sees it.
    pub provider_error_details: ProviderError,
    /// `Error` or `Warning`.
    pub error_level: String,
    /// When.
    pub creation_time: String,
    /// Task.
    pub task_id: String,
}

/// An error of the service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceError {
    /// Code.
    pub code: String,
    /// Message.
    pub message: String,
    /// What may have led to it.
    pub possible_causes: String,
    /// What to do next.
    pub recommended_action: String,
    /// Request that it belongs to.
    pub activity_id: String,
}

/// An error of the host's engine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProviderError {
    /// Code.
    pub error_code: i64,
    /// Message.
    pub error_message: String,
    /// Name.
    pub error_id: String,
    /// What may have led to it.
    pub possible_causes: String,
    /// What to do next.
    pub recommended_action: String,
}

// === impl JobError ===

impl JobError {
    /// A warning: the job goes on.
    #[must_use]
    pub fn warning(error: &ArmError, task_id: &str, at: &str, activity_id: &str) -> Self {
        Self {
            error_level: "Warning".to_owned(),
            ..Self::from_arm(error, task_id, at, activity_id)
        }
    }

    /// From an ARM error.
    #[must_use]
    pub fn from_arm(error: &ArmError, task_id: &str, at: &str, activity_id: &str) -> Self {
        let causes = error.possible_causes().unwrap_or_default().to_owned();
        let action = error.recommended_action().unwrap_or_default().to_owned();
        Self {
            service_error_details: ServiceError {
                code: error.code.clone(),
                message: error.message.clone(),
                possible_causes: causes.clone(),
                recommended_action: action.clone(),
                activity_id: activity_id.to_owned(),
            },
            provider_error_details: ProviderError {
                error_code: 0,
                error_message: error.message.clone(),
                error_id: error.code.clone(),
                possible_causes: causes,
                recommended_action: action,
            },
            error_level: "Error".to_owned(),
            creation_time: at.to_owned(),
            task_id: task_id.to_owned(),
        }
    }
}
