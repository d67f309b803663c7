//! What was tried, what was found, and the table of it.

use std::fmt::Write as _;
use std::time::Duration;

/// So many violations of one component are printed.
const SHOWN: usize = 5;

/// The count of one component.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// What was cut.
    pub component: &'static str,
    /// Places at which the power went off.
    pub cuts: u64,
    /// States that were opened again.
    pub states: u64,
    /// Broken promises.
    pub violations: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Tally {
    /// Nothing tried yet.
    pub fn new(component: &'static str) -> Self {
        Tally {
            component,
            ..Tally::default()
        }
    }

    /// Notes the result of one state.
    pub fn state(&mut self, place: &dyn std::fmt::Display, checked: Result<(), String>) {
        self.states += 1;
        if let Err(broken) = checked {
            self.violations.push(format!("{place}: {broken}"));
        }
    }
}

/// A table for people, violations behind it.
pub fn table(tallies: &[Tally]) -> String {
    let mut out = format!(
        "{:<34} {:>8} {:>16} {:>11} {:>8}\n",
        "component", "cuts", "states reopened", "violations", "seconds"
    );
    for tally in tallies {
        let _ = writeln!(
            out,
            "{:<34} {:>8} {:>16} {:>11} {:>8.1}",
            tally.component,
            tally.cuts,
            tally.states,
            tally.violations.len(),
            tally.took.as_secs_f64()
        );
    }
    for tally in tallies {
        for violation in tally.violations.iter().take(SHOWN) {
            let _ = writeln!(out, "VIOLATION {}: {violation}", tally.component);
        }
    }
    out
}
