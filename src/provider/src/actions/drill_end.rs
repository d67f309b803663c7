//! The end of a drill that Terraform began and did not see to its end: the user has interrupted it, its time is over, or
//! the service could not be asked any more. No test VM is left then, or it is said exactly how to remove it.
//!
//! ```text
//!   job runs ─► cancel (takes its VMs back) ─► ended as cancelled ─► nothing is left
//!   job ended well ─► clean-up ─────────────────────────────────────► nothing is left
//!   not seen in time ─► who may still run, and the commands that remove it
//! ```
//!
//! Terraform waits for us after an interrupt, a pipeline that kills it doesn't: what ends the drill is asked for first,
//! and goes on at the service without us.

use std::time::{Duration, Instant};

use arm_client::{CancellationToken, Method, Wait};
use arm_model::job::JobProperties;
use arm_model::{ArmId, PlanId, Resource as Answer};
use serde_json::Value as Json;
use tf_provider::{Cancel, Diagnostic, Diagnostics, Progress};

use crate::remote::Remote;
use crate::resources::test_failover::is_over;

/// How long an action waits for the drill's end.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A drill whose end was not seen.
pub(super) struct Drill<'a> {
    /// The VM or the plan.
    pub(super) subject: &'a ArmId,
    /// Its job; empty when the service named none.
    pub(super) job: &'a str,
    /// Body of the clean-up; `None`: the configuration wants the test VMs to stay.
    pub(super) clean_up: Option<&'a Json>,
    /// How long its end is waited for.
    pub(super) patience: Duration,
}

// === impl Drill ===

impl Drill<'_> {
    /// Ends it; gives the error of before with what became of the test VMs.
    pub(super) async fn end(
        &self,
        remote: &Remote<'_>,
        error: Diagnostics,
        progress: &Progress,
    ) -> Diagnostics {
        let error = if remote.interrupted() {
            Diagnostics::error("Interrupted", "Terraform was interrupted.")
        } else {
            error
        };
        let calm = Cancel::new();
        let remote = remote.undisturbed(&calm, self.patience);
        let told = match self.clean_up {
            Some(body) => match self.take_back(&remote, body, progress).await {
                Ok(false) => return error,
                Ok(true) => "The drill was taken back: none of its test VMs is left.".to_owned(),
                Err(left) => self.advice(&left),
            },
            None => match self.look(&remote).await {
                Ok(Some(job)) if !is_over(&job) => self.advice(
                    "The drill goes on at the service, and its test VMs stay, as clean_up = false asks for.",
                ),
                Ok(_) => return error,
                Err(cause) => self.advice(&format!(
                    "What became of the drill's test VMs could not be asked for: {cause}."
                )),
            },
        };
        with_detail(&error, &told)
    }

    /// Cancels or cleans up until nothing is left; whether that was needed.
    ///
    /// # Errors
    /// What may be left, in words.
    async fn take_back(
        &self,
        remote: &Remote<'_>,
        body: &Json,
        progress: &Progress,
    ) -> Result<bool, String> {
        let api = &remote.session.api;
        let until = Instant::now() + self.patience;
        let (mut asked, mut cleans) = (false, false);
        loop {
            let problem = match self.look(remote).await {
                Err(cause) => Some(cause),
                Ok(None) => return Ok(asked || cleans),
                Ok(Some(job)) if is_over(&job) => return Ok(asked || cleans),
                Ok(Some(job)) if !job.state.is_final() && asked => None,
                Ok(Some(job)) if !job.state.is_final() => {
                    let cancel = format!("{}/cancel", self.job);
                    match api.request(Method::Post, &cancel, None).await {
                        Ok(_) => {
                            asked = true;
                            progress
                                .send("the drill is asked to take its test VMs back")
                                .await;
                            None
                        }
                        Err(error) => Some(error.to_string()),
                    }
                }
                // The clean-up was carried out, and something of the drill is still there.
                Ok(Some(_)) if cleans => {
                    return Err("The clean-up did not remove all of the drill.".to_owned());
                }
                Ok(Some(_)) => {
                    progress.send("the drill's test VMs are removed").await;
                    let path = format!("{}/testFailoverCleanup", self.subject);
                    let left = until.saturating_duration_since(Instant::now());
                    let wait = Wait::new(left, CancellationToken::new());
                    match api.operate(Method::Post, &path, Some(body), &wait).await {
                        Ok(_) => {
                            cleans = true;
                            None
                        }
                        Err(error) => Some(error.to_string()),
                    }
                }
            };
            if Instant::now() >= until {
                let state = problem.unwrap_or_else(|| "it is still at it".to_owned());
                return Err(format!(
                    "The drill was not taken back within {} seconds: {state}. Its test VMs may still run.",
                    self.patience.as_secs()
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The drill's job; `None` when there is none.
    async fn look(&self, remote: &Remote<'_>) -> Result<Option<JobProperties>, String> {
        if self.job.is_empty() {
            return Ok(None);
        }
        let found = remote.session.api.find::<Answer<JobProperties>>(self.job);
        match found.await {
            Ok(found) => Ok(found.map(|job| job.properties)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn advice(&self, left: &str) -> String {
        let last = |id: &str| id.rsplit('/').next().unwrap_or_default().to_owned();
        let (job, name) = (last(self.job), last(self.subject.as_str()));
        let of = match PlanId::parse(self.subject.as_str()) {
            Ok(_) => "--plan",
            Err(_) => "--item",
        };
        format!(
            "{left}\nWhat to do: `siterecovery job cancel {job}` while the job runs; `siterecovery test-failover cleanup {of} {name}` once it has ended."
        )
    }
}

/// The error, with more at the end of its first one.
fn with_detail(error: &Diagnostics, more: &str) -> Diagnostics {
    let mut report = Diagnostics::new();
    for (number, diagnostic) in error.iter().enumerate() {
        let mut diagnostic: Diagnostic = diagnostic.clone();
        if number == 0 {
            diagnostic.detail = format!("{}\n\n{more}", diagnostic.detail);
        }
        report.push(diagnostic);
    }
    report
}
