//! Rules of network adapters.

use super::{Hit, Rule, Severity, Theme};

/// Most adapters that any size of a VM takes in Azure.
const ADAPTERS: usize = 8;

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "TooManyAdapters",
        theme: Theme::Network,
        title: "More than 8 network adapters",
        why: "No size of a VM in Azure takes more.",
        advice: "Leave adapters out of the recovered VM, or recover it on a recovery host.",
        original: "as many as the size of the VM takes",
        original_code: None,
        source: "support matrix, guest OS and VM form",
        azure: Severity::Warns,
        recovery_host: Severity::Lifted,
        find: Some(|facts, _| {
            let count = facts.adapters.unwrap_or_default();
            let hit = count > ADAPTERS;
            let what = format!("The VM has {count} network adapters.");
            hit.then(|| Hit::vm(what)).into_iter().collect()
        }),
    },
    Rule {
        code: "NoAdapter",
        theme: Theme::Network,
        title: "The VM has no network adapter",
        why: "A VM in Azure has at least one; the recovered VM would be reached by nobody.",
        advice: "Attach an adapter, connected or not.",
        original: "wants one",
        original_code: None,
        source: "support matrix, guest networking",
        azure: Severity::Warns,
        recovery_host: Severity::Lifted,
        find: Some(|facts, _| {
            let hit = facts.adapters == Some(0);
            let what = "The VM has no network adapter.".to_owned();
            hit.then(|| Hit::vm(what)).into_iter().collect()
        }),
    },
    Rule {
        code: "Ipv6",
        theme: Theme::Network,
        title: "The guest uses IPv6",
        why: "Adapters are carried over as they are; what a guest configures in itself stays.",
        advice: "Nothing.",
        original: "not supported in 2018",
        original_code: None,
        source: "support matrix, guest networking",
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: None,
    },
];
