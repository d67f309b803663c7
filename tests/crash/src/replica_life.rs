//! What the lives of a replica in a folder have in common: power that fails before each step, the states that it may
//! leave on their way to the checkers, and the count of what they find.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use replica_store::StoreError;
use replica_store::fault::Faults;

use crate::power_folder::{Cut, PowerFolder, Tree};
use crate::tally::Tally;

/// What was promised until the power failed, by position.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Points whose adding came back.
    pub acknowledged: BTreeSet<u64>,
    /// Points that retention was asked to let go.
    pub retirable: BTreeSet<u64>,
}

/// Where a life takes place.
pub struct Powered<'a> {
    /// The store.
    pub folder: &'a Path,
    /// The power that fails.
    pub faults: Arc<dyn Faults>,
    /// What the life has to keep up to date.
    pub known: Arc<Mutex<Known>>,
}

/// One state on its way to a checker.
type Job = (String, Tree, Known);

/// A life and the promise that holds wherever it is cut.
pub struct Enumeration<'a> {
    /// What is cut.
    pub component: &'static str,
    /// Draws the states.
    pub seed: u64,
    /// Whether the power may fail by now.
    pub may_fail: fn(&Known) -> bool,
    /// The life, from beginning to end.
    pub live: &'a dyn Fn(Powered<'_>) -> Result<(), String>,
    /// What a reader finds in a folder after the power loss, and what a restarted engine makes of it.
    pub check: &'a (dyn Fn(&Path, &Known) -> Result<(), String> + Sync),
}

impl Enumeration<'_> {
    /// Lives once, and checks what a power loss before each step would leave.
    pub fn run(&self) -> Tally {
        let begin = Instant::now();
        let tally = Mutex::new(Tally::new(self.component));
        let note = |place: &str, checked: Result<(), String>| {
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.state(&place, checked);
        };
        let check = self.check;
        let (sender, receiver) = sync_channel::<Job>(4);
        let receiver = Mutex::new(receiver);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let next = receiver
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .recv();
                        let Ok((place, tree, known)) = next else {
                            return;
                        };
                        note(&place, restored(&tree, &known, check));
                    }
                });
            }
            let cuts = Arc::new(Mutex::new(0));
            if let Err(error) = self.powered(sender, cuts.clone()) {
                note("the life without any cut", Err(error));
            }
            let cuts = *cuts.lock().unwrap_or_else(PoisonError::into_inner);
            tally.lock().unwrap_or_else(PoisonError::into_inner).cuts = cuts;
        });
        let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        tally.took = begin.elapsed();
        tally
    }

    fn powered(&self, sender: SyncSender<Job>, cuts: Arc<Mutex<u64>>) -> Result<(), String> {
        let folder = scratch().map_err(|error| error.to_string())?;
        let known = Arc::new(Mutex::new(Known::default()));
        let (seed, may_fail, seen) = (self.seed, self.may_fail, known.clone());
        let on_cut = Box::new(move |cut: Cut| {
            let known = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if !may_fail(&known) {
                return;
            }
            let mut cuts = cuts.lock().unwrap_or_else(PoisonError::into_inner);
            *cuts += 1;
            for (rule, tree) in cut.states {
                let place = format!("seed {seed}, cut {} ({}), {rule}", *cuts, cut.step);
                // The checkers are gone only when one of them panicked, which ends the run anyway.
                sender
                    .send((place, tree, known.clone()))
                    .unwrap_or_default();
            }
        });
        let double =
            PowerFolder::new(folder.path(), seed, on_cut).map_err(|error| error.to_string())?;
        let double = Arc::new(double);
        (self.live)(Powered {
            folder: folder.path(),
            faults: double.clone(),
            known,
        })?;
        double.end();
        Ok(())
    }
}

fn restored(
    tree: &Tree,
    known: &Known,
    check: &dyn Fn(&Path, &Known) -> Result<(), String>,
) -> Result<(), String> {
    let folder = scratch().map_err(|error| error.to_string())?;
    tree.restore(folder.path())
        .map_err(|error| error.to_string())?;
    check(folder.path(), known)
}

/// In memory where the machine has such a place: the power is only said to fail.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// For one life or one check.
pub fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
}

/// An error as the tally shows it.
#[expect(
    clippy::needless_pass_by_value,
    reason = "goes where `map_err` wants a function"
)]
pub fn text(error: StoreError) -> String {
    error.to_string()
}
