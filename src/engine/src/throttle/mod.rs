//! Rate limits on what is sent to stores: for the host, for each VM, by hours of the week.
//!
//! ```text
//!   limits, clock ─► schedule (which applies now) ─► buckets ─┐
//!   Throttle::acquire ─► queue (who goes next) ◄──────────────┘   ─► granted
//! ```
//!
//! Promise: a changed limit counts at once, also for who waits already; rates hold over time, but for a burst of a
//! quarter second and the one piece that was on its way. Windows follow the wall clock, waiting does not: a clock that
//! jumps changes which limit applies, and nothing else. A waiter that is dropped has not been served.

pub mod bucket;
pub mod queue;
pub mod schedule;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::bucket::Rate;
use self::queue::{Next, Queue, Request};
use crate::replicator::throttle::{Class, Limit, Throttle};

/// Milliseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The throttle of an engine.
pub struct Limiter {
    clock: Clock,
    start: Instant,
    inner: Mutex<Inner>,
    /// A limit changed.
    changed: Notify,
}

struct Inner {
    host: Vec<Limit>,
    items: BTreeMap<String, Vec<Limit>>,
    queue: Queue,
    waiters: BTreeMap<u64, oneshot::Sender<()>>,
    next_ticket: u64,
}

impl Limiter {
    /// Without limits.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            start: Instant::now(),
            inner: Mutex::new(Inner {
                host: Vec::new(),
                items: BTreeMap::new(),
                queue: Queue::new(Duration::ZERO),
                waiters: BTreeMap::new(),
                next_ticket: 0,
            }),
            changed: Notify::new(),
        }
    }

    /// Grants what can be granted now; gives how long nothing more can come of time alone.
    fn pump(&self) -> Option<Duration> {
        let unix_ms = (self.clock)();
        let now = self.start.elapsed();
        let mut inner = self.lock();
        let inner = &mut *inner;
        let mut change = inner.apply_limits(unix_ms, now);
        loop {
            match inner.queue.next(now) {
                Next::Grant(ticket) => {
                    if let Some(waiter) = inner.waiters.remove(&ticket) {
                        // One that was dropped has taken its request back, or is about to.
                        waiter.send(()).ok();
                    }
                }
                Next::Wait(time) => {
                    change = Some(change.map_or(time, |change| change.min(time)));
                    return change;
                }
                Next::Idle => return change,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No call below leaves the queue half changed when it panics.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Sets the rates that count at this instant; gives when that may change.
    fn apply_limits(&mut self, unix_ms: i64, now: Duration) -> Option<Duration> {
        self.queue
            .set_host(schedule::rate(&self.host, unix_ms), now);
        let mut change = schedule::changes_in_ms(&self.host, unix_ms);
        for (item, limits) in &self.items {
            self.queue
                .set_item(item, schedule::rate(limits, unix_ms), now);
            let item_change = schedule::changes_in_ms(limits, unix_ms);
            change = change.into_iter().chain(item_change).min();
        }
        change.map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or(1)))
    }
}

/// Takes a request back when its caller stops waiting.
struct Waiting<'a> {
    limiter: &'a Limiter,
    item_id: &'a str,
    ticket: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.limiter.lock();
        inner.waiters.remove(&self.ticket);
        inner.queue.remove(self.item_id, self.ticket);
    }
}

#[async_trait]
impl Throttle for Limiter {
    async fn acquire(&self, item_id: &str, bytes: u64, class: Class) {
        let now = self.start.elapsed();
        let (sender, mut granted) = oneshot::channel();
        let ticket = {
            let mut inner = self.lock();
            let free = inner.host.is_empty()
                && inner.waiters.is_empty()
                && !inner.items.contains_key(item_id);
            if free {
                return;
            }
            let ticket = inner.next_ticket;
            inner.next_ticket += 1;
            inner.waiters.insert(ticket, sender);
            inner
                .queue
                .push(item_id, class, Request { ticket, bytes }, now);
            ticket
        };
        let _waiting = Waiting {
            limiter: self,
            item_id,
            ticket,
        };
        loop {
            // Before the look: a change in between is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = self.pump();
            tokio::select! {
                biased;
                _ = &mut granted => return,
                () = &mut changed => {}
                () = sleep(wait) => {}
            }
        }
    }

    fn limit_item(&self, item_id: &str, limits: &[Limit]) {
        let now = self.start.elapsed();
        {
            let mut inner = self.lock();
            if limits.is_empty() {
                inner.items.remove(item_id);
                inner.queue.set_item(item_id, Rate::Unlimited, now);
            } else {
                inner.items.insert(item_id.to_owned(), limits.to_vec());
            }
        }
        self.changed.notify_waiters();
    }

    fn limit_host(&self, limits: &[Limit]) {
        self.lock().host = limits.to_vec();
        self.changed.notify_waiters();
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
