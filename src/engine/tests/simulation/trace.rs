//! What happened, as one number: the same seed must give the same one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Counts of what was injected, by name.
pub type Injected = BTreeMap<&'static str, u64>;

#[derive(Default)]
struct Inner {
    hash: u64,
    events: u64,
    injected: Injected,
    told: bool,
}

/// Shared by everything that acts in a simulation.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<Inner>>);

impl Trace {
    /// With `told` every event is printed, for the eyes of whoever replays a seed.
    pub fn new(told: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            hash: 0xcbf2_9ce4_8422_2325,
            told,
            ..Inner::default()
        })))
    }

    /// Something happened. Ids drawn at random must not be in it.
    pub fn event(&self, what: &str) {
        let mut inner = self.0.lock().unwrap();
        if inner.told {
            println!("{:>6} {what}", inner.events);
        }
        inner.events += 1;
        for byte in what.bytes().chain([0xff]) {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A fault was injected.
    pub fn inject(&self, what: &'static str) {
        *self.0.lock().unwrap().injected.entry(what).or_default() += 1;
        self.event(what);
    }

    pub fn hash(&self) -> u64 {
        self.0.lock().unwrap().hash
    }

    pub fn events(&self) -> u64 {
        self.0.lock().unwrap().events
    }

    pub fn injected(&self) -> Injected {
        self.0.lock().unwrap().injected.clone()
    }
}
