//! What goes wrong inside a request or a job: an answer for the client, or a failure of the store.

use arm_model::ArmError;

use crate::store::StoreError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The request or the step is refused, with HTTP status and ARM error.
    #[error("{error}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Error for the client.
        error: ArmError,
    },
    /// The store failed; the step may be repeated.
    #[error("metadata store failed")]
    Store(#[from] StoreError),
}

// === impl Fault ===

impl Fault {
    /// 400 at a property.
    #[must_use]
    pub fn invalid(target: &str, message: impl Into<String>) -> Self {
        Self::refuse(400, ArmError::new("InvalidParameter", message).at(target))
    }

    /// 404 of a resource.
    #[must_use]
    pub fn not_found(id: &str) -> Self {
        Self::refuse(
            404,
            ArmError::new(
                "ResourceNotFound",
                format!("The resource `{id}` was not found."),
            )
            .at(id),
        )
    }

    /// 409 with advice.
    #[must_use]
    pub fn conflict(code: &str, target: &str, message: impl Into<String>, advice: &str) -> Self {
        Self::refuse(
            409,
            ArmError::new(code, message).at(target).advise("", advice),
        )
    }

    /// Any status.
    #[must_use]
    pub fn refuse(status: u16, error: ArmError) -> Self {
        Self::Refused { status, error }
    }
}

impl From<protection::life::Refused> for Fault {
    fn from(refusal: protection::life::Refused) -> Self {
        Self::refuse(
            409,
            ArmError::new("OperationNotAllowed", format!("{refusal}.")).advise(
                "",
                "See `allowedOperations` of the item for what is possible now.",
            ),
        )
    }
}
