//! The Terraform provider siterecovery. Terraform starts it; `docs OUT [EXAMPLES]` writes its documentation.

#![allow(
    clippy::print_stdout,
    reason = "help goes to a person, not to Terraform"
)]

use std::path::Path;
use std::process::ExitCode;

use provider::SiteRecovery;

const HELP: &str = "\
The Terraform provider siterecovery. Terraform starts it by itself.

    terraform-provider-siterecovery docs [OUT] [EXAMPLES]

writes the documentation into the folder OUT (docs), with the examples of the folder EXAMPLES (examples).
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words
        .iter()
        .any(|word| matches!(*word, "--help" | "-h" | "help"))
    {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match words.as_slice() {
        ["docs", rest @ ..]
            if rest.len() <= 2 && !rest.iter().any(|word| word.starts_with('-')) =>
        {
            let out = rest.first().copied().unwrap_or("docs");
            let examples = rest.get(1).copied().unwrap_or("examples");
            match provider::docs::write(Path::new(out), Path::new(examples)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error:#}");
                    ExitCode::FAILURE
                }
            }
        }
        ["docs", ..] => {
            eprintln!("error: these are no arguments of `docs`\n\n{HELP}");
            ExitCode::FAILURE
        }
        _ => tf_provider::run(SiteRecovery, provider::ADDRESS),
    }
}
