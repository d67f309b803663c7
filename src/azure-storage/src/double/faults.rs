//! What networks, services and regions do to a call, on demand.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// A call as the service sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `PUT`, `GET` ...
    pub method: String,
    /// Name of the blob, unescaped; empty for the container.
    pub blob: String,
    /// The `comp` of the query; empty without one.
    pub comp: String,
    /// Bytes of the body.
    pub body_length: usize,
}

/// What happens to a call.
#[derive(Clone, Debug)]
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
        /// `Retry-After`.
        retry_after_seconds: Option<u64>,
    },
    /// It is done, and this is the answer all the same.
    DoneBut {
        /// Status.
        status: u16,
        /// Error code.
        code: &'static str,
    },
    /// The answer's body ends in its middle.
    CutBody,
    /// One byte of the body is another one when it arrives.
    Damage,
    /// It waits until a permit is given, and is done then.
    Hold(Arc<Semaphore>),
}

/// Which calls a fault happens to.
pub struct Rule {
    matches: Box<dyn Fn(&Call) -> bool + Send>,
    skip: u32,
    times: u32,
    fault: Fault,
}

impl Rule {
    /// The next call that matches.
    pub fn once(fault: Fault, matches: impl Fn(&Call) -> bool + Send + 'static) -> Self {
        Rule {
            matches: Box::new(matches),
            skip: 0,
            times: 1,
            fault,
        }
    }

    /// The next so many of them.
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// After so many of them passed.
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
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

/// Random faults from a seed.
#[derive(Debug)]
struct Chaos {
    state: u64,
    per_mille: u64,
}

impl Chaos {
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn fault(&mut self) -> Option<Fault> {
        if self.next() % 1000 >= self.per_mille {
            return None;
        }
        Some(match self.next() % 7 {
            0 => Fault::DropBefore,
            1 => Fault::DropAfter,
            2 => Fault::CutBody,
            3 => Fault::Damage,
            4 => Fault::DoneBut {
                status: 500,
                code: "OperationTimedOut",
            },
            5 => Fault::Refuse {
                status: 503,
                code: "ServerBusy",
                retry_after_seconds: Some(1),
            },
            _ => Fault::Refuse {
                status: 500,
                code: "InternalError",
                retry_after_seconds: None,
            },
        })
    }
}

#[derive(Debug, Default)]
struct Inner {
    chaos: Option<Chaos>,
    rules: Vec<Rule>,
    outage: bool,
    calls: Vec<Call>,
}

impl Faults {
    /// Adds a rule; the first that matches counts.
    pub fn add(&self, rule: Rule) {
        self.with(|inner| inner.rules.push(rule));
    }

    /// A region that is down answers nothing at all.
    pub fn outage(&self, down: bool) {
        self.with(|inner| inner.outage = down);
    }

    /// From here on so many calls of a thousand meet a random fault; the seed says which, as long as calls come one
    /// after another.
    pub fn chaos(&self, seed: u64, per_mille: u64) {
        let chaos = Chaos {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            per_mille,
        };
        self.with(|inner| inner.chaos = (per_mille > 0).then_some(chaos));
    }

    /// Whether every rule was used up.
    pub fn used_up(&self) -> bool {
        self.with(|inner| inner.rules.is_empty())
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        self.with(|inner| inner.rules.clear());
    }

    /// All calls so far, those that faults happened to included.
    pub fn calls(&self) -> Vec<Call> {
        self.with(|inner| inner.calls.clone())
    }

    pub(super) fn of(&self, call: &Call) -> Option<Fault> {
        self.with(|inner| {
            inner.calls.push(call.clone());
            if inner.outage {
                return Some(Fault::DropBefore);
            }
            let Some(index) = inner.rules.iter().position(|rule| (rule.matches)(call)) else {
                return inner.chaos.as_mut().and_then(Chaos::fault);
            };
            let rule = inner.rules.get_mut(index)?;
            if rule.skip > 0 {
                rule.skip -= 1;
                return None;
            }
            rule.times = rule.times.saturating_sub(1);
            let fault = rule.fault.clone();
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
