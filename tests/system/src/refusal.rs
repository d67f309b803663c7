//! Applies that have to fail: soon, properly, and with a text that helps.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::story::show;
use crate::terraform::Terraform;

/// An error that takes longer is no use to anybody.
const SOON: Duration = Duration::from_secs(180);

/// Runs what has to fail soon, and gives its text in one line, without Terraform's frame and line breaks.
pub fn refused(terraform: &Terraform, arguments: &[&str]) -> Result<String> {
    let begin = Instant::now();
    let ended = terraform.attempt(arguments)?;
    let text = ended.text;
    ensure!(
        ended.code == 1,
        "exit code {} in place of 1:\n{text}",
        ended.code
    );
    let took = begin.elapsed();
    ensure!(took < SOON, "the error took {} s:\n{text}", took.as_secs());
    if text.contains("panicked") || text.contains("Provider produced") {
        bail!("not a proper error:\n{text}");
    }
    show(text.split_once("Error:").map_or("", |(_, errors)| errors));
    let words = text
        .split_whitespace()
        .filter(|word| !matches!(*word, "│" | "╷" | "╵"));
    Ok(words.collect::<Vec<_>>().join(" "))
}

/// Each of the parts must be in the text.
pub fn says(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}
