//! The error envelope of ARM with the cause and advice that Site Recovery adds.

use serde::{Deserialize, Serialize};

/// Body of every answer of status 400 and above.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ErrorEnvelope {
    /// The error.
    pub error: ArmError,
}

/// An error as ARM words it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase", default)]
#[error("{message}")]
pub struct ArmError {
    /// Name or number for programs.
    pub code: String,
    /// Sentence for people.
    pub message: String,
    /// Property or resource that is at fault, such as `properties.policyId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Cause and advice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<ErrorDetail>,
}

/// Cause and advice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorDetail {
    /// Name or number for programs.
    pub code: String,
    /// Sentence for people.
    pub message: String,
    /// Property or resource that is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What may have led to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub possible_causes: Option<String>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_action: Option<String>,
    /// Request that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activity_id: Option<String>,
}

// === impl ArmError ===

impl ArmError {
    /// An error without details.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            ..Self::default()
        }
    }

    /// With the property or resource at fault.
    #[must_use]
    pub fn at(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// With cause and next step.
    #[must_use]
    pub fn advise(mut self, possible_causes: &str, recommended_action: &str) -> Self {
        self.details.push(ErrorDetail {
            code: self.code.clone(),
            message: self.message.clone(),
            target: self.target.clone(),
            possible_causes: Some(possible_causes.to_owned()).filter(|text| !text.is_empty()),
            recommended_action: Some(recommended_action.to_owned()).filter(|text| !text.is_empty()),
            activity_id: None,
        });
        self
    }

    /// The first advice there is.
    #[must_use]
    pub fn recommended_action(&self) -> Option<&str> {
        self.details
            .iter()
            .find_map(|detail| detail.recommended_action.as_deref())
    }

    /// The first cause there is.
    #[must_use]
    pub fn possible_causes(&self) -> Option<&str> {
        self.details
            .iter()
            .find_map(|detail| detail.possible_causes.as_deref())
    }
}
