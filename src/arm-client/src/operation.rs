//! Long-running operations: the first answer, then the status until it is final, then the result.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::client::{Answer, Client, Method};
use crate::error::{ClientError, ClientErrorKind};
use crate::paths::{job_path, path_and_query};

/// Pause between two looks when the service names none.
const PAUSE: Duration = Duration::from_secs(2);

/// How long and how attentively an operation is waited for.
#[derive(Clone)]
pub struct Wait<'a> {
    /// Time allowed in all.
    pub limit: Duration,
    /// Ends the waiting; the operation itself goes on.
    pub cancel: CancellationToken,
    /// Is told about the job after each look, when it has changed.
    pub progress: Option<&'a (dyn Fn(&Progress) + Send + Sync)>,
}

impl Wait<'_> {
    /// Waits without reports.
    pub fn new(limit: Duration, cancel: CancellationToken) -> Self {
        Wait {
            limit,
            cancel,
            progress: None,
        }
    }
}

/// A look at the job of an operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Name of the job.
    pub job_id: String,
    /// What it does, for people.
    pub title: String,
    /// Object it is about, for people.
    pub target: String,
    /// Its state, such as `InProgress`.
    pub state: String,
    /// Its tasks in order.
    pub tasks: Vec<TaskProgress>,
}

/// One task of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskProgress {
    /// What it does, for people.
    pub title: String,
    /// Its state, such as `Succeeded`.
    pub state: String,
    /// How it stands, for people.
    pub description: String,
}

impl Progress {
    /// Share of the tasks that have ended, in percent.
    pub fn percent(&self) -> u32 {
        if self.tasks.is_empty() {
            return 0;
        }
        let ended =
            |t: &&TaskProgress| matches!(t.state.as_str(), "Succeeded" | "Failed" | "Cancelled");
        let share = self.tasks.iter().filter(ended).count() * 100 / self.tasks.len();
        u32::try_from(share).unwrap_or(100)
    }

    fn from_job(job: &Value) -> Self {
        let text = |value: &Value, name: &str| {
            value
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let properties = job.get("properties").unwrap_or(&Value::Null);
        let tasks = properties.get("tasks").and_then(Value::as_array);
        Progress {
            job_id: text(job, "name"),
            title: text(properties, "friendlyName"),
            target: text(properties, "targetObjectName"),
            state: text(properties, "state"),
            tasks: tasks
                .into_iter()
                .flatten()
                .map(|task| TaskProgress {
                    title: text(task, "friendlyName"),
                    state: text(task, "state"),
                    description: text(task, "stateDescription"),
                })
                .collect(),
        }
    }
}

/// An operation that has been accepted.
#[derive(Debug, Clone)]
pub struct Operation {
    method: Method,
    path: String,
    first: Answer,
    job_id: Option<String>,
}

impl Operation {
    /// Its job, when the service runs one.
    pub fn job_id(&self) -> Option<&str> {
        self.job_id.as_deref()
    }
}

impl Client {
    /// Sends a request and waits until the operation it starts has ended. Gives back the resource as it is then, the
    /// body of the result for a POST, or `Null` when nothing remains.
    pub async fn operate(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        wait: &Wait<'_>,
    ) -> Result<Value, ClientError> {
        let operation = tokio::select! {
            operation = self.begin(method, path, body) => operation?,
            () = wait.cancel.cancelled() => return Err(interrupted(path, None)),
        };
        self.finish(&operation, wait).await
    }

