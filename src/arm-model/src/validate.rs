//! Rules that both the provider (at plan time) and the orchestrator (at the request) check.

mod azure;
mod graded;

pub use azure::{
    DEFAULT_AUTHORITY, MAX_STRIPES, account_key, account_of_endpoint, authority, blob_endpoint,
    ca_pem, container_name, default_container, proxy_url, stripes,
};
pub use graded::{
    MAX_IMMUTABILITY_HOURS, MAX_TIER_HOURS, MAX_TIERS, MAX_VERIFICATION_HOURS,
    app_consistent_minutes, immutability, log_quota, retention_tiers, verification_interval,
};

use crate::error::ArmError;

/// Copy frequencies of the Azure service, in seconds.
pub const AZURE_INTERVALS_SECONDS: &[u32] = &[30, 300, 900];
/// Shortest copy frequency of this product (extension), in seconds.
pub const MIN_INTERVAL_SECONDS: u32 = 5;
/// Longest copy frequency, in seconds.
pub const MAX_INTERVAL_SECONDS: u32 = 900;
/// Longest retention, in hours.
pub const MAX_RETENTION_HOURS: u32 = 24;
/// Longest distance of application-consistent points, in hours.
pub const MAX_APP_CONSISTENT_HOURS: u32 = 12;
/// Most VMs in a plan.
pub const MAX_PLAN_ITEMS: usize = 100;
/// Most boot groups in a plan.
pub const MAX_PLAN_GROUPS: usize = 7;

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Violation {
    /// What is wrong, a sentence.
    pub message: String,
    /// What to do, a sentence.
    pub advice: String,
}

// === impl Violation ===

impl Violation {
    pub(crate) fn new(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            advice: advice.into(),
        }
    }

    /// As the answer to a request, at the property that breaks the rule.
    #[must_use]
    pub fn into_error(self, target: &str) -> ArmError {
        ArmError::new("InvalidParameter", self.message)
            .at(target)
            .advise("", &self.advice)
    }
}

/// Name of a vault: 2 to 50 characters, a letter first, letters, digits, hyphens.
///
/// # Errors
/// The rule that is broken.
pub fn vault_name(name: &str) -> Result<(), Violation> {
    let shaped = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if shaped && (2..=50).contains(&name.len()) {
        return Ok(());
    }
    Err(Violation::new(
        format!("`{name}` can't be the name of a vault."),
        "Use 2 to 50 letters, digits and hyphens, beginning with a letter.",
    ))
}

/// Name of a site, policy, mapping, plan or network.
///
/// # Errors
/// The rule that is broken.
pub fn resource_name(name: &str) -> Result<(), Violation> {
    let shaped = name
        .chars()
        .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '(' | ')' | ' '));
    if shaped
        && (1..=80).contains(&name.chars().count())
        && !name.starts_with('.')
        && !name.ends_with(['.', ' '])
    {
        return Ok(());
    }
    Err(Violation::new(
        format!(
            "`{}` can't be the name of a resource.",
            name.chars().take(80).collect::<String>()
        ),
        "Use 1 to 80 letters, digits, hyphens, underscores and dots, not ending with a dot.",
    ))
}

/// Most characters of an item's name.
pub const MAX_ITEM_NAME: usize = 80;

/// Name of a protected item. It names the replica's folder too, so the rule is that of `replica-store`'s key: ASCII letters,
/// digits, `.`, `_` and `-`, not beginning with a dot.
///
/// # Errors
/// The rule that is broken.
pub fn item_name(name: &str) -> Result<(), Violation> {
    let shaped = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if shaped
        && (1..=MAX_ITEM_NAME).contains(&name.len())
        && !name.starts_with('.')
        && !name.ends_with('.')
    {
        return Ok(());
    }
    Err(Violation::new(
        format!(
            "`{}` can't be the name of a protected item.",
            name.chars().take(MAX_ITEM_NAME).collect::<String>()
        ),
        "Use 1 to 80 of A-Z, a-z, 0-9, `.`, `_` and `-`, neither beginning nor ending with a dot; the VM's id is always fit.",
    ))
}

/// Most windows of a policy in which disks are compared.
pub const MAX_COMPARISON_WINDOWS: usize = 32;

/// Windows in which disks are compared: how many. Each is read by itself.
///
/// # Errors
/// The rule that is broken.
pub fn comparison_windows(windows: &[crate::window::TimeWindow]) -> Result<(), Violation> {
    if windows.len() <= MAX_COMPARISON_WINDOWS {
        return Ok(());
    }
    Err(Violation::new(
        format!("{} comparison windows are too many.", windows.len()),
        format!("Use {MAX_COMPARISON_WINDOWS} at most."),
    ))
}

