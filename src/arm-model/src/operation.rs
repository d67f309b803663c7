//! Long-running operations: the body behind `Azure-AsyncOperation`.
//!
//! The operation id is the job id. A cancelled *job* says `Cancelled`, its *operation* must say
//! `Canceled`: SDKs poll for ever on the other spelling.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ArmError;

/// State of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationState {
    /// Goes on.
    InProgress,
    /// Ended well.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Ended by request.
    #[serde(alias = "Cancelled")]
    Canceled,
    /// Anything else: go on polling.
    #[serde(other)]
    Unknown,
}

// === impl OperationState ===

impl OperationState {
    /// Whether polling ends here.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }
}

/// Body of the status URL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// Path of the status.
    #[serde(default)]
    pub id: String,
    /// Job id.
    #[serde(default)]
    pub name: String,
    /// State.
    pub status: OperationState,
    /// Instant, ISO 8601.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// Instant, ISO 8601.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// Progress of the copy, 0 to 100, where there is one (an ARM standard field).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent_complete: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ArmError>,
    /// The resource, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub properties: Option<Value>,
}