    /// The first half of [`Client::operate`]: the request. From here on the operation exists at the service.
    pub async fn begin(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Operation, ClientError> {
        let first = self.request(method, path, body).await?;
        let address = first
            .location
            .as_deref()
            .or(first.async_operation.as_deref());
        let job_id = address.and_then(last_segment);
        Ok(Operation {
            method,
            path: path.to_owned(),
            first,
            job_id,
        })
    }

    /// The second half of [`Client::operate`]: the waiting.
    pub async fn finish(
        &self,
        operation: &Operation,
        wait: &Wait<'_>,
    ) -> Result<Value, ClientError> {
        let until = Instant::now() + wait.limit;
        self.follow(operation, until, wait).await
    }

    /// Asks for the cancellation of a job; the operation then ends as cancelled.
    pub async fn cancel_job(&self, path: &str, job: &str) -> Result<(), ClientError> {
        if let Some(path) = job_path(path, job) {
            self.request(Method::Post, &format!("{path}/cancel"), None)
                .await?;
        }
        Ok(())
    }

    async fn follow(
        &self,
        operation: &Operation,
        until: Instant,
        wait: &Wait<'_>,
    ) -> Result<Value, ClientError> {
        let Operation {
            method,
            path,
            first,
            job_id: job,
        } = operation.clone();
        let path = path.as_str();
        let mut location = first.location.clone();
        let mut status_at = first.async_operation.clone();
        if status_at.is_none() && location.is_none() {
            return self.settle(method, path, first, until, wait).await;
        }
        let mut pause = first.retry_after.unwrap_or(PAUSE);
        let mut shown = Progress::default();
        loop {
            self.report(path, job.as_deref(), wait, &mut shown).await;
            sleep_until_next(path, job.as_deref(), pause, until, wait).await?;
            if let Some(address) = status_at.clone() {
                let answer = self.ask(path, &address, job.as_deref(), wait).await?;
                pause = answer.retry_after.unwrap_or(pause);
                match state_of(&answer.body) {
                    State::Running => {}
                    State::Succeeded => break,
                    State::Failed(kind) => {
                        self.report(path, job.as_deref(), wait, &mut shown).await;
                        return Err(failure(kind, path, &answer, job));
                    }
                }
            } else if let Some(address) = location.clone() {
                let answer = match self.ask(path, &address, job.as_deref(), wait).await {
                    Ok(answer) => answer,
                    // The resource is gone and with it the result: what a removal is for.
                    Err(error) if method == Method::Delete && error.is_not_found() => break,
                    Err(error) => return Err(error),
                };
                pause = answer.retry_after.unwrap_or(pause);
                if answer.status != 202 {
                    self.report(path, job.as_deref(), wait, &mut shown).await;
                    return Ok(answer.body);
                }
                location = answer.location.or(location);
                status_at = answer.async_operation;
            }
        }
        self.report(path, job.as_deref(), wait, &mut shown).await;
        match method {
            Method::Delete => Ok(Value::Null),
            Method::Put | Method::Patch | Method::Get => self.get(path).await,
            Method::Post => match location {
                Some(address) => match self
                    .request(Method::Get, path_and_query(&address), None)
                    .await
                {
                    Ok(answer) => Ok(answer.body),
                    Err(error) if error.is_not_found() => Ok(Value::Null),
                    Err(error) => Err(error),
                },
                None => Ok(Value::Null),
            },
        }
    }

    /// Neither header: done at once, unless the body says that it is still being provisioned.
    async fn settle(
        &self,
        method: Method,
        path: &str,
        first: Answer,
        until: Instant,
        wait: &Wait<'_>,
    ) -> Result<Value, ClientError> {
        let mut answer = first;
        loop {
            let state = answer
                .body
                .pointer("/properties/provisioningState")
                .and_then(Value::as_str);
            match state.map(str::to_ascii_lowercase).as_deref() {
                Some("failed") => {
                    return Err(failure(
                        ClientErrorKind::OperationFailed,
                        path,
                        &answer,
                        None,
                    ));
                }
                Some("canceled" | "cancelled") => {
                    return Err(failure(
                        ClientErrorKind::OperationCancelled,
                        path,
                        &answer,
                        None,
                    ));
                }
                Some("succeeded") | None => return Ok(answer.body),
                Some(_) if matches!(method, Method::Put | Method::Patch) => {}
                Some(_) => return Ok(answer.body),
            }
            let pause = answer.retry_after.unwrap_or(PAUSE);
            sleep_until_next(path, None, pause, until, wait).await?;
            answer = self.ask(path, path, None, wait).await?;
        }
    }

    async fn ask(
        &self,
        path: &str,
        address: &str,
        job: Option<&str>,
        wait: &Wait<'_>,
    ) -> Result<Answer, ClientError> {
        tokio::select! {
            answer = self.request(Method::Get, path_and_query(address), None) => answer,
            () = wait.cancel.cancelled() => Err(interrupted(path, job)),
        }
    }

    async fn report(&self, path: &str, job: Option<&str>, wait: &Wait<'_>, shown: &mut Progress) {
        let (Some(progress), Some(job)) = (wait.progress, job) else {
            return;
        };
        let Some(at) = job_path(path, job) else {
            return;
        };
        // Only for the eyes: when the job can't be read, the waiting goes on all the same.
        if let Ok(job) = self.get::<Value>(&at).await {
            let now = Progress::from_job(&job);
            if now != *shown {
                progress(&now);
                *shown = now;
            }
        }
    }
}

async fn sleep_until_next(
    path: &str,
    job: Option<&str>,
    pause: Duration,
    until: Instant,
    wait: &Wait<'_>,
) -> Result<(), ClientError> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        let text = format!(
            "it did not end within {} seconds and may still be running",
            wait.limit.as_secs()
        );
        let mut error = ClientError::new(ClientErrorKind::TimedOut, action(path), text);
        error.marks.job_id = job.map(ToOwned::to_owned);
        return Err(error);
    }
    tokio::select! {
        () = tokio::time::sleep(pause.min(left)) => Ok(()),
        () = wait.cancel.cancelled() => Err(interrupted(path, job)),
    }
}

fn action(path: &str) -> String {
    crate::paths::describe("waiting for", path)
}

fn interrupted(path: &str, job: Option<&str>) -> ClientError {
    let text = "waiting was interrupted; the operation goes on at the service";
    let mut error = ClientError::new(ClientErrorKind::Interrupted, action(path), text);
    error.marks.job_id = job.map(ToOwned::to_owned);
    error
}

fn failure(kind: ClientErrorKind, path: &str, answer: &Answer, job: Option<String>) -> ClientError {
    let text = "the operation failed and the service gave no reason";
    let mut error = ClientError::new(kind, action(path), text);
    if let Some(envelope) = answer.body.get("error").filter(|e| e.is_object()) {
        error.fill(envelope.clone());
    }
    error.marks.request_id = answer.request_id.clone();
    error.marks.job_id = job;
    error
}

enum State {
    Running,
    Succeeded,
    Failed(ClientErrorKind),
}

fn state_of(body: &Value) -> State {
    match body.get("status").and_then(Value::as_str) {
        Some("Succeeded") => State::Succeeded,
        Some("Failed") => State::Failed(ClientErrorKind::OperationFailed),
        Some("Canceled" | "Cancelled") => State::Failed(ClientErrorKind::OperationCancelled),
        // An answer without a body means done, to the clients that have been around for longest.
        None if body.is_null() => State::Succeeded,
        _ => State::Running,
    }
}

/// The last segment of an address: the id of the operation, which is the job's.
fn last_segment(address: &str) -> Option<String> {
    let path = path_and_query(address).split('?').next()?;
    path.rsplit('/')
        .next()
        .filter(|s| !s.is_empty())
        .map(ToOwned::to_owned)
}
