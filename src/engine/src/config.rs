//! `engine.toml`: read once, validated at the edge, then trusted.
//!
//! What may go wrong: the file is missing, is not TOML, has an unknown or misspelt key, a relative path or
//! a data folder too long for a unix socket. Each error names the file and the key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use engine_protocol::v1::Finding;
use hypervisor::Generation;
use serde::Deserialize;

use crate::finding::recovery_folder_too_long;
use crate::platform;
use crate::platform::Driver;

/// A unix socket's path holds 107 bytes; `<data_folder>/engine.sock` needs 12.
const LONGEST_DATA_FOLDER: usize = if cfg!(unix) { 107 - 12 } else { usize::MAX };

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    vm_folder: Option<PathBuf>,
    #[serde(default = "platform::default_data_folder")]
    data_folder: PathBuf,
    recovery_folder: Option<PathBuf>,
    source_role: Option<bool>,
    #[serde(default)]
    recovery_role: bool,
    recovery_generations: Option<Vec<u32>>,
    registration_key_file: Option<PathBuf>,
    #[serde(default = "default_log_level")]
    log_level: String,
    #[serde(default)]
    log_format: LogFormat,
    host_name: Option<String>,
    scripts_folder: Option<PathBuf>,
    driver: Option<Driver>,
}

/// Validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder with one folder a VM, as the `qemu` driver reads it; a host that only recovers has none.
    pub vm_folder: Option<PathBuf>,
    /// The engine's own folder.
    pub data_folder: PathBuf,
    /// Where recovered VMs live, one folder each.
    pub recovery_folder: PathBuf,
    /// Offers the VMs of `vm_folder` for protection.
    pub source_role: bool,
    /// May run recovered VMs.
    pub recovery_role: bool,
    /// Generations of VMs that may run on this host when it recovers them; `None` = all that its hypervisor can run.
    pub recovery_generations: Option<Vec<Generation>>,
    /// File with the registration key; deleted after enrolment.
    pub registration_key_file: PathBuf,
    /// Filter of the log, such as `info` or `engine=debug,info`.
    pub log_level: String,
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// Name that the host reports; the kernel's host name when absent.
    pub host_name: Option<String>,
    /// Where scripts of recovery plans may come from; without it none runs here.
    pub scripts_folder: Option<PathBuf>,
    /// What runs this host's virtual machines; the system's usual one when absent.
    pub driver: Option<Driver>,
}

