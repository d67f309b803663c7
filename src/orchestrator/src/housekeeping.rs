//! What is done from time to time: expired registration keys go, encryption keys that nothing needs go, and keys lent
//! by Entra ID are renewed well before they expire.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::app::App;
use crate::store::StoreError;
use crate::store::records::{self, EnrolmentKey};
use crate::{access, vault_keys};

/// How often registration and encryption keys are looked through.
const SWEEP_MS: i64 = 3_600_000;
/// How often loans are looked at.
const LOANS: Duration = Duration::from_secs(20);

/// Runs until `stop`.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut swept = None;
    loop {
        let now = app.now_ms();
        if swept.is_none_or(|at| now.saturating_sub(at) >= SWEEP_MS) {
            swept = Some(now);
            let result = match sweep_registration_keys(&app).await {
                Ok(_) => vault_keys::prune_all(&app).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "housekeeping failed; it is repeated"
                );
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            result = access::loans::renew(&app) => if let Err(error) = result {
                warn!(error = &error as &dyn std::error::Error, "storage accounts can't be read");
            },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOANS) => {},
        }
    }
}

/// Removes registration keys that nobody can use any more; gives their number.
///
/// # Errors
/// Failures of the store.
pub async fn sweep_registration_keys(app: &App) -> Result<usize, StoreError> {
    let now = app.now().unix_timestamp();
    let keys = records::list::<EnrolmentKey>(app.store.as_ref(), "~key/").await?;
    let changes: Vec<_> = keys
        .into_iter()
        .filter(|key| key.record.expires_unix <= now)
        .map(|key| records::delete(key.key))
        .collect();
    let count = changes.len();
    if count > 0 {
        app.store.apply(changes).await?;
    }
    Ok(count)
}
