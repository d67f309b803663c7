//! Site Recovery's built-in roles, and which right a request needs.

use serde::{Deserialize, Serialize};

/// Built-in role of a client, weakest first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
pub enum Role {
    /// Sees everything, changes nothing.
    Reader,
    /// Runs drills and failovers.
    Operator,
    /// Everything inside a vault.
    Contributor,
    /// Also vaults, storage accounts, networks, groups.
    Owner,
}

/// Right that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// To see.
    Read,
    /// To run drills and failovers and to handle jobs.
    Operate,
    /// To change what is inside a vault.
    Write,
    /// To change what is outside of vaults, and vaults themselves.
    Own,
}

/// Actions that an operator may start.
const OPERATIONS: &[&str] = &[
    "testfailover",
    "testfailovercleanup",
    "plannedfailover",
    "unplannedfailover",
    "failovercommit",
    "failovercancel",
    "applyrecoverypoint",
    "reprotect",
    "repairreplication",
    "cancel",
    "resume",
    "restart",
    "refreshprovider",
    "refresh",
];

// === impl Role ===

impl Role {
    /// Whether the role gives a right.
    #[must_use]
    pub fn may(self, right: Right) -> bool {
        let least = match right {
            Right::Read => Self::Reader,
            Right::Operate => Self::Operator,
            Right::Write => Self::Contributor,
            Right::Own => Self::Owner,
        };
        self >= least
    }

    /// Name in tokens.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "Site Recovery Reader",
            Self::Operator => "Site Recovery Operator",
            Self::Contributor => "Site Recovery Contributor",
            Self::Owner => "Owner",
        }
    }
}

/// The right that a request needs. `kinds` are the lower-case types of the resource, `tail` what follows it.
#[must_use]
pub fn needed(method: &str, kinds: &str, tail: Option<&str>) -> Right {
    match method {
        "GET" | "HEAD" => Right::Read,
        "POST" if tail.is_some_and(|tail| OPERATIONS.contains(&tail)) => Right::Operate,
        _ if kinds.starts_with("vaults/") => Right::Write,
        "POST" if kinds == "vaults" => Right::Write,
        _ => Right::Own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: &str =
        "vaults/replicationfabrics/replicationprotectioncontainers/replicationprotecteditems";

    #[test]
    fn an_operator_runs_drills_but_neither_enables_nor_disables() {
        assert!(Role::Operator.may(needed("POST", ITEM, Some("testfailover"))));
        assert!(Role::Operator.may(needed("GET", ITEM, None)));
        assert!(!Role::Operator.may(needed("PUT", ITEM, None)));
        assert!(!Role::Operator.may(needed("POST", ITEM, Some("remove"))));
        assert!(!Role::Operator.may(needed(
            "POST",
            "vaults/replicationfabrics",
            Some("registrationkeys")
        )));
    }

    #[test]
    fn a_contributor_does_not_make_vaults_and_a_reader_changes_nothing() {
        assert!(Role::Contributor.may(needed("PUT", ITEM, None)));
        assert!(!Role::Contributor.may(needed("PUT", "vaults", None)));
        assert!(!Role::Contributor.may(needed("DELETE", "storageaccounts", None)));
        assert!(!Role::Reader.may(needed("POST", ITEM, Some("testfailover"))));
        assert!(Role::Owner.may(needed("DELETE", "vaults", None)));
    }
}
