//! Errors: object, step, cause and what to do next.

use arm_client::{ClientError, ClientErrorKind, Retry};

/// What kind of trouble it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetErrorKind {
    /// The plan has findings that stand in the way.
    ImpossiblePlan,
    /// A quota of the subscription is used up.
    Quota,
    /// The subscription may not use the size there.
    SizeNotAvailable,
    /// Azure has no room for the size at the moment.
    Capacity,
    /// The private address is taken.
    AddressInUse,
    /// A subnet has no address left.
    SubnetFull,
    /// A resource of that name exists and is not ours.
    Foreign,
    /// A resource of that name is ours, of another plan.
    OtherPlan,
    /// Something is still attached to it.
    InUse,
    /// Another operation runs on it.
    Busy,
    /// What it needs does not exist.
    NotFound,
    /// The credentials are refused or lack a right.
    Denied,
    /// A policy of the subscription forbids it.
    Policy,
    /// The blob can't be made a disk of.
    BadImage,
    /// Too many requests, also after waiting.
    Throttled,
    /// Azure can't be reached, or fails.
    Unavailable,
    /// It is not over within the time allowed.
    TimedOut,
    /// The caller asked to stop.
    Interrupted,
    /// Anything else.
    Refused,
}

/// A failed step.
#[derive(Debug, thiserror::Error)]
#[error("{step} {about}: {cause}; {next_step}")]
pub struct TargetError {
    kind: TargetErrorKind,
    retry: Retry,
    step: &'static str,
    // Boxed texts, so that a `Result` stays small.
    about: Box<str>,
    cause: Box<str>,
    next_step: Box<str>,
    code: Box<str>,
    #[source]
    source: Option<Box<ClientError>>,
}

impl TargetError {
    pub(crate) fn new(
        kind: TargetErrorKind,
        step: &'static str,
        about: &str,
        cause: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        TargetError {
            kind,
            retry: Retry::No,
            step,
            about: about.into(),
            cause: cause.into().into_boxed_str(),
            next_step: next_step.into().into_boxed_str(),
            code: Box::default(),
            source: None,
        }
    }

    /// From what the client met.
    pub(crate) fn of(step: &'static str, about: &str, error: ClientError) -> Self {
        let code = code_of(&error);
        let (kind, next_step) = advice(&code, error.kind());
        let retry = match kind {
            TargetErrorKind::Busy => Retry::Yes,
            _ => error.retry(),
        };
        TargetError {
            kind,
            retry,
            step,
            about: about.into(),
            cause: error.message().into(),
            next_step: next_step.into(),
            code: code.into_boxed_str(),
            source: Some(Box::new(error)),
        }
    }

