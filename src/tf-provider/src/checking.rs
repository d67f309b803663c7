//! Checks of a configuration that the schema alone decides.

use crate::context::ClientCapabilities;
use crate::diagnostics::Diagnostics;
use crate::members::{Members, each_object};
use crate::object::Object;
use crate::path::AttributePath;

/// Applies the attributes' own rules to all known values, and refuses write-only values that the caller would store.
pub(crate) fn check_config(
    members: Members<'_>,
    config: &Object,
    capabilities: ClientCapabilities,
    report: &mut Diagnostics,
) {
    check_members(
        members,
        config,
        &AttributePath::root(),
        false,
        capabilities,
        report,
    );
}

fn check_members(
    members: Members<'_>,
    config: &Object,
    base: &AttributePath,
    in_set: bool,
    capabilities: ClientCapabilities,
    report: &mut Diagnostics,
) {
    for (name, attribute) in members.attributes {
        let value = config.get(name);
        if value.is_null() {
            continue;
        }
        // Elements of sets have no address: point at the set and name the argument in the text.
        let path = if in_set {
            base.clone()
        } else {
            base.clone().attribute(name)
        };
        if attribute.write_only && !capabilities.write_only_attributes_allowed {
            report.push_error(
                path.clone(),
                "Write-only argument is not supported",
                format!(
                    "The argument {name} is write-only: its value must never be stored. This Terraform would store it. \
                     Use Terraform 1.11 or later, or leave the argument out."
                ),
            );
        }
        if value.is_unknown() {
            continue;
        }
        for rule in &attribute.checks {
            if let Err(problem) = rule(value) {
                report.push_error(
                    path.clone(),
                    format!("Invalid {name}"),
                    format!("The argument {name} {problem}."),
                );
            }
        }
    }
    for (name, inner, nesting) in members.nested() {
        let path = if in_set {
            base.clone()
        } else {
            base.clone().attribute(name)
        };
        let in_set = in_set || nesting == crate::attribute::Nesting::Set;
        each_object(config.get(name), nesting, &path, &mut |object, path| {
            check_members(inner, object, path, in_set, capabilities, report);
        });
    }
}
