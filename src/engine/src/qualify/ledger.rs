//! What came of each assumption, and which one a failure is charged to.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use hypervisor::HypervisorError;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::assumptions::{self, Assumption, Kind, Step};

/// The verdict on an assumption.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It holds here.
    Holds,
    /// It does not: the error as it came.
    Broken(String),
    /// Why not.
    NotTried(String),
}

/// A verdict with what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// By name, with the unit in it.
    pub figures: Map<String, Value>,
}

/// Why something does not hold.
#[derive(Debug)]
pub struct Problem(String);

impl From<HypervisorError> for Problem {
    fn from(error: HypervisorError) -> Self {
        // Its kind and all causes.
        Self(format!("{error:?}"))
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Self(format!("{error:#}"))
    }
}

impl Problem {
    /// An answer that came, and is wrong.
    pub fn wrong(text: impl fmt::Display) -> Self {
        Self(format!("wrong answer: {text}"))
    }
}

/// The step can't go on; names what it is because of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop(pub &'static str);

/// In place of an assumption's id.
pub const INTERRUPTED: &str = "interrupt";

/// What was measured while something was proven.
#[derive(Debug, Default)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Adds bytes that went through in a time.
    pub fn rate(&mut self, bytes: u64, time: Duration) {
        self.add("bytes", bytes);
        let seconds = time.as_secs_f64();
        if seconds > 0.0 {
            self.add("bytesPerSecond", (bytes as f64 / seconds) as u64);
        }
    }
}

/// Verdicts of one run.
pub struct Ledger {
    kind: Kind,
    outcomes: BTreeMap<&'static str, Outcome>,
    /// Names of the host's own that errors shall not show, with what stands for them.
    private: Vec<(String, &'static str)>,
    stop: CancellationToken,
    /// When the line before was settled, or the step begun.
    since: Instant,
}

impl Ledger {
    /// Empty. `stop` ends the run before the next thing that is proven.
    pub fn new(kind: Kind, stop: CancellationToken) -> Self {
        Self {
            kind,
            outcomes: BTreeMap::new(),
            private: Vec::new(),
            stop,
            since: Instant::now(),
        }
    }

    /// Whether somebody wants the run to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// From here on errors say `instead` for `name`.
    pub fn hide(&mut self, name: &str, instead: &'static str) {
        if !name.is_empty() {
            self.private.push((name.to_owned(), instead));
        }
    }

    fn without_names(&self, text: &str) -> String {
        self.private
            .iter()
            .fold(text.to_owned(), |text, (name, instead)| {
                text.replace(name, instead)
            })
    }

    /// A step begins: what it takes counts from here.
    pub fn begin(&mut self) {
        self.since = Instant::now();
    }

