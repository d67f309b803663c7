//! What may change while an item is replicated: schedule, retention, limits. Checked once at the edge.

use std::path::PathBuf;
use std::time::Duration;

use engine_protocol::v1;
use hypervisor::DiskId;
use replica_store::{RetentionPolicy, RetentionTier};
use replication_log::KeyRing;

use super::throttle::Limit;
use crate::time_window::{self, TimeWindow};

/// The shortest interval that makes sense: below it, freezing costs more than it gives.
const SHORTEST_INTERVAL_SECONDS: u32 = 1;
/// Of the disk's size, when the policy does not say.
const LOG_QUOTA_PERCENT: u32 = 50;

/// Schedule, retention and limits of an item. A running task takes changes of it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From freeze to freeze.
    pub interval: Duration,
    /// How long points are kept.
    pub retention: RetentionPolicy,
    /// From one application-consistent point to the next; `None` = there are none.
    pub app_consistent: Option<Duration>,
    /// Waiting logs may take so much of their disk's size.
    pub log_quota_percent: u32,
    /// Comparisons run only then; empty = at any time.
    pub comparison_windows: Vec<TimeWindow>,
    /// How often every kept point is read again; `None` = never.
    pub verification: Option<Duration>,
    /// VMs of one name share their points; empty = alone.
    pub group_name: String,
    /// Rate limits of this item.
    pub throttles: Vec<Limit>,
    /// A base was completed once: an empty store is a lost one.
    pub replica_exists: bool,
    /// Copies of disks that lie at the store.
    pub seeds: Vec<Seed>,
    /// Grows when a person asks for a comparison.
    pub resynchronize: u64,
    /// What journal objects are encrypted with, and what older ones need.
    pub keys: KeyRing,
}

/// A copy of a disk that was brought to the store's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Of which disk.
    pub disk: DiskId,
    /// A file on a machine with the store's folder, or a blob of the container.
    pub path: PathBuf,
}

impl Policy {
    /// With an interval and a retention, everything else as when the orchestrator says nothing of it.
    pub fn new(interval: Duration, retention: RetentionPolicy) -> Self {
        Self {
            interval,
            retention,
            app_consistent: None,
            log_quota_percent: LOG_QUOTA_PERCENT,
            comparison_windows: Vec::new(),
            verification: None,
            group_name: String::new(),
            throttles: Vec::new(),
            replica_exists: false,
            seeds: Vec::new(),
            resynchronize: 0,
            keys: KeyRing::new(),
        }
    }

    /// Reads a message; the error is for a finding.
    pub fn read(message: &v1::Replication) -> Result<Self, String> {
        let policy = message.policy.as_ref().ok_or("no replication policy")?;
        let interval = policy
            .replication_interval_seconds
            .max(SHORTEST_INTERVAL_SECONDS);
        let tiers: Vec<RetentionTier> = policy
            .retention_tiers
            .iter()
            .map(|tier| RetentionTier {
                every_seconds: tier.every_seconds,
                for_seconds: tier.for_seconds,
            })
            .collect();
        let retention = RetentionPolicy {
            immutability_hours: policy.immutability_hours,
            ..RetentionPolicy::hours(policy.retention_hours)
        };
        let retention = retention
            .with_tiers(&tiers)
            .ok_or("retention tiers without a period, or more of them than an engine can keep")?;
        let app_minutes = match policy.app_consistent_frequency_minutes {
            0 => u64::from(policy.app_consistent_frequency_hours) * 60,
            minutes => minutes.into(),
        };
        let seeds = message.seeds.iter().map(|seed| {
            Ok(Seed {
                disk: DiskId(super::spec::guid("seed's disk", &seed.disk_id)?),
                path: PathBuf::from(&seed.path),
            })
        });
        Ok(Self {
            app_consistent: (app_minutes > 0).then(|| Duration::from_secs(app_minutes * 60)),
            log_quota_percent: match policy.log_quota_percent {
                0 => LOG_QUOTA_PERCENT,
                percent => percent,
            },
            comparison_windows: time_window::read_all(&policy.comparison_windows)?,
            verification: (policy.verification_hours > 0)
                .then(|| Duration::from_secs(u64::from(policy.verification_hours) * 3600)),
            group_name: message.group_name.clone(),
            throttles: limits(&message.throttles)?,
            replica_exists: message.replica_exists,
            seeds: seeds.collect::<Result<_, String>>()?,
            resynchronize: message.resynchronize,
            keys: match &message.encryption {
                Some(encryption) => keys(encryption)?,
                None => KeyRing::new(),
            },
            ..Self::new(Duration::from_secs(interval.into()), retention)
        })
    }
}

/// Reads keys; the error is for a finding and tells nothing of their bytes.
pub fn keys(message: &v1::Encryption) -> Result<KeyRing, String> {
    let mut keys = KeyRing::new();
    for key in &message.keys {
        let id = super::spec::guid("encryption key", &key.id)?;
        keys.insert(id, &key.key)
            .map_err(|error| error.to_string())?;
    }
    let active = match message.active_key_id.as_str() {
        "" => None,
        id => Some(super::spec::guid("active encryption key", id)?),
    };
    keys.activate(active).map_err(|error| error.to_string())?;
    Ok(keys)
}

/// Reads rate limits; the error is for a finding.
pub fn limits(messages: &[v1::Throttle]) -> Result<Vec<Limit>, String> {
    messages
        .iter()
        .map(|message| {
            Ok(Limit {
                bytes_per_second: message.bytes_per_second,
                windows: time_window::read_all(&message.windows)?,
            })
        })
        .collect()
}
