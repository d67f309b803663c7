//! Names of what is made in Azure, by Azure's rules and Site Recovery's habits.
//!
//! | what | name |
//! |---|---|
//! | VM | the wished name, else the source's; a drill's carries the suffix `-test` |
//! | disk | the wished name, else `<vm>-<source disk>` |
//! | NIC | the wished name, else `<vm>-nic<n>` |
//! | public address | `<nic>-ip` |
//!
//! Azure's limits: a VM 1 to 64 characters (Site Recovery: 63; letters, digits, hyphens; first and last alphanumeric), disks,
//! NICs and addresses 1 to 80 (letters, digits, `.`, `_`, `-`; first alphanumeric, last alphanumeric or `_`).

/// Longest name of a recovered VM, in characters.
pub const LONGEST_VM_NAME: usize = 63;
/// Longest name of a disk, NIC, address, network or security group, in characters.
pub const LONGEST_RESOURCE_NAME: usize = 80;
/// What the VM of a drill is recognised by.
pub const DRILL_SUFFIX: &str = "-test";

/// Why a text is no name of a recovered VM; `None` when it is one.
pub fn vm_name_fault(name: &str) -> Option<&'static str> {
    let bytes = name.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    if name.is_empty() || name.chars().count() > LONGEST_VM_NAME {
        Some("it must have 1 to 63 characters")
    } else if !bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    {
        Some("only letters, digits and hyphens are allowed")
    } else if !edge(bytes.first()) || !edge(bytes.last()) {
        Some("it must begin and end with a letter or digit")
    } else {
        None
    }
}

/// Why a text is no name of a disk, NIC, address or network; `None` when it is one.
pub fn resource_name_fault(name: &str) -> Option<&'static str> {
    let bytes = name.as_bytes();
    if name.is_empty() || name.chars().count() > LONGEST_RESOURCE_NAME {
        Some("it must have 1 to 80 characters")
    } else if !bytes.iter().all(|b| allowed(*b)) {
        Some("only letters, digits, `.`, `_` and `-` are allowed")
    } else if !bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        || !bytes
            .last()
            .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
    {
        Some("it must begin with a letter or digit and end with one or with `_`")
    } else {
        None
    }
}

/// Name of the VM: of a drill with its suffix, for which a long name gives way.
pub fn vm_name(base: &str, drill: bool) -> String {
    if !drill {
        return base.to_owned();
    }
    let room = LONGEST_VM_NAME - DRILL_SUFFIX.len();
    let kept: String = base.chars().take(room).collect();
    format!("{}{DRILL_SUFFIX}", kept.trim_end_matches('-'))
}

/// A name out of parts, joined by hyphens: what is not allowed becomes a hyphen, and the first parts give way when it gets too long.
/// Always a name by [`resource_name_fault`].
pub fn join(parts: &[&str]) -> String {
    let clean = |text: &str| -> String {
        text.chars()
            .map(|c| match u8::try_from(c) {
                Ok(b) if allowed(b) => c,
                _ => '-',
            })
            .collect::<String>()
            .trim_matches(|c: char| !c.is_ascii_alphanumeric())
            .to_owned()
    };
    let parts: Vec<String> = parts
        .iter()
        .map(|p| clean(p))
        .filter(|p| !p.is_empty())
        .collect();
    let joined = parts.join("-");
    if joined.is_empty() {
        return "x".to_owned();
    }
    // The end tells disks and NICs of one VM apart, so it is the beginning that gets shorter.
    let skip = joined.len().saturating_sub(LONGEST_RESOURCE_NAME);
    let kept = joined.get(skip..).unwrap_or(&joined);
    let kept = kept.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    kept.to_owned()
}

/// `name` with `suffix`, shortened so that both fit.
pub fn with_suffix(name: &str, suffix: &str) -> String {
    let room = LONGEST_RESOURCE_NAME.saturating_sub(suffix.len());
    let kept: String = name.chars().take(room).collect();
    format!(
        "{}{suffix}",
        kept.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
    )
}

fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_drill_carries_its_suffix_and_still_fits() {
        assert_eq!(vm_name("web-1", true), "web-1-test");
        assert_eq!(vm_name("web-1", false), "web-1");
        let long = "a".repeat(57) + "-bcdef";
        assert_eq!(vm_name(&long, true), "a".repeat(57) + "-test");
    }

    #[test]
    fn names_of_disks_come_from_vm_and_disk() {
        assert_eq!(
            join(&["web-1", "System Disk.vhdx"]),
            "web-1-System-Disk.vhdx"
        );
        assert_eq!(join(&["", "__"]), "x");
    }

    proptest! {
        #[test]
        fn whatever_is_joined_is_a_name(parts in proptest::collection::vec(".{0,60}", 0..4)) {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let name = join(&parts);
            prop_assert_eq!(resource_name_fault(&name), None, "{}", name);
        }

        #[test]
        fn a_drill_of_a_good_name_has_a_good_name(name in "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?") {
            prop_assert_eq!(vm_name_fault(&name), None);
            let drill = vm_name(&name, true);
            prop_assert_eq!(vm_name_fault(&drill), None, "{}", drill);
            prop_assert!(drill.ends_with(DRILL_SUFFIX));
        }

        #[test]
        fn a_suffix_never_makes_a_name_too_long(name in "[a-z][a-z0-9.-]{0,79}") {
            prop_assert_eq!(resource_name_fault(&with_suffix(&name, "-ip")), None);
        }
    }
}
