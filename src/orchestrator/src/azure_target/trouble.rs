//! Why a step towards a VM in Azure was not done: what people read of it, and whether trying again can help.

use azure_compute::{Retry, TargetError, TargetErrorKind};
use engine_protocol::v1;

use crate::store::StoreError;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) code: &'static str,
    pub(super) text: String,
    pub(super) next_step: String,
    /// Somebody has to change something first.
    pub(super) is_final: bool,
}

// === impl Trouble ===

impl Trouble {
    /// Something that passes by itself, or may.
    pub(super) fn passing(code: &'static str, text: impl Into<String>, next_step: &str) -> Self {
        Self {
            code,
            text: text.into(),
            next_step: next_step.to_owned(),
            is_final: false,
        }
    }

    /// Something that stays until somebody changes something.
    pub(super) fn lasting(code: &'static str, text: impl Into<String>, next_step: &str) -> Self {
        Self {
            is_final: true,
            ..Self::passing(code, text, next_step)
        }
    }

    /// The VM is being taken care of by somebody newer, or is no longer wanted.
    pub(super) fn interrupted() -> Self {
        Self::passing(
            "Interrupted",
            "the work was interrupted",
            "It goes on by itself.",
        )
    }

    /// As hosts report it.
    pub(super) fn finding(&self) -> v1::Finding {
        v1::Finding {
            code: self.code.to_owned(),
            summary: format!("{}.", self.text),
            possible_causes: String::new(),
            recommended_action: self.next_step.clone(),
            critical: self.is_final,
        }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::passing(
            "MetadataStoreFailed",
            format!("the orchestrator's own store failed: {error}"),
            "It tries again by itself.",
        )
    }
}

impl From<replica_store::StoreError> for Trouble {
    fn from(error: replica_store::StoreError) -> Self {
        use replica_store::ErrorKind as K;
        let text = format!("the replica can't be used: {}", chain(&error));
        match error.kind() {
            K::Fenced => Self::lasting(
                "ReplicaTakenOver",
                text,
                "Somebody newer owns the replica: look at the item's state, then start the failover again.",
            ),
            K::NotFound | K::Expired => Self::lasting(
                "RecoveryPointNotFound",
                text,
                "Choose another recovery point.",
            ),
            K::Corrupt => Self::lasting(
                "RecoveryPointDamaged",
                text,
                "Choose another recovery point; the item's health names what is damaged.",
            ),
            K::MissingKey => Self::lasting(
                "EncryptionKeyMissing",
                text,
                "Restore the orchestrator's data folder with the vault's keys.",
            ),
            K::Immutable | K::Invalid => {
                Self::lasting("ReplicaNotUsable", text, "See the orchestrator's log.")
            }
            _ => Self::passing(
                "ReplicaNotReachable",
                text,
                "Check the storage account and the way there.",
            ),
        }
    }
}

impl From<azure_storage::Error> for Trouble {
    fn from(error: azure_storage::Error) -> Self {
        let text = format!(
            "the page blobs of the VM can't be read or written: {}",
            chain(&error)
        );
        // The service spells one of these words in a way of its own.
        let is_rate = |code: &str| code.ends_with("OperationRateExceeded");
        if error.code().is_some_and(is_rate) {
            return Self::passing(
                "TooManySnapshots",
                text,
                "Wait: it goes on when the storage account takes another snapshot.",
            );
        }
        if error.is_retryable() || error.kind() == azure_storage::ErrorKind::Unauthorized {
            return Self::passing(
                "StorageAccountNotReachable",
                text,
                "Check the storage account and the way there.",
            );
        }
        Self::lasting(
            "StorageAccountRefuses",
            text,
            "Check credential, firewall and kind of the storage account, then start the failover again.",
        )
    }
}

impl From<TargetError> for Trouble {
    fn from(error: TargetError) -> Self {
        use TargetErrorKind as K;
        let passes = matches!(
            error.kind(),
            K::Busy | K::Throttled | K::Unavailable | K::TimedOut | K::Interrupted
        ) || matches!(error.retry(), Retry::Yes);
        Self {
            code: "AzureRefused",
            text: error.to_string(),
            next_step: format!("{}.", error.next_step()),
            is_final: !passes,
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
