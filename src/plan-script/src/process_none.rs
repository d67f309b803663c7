//! Stands in for processes where there is no shell to put behind a gate: scripts are refused before anything is started.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::note::Outcome;

/// A process that can't be.
pub(crate) struct Gated {
    /// Of the process.
    pub(crate) group: i32,
    never: Infallible,
}

impl Gated {
    #[expect(clippy::unused_async, reason = "as the one that follows a script")]
    pub(crate) async fn run(
        self,
        _context: &str,
        _limit: Duration,
        _withdrawn: oneshot::Receiver<()>,
    ) -> (Outcome, String) {
        match self.never {}
    }
}

pub(crate) fn start(_script: &Path, _context: &Path) -> io::Result<Gated> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "scripts of recovery plans run on Linux hosts; name one of those",
    ))
}

/// Nothing was ever started here.
pub(crate) fn kill_left_behind(_group: i32, _born: u64) {}

pub(crate) fn birth(_process: i32) -> Option<u64> {
    None
}
