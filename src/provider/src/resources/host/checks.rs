//! Checks of a host's arguments: what endangers VMs or can't work is refused while planning.

use std::path::PathBuf;

use tf_provider::{Diagnostics, Object, Value};

use super::{LONGEST_DATA_FOLDER, LONGEST_RECOVERY_FOLDER};
use crate::limits;

pub(super) fn absolute(value: &Value) -> Result<(), String> {
    match value.as_str() {
        Some(text)
            if !text.starts_with('/')
                || text == "/"
                || text.chars().any(char::is_control)
                || text.split('/').any(|part| part == "..") =>
        {
            Err(
                "must be an absolute path below the root, without .. and control characters"
                    .to_owned(),
            )
        }
        _ => Ok(()),
    }
}

pub(super) fn generations(value: &Value) -> Result<(), String> {
    let Some(elements) = value.as_elements() else {
        return Ok(());
    };
    if elements.is_empty() {
        return Err("must name at least one of 1 and 2, or be left out".to_owned());
    }
    let known = elements.iter().filter_map(Value::as_number);
    for number in known {
        if !matches!(number.as_u64(), Some(1 | 2)) {
            return Err(format!("can't have {}: use 1 and 2", number.as_text()));
        }
    }
    Ok(())
}

/// As the engine is told; `None` when nothing is said of it.
pub(super) fn generations_of(object: &Object) -> Option<Vec<u32>> {
    let numbers = object.elements("recovery_generations").iter();
    let numbers = numbers.filter_map(|one| u32::try_from(one.as_number()?.as_u64()?).ok());
    let mut all: Vec<u32> = numbers.collect();
    all.sort_unstable();
    (!all.is_empty()).then_some(all)
}

pub(super) fn recovered_in(data_folder: &str) -> String {
    format!("{}/recovered", data_folder.trim_end_matches('/'))
}

