//! The limiter on a paused clock.

use engine_protocol::v1;

use super::*;
use crate::time_window;

const MIB: u64 = 1 << 20;

/// Wednesday 2026-11-25, 12:00 UTC.
const NOON: i64 = 1_795_608_000_000;

fn limiter() -> Arc<Limiter> {
    let start = Instant::now();
    Arc::new(Limiter::new(Arc::new(move || {
        NOON + start.elapsed().as_millis() as i64
    })))
}

fn limit(bytes_per_second: u64) -> Limit {
    Limit {
        bytes_per_second,
        windows: Vec::new(),
    }
}

/// Sends pieces until the time is over; gives the bytes.
async fn send_for(limiter: &Limiter, item: &str, piece: u64, class: Class, seconds: u64) -> u64 {
    let mut sent = 0;
    let work = async {
        loop {
            limiter.acquire(item, piece, class).await;
            sent += piece;
            // Without a limit nothing else would end it.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(seconds), work)
        .await
        .ok();
    sent
}

fn assert_about(sent: u64, expected: u64) {
    let slack = expected / 20 + MIB;
    assert!(
        (expected - slack.min(expected)..=expected + slack).contains(&sent),
        "{sent} is not about {expected}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_smaller_of_host_and_vm_limit_holds() {
    let limiter = limiter();
    limiter.limit_host(&[limit(10 * MIB)]);
    limiter.limit_item("a", &[limit(2 * MIB)]);
    assert_about(
        send_for(&limiter, "a", 256 << 10, Class::Delta, 60).await,
        120 * MIB,
    );
    limiter.limit_item("a", &[]);
    assert_about(
        send_for(&limiter, "a", 256 << 10, Class::Delta, 60).await,
        600 * MIB,
    );
}

#[tokio::test(start_paused = true)]
async fn vms_share_the_hosts_limit_and_deltas_go_first() {
    let limiter = limiter();
    limiter.limit_host(&[limit(8 * MIB)]);
    let (a, b, initial) = tokio::join!(
        send_for(&limiter, "a", 64 << 10, Class::Delta, 60),
        send_for(&limiter, "b", MIB, Class::Delta, 60),
        send_for(&limiter, "c", MIB, Class::Initial, 60),
    );
    assert_about(a + b + initial, 480 * MIB);
    assert_about(a, b);
    assert!(
        initial <= 40 * MIB,
        "{initial} bytes of initial replication while deltas wait"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pause_ends_at_once_when_the_limit_changes() {
    let limiter = limiter();
    limiter.limit_item("a", &[limit(0)]);
    let waiting = {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            limiter.acquire("a", MIB, Class::Delta).await;
            Instant::now()
        })
    };
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!waiting.is_finished(), "paused is paused");
    let changed = Instant::now();
    limiter.limit_item("a", &[limit(1)]);
    assert_eq!(waiting.await.unwrap(), changed);
}

#[tokio::test(start_paused = true)]
async fn a_slow_transfer_that_waits_is_quicker_at_once() {
    let limiter = limiter();
    limiter.limit_host(&[limit(1000)]);
    limiter.acquire("a", 1_000_000, Class::Delta).await;
    let waiting = {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            limiter.acquire("a", 1, Class::Delta).await;
            Instant::now()
        })
    };
    tokio::time::sleep(Duration::from_secs(10)).await;
    limiter.limit_host(&[]);
    let changed = Instant::now();
    assert_eq!(waiting.await.unwrap(), changed);
}

#[tokio::test(start_paused = true)]
async fn a_window_opens_and_closes_by_the_wall_clock() {
    let limiter = limiter();
    let ten_to_one = v1::TimeWindow {
        start_minute: 10 * 60,
        end_minute: 13 * 60,
        ..v1::TimeWindow::default()
    };
    limiter.limit_item(
        "a",
        &[Limit {
            bytes_per_second: 0,
            windows: time_window::read_all(&[ten_to_one]).unwrap(),
        }],
    );
    let begin = Instant::now();
    limiter.acquire("a", MIB, Class::Delta).await;
    assert_eq!(begin.elapsed(), Duration::from_secs(3600), "until 13:00");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_takes_nothing_and_blocks_nobody() {
    let limiter = limiter();
    limiter.limit_host(&[limit(1000)]);
    limiter.acquire("a", 2000, Class::Delta).await;
    let dropped = tokio::time::timeout(
        Duration::from_millis(1),
        limiter.acquire("a", 1_000_000_000, Class::Delta),
    );
    assert!(dropped.await.is_err());
    let begin = Instant::now();
    limiter.acquire("a", 1, Class::Delta).await;
    assert!(begin.elapsed() <= Duration::from_secs(2));
}
