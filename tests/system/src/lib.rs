//! The steps of the whole-system tests: real Terraform, real VMs, real processes, real kills.
//!
//! ```text
//!   Lab ──► guests (VHDX images of tests/lab) ──► running VMs under the qemu driver
//!    ├────► Orchestrator (process)   ├── kill -9, start again
//!    ├────► Terraform (process)      └── installs the engine, as a user's would
//!    └────► Cli (process, JSON)
//! ```
//!
//! A [`Lab`] owns one folder; when it is dropped, everything that it started is gone.

pub mod azurite;
pub mod cli;
pub mod console;
pub mod lab;
pub mod orchestrator;
pub mod points;
pub mod process;
pub mod recorder;
pub mod refusal;
pub mod story;
pub mod terraform;
pub mod volume;

pub use cli::Cli;
pub use console::Console;
pub use lab::{Guest, Lab};
pub use orchestrator::Orchestrator;
pub use terraform::Terraform;
pub use volume::Volume;
