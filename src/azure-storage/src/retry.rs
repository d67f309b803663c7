//! What an attempt's end means, and whether and when the next one follows. Pure.
//!
//! | end of an attempt | may it have happened? | next |
//! |---|---|---|
//! | never connected | no | back off |
//! | connection lost, time over, 408, 500, 502, 504, 503 without `ServerBusy` | yes, if it was a write | back off, unless repeating would do it twice |
//! | 429, 503 `ServerBusy` | no | wait as the service says, else back off |
//! | 401, 403 `AuthenticationFailed` | no | wait for a newer credential |
//! | checksum refused | no | at once, a few times |
//! | any other answer | as it says | none; after an earlier unknown end it is unknown too |

use std::time::Duration;

use crate::error::ErrorKind;

/// How long to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// First pause.
    pub first_pause: Duration,
    /// Longest pause that we choose; the service may ask for a longer one.
    pub longest_pause: Duration,
    /// Give up when this much time has passed since the call began.
    pub give_up_after: Duration,
    /// Give up on one attempt after this, and a second more for each MiB of it.
    pub attempt_timeout: Duration,
    /// How long a refused request waits for a newer credential.
    pub credential_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(15),
            give_up_after: Duration::from_secs(120),
            attempt_timeout: Duration::from_secs(30),
            credential_wait: Duration::from_secs(120),
        }
    }
}

/// Whether a call whose outcome is unknown may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It reads.
    Read,
    /// Done twice is the same as done once, or a condition makes the second one fail.
    Write,
    /// Twice makes two of it.
    Once,
}

impl Repeat {
    /// By the request's form: `comp` is its query parameter, `copies` says that it has a copy source.
    pub(crate) fn of(method: &str, comp: Option<&str>, copies: bool) -> Self {
        match (method, comp) {
            ("GET" | "HEAD", _) => Repeat::Read,
            (_, Some("snapshot")) => Repeat::Once,
            _ if copies => Repeat::Once,
            _ => Repeat::Write,
        }
    }
}

/// How an attempt ended, when it did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) maybe_done: bool,
    pub(crate) next: Next,
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Stop,
    BackOff,
    WaitFor(Duration),
    NewerCredential,
    /// Again, a few times: bytes were damaged on their way.
    Again,
}

/// A connection that failed.
pub(crate) fn judge_transport(connected: bool, repeat: Repeat) -> Failure {
    Failure {
        kind: ErrorKind::Unavailable,
        maybe_done: connected && repeat != Repeat::Read,
        next: if connected && repeat == Repeat::Once {
            Next::Stop
        } else {
            Next::BackOff
        },
    }
}

/// An answer that is no success.
pub(crate) fn judge_status(
    status: u16,
    code: &str,
    retry_after: Option<Duration>,
    repeat: Repeat,
) -> Failure {
    let wait = retry_after.map_or(Next::BackOff, Next::WaitFor);
    let stop = |kind| Failure {
        kind,
        maybe_done: false,
        next: Next::Stop,
    };
    match (status, code) {
        (429, _) | (503, "ServerBusy") => Failure {
            kind: ErrorKind::Throttled,
            maybe_done: false,
            next: wait,
        },
        (408 | 500 | 502 | 503 | 504, _) => Failure {
            kind: ErrorKind::Unavailable,
            maybe_done: repeat != Repeat::Read,
            next: if repeat == Repeat::Once {
                Next::Stop
            } else {
                wait
            },
        },
        (401, _) | (403, "AuthenticationFailed") => Failure {
            kind: ErrorKind::Unauthorized,
            maybe_done: false,
            next: Next::NewerCredential,
        },
        (400, "Md5Mismatch" | "Crc64Mismatch") => Failure {
            kind: ErrorKind::IntegrityMismatch,
            maybe_done: false,
            next: Next::Again,
        },
        (_, "SequenceNumberConditionNotMet") => stop(ErrorKind::SequenceNumberConditionNotMet),
        (_, "BlobAlreadyExists" | "ContainerAlreadyExists") => stop(ErrorKind::AlreadyExists),
        // An emulator and the service differ in the number, not in the code.
        (_, "FeatureNotSupportedForAccount" | "BlobTypeNotSupported" | "UnsupportedHeader") => {
            stop(ErrorKind::Unsupported)
        }
        (403, _) => stop(ErrorKind::Forbidden),
        (404, _) => stop(ErrorKind::NotFound),
        (409, "ContainerBeingDeleted" | "BlobBeingRehydrated") => Failure {
            kind: ErrorKind::Unavailable,
            maybe_done: false,
            next: Next::BackOff,
        },
        (409 | 412, _) => stop(ErrorKind::ConditionNotMet),
        _ => stop(ErrorKind::Invalid),
    }
}

/// The pause before attempt `attempt` (1 = the second one). `random` decides where in the upper half it lies.
pub(crate) fn pause(policy: &RetryPolicy, attempt: u32, random: u32) -> Duration {
    let doubled = policy
        .first_pause
        .saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let most = doubled.min(policy.longest_pause);
    most / 2 + (most / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_read_never_ends_unknown() {
        assert!(!judge_transport(true, Repeat::Read).maybe_done);
        assert!(!judge_status(500, "InternalError", None, Repeat::Read).maybe_done);
    }

    #[test]
    fn what_would_happen_twice_is_not_repeated_after_an_unknown_end() {
        assert_eq!(judge_transport(true, Repeat::Once).next, Next::Stop);
        assert_eq!(judge_transport(false, Repeat::Once).next, Next::BackOff);
        assert_eq!(
            judge_status(503, "ServerBusy", None, Repeat::Once).next,
            Next::BackOff
        );
        assert_eq!(Repeat::of("PUT", Some("snapshot"), false), Repeat::Once);
        assert_eq!(Repeat::of("PUT", Some("page"), false), Repeat::Write);
        assert_eq!(Repeat::of("PUT", None, true), Repeat::Once);
    }

    #[test]
    fn the_services_own_wait_counts() {
        let wait = Duration::from_secs(7);
        let failure = judge_status(429, "", Some(wait), Repeat::Write);
        assert_eq!(
            (failure.next, failure.maybe_done),
            (Next::WaitFor(wait), false)
        );
    }

    proptest! {
        #[test]
        fn pauses_grow_and_stay_within_bounds(attempt in 1u32..40, random in any::<u32>()) {
            let policy = RetryPolicy::default();
            let pause = pause(&policy, attempt, random);
            prop_assert!(pause >= policy.first_pause / 2);
            prop_assert!(pause <= policy.longest_pause);
        }
    }
}
