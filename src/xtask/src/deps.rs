//! Dependencies: what we ruled out, and the licences that go with MPL-2.0 in a binary we ship.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use crate::metadata::Metadata;

/// Crate, and why it may not come in, not even through somebody else.
const BANNED: &[(&str, &str)] = &[
    (
        "aws-lc-rs",
        "ring is the one crypto provider: smaller, and it cross-builds for Windows hosts",
    ),
    ("aws-lc-sys", "see aws-lc-rs"),
    ("openssl", "TLS is rustls everywhere; hosts need no OpenSSL"),
    ("openssl-sys", "see openssl"),
    ("native-tls", "see openssl"),
    (
        "vhdx",
        "returns wrong data for dirty logs; disk-image is ours",
    ),
];

/// Licences whose code may be linked into what we ship.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "CC0-1.0",
    "MPL-2.0",
    "0BSD",
    "Unlicense",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "NCSA",
];

/// Checks the whole graph; says all findings at once.
pub fn check() -> Result<()> {
    let metadata = Metadata::read()?;
    let mut findings = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        if let Some((_, reason)) = BANNED.iter().find(|(name, _)| *name == package.name) {
            findings.push(format!("`{}` is ruled out: {reason}", package.name));
        }
        match &package.source {
            None => continue,
            Some(source) if source.starts_with("registry+") => {}
            Some(source) => findings.push(format!(
                "`{}` comes from {source}; only crates.io is used",
                package.name
            )),
        }
        versions
            .entry(&package.name)
            .or_default()
            .push(&package.version);
        let licence = package.license.as_deref().unwrap_or("");
        if !agreed(licence) {
            findings.push(format!(
                "`{}` {} has the licence `{licence}`, which nobody agreed to",
                package.name, package.version
            ));
        }
    }
    if !findings.is_empty() {
        bail!("dependencies:\n  {}", findings.join("\n  "));
    }
    let twice = versions
        .iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, _)| *name)
        .collect::<Vec<_>>();
    println!(
        "deps: {} crates, none ruled out; in more than one version: {}",
        versions.len(),
        twice.join(" ")
    );
    Ok(())
}

/// True when the SPDX expression can be met with agreed licences only: every `AND` part, one `OR` branch of each.
fn agreed(expression: &str) -> bool {
    let text = expression.trim().replace('/', " OR ");
    let branches = split(&text, " OR ");
    if branches.len() > 1 {
        return branches.into_iter().any(agreed);
    }
    let parts = split(&text, " AND ");
    if parts.len() > 1 {
        return parts.into_iter().all(agreed);
    }
    match text
        .strip_prefix('(')
        .and_then(|inner| inner.strip_suffix(')'))
    {
        Some(inner) => agreed(inner),
        None => LICENCES.contains(&text.as_str()),
    }
}

/// Splits at `word` outside of parentheses.
fn split<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && at >= start && text[at..].starts_with(word) => {
                parts.push(&text[start..at]);
                start = at + word.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::agreed;

    #[test]
    fn one_agreed_branch_is_enough_and_every_part_of_it_counts() {
        assert!(agreed("GPL-3.0 OR MIT"));
        assert!(agreed("MIT/Apache-2.0"));
        assert!(agreed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!agreed("Apache-2.0 AND GPL-3.0"));
        assert!(!agreed("(MIT OR Apache-2.0) AND GPL-3.0"));
        assert!(!agreed(""));
    }
}