/// Name of a storage account: 3 to 24 lower-case letters and digits.
///
/// # Errors
/// The rule that is broken.
pub fn storage_account_name(name: &str) -> Result<(), Violation> {
    let shaped = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if shaped && (3..=24).contains(&name.len()) {
        return Ok(());
    }
    Err(Violation::new(
        format!("`{name}` can't be the name of a storage account."),
        "Use 3 to 24 lower-case letters and digits.",
    ))
}

/// Folder of a storage account: an absolute path without `..`.
///
/// # Errors
/// The rule that is broken.
pub fn storage_folder(folder: &str) -> Result<(), Violation> {
    let windows = folder.as_bytes().get(..3).is_some_and(|drive| {
        drive[0].is_ascii_alphabetic() && drive[1] == b':' && matches!(drive[2], b'\\' | b'/')
    });
    let unix = folder.starts_with('/') && folder.len() > 1;
    let climbs = folder.split(['/', '\\']).any(|part| part == "..");
    if (unix || windows || folder.starts_with("\\\\")) && !climbs && !folder.contains('\0') {
        return Ok(());
    }
    Err(Violation::new(
        format!("`{folder}` can't be the folder of a storage account."),
        "Give an absolute path without `..`, as the hosts see it.",
    ))
}

/// Seconds between points. The Azure service knows 30, 300 and 900; this product takes 5 to 900.
///
/// # Errors
/// The rule that is broken.
pub fn replication_interval(seconds: u32) -> Result<(), Violation> {
    if (MIN_INTERVAL_SECONDS..=MAX_INTERVAL_SECONDS).contains(&seconds) {
        return Ok(());
    }
    Err(Violation::new(
        format!("A copy frequency of {seconds} seconds is not possible."),
        format!(
            "Use 30, 300 or 900 seconds, or another value from {MIN_INTERVAL_SECONDS} to {MAX_INTERVAL_SECONDS}."
        ),
    ))
}

/// Hours of recovery points.
///
/// # Errors
/// The rule that is broken.
pub fn retention(hours: u32) -> Result<(), Violation> {
    if hours <= MAX_RETENTION_HOURS {
        return Ok(());
    }
    Err(Violation::new(
        format!("A retention of {hours} hours is not possible."),
        format!("Use 0 (only the newest point) to {MAX_RETENTION_HOURS} hours."),
    ))
}

/// Hours between application-consistent points, with the retention that has to cover them.
///
/// # Errors
/// The rule that is broken.
pub fn app_consistent_frequency(hours: u32, retention_hours: u32) -> Result<(), Violation> {
    if hours > MAX_APP_CONSISTENT_HOURS {
        return Err(Violation::new(
            format!("Application-consistent points every {hours} hours are not possible."),
            format!("Use 0 (off) to {MAX_APP_CONSISTENT_HOURS} hours."),
        ));
    }
    if hours > retention_hours && hours > 0 {
        return Err(Violation::new(
            format!(
                "Application-consistent points every {hours} hours would be dropped before the next: retention is {retention_hours} hours."
            ),
            "Keep recovery points at least as long as the distance of application-consistent points.",
        ));
    }
    Ok(())
}

/// Premium storage allows 100 snapshots per blob: 30 s and shorter are refused with it.
///
/// # Errors
/// The rule that is broken.
pub fn interval_with_storage(seconds: u32, sku_name: &str) -> Result<(), Violation> {
    if seconds >= 300 || !is_premium(sku_name) {
        return Ok(());
    }
    Err(Violation::new(
        format!(
            "A copy frequency of {seconds} seconds is not possible with premium storage (`{sku_name}`)."
        ),
        "Use 300 or 900 seconds, or a storage account of a standard kind.",
    ))
}

/// A premium account takes page blobs only, so the change log of a VM goes to a standard account of its own.
///
/// # Errors
/// The rule that is broken; it is about the log storage account.
pub fn log_storage(target_sku: &str, log_sku: Option<&str>) -> Result<(), Violation> {
    match log_sku {
        Some(log) if is_premium(log) => Err(Violation::new(
            format!(
                "Premium storage (`{log}`) can't be a log storage account: it takes no change log."
            ),
            "Use a standard account in the vault's region for the log, such as one of kind `Standard_LRS`.",
        )),
        None if is_premium(target_sku) => Err(Violation::new(
            format!(
                "Premium storage (`{target_sku}`) takes no change log: a log storage account is needed."
            ),
            "Name a standard account in the vault's region as log storage account, or replicate to a standard account.",
        )),
        _ => Ok(()),
    }
}

/// Whether a storage kind is a premium one.
#[must_use]
pub fn is_premium(sku_name: &str) -> bool {
    sku_name
        .get(..7)
        .is_some_and(|tier| tier.eq_ignore_ascii_case("premium"))
}

/// Whether two regions are the same: case and spaces don't count (`North Europe` = `northeurope`).
#[must_use]
pub fn same_region(left: &str, right: &str) -> bool {
    normal_region(left) == normal_region(right)
}

