//! `replicate`: replicates image files into a store without an orchestrator, through the same code that a host's engine runs.
//!
//! ```text
//!   images of a folder ─► driver `files` ─► replicator (one item a VM) ─► store
//! ```
//!
//! Promise: every VM gets a recovery point that equals its files at one instant after the start, or the command fails and
//! says why. A later run goes on where an earlier one stopped: it compares and sends differences. A VM is one protected
//! item; both have one id, made of the name of the folder or file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use engine_protocol::v1;
use engine_protocol::v1::replication_status::State;
use hypervisor::{FilesDriver, Hypervisor, VirtualMachine};
use indicatif::{MultiProgress, ProgressBar};
use serde_json::{Value, json};

use crate::board::Board;
use crate::engine::now_unix_ms;
use crate::replicator::pauses::NoPauses;
use crate::replicator::spec::Spec;
use crate::replicator::throttle::Unthrottled;
use crate::replicator::{Context, Replicator};
use crate::report::free_bytes;
use crate::{durable, location, progress};

const EXAMPLES: &str = "\
Examples:
  siterecovery-engine replicate /vms --store /mnt/replicas
  siterecovery-engine replicate /vms/web01 --store /mnt/replicas --watch --interval-seconds 60
  AZURE_STORAGE_SAS_TOKEN='sv=...' siterecovery-engine replicate disk.vhdx \\
      --store https://account.blob.core.windows.net/replicas --generation 2

The VMs must be off. Each sub-folder with images is a VM with these disks; an image beside them is a VM of its own.
Exit code 0: every VM has a new recovery point. 1: not; standard error says why. 2: the command line is wrong.";

/// Options of `replicate`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Options {
    /// Folder with image files (VHDX, VHD, raw), or one image.
    source: PathBuf,
    /// Folder of the store, or URL of a container (signature in AZURE_STORAGE_SAS_TOKEN).
    #[arg(long, value_name = "FOLDER|URL")]
    store: String,
    /// Folder name of the vault in the store.
    #[arg(long, value_name = "NAME", default_value = "files")]
    vault_key: String,
    /// Fencing generation: a higher one takes a replica over, a lower one than the store's is refused.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    generation: u64,
    /// Only the VM of this name; may be repeated.
    #[arg(long, value_name = "NAME")]
    vm: Vec<String>,
    /// Go on until interrupted, with a new point each interval.
    #[arg(long)]
    watch: bool,
    /// Seconds from point to point with --watch.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    interval_seconds: u32,
    /// Hours for which all points are kept.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    retention_hours: u32,
    /// Folder for what is kept between runs; a hidden folder beside the images when absent.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Give up after so many seconds without progress.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience_seconds: u64,
    /// Print JSON: one document at the end, or one line a point with --watch.
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// Whether each point is a line of the output, in place of one document at the end.
    pub fn prints_points(&self) -> bool {
        self.watch && self.json
    }
}

/// One VM on its way.
struct Running {
    vm: VirtualMachine,
    item: String,
    replicator: Replicator,
    bar: ProgressBar,
    first: Option<f64>,
    seen: Vec<String>,
}

/// Runs the command; `each` gets a value for every new point.
pub async fn run(
    options: &Options,
    mut each: impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let begin = Instant::now();
    let start_unix_ms = now_unix_ms();
    let store = location::message(&options.store)?;
    let driver: Arc<dyn Hypervisor> =
        Arc::new(FilesDriver::new(&options.source).context("find the image files")?);
    let machines = chosen(driver.as_ref(), &options.vm).await?;
    let state_folder = options
        .state
        .clone()
        .map_or_else(|| default_state(&options.source), Ok)?;
    durable::create_folder(&state_folder)
        .with_context(|| format!("create {}", state_folder.display()))?;
    let _lock = crate::instance::InstanceLock::take(&state_folder)?;

    let board = Arc::new(Board::default());
    let context = context(driver, board.clone(), state_folder);
    let bars = MultiProgress::new();
    let mut running = Vec::new();
    for vm in machines {
        let (spec, wish) = Spec::read(&wanted(options, &vm, &store)).map_err(|problem| {
            anyhow!(problem).context(format!("virtual machine {:?}", vm.name))
        })?;
        running.push(Running {
            item: vm.id.to_string(),
            bar: bars.add(progress::bytes(&vm.name, 0)),
            replicator: Replicator::start(context.clone(), spec, wish),
            vm,
            first: None,
            seen: Vec::new(),
        });
    }
    let result = follow(
        options,
        &board,
        &mut running,
        begin,
        start_unix_ms,
        &mut each,
    )
    .await;
    let mut answer = Vec::new();
    for one in running {
        one.bar.finish_and_clear();
        one.replicator.stop().await;
        let status = board.replication(&one.item).unwrap_or_default();
        answer.push(json!({
            "name": one.vm.name,
            "item": one.item,
            "generation": options.generation,
            "state": state_name(&status),
            "seconds": one.first,
            "diskBytes": one.vm.disks.iter().map(|disk| disk.size_bytes).sum::<u64>(),
            "changedBytes": status.last_cycle_changed_bytes,
            "sentBytes": status.last_cycle_sent_bytes,
            "totalSentBytes": status.total_sent_bytes,
            "points": status.recovery_points.iter().map(point).collect::<Vec<_>>(),
        }));
    }
    result?;
    Ok(json!({
        "kind": "replication",
        "store": options.store,
        "vaultKey": options.vault_key,
        "seconds": begin.elapsed().as_secs_f64(),
        "virtualMachines": answer,
    }))
}

