//! The question before a step that can't be taken back.

use std::io::{self, IsTerminal as _};

use anyhow::{Result, bail};
use clap::Args;

/// Option of steps that can't be taken back.
#[derive(Args)]
pub struct Confirm {
    /// Don't ask. Needed where there is no terminal to ask on
    #[arg(long, short = 'y')]
    yes: bool,
}

// === impl Confirm ===

impl Confirm {
    /// Tells what is about to happen and asks whether it shall.
    pub fn ask(&self, what: &str) -> Result<()> {
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        decide(self.yes, terminal, what, || {
            eprint!("{what}\nGo on? [y/N] ");
            let mut answer = String::new();
            io::stdin().read_line(&mut answer)?;
            Ok(answer)
        })
    }
}

fn decide(
    yes: bool,
    terminal: bool,
    what: &str,
    answer: impl FnOnce() -> io::Result<String>,
) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !terminal {
        bail!(
            "{what} This can't be taken back, and there is no terminal to ask on: --yes is needed"
        );
    }
    match answer()?.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(text: &str) -> impl FnOnce() -> io::Result<String> {
        let text = text.to_owned();
        move || Ok(text)
    }

    #[test]
    fn only_a_clear_yes_goes_on() {
        for yes in ["y\n", "Yes\n", " YES "] {
            assert!(decide(false, true, "x", answers(yes)).is_ok(), "{yes}");
        }
        for no in ["", "\n", "n\n", "yeah\n"] {
            assert!(decide(false, true, "x", answers(no)).is_err(), "{no}");
        }
    }

    #[test]
    fn without_a_terminal_nobody_is_asked_and_the_option_is_needed() {
        let unasked = || -> io::Result<String> { panic!("nobody is there") };
        let error = decide(false, false, "Commit of web01.", unasked).unwrap_err();
        assert!(error.to_string().contains("--yes"), "{error}");
        assert!(error.to_string().contains("Commit of web01."), "{error}");
        assert!(decide(true, false, "x", unasked).is_ok());
        assert!(decide(true, true, "x", unasked).is_ok());
    }
}
