//! Runs the store's synchronous code on threads that may wait for disks.

use crate::error::{ErrorKind, Result, StoreError};
use crate::fault::runs_inline;

pub(crate) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if runs_inline() {
        // Others get their turn, as they do when a thread does the work.
        tokio::task::yield_now().await;
        return act();
    }
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::new(
                ErrorKind::Io,
                "the operation was cancelled: the program is shutting down",
            )
            .unknown()),
        },
    }
}