/// A region in its normal form.
#[must_use]
pub fn normal_region(region: &str) -> String {
    region
        .chars()
        .filter(|c| !c.is_whitespace())
        .flat_map(char::to_lowercase)
        .collect()
}

/// Vault, storage account and network of one VM share one region.
///
/// # Errors
/// The rule that is broken.
pub fn regions_equal(vault: &str, what: &str, region: &str) -> Result<(), Violation> {
    if same_region(vault, region) {
        return Ok(());
    }
    Err(Violation::new(
        format!("The {what} is in region `{region}`, the vault in `{vault}`."),
        format!("Use a {what} in region `{vault}`."),
    ))
}

/// Start of the first copy: `hh:mm:ss`.
///
/// # Errors
/// The rule that is broken.
pub fn start_time(text: &str) -> Result<(), Violation> {
    let parts: Vec<Option<u32>> = text
        .split(':')
        .map(|part| {
            (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit()))
                .then(|| part.parse().ok())
                .flatten()
        })
        .collect();
    if let [Some(hours), Some(minutes), Some(seconds)] = parts.as_slice()
        && *hours < 24
        && *minutes < 60
        && *seconds < 60
    {
        return Ok(());
    }
    Err(Violation::new(
        format!("`{text}` is no time of day."),
        "Write `hh:mm:ss`, or leave it out to begin at once.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_called_what_its_replica_can_be_called() {
        for name in ["c0ffee00-1234-4abc-8def-001122334455", "web_01.lab", "-x"] {
            assert!(item_name(name).is_ok(), "{name}");
        }
        let long = "x".repeat(MAX_ITEM_NAME + 1);
        for name in [
            "web (1)",
            "büro",
            "a b",
            ".x",
            "x.",
            "",
            "a/b",
            long.as_str(),
        ] {
            assert!(item_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_policy_has_no_more_windows_than_anybody_can_oversee() {
        let window = crate::window::TimeWindow::default();
        assert!(comparison_windows(&vec![window.clone(); MAX_COMPARISON_WINDOWS]).is_ok());
        assert!(comparison_windows(&vec![window; MAX_COMPARISON_WINDOWS + 1]).is_err());
    }

    #[test]
    fn half_a_minute_is_refused_with_premium_storage_only() {
        assert!(interval_with_storage(30, "Premium_LRS").is_err());
        assert!(interval_with_storage(5, "premium_zrs").is_err());
        assert!(interval_with_storage(300, "Premium_LRS").is_ok());
        assert!(interval_with_storage(30, "Standard_LRS").is_ok());
    }

    #[test]
    fn premium_storage_needs_a_log_account_and_is_none() {
        assert!(log_storage("Premium_LRS", None).is_err());
        assert!(log_storage("Premium_ZRS", Some("Standard_GRS")).is_ok());
        assert!(log_storage("Premium_LRS", Some("premium_lrs")).is_err());
        assert!(log_storage("Standard_LRS", Some("Premium_LRS")).is_err());
        assert!(log_storage("Standard_LRS", Some("Standard_LRS")).is_ok());
        assert!(log_storage("Standard_LRS", None).is_ok());
    }

    #[test]
    fn policy_numbers_have_the_limits_of_the_service() {
        for seconds in [5, 30, 300, 900] {
            assert!(replication_interval(seconds).is_ok());
        }
        for seconds in [0, 4, 901] {
            assert!(replication_interval(seconds).is_err());
        }
        assert!(retention(24).is_ok() && retention(25).is_err());
        assert!(app_consistent_frequency(0, 0).is_ok());
        assert!(app_consistent_frequency(13, 24).is_err());
        assert!(app_consistent_frequency(4, 2).is_err());
        assert!(app_consistent_frequency(1, 2).is_ok());
    }

    #[test]
    fn names_and_folders_that_could_escape_are_refused() {
        for name in ["", ".", "..", "a/b", "a\\b", "x.", "a\n"] {
            assert!(resource_name(name).is_err(), "{name:?}");
        }
        for folder in ["", "/", "relative", "/a/../b", "C:x"] {
            assert!(storage_folder(folder).is_err(), "{folder:?}");
        }
        assert!(storage_folder("/srv/replicas").is_ok());
        assert!(storage_folder("D:\\replicas").is_ok());
        assert!(vault_name("v").is_err() && vault_name("vault-dr").is_ok());
        assert!(storage_account_name("St").is_err() && storage_account_name("stdr1").is_ok());
    }

    #[test]
    fn regions_compare_without_case_and_spaces() {
        assert!(same_region("North Europe", "northeurope"));
        assert!(regions_equal("north", "storage account", "south").is_err());
    }

    #[test]
    fn a_time_of_day_is_checked() {
        assert!(start_time("23:59:00").is_ok());
        for text in ["24:00:00", "1:2:3", "", "aa:00:00", "00:60:00"] {
            assert!(start_time(text).is_err());
        }
    }
}
