//! What the drivers take for granted, one line each: what it is, where it comes from, and which step proves it. Pure data.
//!
//! Ids never change: reports of different versions are compared by them.

use serde::{Deserialize, Serialize};

/// Which driver is qualified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// QEMU on Linux.
    Qemu,
    /// Hyper-V on Windows Server.
    Hyperv,
}

/// A step, in the order in which they are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Look at the host.
    Host,
    /// Make the throw-away VM.
    Create,
    /// Start it.
    Start,
    /// A first frozen point, read and given back.
    Freeze,
    /// Changes since that point.
    Track,
    /// A point whose owner died.
    Abandon,
    /// A point for which the guest is asked.
    Application,
    /// A guest that does not shut down.
    ShutDown,
    /// Replicate into a folder, and compare.
    Protect,
    /// Turn it off.
    PowerOff,
    /// A point of a VM that is off.
    FreezeOff,
    /// Delete it.
    Remove,
    /// Make it again out of the replica.
    FailBack,
    /// What takes more than one host, or a guest with an operating system.
    Elsewhere,
}

impl Step {
    /// All, in order.
    pub const ALL: [Step; 14] = [
        Step::Host,
        Step::Create,
        Step::Start,
        Step::Freeze,
        Step::Track,
        Step::Abandon,
        Step::Application,
        Step::ShutDown,
        Step::Protect,
        Step::PowerOff,
        Step::FreezeOff,
        Step::Remove,
        Step::FailBack,
        Step::Elsewhere,
    ];

    /// What it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Step::Host => "look at the host",
            Step::Create => "make a virtual machine",
            Step::Start => "start it",
            Step::Freeze => "freeze and read it while it runs",
            Step::Track => "tell its changes",
            Step::Abandon => "clean up behind a process that died",
            Step::Application => "ask its guest to rest",
            Step::ShutDown => "ask its guest to shut down",
            Step::Protect => "replicate it into a folder",
            Step::PowerOff => "turn it off",
            Step::FreezeOff => "freeze and read it while it is off",
            Step::Remove => "delete it",
            Step::FailBack => "make it again out of the replica",
            Step::Elsewhere => "what this command can't try",
        }
    }

    /// Steps that must have come to their end for this one to mean anything.
    pub fn needs(self) -> &'static [Step] {
        match self {
            Step::Host | Step::Elsewhere => &[],
            Step::Create => &[Step::Host],
            Step::Start | Step::Remove => &[Step::Create],
            Step::Freeze | Step::ShutDown | Step::PowerOff => &[Step::Start],
            Step::Track | Step::Abandon | Step::Application | Step::Protect => &[Step::Freeze],
            Step::FreezeOff => &[Step::PowerOff],
            Step::FailBack => &[Step::Protect, Step::Remove],
        }
    }
}

/// Something that a driver takes for granted.
#[derive(Clone, Copy, Debug)]
pub struct Assumption {
    /// For programs; never changes.
    pub id: &'static str,
    /// The step that proves it.
    pub step: Step,
    /// The driver that assumes it; `None` = all.
    pub driver: Option<Kind>,
    /// What the driver's error names when this is broken, such as a method of WMI; empty = any failure of the step's call that nothing else
    /// explains.
    pub call: &'static str,
    /// What is assumed.
    pub text: &'static str,
    /// Where that comes from.
    pub source: &'static str,
    /// Why this command can't try it.
    pub untried: Option<&'static str>,
}

impl Assumption {
    /// Whether it is one of this driver.
    pub fn is_of(&self, kind: Kind) -> bool {
        self.driver.is_none_or(|driver| driver == kind)
    }
}

/// Those of a driver, in the order of their steps.
pub fn of(kind: Kind) -> impl Iterator<Item = &'static Assumption> {
    Step::ALL.into_iter().flat_map(move |step| {
        let all = COMMON.iter().chain(super::hyperv::ASSUMPTIONS);
        all.filter(move |one| one.step == step && one.is_of(kind))
    })
}

const DRIVERS: &str = "promise of all drivers (conformance suite)";
const ENGINE: &str = "promise of the engine (replicator)";

const fn common(
    id: &'static str,
    step: Step,
    text: &'static str,
    source: &'static str,
) -> Assumption {
    Assumption {
        id,
        step,
        driver: None,
        call: "",
        text,
        source,
        untried: None,
    }
}

