//! Comparisons with a peer: same input, same run, output verified, printed as a ratio.

use std::path::Path;

use anyhow::{Result, bail};

/// Runs one comparison, or all.
pub fn run(_root: &Path, name: Option<&str>, _json: bool) -> Result<()> {
    bail!("no comparison of the name `{}` exists", name.unwrap_or(""))
}
