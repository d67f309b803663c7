//! The guide for users, made of the rules so that it can't say anything else.

use std::fmt::Write as _;

use super::{Rule, Severity, Theme, rules};

const HEAD: &str = "# Checks before protection

<!-- Made by `cargo run -p protection --example checks_guide`; a test compares. -->

Before a VM is protected, everything that can be known of it is checked, and all findings are told at once, each with what to do:

- the data source `siterecovery_protectable_vms` shows them (`findings`; what refuses protection also in `errors`);
- `terraform plan` of a `siterecovery_protected_vm` refuses what can't be protected, at the argument, and shows the rest as warnings;
- `siterecovery protectable list` and `show` print them;
- the REST API has them as `protectionReadinessErrors` (texts) and `readinessFindings` of a protectable item, refuses an enable with all of \
them, and shows what comes up later as health errors of the protected item (category `Configuration`).

Where they come from: the host's inventory, the disks' images, and the first sectors of each disk, which are read without a lock and again \
only when the image may have changed (at most once a minute while the VM runs). What is not known never refuses anything.

What can't be known from outside of a guest is not checked: static addresses, teams of adapters, iSCSI and shares inside of the guest, Storage \
Spaces. A test failover shows them.

*Refused*: the VM is not protected. A disk that is left out (`disks_to_include`) never refuses. *Warning*: it is protected. *Lifted*: the \
original refuses it or does not do it, this product does.
";

/// The guide, in Markdown.
#[must_use]
pub fn guide() -> String {
    let mut text = HEAD.to_owned();
    for (theme, title) in [
        (Theme::Guest, "Operating system and machine"),
        (Theme::Disks, "Disks"),
        (Theme::SystemDisk, "What lies on the disks"),
        (Theme::Network, "Network adapters"),
        (Theme::Space, "Room on the host"),
    ] {
        // Writing into a text does not fail.
        let _ = write!(
            text,
            "\n## {title}\n\n| code | what is found | to Azure | to a recovery host | Azure Site Recovery | why, and what to do |\n|---|---|---|---|---|---|\n"
        );
        for rule in rules().filter(|rule| rule.theme == theme) {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} | {} {} |",
                rule.code,
                rule.title,
                word(rule.azure),
                word(rule.recovery_host),
                original(rule),
                rule.why,
                rule.advice
            );
        }
    }
    text
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Blocks => "**refused**",
        Severity::Warns => "warning",
        Severity::Lifted => "lifted",
    }
}

fn original(rule: &Rule) -> String {
    match rule.original_code {
        Some(code) => format!("{} (`{code}`); {}", rule.original, rule.source),
        None => format!("{}; {}", rule.original, rule.source),
    }
}
