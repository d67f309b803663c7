//! Who goes next when the way to the stores is narrow: pure, the clock is passed in.
//!
//! Deltas go before initial replication. Within a class the VM that was served least goes first, counted from when it
//! began to wait, so that VMs share evenly and an idle one saves nothing up. A VM at its own limit holds nobody up. A pause
//! does not hold what a VM that is off waits for: that would be downtime until a window ends.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::bucket::{Bucket, Rate, Ready};
use crate::replicator::throttle::Class;

/// A request; its number is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names it.
    pub ticket: u64,
    /// What it asks for.
    pub bytes: u64,
}

/// Requests of all VMs, and the buckets they take from.
#[derive(Debug)]
pub struct Queue {
    host: Bucket,
    items: BTreeMap<String, Item>,
    /// What the VM that was served last had got before; who begins to wait begins there.
    served: u64,
}

#[derive(Debug)]
struct Item {
    bucket: Bucket,
    waiting: BTreeMap<Class, VecDeque<Request>>,
    served: u64,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This request is granted, and paid for.
    Grant(u64),
    /// Nobody, before so much time has passed.
    Wait(Duration),
    /// Nobody, before a limit changes or a request comes.
    Idle,
}

impl Queue {
    /// Without limits and requests.
    pub fn new(now: Duration) -> Self {
        Self {
            host: Bucket::new(Rate::Unlimited, now),
            items: BTreeMap::new(),
            served: 0,
        }
    }

    /// The rate of all VMs together.
    pub fn set_host(&mut self, rate: Rate, now: Duration) {
        if self.host.rate() != rate {
            self.host.set_rate(rate, now);
        }
    }

    /// The rate of one VM.
    pub fn set_item(&mut self, item: &str, rate: Rate, now: Duration) {
        if let Some(known) = self.items.get_mut(item) {
            if known.bucket.rate() != rate {
                known.bucket.set_rate(rate, now);
            }
        } else if rate != Rate::Unlimited {
            self.items
                .insert(item.to_owned(), Item::new(rate, self.served, now));
        }
    }

    /// A VM asks for something.
    pub fn push(&mut self, item: &str, class: Class, request: Request, now: Duration) {
        let served = self.served;
        let item = self
            .items
            .entry(item.to_owned())
            .or_insert_with(|| Item::new(Rate::Unlimited, served, now));
        if item.waiting.values().all(VecDeque::is_empty) {
            item.served = item.served.max(served);
        }
        item.waiting.entry(class).or_default().push_back(request);
    }

    /// The request is withdrawn; it may have been granted before.
    pub fn remove(&mut self, item: &str, ticket: u64) {
        if let Some(item) = self.items.get_mut(item) {
            for waiting in item.waiting.values_mut() {
                waiting.retain(|request| request.ticket != ticket);
            }
        }
    }

    /// Grants one request, or says when to ask again.
    pub fn next(&mut self, now: Duration) -> Next {
        let mut wait = None;
        let mut soonest = |ready: Ready| match ready {
            Ready::Now => true,
            Ready::In(time) => {
                wait = Some(wait.map_or(time, |wait: Duration| wait.min(time)));
                false
            }
            Ready::Paused => false,
        };
        let mut best: Option<(Class, u64, String)> = None;
        for (name, item) in &mut self.items {
            let Some(class) = item.first_class() else {
                continue;
            };
            if !soonest(ready(&mut item.bucket, class, now)) {
                continue;
            }
            let candidate = (class, item.served);
            if best
                .as_ref()
                .is_none_or(|(class, served, _)| candidate < (*class, *served))
            {
                best = Some((class, item.served, name.clone()));
            }
        }
        if let Some((class, _, name)) = best
            && soonest(ready(&mut self.host, class, now))
            && let Some(item) = self.items.get_mut(&name)
            && let Some(request) = item.waiting.get_mut(&class).and_then(VecDeque::pop_front)
        {
            self.served = self.served.max(item.served);
            item.served = item.served.saturating_add(request.bytes);
            take(&mut item.bucket, request.bytes, now);
            take(&mut self.host, request.bytes, now);
            return Next::Grant(request.ticket);
        }
        wait.map_or(Next::Idle, Next::Wait)
    }
}

/// When somebody of this class may take from a bucket.
fn ready(bucket: &mut Bucket, class: Class, now: Duration) -> Ready {
    match (bucket.ready(now), class) {
        (Ready::Paused, Class::Downtime) => Ready::Now,
        (ready, _) => ready,
    }
}

/// What passed in spite of a pause is no debt of those who come after it.
fn take(bucket: &mut Bucket, bytes: u64, now: Duration) {
    if bucket.rate() != Rate::Limited(0) {
        bucket.take(bytes, now);
    }
}

impl Item {
    fn new(rate: Rate, served: u64, now: Duration) -> Self {
        Self {
            bucket: Bucket::new(rate, now),
            waiting: BTreeMap::new(),
            served,
        }
    }