/// What the replicator works with when no orchestrator is there: nothing is held back, nothing is slowed down.
pub fn context(
    hypervisor: Arc<dyn Hypervisor>,
    board: Arc<Board>,
    state_folder: PathBuf,
) -> Arc<Context> {
    Arc::new(Context {
        hypervisor,
        board,
        state_folder,
        pauses: Arc::new(NoPauses),
        clock: Arc::new(now_unix_ms),
        store_faults: None,
        free_bytes: Arc::new(|path: &Path| free_bytes(path)),
        throttle: Arc::new(Unthrottled),
        groups: Arc::default(),
    })
}

async fn chosen(driver: &dyn Hypervisor, names: &[String]) -> anyhow::Result<Vec<VirtualMachine>> {
    let machines = driver
        .virtual_machines()
        .await
        .context("list the image files")?;
    for name in names {
        if !machines.iter().any(|vm| vm.name == *name) {
            let known: Vec<&str> = machines.iter().map(|vm| vm.name.as_str()).collect();
            bail!(
                "no virtual machine {name:?}; there are: {}",
                known.join(", ")
            );
        }
    }
    let machines: Vec<_> = machines
        .into_iter()
        .filter(|vm| names.is_empty() || names.contains(&vm.name))
        .collect();
    if machines.is_empty() {
        bail!("there is no image file (.vhdx, .vhd, .raw, .img)");
    }
    let problems: Vec<String> = machines
        .iter()
        .flat_map(|vm| {
            vm.findings
                .iter()
                .filter(|finding| finding.critical)
                .map(|finding| {
                    format!(
                        "{}: {} {}",
                        vm.name, finding.summary, finding.recommended_action
                    )
                })
        })
        .collect();
    if !problems.is_empty() {
        bail!(problems.join("\n"));
    }
    Ok(machines)
}

fn default_state(source: &Path) -> anyhow::Result<PathBuf> {
    let source =
        std::path::absolute(source).with_context(|| format!("find {}", source.display()))?;
    let folder = if source.is_dir() {
        source
    } else {
        source.parent().map(PathBuf::from).unwrap_or_default()
    };
    Ok(folder.join(".site-recovery"))
}

fn wanted(options: &Options, vm: &VirtualMachine, store: &v1::StoreTarget) -> v1::Replication {
    v1::Replication {
        item_id: vm.id.to_string(),
        vault_key: options.vault_key.clone(),
        generation: options.generation,
        vm_id: vm.id.to_string(),
        disk_ids: vm.disks.iter().map(|disk| disk.id.to_string()).collect(),
        store: Some(store.clone()),
        policy: Some(v1::Policy {
            // One shot: the next cycle shall not begin while the last one is looked at.
            replication_interval_seconds: if options.watch {
                options.interval_seconds
            } else {
                86_400
            },
            retention_hours: options.retention_hours,
            ..v1::Policy::default()
        }),
        phase: v1::replication::Phase::Active.into(),
        vm_name: vm.name.clone(),
        ..v1::Replication::default()
    }
}