impl Config {
    /// Reads and validates `path`.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read configuration file {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("configuration file {}", path.display()))
    }

    /// Validates the text of a configuration file.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text)?;
        let config = Self {
            recovery_folder: file
                .recovery_folder
                .unwrap_or_else(|| file.data_folder.join("recovered")),
            registration_key_file: file
                .registration_key_file
                .unwrap_or_else(|| file.data_folder.join("registration.key")),
            source_role: file
                .source_role
                .unwrap_or(file.vm_folder.is_some() || file.driver == Some(Driver::Hyperv)),
            driver: file.driver,
            vm_folder: file.vm_folder,
            data_folder: file.data_folder,
            recovery_role: file.recovery_role,
            recovery_generations: file.recovery_generations.map(generations).transpose()?,
            log_level: file.log_level,
            log_format: file.log_format,
            host_name: file.host_name.filter(|name| !name.is_empty()),
            scripts_folder: file.scripts_folder,
        };
        config.validate()?;
        Ok(config)
    }

    /// What keeps the host from the recovery role that it is given. The engine starts all the same: the virtual machines
    /// of the host are to be replicated, and whoever looks at the host is told.
    pub fn recovery_hindrance(&self) -> Option<Finding> {
        let most = platform::MAX_RECOVERY_FOLDER;
        let too_long = self.recovery_role && self.recovery_folder.as_os_str().len() > most;
        too_long.then(|| recovery_folder_too_long(&self.recovery_folder, most))
    }

    fn validate(&self) -> anyhow::Result<()> {
        if let Some(driver) = self.driver
            && !driver.is_of_this_system()
        {
            bail!(
                "driver: {driver:?} does not run on this operating system; leave the key out, or see the guide for its hosts"
            );
        }
        if self.source_role && self.vm_folder.is_none() && self.driver != Some(Driver::Hyperv) {
            bail!(
                "vm_folder: missing; source_role = true needs the folder of this host's virtual machines"
            );
        }
        let vm_folder = self.vm_folder.as_ref().map(|folder| ("vm_folder", folder));
        let scripts = self.scripts_folder.as_ref();
        let scripts = scripts.map(|folder| ("scripts_folder", folder));
        for (key, path) in vm_folder.into_iter().chain(scripts).chain([
            ("data_folder", &self.data_folder),
            ("recovery_folder", &self.recovery_folder),
            ("registration_key_file", &self.registration_key_file),
        ]) {
            if !path.is_absolute() {
                bail!(
                    "{key}: {:?} is not an absolute path",
                    path.display().to_string()
                );
            }
        }
        let length = self.data_folder.as_os_str().len();
        if length > LONGEST_DATA_FOLDER {
            bail!(
                "data_folder: path has {length} bytes; at most {LONGEST_DATA_FOLDER} fit a unix socket's address"
            );
        }
        if let (true, Some(vms)) = (self.recovery_role, &self.vm_folder)
            && overlap(vms, &self.recovery_folder)
        {
            // The engine removes recovered virtual machines; it must never have originals among them.
            bail!(
                "recovery_folder: {:?} and vm_folder {:?} are one folder or one lies in the other; give recovered virtual machines a folder of their own",
                self.recovery_folder.display().to_string(),
                vms.display().to_string()
            );
        }
        if cfg!(windows) && self.recovery_role {
            bail!(
                "recovery_role: engines on Windows run no recovered virtual machines yet; give the role to a Linux host"
            );
        }
        if !self.source_role && !self.recovery_role {
            bail!("vm_folder, recovery_role: give at least one, or the engine has nothing to do");
        }
        if crate::logging::filter(&self.log_level).is_err() {
            bail!(
                "log_level: {:?} is not a log filter such as \"info\" or \"engine=debug,info\"",
                self.log_level
            );
        }
        Ok(())
    }

    /// `<data>/identity`.
    pub fn identity_folder(&self) -> PathBuf {
        self.data_folder.join("identity")
    }

    /// `<data>/state`.
    pub fn state_folder(&self) -> PathBuf {
        self.data_folder.join("state")
    }

    /// `<data>/engine.sock`, where a running engine answers `status`.
    pub fn control_socket(&self) -> PathBuf {
        self.data_folder.join("engine.sock")
    }

    /// `<data>/engine.pid`.
    pub fn pid_file(&self) -> PathBuf {
        self.data_folder.join("engine.pid")
    }

    /// `<data>/supervisor.pid`, of the process that starts a detached engine again.
    pub fn supervisor_pid_file(&self) -> PathBuf {
        self.data_folder.join("supervisor.pid")
    }

    /// `<data>/engine.log`.
    pub fn log_file(&self) -> PathBuf {
        self.data_folder.join("engine.log")
    }
}

/// Each of them once, the lowest first.
fn generations(numbers: Vec<u32>) -> anyhow::Result<Vec<Generation>> {
    let mut all = Vec::new();
    for number in BTreeSet::from_iter(numbers) {
        match Generation::from_number(number) {
            Some(generation) => all.push(generation),
            None => bail!("recovery_generations: there is no generation {number}; use 1 and 2"),
        }
    }
    if all.is_empty() {
        bail!("recovery_generations: give at least one of 1 and 2, or leave the key out");
    }
    Ok(all)
}

fn default_log_level() -> String {
    "info".to_owned()
}