    fn first_class(&self) -> Option<Class> {
        let mut waiting = self.waiting.iter();
        waiting
            .find(|(_, requests)| !requests.is_empty())
            .map(|(class, _)| *class)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn request(ticket: u64, bytes: u64) -> Request {
        Request { ticket, bytes }
    }

    /// Lets time pass until `count` grants were given; gives the tickets.
    fn grants(queue: &mut Queue, now: &mut Duration, count: usize) -> Vec<u64> {
        let mut given = Vec::new();
        while given.len() < count {
            match queue.next(*now) {
                Next::Grant(ticket) => given.push(ticket),
                Next::Wait(time) => *now += time,
                Next::Idle => break,
            }
        }
        given
    }

    #[test]
    fn initial_replication_yields_to_deltas() {
        let mut queue = Queue::new(NOW);
        queue.set_host(Rate::Limited(1000), NOW);
        for ticket in 0..3 {
            queue.push("new", Class::Initial, request(ticket, 1000), NOW);
        }
        let mut now = NOW;
        assert_eq!(grants(&mut queue, &mut now, 1), [0]);
        queue.push("old", Class::Delta, request(10, 1000), now);
        queue.push("old", Class::Delta, request(11, 1000), now);
        assert_eq!(grants(&mut queue, &mut now, 9), [10, 11, 1, 2]);
    }

    #[test]
    fn a_vm_at_its_own_limit_or_paused_holds_nobody_up() {
        let mut queue = Queue::new(NOW);
        queue.set_item("slow", Rate::Limited(0), NOW);
        queue.push("slow", Class::Delta, request(1, 10), NOW);
        queue.push("fast", Class::Initial, request(2, 10), NOW);
        let mut now = NOW;
        assert_eq!(grants(&mut queue, &mut now, 9), [2]);
        assert_eq!(queue.next(now), Next::Idle);
        queue.set_item("slow", Rate::Unlimited, now);
        assert_eq!(queue.next(now), Next::Grant(1));
    }

    #[test]
    fn a_pause_does_not_hold_what_a_vm_that_is_off_waits_for_and_a_rate_does() {
        let mut queue = Queue::new(NOW);
        queue.set_host(Rate::Limited(0), NOW);
        queue.set_item("moves", Rate::Limited(0), NOW);
        queue.push("moves", Class::Delta, request(1, 10), NOW);
        queue.push("moves", Class::Downtime, request(2, 1 << 40), NOW);
        let mut now = NOW;
        assert_eq!(grants(&mut queue, &mut now, 9), [2]);
        // Nobody pays for it later.
        queue.set_host(Rate::Limited(1000), now);
        queue.set_item("moves", Rate::Unlimited, now);
        assert_eq!(queue.next(now), Next::Grant(1));
        queue.push("moves", Class::Downtime, request(3, 5000), now);
        queue.push("moves", Class::Downtime, request(4, 1), now);
        assert_eq!(grants(&mut queue, &mut now, 1), [3]);
        assert!(matches!(queue.next(now), Next::Wait(_)));
    }

    #[test]
    fn a_withdrawn_request_costs_nothing() {
        let mut queue = Queue::new(NOW);
        queue.set_host(Rate::Limited(1), NOW);
        queue.push("a", Class::Delta, request(1, 1_000_000), NOW);
        queue.remove("a", 1);
        queue.push("a", Class::Delta, request(2, 1), NOW);
        assert_eq!(queue.next(NOW), Next::Grant(2));
    }

    proptest! {
        #[test]
        fn vms_share_evenly_whatever_the_size_of_their_pieces(sizes in prop::collection::vec(1u64..100_000, 2..6)) {
            let mut queue = Queue::new(NOW);
            queue.set_host(Rate::Limited(1_000_000), NOW);
            let mut now = NOW;
            let mut sent = vec![0u64; sizes.len()];
            for (index, size) in sizes.iter().enumerate() {
                queue.push(&index.to_string(), Class::Delta, request(index as u64, *size), now);
            }
            for _ in 0..2000 {
                let ticket = grants(&mut queue, &mut now, 1)[0] as usize;
                sent[ticket] += sizes[ticket];
                queue.push(&ticket.to_string(), Class::Delta, request(ticket as u64, sizes[ticket]), now);
            }
            let largest = sizes.iter().max().unwrap();
            let spread = sent.iter().max().unwrap() - sent.iter().min().unwrap();
            prop_assert!(spread <= 2 * largest, "{:?}", sent);
        }

        #[test]
        fn every_request_is_granted_once(
            requests in prop::collection::vec((0u8..4, prop::bool::ANY, 1u64..50_000), 1..100),
            host in 1000u64..1_000_000,
        ) {
            let mut queue = Queue::new(NOW);
            queue.set_host(Rate::Limited(host), NOW);
            queue.set_item("2", Rate::Limited(500), NOW);
            for (ticket, (item, delta, bytes)) in requests.iter().enumerate() {
                let class = if *delta { Class::Delta } else { Class::Initial };
                queue.push(&item.to_string(), class, request(ticket as u64, *bytes), NOW);
            }
            let mut now = NOW;
            let mut given = grants(&mut queue, &mut now, usize::MAX);
            given.sort_unstable();
            prop_assert_eq!(given, (0..requests.len() as u64).collect::<Vec<_>>());
        }
    }
}