/// Follows the board until every VM has a new point, or for ever with `--watch`.
async fn follow(
    options: &Options,
    board: &Board,
    running: &mut [Running],
    begin: Instant,
    start_unix_ms: i64,
    each: &mut impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let patience = Duration::from_secs(options.patience_seconds);
    let mut changes = board.watch();
    let mut moved = Instant::now();
    let mut figures: BTreeMap<String, Figures> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        for one in running.iter_mut() {
            let Some(status) = board.replication(&one.item) else {
                continue;
            };
            let now = Figures::of(&status);
            if figures.get(&one.item) != Some(&now) {
                figures.insert(one.item.clone(), now);
                moved = Instant::now();
            }
            show(one, &status, begin, start_unix_ms, each)?;
            if let Some(problem) = hopeless(&status) {
                bail!("virtual machine {:?}: {problem}", one.vm.name);
            }
        }
        if !options.watch {
            if running.iter().all(|one| one.first.is_some()) {
                return Ok(());
            }
            if moved.elapsed() > patience {
                let waiting = running
                    .iter()
                    .filter(|one| one.first.is_none())
                    .map(|one| stuck(one, board.replication(&one.item).as_ref()))
                    .collect::<Vec<_>>();
                bail!(
                    "no progress for {}: {}",
                    progress::human_duration(patience),
                    waiting.join("; ")
                );
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
            _ = tokio::signal::ctrl_c() => {
                if options.watch {
                    return Ok(());
                }
                bail!("interrupted; a later run goes on from here");
            }
        }
    }
}

/// What shows that something moves.
#[derive(PartialEq, Eq)]
struct Figures {
    state: i32,
    done: u64,
    sent: u64,
    points: usize,
}

impl Figures {
    fn of(status: &v1::ReplicationStatus) -> Self {
        Self {
            state: status.state,
            done: status.progress_done_bytes
                + status
                    .disks
                    .iter()
                    .map(|disk| disk.compared_bytes)
                    .sum::<u64>(),
            sent: status.total_sent_bytes,
            points: status.recovery_points.len(),
        }
    }
}

fn show(
    one: &mut Running,
    status: &v1::ReplicationStatus,
    begin: Instant,
    start_unix_ms: i64,
    each: &mut impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if status.progress_total_bytes > 0 {
        one.bar.set_length(status.progress_total_bytes);
        one.bar.set_position(status.progress_done_bytes);
    }
    let problem = status
        .findings
        .first()
        .map(|finding| format!(" ({})", finding.summary))
        .unwrap_or_default();
    one.bar
        .set_message(format!("{}{problem}", state_name(status)));
    for new in &status.recovery_points {
        if new.time_unix_ms < start_unix_ms || one.seen.contains(&new.id) {
            continue;
        }
        one.seen.push(new.id.clone());
        one.first.get_or_insert(begin.elapsed().as_secs_f64());
        let mut value = point(new);
        value["name"] = json!(one.vm.name);
        value["item"] = json!(one.item);
        one.bar.suspend(|| each(&value))?;
    }
    Ok(())
}

/// Why waiting longer is of no use.
fn hopeless(status: &v1::ReplicationStatus) -> Option<String> {
    let finding = status.findings.first();
    match status.state() {
        State::Fenced => Some(
            "the store holds a newer generation; give a higher --generation to take the replica over"
                .to_owned(),
        ),
        State::Blocked => Some(finding.map_or_else(
            || "it can't go on by itself".to_owned(),
            |finding| {
                format!(
                    "{} {} {}",
                    finding.summary, finding.possible_causes, finding.recommended_action
                )
            },
        )),
        _ => None,
    }
}

fn stuck(one: &Running, status: Option<&v1::ReplicationStatus>) -> String {
    let finding = status.and_then(|status| status.findings.first());
    match finding {
        Some(finding) => format!(
            "{}: {} {}",
            one.vm.name, finding.summary, finding.possible_causes
        ),
        None => format!(
            "{} is {}",
            one.vm.name,
            status.map_or("not started", |status| state_name(status))
        ),
    }
}

fn state_name(status: &v1::ReplicationStatus) -> &'static str {
    match status.state() {
        State::Unspecified | State::Starting => "starting",
        State::InitialReplication => "initial replication",
        State::Protected => "protected",
        State::Comparing => "comparing",
        State::Blocked => "blocked",
        State::Retired => "retired",
        State::Fenced => "fenced",
        State::Held => "held",
    }
}

fn point(point: &v1::RecoveryPoint) -> Value {
    json!({
        "id": point.id,
        "timeUnixMs": point.time_unix_ms,
        "position": point.position,
        "changedBytes": point.changed_bytes,
        "sentBytes": point.sent_bytes,
    })
}
