//! `make demo`: the whole story on the terminal, each step with its real output. Ends non-zero when any step does not hold.

use std::process::ExitCode;

use system_tests::story::Story;

fn main() -> ExitCode {
    let keep = std::env::var("KEEP").is_ok_and(|keep| !keep.is_empty() && keep != "0");
    match Story::tell("demo", keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demo does not hold: {error:#}");
            ExitCode::FAILURE
        }
    }
}
