//! Test failover from the terminal, with the job's tasks as they go.

use std::time::Duration;

use anyhow::Result;
use arm_client::{CancellationToken, Method, Progress, Wait};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::Target;
use crate::lookup::{Vault, text};
use crate::show_job;

/// Options of `test-failover start`.
#[derive(Args)]
pub struct Start {
    #[command(flatten)]
    target: Target,
    /// Recovery point: id or name; the newest without it. For an item only
    #[arg(long, conflicts_with = "plan")]
    point: Option<String>,
    /// Virtual network (id) for the recovered VMs. In this release they are isolated from every network with it too
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

/// Starts a drill and waits until its VMs have booted.
pub async fn start(vault: &Vault, options: &Start, json: bool) -> Result<()> {
    let mut properties = json!({
        "failoverDirection": "PrimaryToRecovery",
        "networkType": if options.network.is_some() { "VmNetworkAsInput" } else { "NoNetworkAttachAsInput" },
    });
    if let Some(network) = &options.network {
        properties["networkId"] = json!(network);
        eprintln!(
            "warning: this release connects no recovered VM to a network; the VMs of the drill are isolated"
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
    act(
        vault,
        &target,
        "testFailover",
        &json!({ "properties": properties }),
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
