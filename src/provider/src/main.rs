//! The Terraform provider siterecovery. Terraform starts it; `docs OUT [EXAMPLES]` writes its documentation.

use std::path::Path;
use std::process::ExitCode;

use provider::SiteRecovery;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("docs") {
        let out = arguments.next().unwrap_or_else(|| "docs".to_owned());
        let examples = arguments.next().unwrap_or_else(|| "examples".to_owned());
        return match provider::docs::write(Path::new(&out), Path::new(&examples)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    tf_provider::run(SiteRecovery, provider::ADDRESS)
}
