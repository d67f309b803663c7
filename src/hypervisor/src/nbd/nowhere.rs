//! Stands in for the server where there are no Unix sockets: nothing there reads a point over NBD, so serving is refused.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use super::{NbdError, NbdExport};

/// A server that can't be.
#[derive(Debug)]
pub struct NbdServer(Infallible);

impl NbdServer {
    /// Where clients connect.
    pub fn socket(&self) -> &Path {
        match self.0 {}
    }

    /// Ends the server.
    #[expect(
        clippy::unused_async,
        reason = "as the server's own, which waits for its connections"
    )]
    pub async fn stop(self) {
        match self.0 {}
    }
}

/// Refuses.
///
/// # Errors
/// Always: [`NbdError::Socket`].
pub async fn serve(socket: &Path, exports: Vec<NbdExport>) -> Result<NbdServer, NbdError> {
    drop(exports);
    Err(NbdError::Socket {
        path: socket.to_owned(),
        source: io::Error::new(
            io::ErrorKind::Unsupported,
            "recovery points are served over NBD on Linux hosts only",
        ),
    })
}