    /// From the state that a resource ended in, when nothing else says why.
    pub(crate) fn of_code(step: &'static str, about: &str, code: &str, message: &str) -> Self {
        let (kind, next_step) = advice(code, ClientErrorKind::OperationFailed);
        let mut error = TargetError::new(kind, step, about, message, next_step);
        error.code = code.into();
        error
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> TargetErrorKind {
        self.kind
    }

    /// Whether the same call may be made again. Making and removing may be repeated in any case: they look first.
    pub fn retry(&self) -> Retry {
        self.retry
    }

    /// Kind and name of the object.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// What to do next.
    pub fn next_step(&self) -> &str {
        &self.next_step
    }

    /// Azure's code; empty when it gave none.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// How long Azure asks to wait.
    pub(crate) fn retry_after(&self) -> Option<std::time::Duration> {
        self.source.as_ref()?.retry_after()
    }
}

/// The code that tells most: Compute wraps some into `OperationNotAllowed`, Network into details.
fn code_of(error: &ClientError) -> String {
    let inner = error
        .details()
        .iter()
        .map(|d| d.code.as_str())
        .find(|c| advice(c, error.kind()).0 != TargetErrorKind::Refused);
    let code = match error.code() {
        // Quotas are told like this, with the word in the message.
        "OperationNotAllowed" if error.message().to_ascii_lowercase().contains("quota") => {
            "QuotaExceeded"
        }
        "OperationNotAllowed" if error.message().contains("is attached to") => "DiskIsAttached",
        "OperationNotAllowed"
        | "Conflict"
        | "BadRequest"
        | "DeploymentFailed"
        | "ResourceDeploymentFailure"
        | "" => inner.unwrap_or(error.code()),
        code => code,
    };
    code.to_owned()
}

/// Kind and next step by Azure's code, else by the kind of the answer.
fn advice(code: &str, kind: ClientErrorKind) -> (TargetErrorKind, &'static str) {
    use ClientErrorKind as C;
    use TargetErrorKind as K;
    match code {
        "QuotaExceeded"
        | "PublicIPCountLimitReached"
        | "NetworkInterfaceCountExceeded"
        | "ResourceQuotaExceeded" => (
            K::Quota,
            "ask for more quota of the region, or remove what is not needed, then try again",
        ),
        "SkuNotAvailable" | "VMSizeNotSupported" | "SkuNotAvailableForZone" => (
            K::SizeNotAvailable,
            "choose another size, zone or region for the protected VM",
        ),
        "AllocationFailed"
        | "ZonalAllocationFailed"
        | "OverconstrainedAllocationRequest"
        | "OverconstrainedZonalAllocationRequest" => (
            K::Capacity,
            "try again later, or choose another size or zone, or leave availability set and proximity group out",
        ),
        "PrivateIPAddressInUse" | "PrivateIPAddressIsAllocated" | "IPAddressInUse" => (
            K::AddressInUse,
            "free the address, choose another one, or leave it empty for the next free one",
        ),
        "SubnetIsFull" | "SubnetFull" => {
            (K::SubnetFull, "choose another subnet or enlarge this one")
        }
        "RequestDisallowedByPolicy" => (
            K::Policy,
            "ask the owner of the policy for an exemption, or set the tags and sizes it demands",
        ),
        "NicInUse"
        | "InUseSubnetCannotBeDeleted"
        | "InUseNetworkSecurityGroupCannotBeDeleted"
        | "PublicIPAddressCannotBeDeleted"
        | "DiskIsAttached"
        | "NicInUseByAnotherVm" => (
            K::InUse,
            "detach it from the other machine, or remove that one first",
        ),
        "AnotherOperationInProgress"
        | "RetryableError"
        | "NicReservedForAnotherVm"
        | "AttachDiskWhileBeingDetached"
        | "ConflictingConcurrentWriteNotAllowed"
        | "Conflict"
        | "OperationPreempted"
        | "Canceled" => (
            K::Busy,
            "wait until the other operation has ended (a NIC is reserved for three minutes), then try again",
        ),
        "BlobNotFound"
        | "ImageBlobNotFound"
        | "InvalidVhd"
        | "VHDSizeInvalid"
        | "DiskBlobNotFound"
        | "InvalidBlobType"
        | "ImportSourceBlobNotFound" => (
            K::BadImage,
            "materialise the recovery point again, as a fixed VHD in a page blob",
        ),
        "AuthorizationFailed" | "LinkedAuthorizationFailed" => (
            K::Denied,
            "give the orchestrator's client the roles Virtual Machine Contributor and Network Contributor there",
        ),
        "ResourceGroupNotFound" => (K::NotFound, "make the resource group or choose another one"),
        "InvalidResourceReference"
        | "SubnetNotFound"
        | "NetworkNotFound"
        | "ParentResourceNotFound" => (K::NotFound, "what it refers to is gone: make a new plan"),
        _ => match kind {
            C::Unauthorized => (
                K::Denied,
                "check tenant, client id and secret of the recovery target",
            ),
            C::Forbidden => (
                K::Denied,
                "give the orchestrator's client the missing role there",
            ),
            C::NotFound => (K::NotFound, "check that it exists, then make a new plan"),
            C::Throttled => (K::Throttled, "try again in some minutes"),
            C::Unreachable | C::Untrusted => (
                K::Unavailable,
                "check the way to Azure, its certificate and proxy, then try again",
            ),
            C::Service | C::UnknownOutcome => (K::Unavailable, "try again"),
            C::TimedOut => (
                K::TimedOut,
                "it may still end well: try again, which looks first",
            ),
            C::Interrupted => (K::Interrupted, "try again when wanted"),
            C::OperationCancelled => (
                K::Busy,
                "somebody cancelled it: see who uses it, then try again",
            ),
            _ => (K::Refused, "see Azure's message and activity log"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_azure_have_a_kind_and_a_next_step() {
        for (code, kind) in [
            ("AllocationFailed", TargetErrorKind::Capacity),
            ("SkuNotAvailable", TargetErrorKind::SizeNotAvailable),
            ("QuotaExceeded", TargetErrorKind::Quota),
            ("PrivateIPAddressInUse", TargetErrorKind::AddressInUse),
            ("RequestDisallowedByPolicy", TargetErrorKind::Policy),
            ("NicInUse", TargetErrorKind::InUse),
            ("AnotherOperationInProgress", TargetErrorKind::Busy),
        ] {
            let error = TargetError::of_code("making", "VM v", code, "it says so");
            assert_eq!(error.kind(), kind);
            assert_eq!(error.code(), code);
            assert!(error.to_string().starts_with("making VM v: it says so; "));
        }
    }
}
