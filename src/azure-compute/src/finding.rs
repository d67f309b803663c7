//! What planning found out: everything at once, each with a next step.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    /// Good to know.
    Note,
    /// Works, but probably not as wished.
    Warning,
    /// The VM can't be made like this.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// Kind and name of the object, such as `disk data-1`.
    pub about: String,
    /// What is the matter.
    pub text: String,
    /// What to do next.
    pub next_step: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.about, self.text, self.next_step)
    }
}

/// Findings as they are collected.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn error(&mut self, about: &str, text: impl Into<String>, next: impl Into<String>) {
        self.add(Severity::Error, about, text, next);
    }

    pub(crate) fn warning(
        &mut self,
        about: &str,
        text: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(Severity::Warning, about, text, next);
    }

    pub(crate) fn note(&mut self, about: &str, text: impl Into<String>, next: impl Into<String>) {
        self.add(Severity::Note, about, text, next);
    }

    fn add(
        &mut self,
        severity: Severity,
        about: &str,
        text: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.0.push(Finding {
            severity,
            about: about.to_owned(),
            text: text.into(),
            next_step: next.into(),
        });
    }
}
