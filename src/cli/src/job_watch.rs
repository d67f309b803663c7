//! Looking at a job until it ends: a tree that is drawn again on a terminal, plain lines everywhere else.
//!
//! Both go to standard error, so that standard output holds the result alone. The job belongs to the orchestrator: time
//! that runs out, Ctrl-C and a lost connection end the looking, never the job.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::Result;
use arm_client::{ClientError, Retry};
use arm_model::job::JobState;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::lookup::{Vault, text};
use crate::show_job;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// VMs of a plan's group that the live view shows; more would scroll it off the screen.
const LIVE_VMS: usize = 8;

/// How the looking ended.
#[derive(Debug)]
pub enum End {
    /// The job is over.
    Over(Value),
    /// The job waits for a person.
    Waits(Value),
    /// Time is up; the job goes on.
    OutOfTime,
    /// Ctrl-C; the job goes on.
    Interrupted,
}

/// Ends when the user presses Ctrl-C. From the first poll on, the key no longer ends the program by itself.
pub async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler the key ends the program as ever.
        std::future::pending::<()>().await;
    }
}

/// Looks at the job until it ends or waits for a person. `resumed`: it waited a moment ago and was told to go on, so
/// that the state of before may be seen once more.
pub async fn follow(
    vault: &Vault,
    job: &str,
    limit: Duration,
    resumed: bool,
    mut interrupt: Pin<&mut impl Future<Output = ()>>,
) -> Result<End> {
    let until = Instant::now() + limit;
    let mut view = View::new();
    let mut still_waits = resumed;
    let end = loop {
        let seen = tokio::select! {
            seen = vault.job(job) => seen,
            () = &mut interrupt => break End::Interrupted,
        };
        match seen {
            Ok(body) => {
                view.show(&body);
                match state(&body) {
                    JobState::Suspended if !still_waits => break End::Waits(body),
                    state if state.is_final() => break End::Over(body),
                    JobState::Suspended => {}
                    _ => still_waits = false,
                }
            }
            // An orchestrator that restarts, or a link that is down for a while, changes nothing about the job.
            Err(error) if may_pass(&error) => view.note(&format!("{error:#}; trying again")),
            Err(error) => return Err(error),
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break End::OutOfTime;
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE.min(left)) => {}
            () = &mut interrupt => break End::Interrupted,
        }
    };
    view.finish();
    Ok(end)
}

fn may_pass(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<ClientError>()
        .is_some_and(|error| error.retry() != Retry::No)
}

fn state(job: &Value) -> JobState {
    let state = job.pointer("/properties/state").cloned();
    state
        .and_then(|state| serde_json::from_value(state).ok())
        .unwrap_or(JobState::Other)
}

/// Where the job is shown.
enum View {
    Live(ProgressBar),
    Plain(Lines),
}

// === impl View ===

impl View {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Plain(Lines::default());
        }
        let bar = ProgressBar::new_spinner();
        // A template that can't be read would show the bar's own; the words are the same.
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed}] {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Live(bar)
    }

    fn show(&mut self, job: &Value) {
        match self {
            Self::Live(bar) => {
                let mut lines = vec![show_job::headline(job)];
                lines.extend(show_job::tree(job, LIVE_VMS));
                bar.set_message(lines.join("\n"));
            }
            Self::Plain(lines) => {
                for line in lines.news(job) {
                    eprintln!("{line}");
                }
            }
        }
    }

    fn note(&mut self, note: &str) {
        match self {
            Self::Live(bar) => bar.set_message(note.to_owned()),
            Self::Plain(lines) => {
                if lines.note != note {
                    note.clone_into(&mut lines.note);
                    eprintln!("{note}");
                }
            }
        }
    }

    fn finish(self) {
        if let Self::Live(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// What was told already, so that a log holds each change once.
#[derive(Default)]
struct Lines {
    told: BTreeMap<String, String>,
    tenths: Option<u64>,
    note: String,
}

// === impl Lines ===

impl Lines {
    fn news(&mut self, job: &Value) -> Vec<String> {
        self.note.clear();
        let name = text(job, "/properties/targetObjectName");
        let mut news = Vec::new();
        for (number, task) in show_job::tasks(job).enumerate() {
            let title = show_job::title(task);
            self.tell(&mut news, &format!("{number}"), name, title, task);
            for (below, child) in show_job::children(task).enumerate() {
                let title = format!("{title}: {}", show_job::title(child));
                self.tell(&mut news, &format!("{number}.{below}"), name, &title, child);
            }
        }
        // A copy of hours would fill the log percent by percent.
        let tenths = show_job::percent(job).map(|percent| percent / 10);
        if tenths.is_some() && tenths != self.tenths {
            self.tenths = tenths;
            news.push(show_job::headline(job));
        }
        news
    }

    fn tell(&mut self, news: &mut Vec<String>, key: &str, name: &str, title: &str, task: &Value) {
        let state = text(task, "/state");
        if matches!(state, "" | "NotStarted") || self.told.get(key).is_some_and(|s| s == state) {
            return;
        }
        self.told.insert(key.to_owned(), state.to_owned());
        news.push(format!("{name}: {title}: {state}"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(first: &str, second: &str, percent: f64) -> Value {
        json!({ "properties": { "friendlyName": "Failback", "targetObjectName": "web01", "state": "InProgress",
            "percentComplete": percent, "tasks": [
                { "friendlyName": "Copying", "state": first },
                { "friendlyName": "Group 1", "state": second,
                  "groupTaskCustomDetails": { "childTasks": [{ "friendlyName": "db01", "state": second }] } },
            ] } })
    }

    #[test]
    fn a_log_holds_each_change_once() {
        let mut lines = Lines::default();
        assert_eq!(
            lines.news(&job("InProgress", "NotStarted", 1.0)),
            [
                "web01: Copying: InProgress",
                "Failback of web01: InProgress, 1 %"
            ]
        );
        assert!(lines.news(&job("InProgress", "NotStarted", 9.0)).is_empty());
        assert_eq!(
            lines.news(&job("Succeeded", "InProgress", 10.0)),
            [
                "web01: Copying: Succeeded",
                "web01: Group 1: InProgress",
                "web01: Group 1: db01: InProgress",
                "Failback of web01: InProgress, 10 %",
            ]
        );
    }

    #[test]
    fn a_state_that_is_not_known_is_no_end() {
        assert!(!state(&json!({ "properties": { "state": "Brewing" } })).is_final());
        assert!(!state(&json!({})).is_final());
        assert!(state(&json!({ "properties": { "state": "Cancelled" } })).is_final());
    }
}
