//! Test failover from the terminal, with the job's tasks as they go.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arm_client::{CancellationToken, Method, Progress, Wait, encode_segment};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::Target;
use crate::lookup::{Vault, text};
use crate::plan_part::Part;
use crate::show_job;

/// Options of `test-failover start`.
#[derive(Args)]
pub struct Start {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    part: Part,
    /// Recovery point: id or name; the newest without it. For an item only
    #[arg(long, conflicts_with = "plan")]
    point: Option<String>,
    /// Virtual network (id) for the recovered VMs. On a recovery host this is a private one of the VMs there that are in it
    #[arg(long)]
    network: Option<String>,
    /// Give up waiting after so many minutes; the job itself goes on
    #[arg(long, default_value_t = 60)]
    timeout_minutes: u64,
}

/// Options of `test-failover cleanup`.
#[derive(Args)]
pub struct CleanUp {
    #[command(flatten)]
    target: Target,
    /// Kept in the job, for the auditor
    #[arg(long, default_value = "")]
    comments: String,
    /// Give up waiting after so many minutes; the job itself goes on
    #[arg(long, default_value_t = 60)]
    timeout_minutes: u64,
}

/// What `test-failover report --help` begins with.
pub const REPORT: &str = "\
The report of a drill or a failover, for the auditor.

It tells who asked for it and when, which recovery points were used and how old they were (RPO), how long each VM took to start and to \
boot (RTO), every step with its time, the checks with their verdicts, what the display and the console showed, and who removed the test \
VMs when. HTML is one file that needs nothing else, fit for printing; JSON holds the same with a SHA-256 to compare copies by:

  siterecovery test-failover report 1f0c… --output drill.html
  siterecovery test-failover report 1f0c… --format json | jq -cSj .report | sha256sum

The job's id is told by `test-failover start` and `job list`. Reports are kept for as long as their jobs: 30 days.";

/// Options of `test-failover report`.
#[derive(Args)]
pub struct Report {
    /// Job of the drill or failover: name or id
    job: String,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "html")]
    format: Format,
    /// File to write, in place of the terminal; one that is there is replaced
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Form of a report.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One file for people
    Html,
    /// One document for programs and archives
    Json,
}

/// Writes the report of a job.
pub async fn report(vault: &Vault, options: &Report, json: bool) -> Result<()> {
    let job = options.job.rsplit('/').next().unwrap_or_default();
    let format = if json || options.format == Format::Json {
        "json"
    } else {
        "html"
    };
    let path = format!(
        "{}/replicationJobs/{}/drillReport?format={format}",
        vault.id(),
        encode_segment(job)
    );
    let text = match vault.client.get::<Value>(&path).await? {
        Value::String(page) => page,
        document => format!("{}\n", serde_json::to_string_pretty(&document)?),
    };
    match &options.output {
        None => print!("{text}"),
        Some(file) => {
            std::fs::write(file, text)
                .with_context(|| format!("{} can't be written", file.display()))?;
            eprintln!("The report is in {}.", file.display());
        }
    }
    Ok(())
}

/// Starts a drill and waits until its VMs have booted.
pub async fn start(vault: &Vault, options: &Start, json: bool) -> Result<()> {
    let mut properties = json!({
        "failoverDirection": "PrimaryToRecovery",
        "networkType": if options.network.is_some() { "VmNetworkAsInput" } else { "NoNetworkAttachAsInput" },
    });
    if let Some(network) = &options.network {
        properties["networkId"] = json!(network);
        eprintln!(
            "warning: on a recovery host the network is a private one: the VMs of the drill meet those there that are in it, failed-over ones too"
        );
    }
    let target = options.target.find(vault).await?;
    if options.target.plan.is_some() {
        properties["providerSpecificDetails"] = json!([{ "instanceType": "HyperVReplicaAzure" }]);
    } else {
        properties["providerSpecificDetails"] = json!({ "instanceType": "HyperVReplicaAzure" });
        if let Some(point) = &options.point {
            let id = if point.contains('/') {
                point.clone()
            } else {
                format!("{}/recoveryPoints/{point}", text(&target, "/id"))
            };
            properties["providerSpecificDetails"]["recoveryPointId"] = json!(id);
        }
    }
    let mut body = json!({ "properties": properties });
    options.part.set(vault, &mut body).await?;
    act(
        vault,
        &target,
        "testFailover",
        &body,
        options.timeout_minutes,
        json,
    )
    .await
}

/// Removes the VMs of a drill.
pub async fn clean_up(vault: &Vault, options: &CleanUp, json: bool) -> Result<()> {
    let target = options.target.find(vault).await?;
    let body = json!({ "properties": { "comments": options.comments } });
    act(
        vault,
        &target,
        "testFailoverCleanup",
        &body,
        options.timeout_minutes,
        json,
    )
    .await
}

/// Starts an action, shows its job as it goes, and prints it at the end.
pub async fn act(
    vault: &Vault,
    target: &Value,
    action: &str,
    body: &Value,
    minutes: u64,
    json: bool,
) -> Result<()> {
    let path = format!("{}/{action}", text(target, "/id"));
    let bar = ProgressBar::new(100);
    bar.set_style(ProgressStyle::with_template(
        "{spinner} [{elapsed}] {percent:>3} %  {msg}",
    )?);
    bar.enable_steady_tick(Duration::from_millis(200));
    let job = std::sync::Mutex::new(String::new());
    let report = |progress: &Progress| {
        bar.set_position(u64::from(progress.percent()));
        let running = progress
            .tasks
            .iter()
            .find(|task| task.state == "InProgress");
        bar.set_message(running.map_or_else(|| progress.title.clone(), |task| task.title.clone()));
        if let Ok(mut job) = job.lock() {
            job.clone_from(&progress.job_id);
        }
    };
    let mut wait = Wait::new(
        Duration::from_secs(minutes.saturating_mul(60)),
        CancellationToken::new(),
    );
    wait.progress = Some(&report);
    let outcome = vault
        .client
        .operate(Method::Post, &path, Some(body), &wait)
        .await;
    bar.finish_and_clear();
    outcome?;
    let job = job.lock().map(|job| job.clone()).unwrap_or_default();
    show_job::job(&vault.job(&job).await?, json)
}

// === impl Target ===

impl Target {
    async fn find(&self, vault: &Vault) -> Result<Value> {
        match (&self.item, &self.plan) {
            (Some(item), _) => vault.item(item).await,
            (None, Some(plan)) => vault.plan(plan).await,
            (None, None) => anyhow::bail!("--item or --plan is needed"),
        }
    }
}
