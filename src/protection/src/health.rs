//! Health of an item, by what is known of it.

use serde::{Deserialize, Serialize};

use crate::machine::ReplicationState;

/// Health, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Not applicable.
    None,
    /// All well.
    Normal,
    /// Something needs a look.
    Warning,
    /// A failover would lose more than the policy promises, or fail.
    Critical,
}

// === impl Health ===

impl Health {
    /// Text in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Normal => "Normal",
            Self::Warning => "Warning",
            Self::Critical => "Critical",
        }
    }
}

/// What health is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Signs {
    /// State of replication.
    pub state: ReplicationState,
    /// Whether the host reports.
    pub connected: bool,
    /// Whether the engine reported a critical finding.
    pub critical_findings: bool,
    /// Whether the engine reported any finding.
    pub findings: bool,
    /// Age of the newest point.
    pub rpo_seconds: Option<u64>,
    /// Copy frequency of the policy.
    pub interval_seconds: u64,
}

/// Health of replication: critical beyond ten intervals (at least 5 minutes) without a point, warning beyond
/// three (at least 1 minute).
#[must_use]
pub fn replication_health(signs: &Signs) -> Health {
    use ReplicationState as R;
    if signs.critical_findings || signs.state == R::Fenced {
        return Health::Critical;
    }
    let late = match signs.rpo_seconds {
        Some(age) if age > (signs.interval_seconds.saturating_mul(10)).max(300) => Health::Critical,
        Some(age) if age > (signs.interval_seconds.saturating_mul(3)).max(60) => Health::Warning,
        _ => Health::Normal,
    };
    let state = match signs.state {
        R::Removed | R::DisablingProtection => return Health::None,
        R::Resynchronising => Health::Warning,
        _ => Health::Normal,
    };
    let rest = if signs.findings || !signs.connected {
        Health::Warning
    } else {
        Health::Normal
    };
    late.max(state).max(rest)
}

/// Worst of several; `Normal` of none.
pub fn worst(healths: impl IntoIterator<Item = Health>) -> Health {
    healths.into_iter().max().unwrap_or(Health::Normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Signs = Signs {
        state: ReplicationState::Protected,
        connected: true,
        critical_findings: false,
        findings: false,
        rpo_seconds: Some(20),
        interval_seconds: 30,
    };

    #[test]
    fn health_follows_age_of_the_newest_point() {
        assert_eq!(replication_health(&WELL), Health::Normal);
        let age = |rpo| Signs {
            rpo_seconds: Some(rpo),
            ..WELL
        };
        assert_eq!(replication_health(&age(91)), Health::Warning);
        assert_eq!(replication_health(&age(301)), Health::Critical);
    }

    #[test]
    fn a_silent_host_is_a_warning_and_a_critical_finding_is_critical() {
        assert_eq!(
            replication_health(&Signs {
                connected: false,
                ..WELL
            }),
            Health::Warning
        );
        assert_eq!(
            replication_health(&Signs {
                critical_findings: true,
                ..WELL
            }),
            Health::Critical
        );
    }

    #[test]
    fn the_worst_counts() {
        assert_eq!(
            worst([Health::Normal, Health::Critical, Health::None]),
            Health::Critical
        );
        assert_eq!(worst([]), Health::Normal);
    }
}
