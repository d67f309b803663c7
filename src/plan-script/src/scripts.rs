//! All scripts of a program: takes orders, knows their states over restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::folder;
use crate::note::{Notes, Outcome, Status};
use crate::process::{self, Gated};

/// A note is kept for so long after its order was withdrawn: a lost and repeated order finds it.
const KEEP_MS: i64 = 30 * 24 * 3_600 * 1_000;

/// What to run.
#[derive(Debug, Clone)]
pub struct Order {
    /// The same for each repetition of the order: hexadecimal digits and hyphens.
    pub id: String,
    /// File inside the scripts folder.
    pub path: String,
    /// Given on standard input, and in a file.
    pub context: String,
    /// Longest time it may take.
    pub limit: Duration,
    /// It may run again when its end is unknown.
    pub repeatable: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Scripts {
    folder: Option<PathBuf>,
    notes: Notes,
    known: Mutex<BTreeMap<String, Known>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Known {
    status: Status,
    withdraw: Option<oneshot::Sender<()>>,
}

impl Scripts {
    /// Takes up the notes of an earlier run: what it left running is killed, and its end is unknown.
    ///
    /// # Errors
    /// When the notes can't be read or written.
    pub fn open(folder: Option<PathBuf>, notes: PathBuf) -> io::Result<Arc<Self>> {
        let notes = Notes::open(notes)?;
        let mut known = BTreeMap::new();
        let now = now_ms();
        for mut status in notes.read()? {
            if status.outcome == Outcome::Running {
                if let Some((group, born)) = status.process {
                    process::kill_left_behind(group, born);
                }
                status.outcome = Outcome::Unknown;
                status.ended_unix_ms = now;
                notes.write(&status)?;
                notes.remove_context(&status.id);
            }
            if now.saturating_sub(status.ended_unix_ms) > KEEP_MS {
                notes.remove(&status.id)?;
                continue;
            }
            let withdraw = None;
            known.insert(status.id.clone(), Known { status, withdraw });
        }
        Ok(Arc::new(Self {
            folder,
            notes,
            known: Mutex::new(known),
            changed: watch::Sender::new(0),
        }))
    }

    /// Wakes when a state changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What is known of an order.
    #[must_use]
    pub fn status(&self, id: &str) -> Option<Status> {
        self.lock().get(id).map(|known| known.status.clone())
    }

    /// Carries an order out, once. Repeating it changes nothing.
    pub async fn take(self: &Arc<Self>, order: &Order) {
        let attempts = match self.status(&order.id) {
            Some(status) if status.outcome == Outcome::Unknown && order.repeatable => {
                status.attempts
            }
            Some(_) => return,
            None => 0,
        };
        let mut status = Status {
            id: order.id.clone(),
            outcome: Outcome::Running,
            output: String::new(),
            started_unix_ms: now_ms(),
            ended_unix_ms: 0,
            attempts: attempts + 1,
            process: None,
        };
        if !is_plain(&order.id) {
            // Told only: its note would be a file of that name, wherever the id leads.
            status.outcome = Outcome::Refused("the order's id is not one".to_owned());
            status.ended_unix_ms = now_ms();
            self.show(status, None);
            return;
        }
        let (this, wanted) = (Arc::clone(self), order.clone());
        let begun = tokio::task::spawn_blocking(move || this.begin(&wanted)).await;
        let begun = begun.unwrap_or_else(|error| Err(error.to_string()));
        // Behind the gate nothing has run yet: the note comes first.
        let gated = match begun {
            Ok((gated, script)) => {
                status.process = process::birth(gated.group).map(|born| (gated.group, born));
                Ok((gated, script))
            }
            Err(reason) => {
                status.outcome = Outcome::Refused(reason);
                status.ended_unix_ms = now_ms();
                Err(())
            }
        };
        if let Err(error) = self.store(&status).await {
            status.outcome = Outcome::Refused(format!("its start can't be noted: {error}"));
            status.ended_unix_ms = now_ms();
            self.show(status, None);
            return;
        }
        let Ok((gated, script)) = gated else {
            self.show(status, None);
            return;
        };
        tracing::info!(order = %order.id, script = %script.display(), "a script of a recovery plan starts");
        let (withdraw, withdrawn) = oneshot::channel();
        self.show(status.clone(), Some(withdraw));
        let (this, order) = (Arc::clone(self), order.clone());
        tokio::spawn(async move { this.follow(status, order, gated, withdrawn).await });
    }

    fn begin(&self, order: &Order) -> Result<(Gated, PathBuf), String> {
        let script = folder::resolve(self.folder.as_deref(), &order.path)
            .map_err(|refusal| refusal.to_string())?;
        let written = self.notes.write_context(&order.id, &order.context);
        written.map_err(|error| format!("its context can't be written: {error}"))?;
        let context = self.notes.context(&order.id);
        let gated = process::start(&script, &context)
            .map_err(|error| format!("{:?} can't be started: {error}", order.path))?;
        Ok((gated, script))
    }

    async fn follow(
        self: Arc<Self>,
        mut status: Status,
        order: Order,
        gated: Gated,
        withdrawn: oneshot::Receiver<()>,
    ) {
        let (outcome, output) = gated.run(&order.context, order.limit, withdrawn).await;
        status.outcome = outcome;
        status.output = output;
        status.ended_unix_ms = now_ms();
        status.process = None;
        if let Err(error) = self.store(&status).await {
            tracing::error!(order = %order.id, %error, "the result of a script can't be noted: after a restart it counts as unknown");
        }
        self.notes.remove_context(&order.id);
        tracing::info!(order = %order.id, outcome = ?status.outcome, "a script of a recovery plan ended");
        self.show(status, None);
    }

    /// Kills what runs and is not in `wanted`.
    pub fn withdraw_others(&self, wanted: &BTreeSet<String>) {
        for (id, known) in self.lock().iter_mut() {
            if !wanted.contains(id)
                && let Some(withdraw) = known.withdraw.take()
            {
                withdraw.send(()).ok();
            }
        }
    }

    /// Kills a script, if it runs.
    pub fn withdraw(&self, id: &str) {
        let withdraw = self
            .lock()
            .get_mut(id)
            .and_then(|known| known.withdraw.take());
        if let Some(withdraw) = withdraw {
            withdraw.send(()).ok();
        }
    }

    async fn store(self: &Arc<Self>, status: &Status) -> io::Result<()> {
        let (this, status) = (Arc::clone(self), status.clone());
        tokio::task::spawn_blocking(move || this.notes.write(&status))
            .await
            .map_err(io::Error::other)?
    }

    fn show(&self, status: Status, withdraw: Option<oneshot::Sender<()>>) {
        self.lock()
            .insert(status.id.clone(), Known { status, withdraw });
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder that scripts come from, if any.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

/// Whether an order's id may be the name of a file.
fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn now_ms() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000)
        .unwrap_or(i64::MAX)
}