    /// Does what proves `ids`, those of other drivers left out, and measures how long it took since the line
    /// before. When it fails, one of them is
    /// broken: [`charged`].
    ///
    /// # Errors
    /// What is broken.
    pub async fn prove<T>(
        &mut self,
        ids: &[&'static str],
        work: impl Future<Output = Result<(T, Figures), Problem>>,
    ) -> Result<T, Stop> {
        if self.is_stopped() {
            return Err(Stop(INTERRUPTED));
        }
        let done = work.await;
        // Also of what the caller did for it before.
        let time = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since = Instant::now();
        let lines: Vec<&Assumption> = ids
            .iter()
            .filter_map(|id| assumptions::of(self.kind).find(|one| one.id == *id))
            .collect();
        match done {
            Ok((value, mut figures)) => {
                figures.add("milliseconds", time);
                for line in lines {
                    let figures = figures.0.clone();
                    self.settle(line.id, Verdict::Holds, figures);
                }
                Ok(value)
            }
            Err(Problem(text)) => {
                let broken = charged(self.kind, &lines, &text);
                let text = self.without_names(&text);
                let figures = Map::from_iter([("milliseconds".to_owned(), time.into())]);
                self.settle(broken, Verdict::Broken(text), figures);
                for line in lines.into_iter().filter(|line| line.id != broken) {
                    let why = Verdict::NotTried(because(broken));
                    self.settle(line.id, why, Map::new());
                }
                Err(Stop(broken))
            }
        }
    }

    /// A broken line stays broken, and one that was told is not untold.
    fn settle(&mut self, id: &'static str, verdict: Verdict, figures: Map<String, Value>) {
        let known = self.outcomes.get(id).map(|one| &one.verdict);
        match (known, &verdict) {
            (Some(Verdict::Broken(_)), _) | (Some(Verdict::Holds), Verdict::NotTried(_)) => {}
            _ => {
                self.outcomes.insert(id, Outcome { verdict, figures });
            }
        }
    }

    /// All of a step that was not tried is so because of `cause`.
    pub fn leave(&mut self, step: Step, cause: Stop) {
        for line in assumptions::of(self.kind).filter(|one| one.step == step) {
            // Told by all the others, at the end.
            if line.id != RIGHTS {
                self.settle_missing(line.id, because(cause.0));
            }
        }
    }

    fn settle_missing(&mut self, id: &'static str, why: String) {
        self.outcomes.entry(id).or_insert(Outcome {
            verdict: Verdict::NotTried(why),
            figures: Map::new(),
        });
    }

    /// Every assumption of the driver with what came of it.
    pub fn close(mut self) -> Vec<(&'static Assumption, Outcome)> {
        let mut tried = self.outcomes.values();
        if tried.any(|one| one.verdict == Verdict::Holds) {
            self.outcomes.entry(RIGHTS).or_insert(Outcome {
                verdict: Verdict::Holds,
                figures: Map::new(),
            });
        }
        for line in assumptions::of(self.kind) {
            let why = line.untried.unwrap_or("the step did not come to it");
            self.settle_missing(line.id, why.to_owned());
        }
        assumptions::of(self.kind)
            .filter_map(|line| Some((line, self.outcomes.remove(line.id)?)))
            .collect()
    }
}

const RIGHTS: &str = "hyperv-rights";

fn because(cause: &str) -> String {
    format!("because of {cause}")
}

/// Which of `lines` a failure is charged to: missing rights are nobody else's fault; else the one whose call the error names;
/// else the last that names none.
fn charged(kind: Kind, lines: &[&Assumption], text: &str) -> &'static str {
    if kind == Kind::Hyperv && text.contains("Hyper-V Administrators") {
        return RIGHTS;
    }
    let named = lines
        .iter()
        .find(|line| !line.call.is_empty() && text.contains(line.call));
    let any = lines.iter().rev().find(|line| line.call.is_empty());
    named.or(any).or(lines.first()).map_or("", |line| line.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ledger: Ledger, id: &str) -> Verdict {
        let all = ledger.close();
        let found = all.into_iter().find(|(line, _)| line.id == id);
        found.unwrap().1.verdict
    }

    async fn after(kind: Kind, error: &str) -> (Ledger, Stop) {
        let mut ledger = Ledger::new(kind, CancellationToken::new());
        ledger.hide("/secret", "<folder>");
        let ids = ["hyperv-define", "hyperv-resources", "create-vm"];
        let stop = ledger
            .prove(&ids, async {
                Err::<((), Figures), _>(Problem(error.to_owned()))
            })
            .await
            .unwrap_err();
        (ledger, stop)
    }

    #[tokio::test]
    async fn a_failure_is_charged_to_the_call_that_it_names_and_shows_no_private_name() {
        let (ledger, stop) = after(Kind::Hyperv, "AddResourceSettings: in /secret/x").await;
        assert_eq!(stop, Stop("hyperv-resources"));
        let expected = Verdict::Broken("AddResourceSettings: in <folder>/x".to_owned());
        assert_eq!(verdict(ledger, "hyperv-resources"), expected);
        let (ledger, stop) = after(Kind::Hyperv, "something").await;
        assert_eq!(stop, Stop("create-vm"));
        let expected = Verdict::NotTried("because of create-vm".to_owned());
        assert_eq!(verdict(ledger, "hyperv-define"), expected);
        assert_eq!(after(Kind::Qemu, "DefineSystem").await.1, Stop("create-vm"));
        let denied = "DefineSystem: put it into Hyper-V Administrators";
        assert_eq!(after(Kind::Hyperv, denied).await.1, Stop(RIGHTS));
    }

    #[tokio::test]
    async fn what_was_broken_once_stays_broken_and_an_interrupt_breaks_nothing() {
        let (mut ledger, _) = after(Kind::Qemu, "no").await;
        let good = async { Ok(((), Figures::default())) };
        ledger.prove(&["create-vm"], good).await.unwrap();
        assert!(matches!(verdict(ledger, "create-vm"), Verdict::Broken(_)));
        let stop = CancellationToken::new();
        stop.cancel();
        let mut ledger = Ledger::new(Kind::Qemu, stop);
        let good = async { Ok(((), Figures::default())) };
        let cause = ledger.prove(&["start"], good).await.unwrap_err();
        ledger.leave(Step::Start, cause);
        let expected = Verdict::NotTried("because of interrupt".to_owned());
        assert_eq!(verdict(ledger, "start"), expected);
    }
}
