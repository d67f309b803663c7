//! The report: one line an assumption, for people and for programs. It names nothing of the host but what it runs.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::assumptions::{Assumption, Kind, Step};
use super::ledger::{Outcome, Verdict};
use crate::progress;

/// Of one run.
pub struct Report {
    /// Which driver.
    pub kind: Kind,
    /// Operating system and hypervisor; none when the host did not answer.
    pub host: Option<Value>,
    /// When it began.
    pub began_unix_ms: i64,
    /// How long it took.
    pub seconds: f64,
    /// Every assumption of the driver.
    pub lines: Vec<(&'static Assumption, Outcome)>,
    /// Whether somebody ended it.
    pub interrupted: bool,
    /// What could not be taken away, and why.
    pub left: Option<String>,
}

impl Report {
    /// Whether all that was tried holds, something was, and nothing is left.
    pub fn holds(&self) -> bool {
        let (holds, broken, _) = self.count();
        holds > 0 && broken == 0 && self.left.is_none() && !self.interrupted
    }

    /// How many hold, are broken, were not tried.
    pub fn count(&self) -> (usize, usize, usize) {
        let of = |wanted: fn(&Verdict) -> bool| {
            let all = self.lines.iter();
            all.filter(|(_, outcome)| wanted(&outcome.verdict)).count()
        };
        (
            of(|one| *one == Verdict::Holds),
            of(|one| matches!(one, Verdict::Broken(_))),
            of(|one| matches!(one, Verdict::NotTried(_))),
        )
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let (holds, broken, not_tried) = self.count();
        json!({
            "kind": "qualification of a host",
            "formatVersion": 1,
            "engineVersion": env!("CARGO_PKG_VERSION"),
            "driver": self.kind,
            "host": self.host,
            "beganUnixMs": self.began_unix_ms,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "left": self.left,
            "holds": holds,
            "broken": broken,
            "notTried": not_tried,
            "assumptions": self.lines.iter().map(|(line, outcome)| value(line, outcome)).collect::<Vec<_>>(),
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let (holds, broken, not_tried) = self.count();
        let host = |name: &str| {
            let found = self.host.as_ref().and_then(|host| host.get(name));
            found.and_then(Value::as_str).unwrap_or("unknown")
        };
        let driver = match self.kind {
            Kind::Qemu => "qemu",
            Kind::Hyperv => "hyperv",
        };
        let accelerated = self.host.as_ref().and_then(|host| host.get("accelerated"));
        let speed = match accelerated.and_then(Value::as_bool) {
            Some(true) => "hardware speed",
            Some(false) => "software emulation",
            None => "speed unknown",
        };
        // Writing to a text does not fail.
        let _ = writeln!(
            text,
            "Qualification of driver {driver}, engine {}\n{}; hypervisor {} ({speed})",
            env!("CARGO_PKG_VERSION"),
            host("operatingSystem"),
            host("hypervisorVersion"),
        );
        for step in Step::ALL {
            let lines: Vec<_> = self
                .lines
                .iter()
                .filter(|(line, _)| line.step == step)
                .collect();
            if lines.is_empty() {
                continue;
            }
            let _ = writeln!(text, "\n{}", step.name());
            for (line, outcome) in lines {
                write_line(&mut text, line, outcome);
            }
        }
        let _ = writeln!(
            text,
            "\n{holds} hold, {broken} broken, {not_tried} not tried, in {:.1} s",
            self.seconds
        );
        if self.interrupted {
            text.push_str("It was interrupted before its end.\n");
        }
        if let Some(left) = &self.left {
            let _ = writeln!(
                text,
                "NOT CLEANED UP: {left}\nRun `siterecovery-engine qualify --clean-up` with the same --folder."
            );
        }
        text
    }
}

fn value(line: &Assumption, outcome: &Outcome) -> Value {
    let (verdict, reason) = match &outcome.verdict {
        Verdict::Holds => ("holds", None),
        Verdict::Broken(error) => ("broken", Some(("error", error))),
        Verdict::NotTried(why) => ("not tried", Some(("reason", why))),
    };
    let mut value = json!({
        "id": line.id,
        "step": line.step.name(),
        "assumption": line.text,
        "source": line.source,
        "verdict": verdict,
        "figures": outcome.figures,
    });
    if let Some((name, text)) = reason {
        value[name] = json!(text);
    }
    value
}

fn write_line(text: &mut String, line: &Assumption, outcome: &Outcome) {
    let verdict = match outcome.verdict {
        Verdict::Holds => "holds",
        Verdict::Broken(_) => "BROKEN",
        Verdict::NotTried(_) => "not tried",
    };
    let figures = figures(&outcome.figures);
    let figures = if figures.is_empty() {
        figures
    } else {
        format!(" [{figures}]")
    };
    let _ = writeln!(
        text,
        "  {verdict:<9}  {:<20}  {}{figures}",
        line.id, line.text
    );
    match &outcome.verdict {
        Verdict::Holds => {}
        Verdict::Broken(error) => {
            let _ = writeln!(
                text,
                "{:13}error: {error}\n{:13}source: {}",
                "", "", line.source
            );
        }
        Verdict::NotTried(why) => {
            let _ = writeln!(text, "{:13}not tried: {why}", "");
        }
    }
}

fn figures(all: &Map<String, Value>) -> String {
    let shown = all
        .iter()
        .map(|(name, value)| match (name.as_str(), value.as_u64()) {
            ("bytesPerSecond", Some(bytes)) => format!("{}/s", progress::human_bytes(bytes)),
            ("bytes", Some(bytes)) => progress::human_bytes(bytes),
            ("milliseconds", Some(milliseconds)) => format!("{milliseconds} ms"),
            (name, Some(bytes)) if name.ends_with("Bytes") => {
                format!("{} {}", words(name, "Bytes"), progress::human_bytes(bytes))
            }
            (name, Some(milliseconds)) if name.ends_with("Milliseconds") => {
                format!("{} {milliseconds} ms", words(name, "Milliseconds"))
            }
            (name, _) => match value {
                Value::String(value) => format!("{} {value}", words(name, "")),
                other => format!("{} {other}", words(name, "")),
            },
        });
    shown.collect::<Vec<_>>().join(", ")
}

/// `guestHeldMilliseconds` without its unit: `guest held`.
fn words(name: &str, unit: &str) -> String {
    let mut words = String::new();
    for letter in name.strip_suffix(unit).unwrap_or(name).chars() {
        if letter.is_uppercase() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}