/// Whether two folders are one, or one lies in the other; links are followed as far as the folders exist.
fn overlap(a: &Path, b: &Path) -> bool {
    let [a, b] = [a, b].map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()));
    a.starts_with(&b) || b.starts_with(&a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        format!("{:#}", Config::parse(text).unwrap_err())
    }

    #[test]
    fn the_smallest_file_gets_the_documented_defaults() {
        let config = Config::parse("vm_folder = \"/srv/vms\"").unwrap();
        assert_eq!(config.data_folder, Path::new("/var/lib/siterecovery"));
        assert_eq!(
            config.recovery_folder,
            Path::new("/var/lib/siterecovery/recovered")
        );
        assert_eq!(
            config.registration_key_file,
            Path::new("/var/lib/siterecovery/registration.key")
        );
        assert!(config.source_role && !config.recovery_role);
        assert_eq!(config.log_level, "info");
    }

    #[test]
    fn a_driver_of_another_operating_system_is_refused_and_hyperv_needs_no_folder() {
        let usual = Config::parse("vm_folder = \"/srv/vms\"\ndriver = \"qemu\"").unwrap();
        assert_eq!(usual.driver, Some(Driver::Qemu));
        let error = error_of("driver = \"hyperv\"");
        // Not that a folder is missing.
        assert!(error.starts_with("driver:"), "{error}");
        assert!(error_of("vm_folder = \"/srv/vms\"\ndriver = \"xen\"").contains("xen"));
    }

    #[test]
    fn originals_and_recovered_machines_never_share_a_folder() {
        for (vms, recovered) in [
            ("/srv/vms", "/srv/vms"),
            ("/srv/vms", "/srv/vms/recovered/"),
            ("/srv/recovered/vms", "/srv/recovered"),
        ] {
            let text = format!(
                "vm_folder = {vms:?}\nrecovery_role = true\nrecovery_folder = {recovered:?}"
            );
            let error = error_of(&text);
            assert!(error.contains("recovery_folder: "), "{error}");
        }
        let apart =
            "vm_folder = \"/srv/vms\"\nrecovery_role = true\nrecovery_folder = \"/srv/vms2\"";
        Config::parse(apart).unwrap();
    }

    #[test]
    fn a_host_that_only_recovers_needs_no_vm_folder() {
        let config = Config::parse("recovery_role = true").unwrap();
        assert!(config.recovery_role && !config.source_role);
    }

    #[test]
    fn a_recovery_host_may_be_kept_to_some_generations() {
        let parsed = |line: &str| Config::parse(&format!("recovery_role = true\n{line}"));
        let kept = |line: &str| parsed(line).unwrap().recovery_generations;
        assert_eq!(kept(""), None);
        assert_eq!(
            kept("recovery_generations = [1]"),
            Some(vec![Generation::One])
        );
        assert_eq!(
            kept("recovery_generations = [2, 1, 2]"),
            Some(vec![Generation::One, Generation::Two])
        );
        for wrong in ["[]", "[3]", "[1, 0]"] {
            let error = parsed(&format!("recovery_generations = {wrong}")).unwrap_err();
            assert!(
                format!("{error:#}").contains("recovery_generations: "),
                "{error:#}"
            );
        }
    }

    #[test]
    fn every_mistake_names_its_key() {
        assert!(error_of("").contains("vm_folder"));
        assert!(error_of("source_role = true").contains("vm_folder"));
        assert!(error_of("vm_folder = \"vms\"").contains("vm_folder"));
        assert!(error_of("vm_folder = \"/vms\"\nvmfolder = 1").contains("vmfolder"));
        assert!(
            error_of("vm_folder = \"/vms\"\nscripts_folder = \"s\"").contains("scripts_folder")
        );
        assert!(error_of("vm_folder = \"/vms\"\nsource_role = false").contains("recovery_role"));
        assert!(error_of("vm_folder = \"/vms\"\nlog_level = \"a=b=c\"").contains("log_level"));
        let long = format!(
            "vm_folder = \"/vms\"\ndata_folder = \"/{}\"",
            "x".repeat(120)
        );
        assert!(error_of(&long).contains("data_folder"));
    }

    #[cfg(unix)]
    #[test]
    fn a_recovery_folder_that_is_too_long_takes_the_role_and_not_the_replication() {
        let with = |length: usize| {
            Config::parse(&format!(
                "vm_folder = \"/vms\"\nrecovery_role = true\nrecovery_folder = \"/{}\"",
                "x".repeat(length - 1)
            ))
            .unwrap()
            .recovery_hindrance()
        };
        assert_eq!(with(platform::MAX_RECOVERY_FOLDER), None);
        let hindrance = with(platform::MAX_RECOVERY_FOLDER + 1).unwrap();
        assert!(hindrance.critical && hindrance.code == "RECOVERY_FOLDER_TOO_LONG");
        for part in ["recovery_folder", "56 bytes", "55"] {
            assert!(hindrance.summary.contains(part), "{hindrance:?}");
        }
    }
}
