//! Prints the guide of the checks before protection: `> docs/guides/checks-before-protection.md`.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(protection::checks::guide().as_bytes())
}
