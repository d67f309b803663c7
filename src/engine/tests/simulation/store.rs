//! Looks at every durable step of the store: fails some of them in all three ways, and raises the alarm when an
//! engine whose generation was superseded changes a replica.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use replica_store::fault::{Fault, Faults, StepKind};

use super::faults::Random;
use super::trace::Trace;

/// The highest generation that each item's store has acknowledged, and broken promises.
#[derive(Clone, Default)]
pub struct Fences(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    generations: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl Fences {
    pub fn violations(&self) -> Vec<String> {
        self.0.lock().unwrap().violations.clone()
    }

    /// Reads the generation that is in force, which a step before may have raised.
    fn look(&self, store: &Path, item: &str, path: &Path) -> u64 {
        let file = path
            .ancestors()
            .find(|folder| folder.file_name().is_some_and(|name| name == item))
            .unwrap_or(store)
            .join("generation");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let number = text
            .split_once('\n')
            .and_then(|(_, body)| serde_json::from_str::<serde_json::Value>(body).ok())
            .and_then(|value| value.get("generation").and_then(serde_json::Value::as_u64));
        let mut known = self.0.lock().unwrap();
        let highest = known.generations.entry(item.to_owned()).or_default();
        *highest = (*highest).max(number.unwrap_or(0));
        *highest
    }

    fn violation(&self, what: String) {
        self.0.lock().unwrap().violations.push(what);
    }
}

/// One life of one engine as the store sees it.
pub struct Watched {
    store: PathBuf,
    engine: &'static str,
    /// Highest generation that the engine was ever given, by item.
    given: Arc<Mutex<BTreeMap<String, u64>>>,
    fences: Fences,
    trace: Trace,
    state: Mutex<State>,
}

struct State {
    away: bool,
    percent: u64,
    random: Random,
}

impl Watched {
    pub fn new(
        store: PathBuf,
        engine: &'static str,
        given: Arc<Mutex<BTreeMap<String, u64>>>,
        fences: Fences,
        trace: Trace,
        (seed, percent): (u64, u64),
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            engine,
            given,
            fences,
            trace,
            state: Mutex::new(State {
                away: false,
                percent,
                random: Random::new(seed),
            }),
        })
    }

    pub fn set_away(&self, away: bool) {
        self.state.lock().unwrap().away = away;
    }

    /// `vault/item/rest`.
    fn parts<'a>(&self, path: &'a Path) -> Option<(&'a str, String)> {
        let inside = path.strip_prefix(&self.store).ok()?;
        let mut parts = inside.components().map(|part| part.as_os_str().to_str());
        let (_vault, item) = (parts.next()??, parts.next()??);
        let rest: Vec<&str> = parts.flatten().collect();
        Some((item, rest.join("/")))
    }

    fn check_fence(&self, kind: StepKind, path: &Path) {
        let Some((item, rest)) = self.parts(path) else {
            return;
        };
        let now = self.fences.look(&self.store, item, path);
        let mine = self.given.lock().unwrap().get(item).copied().unwrap_or(0);
        let written = rest
            .strip_prefix("journal/")
            .and_then(|name| name.split_once('-'))
            .and_then(|(generation, _)| generation.parse::<u64>().ok());
        let changes = match kind {
            StepKind::Rename => true,
            StepKind::Write | StepKind::Zero | StepKind::SetLength => rest.ends_with("base.vhd"),
            StepKind::Remove => !rest.contains(".tmp-"),
            _ => false,
        };
        let stale = match (kind, written) {
            (StepKind::Rename, Some(generation)) => generation < now,
            _ => changes && mine < now,
        };
        if stale {
            self.fences.violation(format!(
                "{} of generation {mine} did {kind:?} {rest} though the store is at {now}",
                self.engine
            ));
        }
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl Faults for Watched {
    fn before(&self, kind: StepKind, path: &Path) -> Fault {
        let fault = {
            let mut state = self.state.lock().unwrap();
            let percent = state.percent;
            if state.away {
                Fault::Fail(std::io::ErrorKind::HostUnreachable)
            } else if percent == 0 || !state.random.chance(percent) {
                Fault::None
            } else {
                match state.random.below(3) {
                    0 => Fault::Fail(std::io::ErrorKind::StorageFull),
                    1 => Fault::Torn(std::io::ErrorKind::TimedOut),
                    _ => Fault::DoneButFails(std::io::ErrorKind::TimedOut),
                }
            }
        };
        match fault {
            Fault::None => {}
            Fault::Fail(std::io::ErrorKind::HostUnreachable) => {}
            Fault::Fail(_) => self.trace.inject("store: not done"),
            Fault::Torn(_) => self.trace.inject("store: torn"),
            Fault::DoneButFails(_) => self.trace.inject("store: done, but told otherwise"),
        }
        if !matches!(fault, Fault::Fail(_)) {
            self.check_fence(kind, path);
        }
        let is_merged = |name: &str| name.ends_with(".hrl") && name.matches('-').count() > 1;
        let name = path.file_name().and_then(|name| name.to_str());
        if kind == StepKind::Rename && name.is_some_and(is_merged) {
            self.trace.inject("journal objects merged");
        }
        // Names hold ids that are drawn; the kind of the step and its folder are the same each time.
        let folder = path
            .parent()
            .and_then(|folder| folder.strip_prefix(&self.store).ok());
        let folder = folder.unwrap_or(Path::new("")).display();
        self.trace
            .event(&format!("{} {kind:?} in {folder} {fault:?}", self.engine));
        fault
    }
}
