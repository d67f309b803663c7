//! What each operating system does in its own way, in one small function each. All other code of the engine is the same
//! everywhere, but for the service shell: [`crate::daemon`] and its supervisor on Unix, the service control manager on Windows.
//!
//! | | Unix | Windows |
//! |---|---|---|
//! | a file only for us | mode, umask | the folder's access list, inherited |
//! | a name is durable | the folder is synced | the folder is flushed where the file system can; NTFS journals names |
//! | wish to stop | SIGTERM, SIGINT | Ctrl-C, Ctrl-Break, closed window, shutdown |
//! | local window | Unix socket | named pipe |
//! | driver | `qemu` | `files` |

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod system;

pub use system::*;
