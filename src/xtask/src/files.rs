//! Files: short, introduced by a first line, nothing half-made inside.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A file longer than this holds more than one idea.
const MAX_LINES: usize = 600;

/// Checks every Rust file below `src` and `tests`; says all findings at once.
pub fn check(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        collect(&root.join(folder), &mut files)?;
    }
    let mut findings = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).display();
        let lines = text.lines().count();
        if lines > MAX_LINES {
            findings.push(format!(
                "{name} has {lines} lines; at most {MAX_LINES}: split it by idea"
            ));
        }
        if !text.starts_with("//!") && !text.starts_with("#!") {
            findings.push(format!(
                "{name} does not begin with a `//!` line that says what it is"
            ));
        }
    }
    if !findings.is_empty() {
        bail!("files:\n  {}", findings.join("\n  "));
    }
    println!(
        "files: {} Rust files, none over {MAX_LINES} lines",
        files.len()
    );
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}
