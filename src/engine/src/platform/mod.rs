//! What each operating system does in its own way, in one small function each. All other code of the engine is the same
//! everywhere, but for the service shell: [`crate::daemon`] and its supervisor on Unix, the service control manager on Windows.
//!
//! | | Unix | Windows |
//! |---|---|---|
//! | a file only for us | mode, umask | the folder's access list, inherited |
//! | a name is durable | the folder is synced | the folder is flushed where the file system can; NTFS journals names |
//! | wish to stop | SIGTERM, SIGINT | Ctrl-C, Ctrl-Break, closed window, shutdown |
//! | local window | Unix socket | named pipe |
//! | driver | `qemu` | `files`, or `hyperv` when `engine.toml` says so |

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod system;

use serde::Deserialize;

pub use system::*;

/// What runs a host's virtual machines, as `engine.toml` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// QEMU, on Linux.
    Qemu,
    /// Images of virtual machines that are off, on Windows.
    Files,
    /// Hyper-V, on Windows Server.
    Hyperv,
}

impl Driver {
    /// Whether the engine of this operating system has it.
    pub fn is_of_this_system(self) -> bool {
        match self {
            Driver::Qemu => cfg!(unix),
            Driver::Files | Driver::Hyperv => cfg!(windows),
        }
    }
}
