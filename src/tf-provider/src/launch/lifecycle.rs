//! When the process may end: shutdown requests, running calls, open connections.

use std::sync::Arc;

use tokio::sync::watch;

/// Shared by the services and the accept loop; clones are the same lifecycle.
#[derive(Clone)]
pub(crate) struct Lifecycle(Arc<Counters>);

struct Counters {
    shutdown: watch::Sender<bool>,
    running: watch::Sender<usize>,
    connections: watch::Sender<usize>,
}

/// Counts one running call or open connection until dropped.
pub(crate) struct Running(watch::Sender<usize>);

impl Running {
    fn start(counter: &watch::Sender<usize>) -> Self {
        counter.send_modify(|count| *count += 1);
        Self(counter.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Lifecycle {
    pub(crate) fn new() -> Self {
        let counters = Counters {
            shutdown: watch::Sender::new(false),
            running: watch::Sender::new(0),
            connections: watch::Sender::new(0),
        };
        Self(Arc::new(counters))
    }

    /// Asks the process to end.
    pub(crate) fn shut_down(&self) {
        self.0.shutdown.send_replace(true);
    }

    /// Resolves when the process was asked to end.
    pub(crate) async fn shutdown_requested(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self
            .0
            .shutdown
            .subscribe()
            .wait_for(|requested| *requested)
            .await;
    }

    /// Counts a call.
    pub(crate) fn running(&self) -> Running {
        Running::start(&self.0.running)
    }

    /// Counts a connection.
    pub(crate) fn connection(&self) -> Running {
        Running::start(&self.0.connections)
    }

    /// Resolves when no call runs and the client has closed its connections.
    pub(crate) async fn idle(&self) {
        let _ = self
            .0
            .running
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
        let _ = self
            .0
            .connections
            .subscribe()
            .wait_for(|count| *count == 0)
            .await;
    }
}