const COMMON: &[Assumption] = &[
    common(
        "host-answers",
        Step::Host,
        "the host tells its version and lists its virtual machines",
        DRIVERS,
    ),
    common(
        "create-vm",
        Step::Create,
        "a virtual machine is made out of disk images, and is off",
        DRIVERS,
    ),
    common(
        "create-listed",
        Step::Create,
        "it is listed once, with its id, generation, disks and their order and sizes",
        DRIVERS,
    ),
    common(
        "create-repeated",
        Step::Create,
        "making it once more changes nothing",
        DRIVERS,
    ),
    common(
        "start",
        Step::Start,
        "it starts; starting it again changes nothing",
        DRIVERS,
    ),
    common(
        "freeze",
        Step::Freeze,
        "one instant over all its disks is frozen while it runs; a first one knows no changes",
        DRIVERS,
    ),
    common(
        "frozen-read",
        Step::Freeze,
        "a frozen disk is read while the virtual machine runs",
        DRIVERS,
    ),
    common(
        "release",
        Step::Freeze,
        "a point is given back, and changes are tracked from it on",
        DRIVERS,
    ),
    common(
        "merge",
        Step::Freeze,
        "after that the virtual machine writes to its own image again",
        DRIVERS,
    ),
    common(
        "track",
        Step::Track,
        "tracking tells what changed since a point",
        DRIVERS,
    ),
    common(
        "track-complete",
        Step::Track,
        "it tells the blocks that the guest wrote and no others, and none of a disk that nobody wrote to",
        DRIVERS,
    ),
    common(
        "frozen-still",
        Step::Track,
        "a frozen disk reads the same a second time, although the guest writes",
        DRIVERS,
    ),
    common(
        "frozen-parallel",
        Step::Track,
        "four readers at once read what one reads",
        DRIVERS,
    ),
    common(
        "forget",
        Step::Track,
        "older tracking is dropped, newer stays",
        DRIVERS,
    ),
    common(
        "abandon-busy",
        Step::Abandon,
        "while a point is frozen a second one is refused as busy",
        DRIVERS,
    ),
    common(
        "abandon-clean-up",
        Step::Abandon,
        "what a dead process left frozen is cleaned up, and no change is lost",
        DRIVERS,
    ),
    common(
        "application-honest",
        Step::Application,
        "a guest that can't come to rest gives a crash-consistent point that says so",
        DRIVERS,
    ),
    common(
        "shut-down-honest",
        Step::ShutDown,
        "a guest that doesn't shut down in time is told as that, and runs on",
        DRIVERS,
    ),
    common(
        "protect-first",
        Step::Protect,
        "the first copy goes into a folder and gives a recovery point",
        ENGINE,
    ),
    common(
        "protect-delta",
        Step::Protect,
        "a later point ships what changed, not the disks",
        ENGINE,
    ),
    common(
        "protect-equal",
        Step::Protect,
        "every point in the folder equals the disks as they were frozen, by BLAKE3",
        ENGINE,
    ),
    common(
        "forget-all",
        Step::Protect,
        "all tracking is dropped at the end of protection",
        DRIVERS,
    ),
    common(
        "turn-off",
        Step::PowerOff,
        "it is turned off at once",
        DRIVERS,
    ),
    common(
        "freeze-off",
        Step::FreezeOff,
        "its disks are frozen and read while it is off",
        DRIVERS,
    ),
    common(
        "freeze-off-equal",
        Step::FreezeOff,
        "they read as this engine's own code reads the image files, by BLAKE3",
        "format of VHDX (MS-VHDX)",
    ),
    common(
        "remove",
        Step::Remove,
        "it is deleted with its folder, and nothing of it is listed",
        DRIVERS,
    ),
    common(
        "fail-back-create",
        Step::FailBack,
        "a virtual machine is made out of the newest recovery point, with the same disk ids",
        ENGINE,
    ),
    common(
        "fail-back-equal",
        Step::FailBack,
        "its disks equal that point, by BLAKE3",
        ENGINE,
    ),
    common(
        "fail-back-runs",
        Step::FailBack,
        "it starts, and its guest boots and writes",
        ENGINE,
    ),
    Assumption {
        id: "application-confirmed",
        untried: Some(
            "it takes a guest with an operating system; protect one, ask for an application-consistent point and look at its kind",
        ),
        ..common(
            "",
            Step::Elsewhere,
            "a guest with its agent comes to rest for an application-consistent point",
            "QEMU guest agent; Hyper-V integration services",
        )
    },
    Assumption {
        id: "shut-down-clean",
        untried: Some(
            "it takes a guest with an operating system; a planned failover of a test machine shows it",
        ),
        ..common(
            "",
            Step::Elsewhere,
            "a guest shuts down in order when it is asked",
            "ACPI; Hyper-V integration services",
        )
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_id_is_there_once_and_every_line_says_what_it_is_and_where_it_comes_from() {
        for kind in [Kind::Qemu, Kind::Hyperv] {
            let all: Vec<_> = of(kind).collect();
            let ids: BTreeSet<_> = all.iter().map(|one| one.id).collect();
            assert_eq!(ids.len(), all.len());
            for one in &all {
                assert!(!one.id.is_empty() && !one.text.is_empty() && !one.source.is_empty());
                assert_eq!(
                    one.untried.is_some(),
                    one.step == Step::Elsewhere,
                    "{}",
                    one.id
                );
            }
            for pair in all.windows(2) {
                assert!(pair[0].step <= pair[1].step);
            }
        }
        assert_eq!(
            COMMON.len() + super::super::hyperv::ASSUMPTIONS.len(),
            of(Kind::Hyperv).count()
        );
    }

    #[test]
    fn a_step_needs_only_earlier_ones() {
        for step in Step::ALL {
            assert!(step.needs().iter().all(|need| *need < step));
        }
    }
}
