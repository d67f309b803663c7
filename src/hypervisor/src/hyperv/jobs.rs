//! Methods of WMI: what their return values mean, and jobs that go on behind them.
//!
//! ```text
//!   call ─► ReturnValue 0     done
//!                       4096  Job ─► Msvm_ConcreteJob.JobState ... 7 done, 8 to 11 failed: ErrorCode, ErrorDescription
//!                       else  refused
//! ```

use std::time::Duration;

use super::host::{ACCESS_DENIED, Host, HostError, Instance, NO_NAMESPACE, NOT_FOUND, Value};
use crate::{ErrorKind, HypervisorError};

const STARTED: i64 = 4096;
/// Between two looks at a job.
const PAUSE: Duration = Duration::from_millis(100);

/// What a method or a job failed with: numbers of `Msvm_` classes.
const TIMEOUT: i64 = 32772;
const IN_USE: i64 = 32774;

/// What a method that ended well has given.
#[derive(Clone, Debug)]
pub(super) struct Done {
    /// Its out parameters.
    pub out: Instance,
    /// Its job, when it had one: results of it are associated with that.
    pub job: Option<String>,
}

/// Calls a method and waits for its job, at most for `patience`.
pub(super) fn call(
    host: &dyn Host,
    path: &str,
    method: &str,
    arguments: Vec<(&'static str, Value)>,
    patience: Duration,
) -> Result<Done, HypervisorError> {
    let out = host
        .call(path, method, arguments)
        .map_err(|error| failed(method, error))?;
    match out.number("ReturnValue") {
        Some(0) => Ok(Done { out, job: None }),
        Some(STARTED) => {
            let job = out.text("Job").to_owned();
            wait(host, &job, method, patience)?;
            Ok(Done {
                out,
                job: Some(job),
            })
        }
        Some(code) => Err(refused(method, code, "")),
        None => Err(HypervisorError::new(
            ErrorKind::Protocol,
            format!("{method}: the answer has no ReturnValue"),
        )),
    }
}

/// The results of class `class` that a method gave, by its out parameter `name` or by its job.
pub(super) fn results(
    host: &dyn Host,
    done: &Done,
    name: &str,
    class: &str,
) -> Result<Vec<Instance>, HypervisorError> {
    let mut paths: Vec<&str> = done.out.texts(name).iter().map(String::as_str).collect();
    paths.extend(Some(done.out.text(name)).filter(|path| !path.is_empty()));
    if !paths.is_empty() {
        return paths
            .into_iter()
            .map(|path| host.object(path).map_err(|error| failed(name, error)))
            .collect();
    }
    match &done.job {
        Some(job) => host
            .associated(job, class)
            .map_err(|error| failed("look for a job's result", error)),
        None => Ok(Vec::new()),
    }
}

fn wait(
    host: &dyn Host,
    job: &str,
    method: &str,
    patience: Duration,
) -> Result<(), HypervisorError> {
    let mut waited = Duration::ZERO;
    loop {
        let state = host.object(job).map_err(|error| failed(method, error))?;
        match state.number("JobState") {
            Some(7) => return Ok(()),
            Some(8..=11) => {
                return Err(refused(
                    method,
                    state.number("ErrorCode").unwrap_or_default(),
                    state.text("ErrorDescription"),
                ));
            }
            _ if waited >= patience => {
                return Err(HypervisorError::new(
                    ErrorKind::Timeout,
                    format!(
                        "{method}: its job has not ended within {} s; Hyper-V may still be at it",
                        patience.as_secs()
                    ),
                ));
            }
            _ => {}
        }
        host.pause(PAUSE);
        waited += PAUSE;
    }
}

fn refused(method: &str, code: i64, description: &str) -> HypervisorError {
    let meaning = match code {
        1 | 32770 => "not supported",
        2 | 32768 => "failed",
        3 | TIMEOUT => "timed out",
        4 | 32773 => "invalid parameter",
        5 | 32775 => "invalid state",
        32769 => "access denied: the engine's account must be in Hyper-V Administrators",
        IN_USE => "in use",
        32778 => "out of memory",
        32779 => "a file was not found",
        _ => "refused",
    };
    let kind = match code {
        3 | TIMEOUT => ErrorKind::Timeout,
        _ if description.contains("0x80070070") => ErrorKind::NoSpace,
        _ => ErrorKind::Refused,
    };
    let text = format!("{method}: {meaning} (code {code})");
    if description.is_empty() {
        HypervisorError::new(kind, text)
    } else {
        HypervisorError::with_source(kind, text, description.to_owned())
    }
}

/// The driver's error for one of the host.
pub(super) fn failed(step: &str, error: HostError) -> HypervisorError {
    let (kind, hint) = match error.code {
        NO_NAMESPACE => (
            ErrorKind::Missing,
            ": the Hyper-V role is not installed on this host; install it, or leave `driver` out",
        ),
        ACCESS_DENIED => (
            ErrorKind::Refused,
            ": run the engine as LocalSystem, or put its account into Hyper-V Administrators",
        ),
        NOT_FOUND => (ErrorKind::Refused, ": the object is gone"),
        _ => (ErrorKind::Io, ""),
    };
    HypervisorError::with_source(kind, format!("{step}{hint}"), error)
}
