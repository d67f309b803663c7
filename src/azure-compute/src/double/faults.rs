//! What networks and regions do to a call, on demand.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A call as the service sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `PUT`, `GET` ...
    pub method: String,
    /// Path as it was sent, without its query.
    pub path: String,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends, nothing was done.
    DropBefore,
    /// It is done, then the connection ends without an answer.
    DropAfter,
    /// It is not done, and this is the answer.
    Refuse {
        /// Status.
        status: u16,
        /// Error code.
        code: &'static str,
        /// `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// It is done, and this is the answer all the same.
    DoneBut {
        /// Status.
        status: u16,
        /// Error code.
        code: &'static str,
    },
    /// It is accepted, and its operation fails with this code.
    FailLater(&'static str),
}

/// Which calls a fault happens to.
pub struct Rule {
    matches: Box<dyn Fn(&Call) -> bool + Send>,
    times: u32,
    fault: Fault,
}

impl Rule {
    /// The next call that matches.
    pub fn once(fault: Fault, matches: impl Fn(&Call) -> bool + Send + 'static) -> Self {
        Rule {
            matches: Box::new(matches),
            times: 1,
            fault,
        }
    }

    /// The next so many of them.
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule")
            .field("times", &self.times)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

/// Switchboard of faults, and a record of what was called.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    rules: Vec<Rule>,
    chaos: Option<(u64, u64)>,
    calls: Vec<Call>,
}

impl Faults {
    /// Adds a rule; the first that matches counts.
    pub fn add(&self, rule: Rule) {
        self.with(|inner| inner.rules.push(rule));
    }

    /// From here on so many calls of a thousand meet a random fault; 0 ends it.
    pub fn chaos(&self, seed: u64, per_mille: u64) {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        self.with(|inner| inner.chaos = (per_mille > 0).then_some((state, per_mille)));
    }

    /// Whether every rule was used up.
    pub fn used_up(&self) -> bool {
        self.with(|inner| inner.rules.is_empty())
    }

    /// All calls so far, those that faults happened to included; tokens are not among them.
    pub fn calls(&self) -> Vec<Call> {
        self.with(|inner| inner.calls.clone())
    }

    pub(super) fn of(&self, call: &Call) -> Option<Fault> {
        self.with(|inner| {
            inner.calls.push(call.clone());
            let Some(index) = inner.rules.iter().position(|rule| (rule.matches)(call)) else {
                return inner.chaos.as_mut().and_then(random);
            };
            let rule = inner.rules.get_mut(index)?;
            rule.times = rule.times.saturating_sub(1);
            let fault = rule.fault;
            if rule.times == 0 {
                inner.rules.remove(index);
            }
            Some(fault)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn random((state, per_mille): &mut (u64, u64)) -> Option<Fault> {
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    if next() % 1000 >= *per_mille {
        return None;
    }
    Some(match next() % 5 {
        0 => Fault::DropBefore,
        1 => Fault::DropAfter,
        2 => Fault::DoneBut {
            status: 500,
            code: "InternalServerError",
        },
        3 => Fault::Refuse {
            status: 429,
            code: "TooManyRequests",
            retry_after: Some(0),
        },
        _ => Fault::Refuse {
            status: 503,
            code: "ServerBusy",
            retry_after: None,
        },
    })
}
