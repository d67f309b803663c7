//! Bodies of drills, of an item and of a plan, and what their jobs tell.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;

/// Test VMs are connected to nothing.
pub const NO_NETWORK: &str = "NoNetworkAttachAsInput";
/// Test VMs are connected to `networkId`.
pub const VM_NETWORK: &str = "VmNetworkAsInput";

/// Request properties of an item's `testFailover`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TestFailover {
    /// `PrimaryToRecovery`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_direction: Option<String>,
    /// [`NO_NETWORK`] (when absent) or [`VM_NETWORK`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_type: Option<String>,
    /// Virtual network for [`VM_NETWORK`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,
    /// Choice of the point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<TestFailoverDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Choice of the point of an item.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TestFailoverDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Recovery point; the newest when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point_id: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of a plan's `testFailover`. Here the details are a list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanTestFailover {
    /// `PrimaryToRecovery`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_direction: Option<String>,
    /// [`NO_NETWORK`] (when absent) or [`VM_NETWORK`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_type: Option<String>,
    /// Virtual network for [`VM_NETWORK`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,
    /// Choice of the points.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provider_specific_details: Vec<PlanPointChoice>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Choice of the points of a plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanPointChoice {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// `Latest`, `LatestProcessed` or `LatestApplicationConsistent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point_type: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of `testFailoverCleanup`, of an item and of a plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TestFailoverCleanup {
    /// Shown in the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comments: Option<String>,
}

/// What a drill's job tells of one VM, and a failover's, where the "test VM" is the recovered one. From `startedTime` on, extension fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillVm {
    /// Protected item's name.
    pub name: String,
    /// VM name.
    pub friendly_name: String,
    /// Id of the test VM on the recovery host.
    pub test_vm_name: String,
    /// Name of the test VM.
    pub test_vm_friendly_name: String,
    /// `NotConnected` or `Connected`.
    pub network_connection_status: String,
    /// Network name.
    pub network_friendly_name: String,
    /// Subnet name.
    pub subnet: String,
    /// ARM id of the point that is used.
    pub recovery_point_id: String,
    /// Instant of that point.
    pub recovery_point_time: Option<String>,
    /// Extension: plan group, from 1.
    pub group: u32,
    /// Extension: when the drill was asked for.
    pub requested_time: Option<String>,
    /// Extension: first instruction.
    pub started_time: Option<String>,
    /// Extension: first line on the console.
    pub first_output_time: Option<String>,
    /// Extension: from request to first line, else to start.
    pub rto_in_seconds: Option<f64>,
    /// Extension: age of the point when the drill was asked for.
    pub rpo_in_seconds: Option<f64>,
    /// Extension: name of the recovery host.
    pub recovery_host: String,
    /// Extension: console file on the recovery host.
    pub console_path: String,
    /// Extension: `Preparing`, `Running`, `Booted`, `Failed`, `Removed`.
    pub state: String,
    /// Extension: what was odd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Extension: `CrashConsistent` or `ApplicationConsistent`; empty when the source's host doesn't tell.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub recovery_point_type: String,
    /// Extension: ARM id of the replication policy at the time.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy_id: String,
    /// Extension: how often that policy makes points; 0 = not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub replication_frequency_in_seconds: u32,
    /// Extension: its adapters are in a network of their own on the recovery host: an isolated drill's VMs reach one another there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub private_network: bool,
    /// Extension: first answer of its guest agent, when a plan asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_agent_time: Option<String>,
    /// Extension: its guest agent was asked for, and has not answered.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub guest_agent_silent: bool,
    /// Extension: TCP ports that a plan asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<DrillPort>,
    /// Extension: release of the recovery host's engine.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub engine_version: String,
}

/// A TCP port of a recovered VM, asked by a plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillPort {
    /// Number.
    pub port: u32,
    /// First connection that it took; absent = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered_time: Option<String>,
    /// What came instead, a lower-case fragment.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
