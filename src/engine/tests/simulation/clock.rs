//! The time of the simulated world: runs with the timers, and jumps when told to.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

#[derive(Clone)]
pub struct Clock(Arc<Mutex<State>>);

struct State {
    base_ms: i64,
    since: Option<Instant>,
}

impl Clock {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            base_ms: 1_700_000_000_000,
            since: None,
        })))
    }

    /// A life begins: its timers start at zero.
    pub fn begin(&self) {
        self.0.lock().unwrap().since = Some(Instant::now());
    }

    /// A life ends: what has passed stays passed.
    pub fn end(&self) {
        let now = self.now();
        *self.0.lock().unwrap() = State {
            base_ms: now,
            since: None,
        };
    }

    pub fn now(&self) -> i64 {
        let state = self.0.lock().unwrap();
        let passed = state
            .since
            .map_or(0, |since| since.elapsed().as_millis() as i64);
        state.base_ms + passed
    }

    pub fn jump(&self, by_ms: i64) {
        self.0.lock().unwrap().base_ms += by_ms;
    }
}
