//! The one way to start a background task: with a name, so that a log line or a panic can be traced to it.
//!
//! Promise: a task that panics is logged as an error with its name; nothing dies in silence.

use std::future::Future;

use futures::FutureExt as _;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Starts `future` as the task `name`, under a span of that name.
pub fn spawn_named<F, T>(name: impl Into<String>, future: F) -> JoinHandle<Option<T>>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let name = name.into();
    let span = tracing::info_span!("task", name = %name);
    tokio::spawn(
        async move {
            match std::panic::AssertUnwindSafe(future).catch_unwind().await {
                Ok(value) => Some(value),
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied())
                        .unwrap_or("no message");
                    tracing::error!(task = %name, panic = text, "task panicked");
                    None
                }
            }
        }
        .instrument(span),
    )
}

/// Runs file work off the async threads. A panic inside becomes an error, not a dead task.
pub async fn blocking<T, F>(work: F) -> std::io::Result<T>
where
    F: FnOnce() -> std::io::Result<T> + Send + 'static,
    T: Send + 'static,
{
    if replica_store::fault::runs_inline() {
        // A simulation: the same things in the same order each time.
        tokio::task::yield_now().await;
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => Err(std::io::Error::other(join)),
    }
}