/// Checks of the arguments against one another.
pub(super) fn check(config: &Object, report: &mut Diagnostics) {
    limits::check_throttles(config, report);
    let roles = config.get("roles");
    let known_roles = config.strings("roles");
    for role in &known_roles {
        if role != "source" && role != "recovery" {
            report.push_error(
                "roles",
                "No such role",
                format!("{role:?} is not a role; use \"source\" and \"recovery\"."),
            );
        }
    }
    if roles.as_elements().is_some_and(<[_]>::is_empty) {
        report.push_error(
            "roles",
            "The host has no role",
            "Give at least one of \"source\" and \"recovery\".",
        );
    }
    let is_source = roles.is_null() || known_roles.iter().any(|role| role == "source");
    if is_source && config.is_null("vm_folder") {
        report.push_error(
            "vm_folder",
            "The folder of the VMs is missing",
            "A host with the role \"source\" needs vm_folder, the folder with one folder for each VM.",
        );
    }
    let data = if config.is_null("data_folder") {
        Some("/var/lib/siterecovery")
    } else {
        config.str("data_folder")
    };
    if data.is_some_and(|folder| folder.len() > LONGEST_DATA_FOLDER) {
        report.push_error(
            "data_folder",
            "The path is too long",
            format!("At most {LONGEST_DATA_FOLDER} bytes are possible."),
        );
    }
    let recovery = match (config.is_null("recovery_folder"), data) {
        (true, Some(data)) => Some(recovered_in(data)),
        (true, None) => None,
        (false, _) => config.str("recovery_folder").map(ToOwned::to_owned),
    };
    let recovers = roles.is_null() || known_roles.iter().any(|role| role == "recovery");
    if let Some(recovery) = &recovery {
        if recovers && recovery.len() > LONGEST_RECOVERY_FOLDER {
            let whence = if config.is_null("recovery_folder") {
                ", which data_folder gives when there is no recovery_folder,"
            } else {
                ""
            };
            report.push_error(
                "recovery_folder",
                "The path is too long",
                format!(
                    "At most {LONGEST_RECOVERY_FOLDER} bytes are possible, or the sockets of a recovered VM have no address; \
                     {recovery:?}{whence} has {}.\nWhat to do: choose a shorter recovery_folder.",
                    recovery.len()
                ),
            );
        }
        if let Some(vms) = config.str("vm_folder")
            && (PathBuf::from(vms).starts_with(recovery)
                || PathBuf::from(recovery).starts_with(vms))
        {
            report.push_error(
                "recovery_folder",
                "Two kinds of VMs in one folder",
                "Recovered VMs and the VMs of the host must not share a folder.",
            );
        }
    }
    if let (Some(vms), Some(data)) = (config.str("vm_folder"), data)
        && PathBuf::from(vms).starts_with(data)
    {
        report.push_error(
            "vm_folder",
            "The VMs lie in the engine's folder",
            "data_folder is removed together with the host; the VMs must lie elsewhere.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &Object) -> Vec<String> {
        let mut report = Diagnostics::new();
        check(config, &mut report);
        report.iter().map(|d| d.attribute.to_string()).collect()
    }

    #[test]
    fn a_path_that_would_break_a_unit_is_refused() {
        assert!(absolute(&Value::from("/srv/a b$c%")).is_ok());
        for wrong in [
            "/srv/a\nExecStartPost=x",
            "/srv/\u{1b}",
            "srv",
            "/",
            "/a/../b",
        ] {
            assert!(absolute(&Value::from(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_source_needs_the_folder_of_its_vms() {
        assert_eq!(problems(&Object::new()), ["vm_folder"]);
        let only_recovery = Object::new().with("roles", Value::set(["recovery"]));
        assert!(problems(&only_recovery).is_empty());
    }

    #[test]
    fn folders_that_would_endanger_vms_are_refused_at_their_attribute() {
        let base = Object::new().with("data_folder", "/d");
        assert_eq!(
            problems(&base.clone().with("vm_folder", "/d/vms")),
            ["vm_folder"]
        );
        assert_eq!(
            problems(
                &base
                    .clone()
                    .with("vm_folder", "/vms")
                    .with("recovery_folder", "/vms/r")
            ),
            ["recovery_folder"]
        );
        assert!(problems(&base.with("vm_folder", "/vms")).is_empty());
    }

    #[test]
    fn only_the_two_generations_that_there_are_can_be_named() {
        for good in [vec![1], vec![2], vec![2, 1]] {
            let set = Value::set(good);
            assert_eq!(generations(&set), Ok(()));
            let told = generations_of(&Object::new().with("recovery_generations", set));
            assert!(told.is_some_and(|told| told.is_sorted()));
        }
        for wrong in [vec![], vec![3], vec![1, 0]] {
            assert!(generations(&Value::set(wrong)).is_err());
        }
        assert_eq!(generations_of(&Object::new()), None);
    }

    #[test]
    fn unknown_folders_are_not_judged() {
        let config = Object::new()
            .with("vm_folder", Value::unknown())
            .with("data_folder", Value::unknown())
            .with("roles", Value::unknown());
        assert!(problems(&config).is_empty());
    }

    #[test]
    fn paths_too_long_for_a_socket_are_refused_at_plan_time() {
        let config = Object::new()
            .with("vm_folder", "/vms")
            .with("data_folder", format!("/{}", "d".repeat(100)));
        assert_eq!(problems(&config), ["data_folder", "recovery_folder"]);
    }

    #[test]
    fn a_recovery_folder_in_which_no_vm_could_start_is_refused_and_only_where_vms_are_recovered() {
        let with = |length: usize| {
            Object::new()
                .with("vm_folder", "/vms")
                .with("recovery_folder", format!("/{}", "r".repeat(length - 1)))
        };
        let most = hypervisor::MAX_RECOVERY_FOLDER;
        assert!(problems(&with(most)).is_empty());
        assert_eq!(problems(&with(most + 1)), ["recovery_folder"]);
        let source = with(most + 1).with("roles", Value::set(["source"]));
        assert!(problems(&source).is_empty());
        assert_eq!(LONGEST_RECOVERY_FOLDER, most);
    }
}
