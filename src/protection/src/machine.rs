//! (state, event) → (state, effects).

use serde::{Deserialize, Serialize};

/// Fencing generation of one activation of replication. Reports of an older one don't count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// Where replication stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ReplicationState {
    /// Wanted, but the engine has not begun.
    EnablingProtection,
    /// The first copy runs.
    InitialReplication,
    /// Points are made by policy.
    Protected,
    /// Tracking was lost; source and replica are compared. Older points stay usable.
    Resynchronising,
    /// The store holds a newer generation; this activation is over.
    Fenced,
    /// The engine is told to forget the VM.
    DisablingProtection,
    /// Nothing is left but the record, which goes too.
    Removed,
}

/// Where a drill stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DrillState {
    /// No test VM.
    None,
    /// A test VM is being made.
    Starting,
    /// The test VM is there until somebody cleans up.
    WaitingForCleanup,
    /// The test VM is being removed.
    CleaningUp,
}

/// What the engine says of the replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Observed {
    /// Taken up.
    Starting,
    /// The first copy runs.
    InitialReplication,
    /// Points are made.
    Protected,
    /// Comparing and healing.
    Comparing,
    /// Can't go on by itself.
    Blocked,
    /// Stopped and forgotten.
    Retired,
    /// The store refused it.
    Fenced,
}

/// What happens to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A report of an engine.
    Report {
        /// Activation that the report is about.
        generation: Generation,
        /// What it says.
        observed: Observed,
    },
    /// A new activation after a failed one.
    Activate {
        /// Must be newer than the present one.
        generation: Generation,
    },
    /// A drill begins.
    DrillStart,
    /// All of the drill's VMs run.
    DrillReady,
    /// The drill failed and left nothing.
    DrillAbort,
    /// Somebody cleans up.
    CleanupStart,
    /// The test VM is gone.
    CleanupDone,
    /// The test VM could not be removed.
    CleanupFail,
    /// Somebody asks for a comparison of source and replica.
    Resynchronise,
    /// Protection is switched off in good order.
    Disable {
        /// Whether the replica goes too.
        delete_replica: bool,
    },
    /// The record is dropped without asking the host.
    Purge,
}

/// What the caller has to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Send the new desired state to the engine.
    TellEngine,
    /// The first copy is done: finish the job that waits for it.
    InitialReplicationFinished,
    /// Delete the record.
    RemoveRecord,
}

/// How protection is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Disabled {
    /// Whether the replica goes too.
    pub delete_replica: bool,
}

/// What may be asked of an item; names as in the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Switch protection off.
    DisableProtection,
    /// Begin a drill.
    TestFailover,
    /// End a drill.
    TestFailoverCleanup,
    /// Compare source and replica.
    RepairReplication,
    /// Move to the recovery side without loss.
    PlannedFailover,
    /// Move to the recovery side with what is there.
    UnplannedFailover,
    /// Another recovery point, before commit.
    ChangePit,
    /// Accept a failover or a failback.
    Commit,
    /// Take back what is not committed.
    CancelFailover,
    /// Stay at the recovery side and end protection.
    CompleteMigration,
    /// Move back.
    Failback,
    /// Stop the recovered VM and move the rest.
    FinalizeFailback,
    /// Protect again after a failback.
    ReverseReplicate,
}

/// An event that the state doesn't allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{event} is not possible while replication is in state {replication:?} and the drill in state {drill:?}"
)]
pub struct Refusal {
    /// What was asked.
    pub event: &'static str,
    /// State of replication.
    pub replication: ReplicationState,
    /// State of the drill.
    pub drill: DrillState,
}

/// The state of one protected VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Item {
    /// Replication.
    pub replication: ReplicationState,
    /// Drill.
    pub drill: DrillState,
    /// Present activation.
    pub generation: Generation,
    /// Whether the first copy has ever been finished: then points exist.
    pub copied_once: bool,
    /// Set once protection is being switched off.
    pub disabled: Option<Disabled>,
}

// === impl Item ===

impl Item {
    /// A fresh activation.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self {
            replication: ReplicationState::EnablingProtection,
            drill: DrillState::None,
            generation,
            copied_once: false,
            disabled: None,
        }
    }

    /// What may be asked now.
    #[must_use]
    pub fn allowed_operations(&self) -> Vec<Operation> {
        use DrillState as D;
        use ReplicationState as R;
        match (self.replication, self.drill) {
            (R::Removed | R::DisablingProtection, _) | (_, D::Starting | D::CleaningUp) => {
                Vec::new()
            }
            (_, D::WaitingForCleanup) => vec![Operation::TestFailoverCleanup],
            (R::Protected | R::Resynchronising, D::None) if self.copied_once => {
                vec![
                    Operation::TestFailover,
                    Operation::DisableProtection,
                    Operation::RepairReplication,
                ]
            }
            _ => vec![Operation::DisableProtection],
        }
    }

    /// Whether the engine shall replicate (else retire).
    #[must_use]
    pub fn is_active(&self) -> bool {
        !matches!(
            self.replication,
            ReplicationState::DisablingProtection | ReplicationState::Removed
        )
    }

    fn refuse(&self, event: &'static str) -> Refusal {
        Refusal {
            event,
            replication: self.replication,
            drill: self.drill,
        }
    }
}

impl Operation {
    /// Name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DisableProtection => "DisableProtection",
            Self::TestFailover => "TestFailover",
            Self::TestFailoverCleanup => "TestFailoverCleanup",
            Self::RepairReplication => "RepairReplication",
            Self::PlannedFailover => "PlannedFailover",
            Self::UnplannedFailover => "UnplannedFailover",
            Self::ChangePit => "ChangePit",
            Self::Commit => "Commit",
            Self::CancelFailover => "CancelFailover",
            Self::CompleteMigration => "CompleteMigration",
            Self::Failback => "Failback",
            Self::FinalizeFailback => "FinalizeFailback",
            Self::ReverseReplicate => "ReverseReplicate",
        }
    }
}

impl ReplicationState {
    /// `protectionState` of the API and the same for people.
    #[must_use]
    pub fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::EnablingProtection => ("EnablingProtection", "Enabling protection"),
            Self::InitialReplication => (
                "InitialReplicationInProgress",
                "Initial replication in progress",
            ),
            Self::Protected => ("Protected", "Protected"),
            Self::Resynchronising => ("Protected", "Resynchronizing"),
            Self::Fenced => ("ProtectionError", "Superseded by a newer activation"),
            Self::DisablingProtection => ("DisablingProtection", "Disabling protection"),
            Self::Removed => ("UnprotectedStatesEnd", "Not protected"),
        }
    }
}

impl DrillState {
    /// `testFailoverState` of the API and the same for people.
    #[must_use]
    pub fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::None => ("None", "None"),
            Self::Starting => ("InProgress", "Test failover in progress"),
            Self::WaitingForCleanup => ("WaitingForCompletion", "Waiting for user input"),
            Self::CleaningUp => ("MarkedForDeletion", "Cleaning up test environment"),
        }
    }
}

/// One step. An event that changes nothing (a repeated or a stale report) gives the same item and no effect.
///
/// # Errors
/// When a request is not possible in this state. Reports are never refused, only ignored.
pub fn step(item: Item, event: Event) -> Result<(Item, Vec<Effect>), Refusal> {
    let mut next = item;
    let mut effects = Vec::new();
    match event {
        Event::Report {
            generation,
            observed,
        } => {
            if generation == item.generation {
                report(&mut next, observed, &mut effects);
            }
        }
        Event::Activate { generation } => {
            let restartable = matches!(
                item.replication,
                ReplicationState::EnablingProtection
                    | ReplicationState::InitialReplication
                    | ReplicationState::Fenced
            );
            if !restartable || generation <= item.generation || item.drill != DrillState::None {
                return Err(item.refuse("activation"));
            }
            next = Item {
                copied_once: item.copied_once,
                ..Item::new(generation)
            };
            effects.push(Effect::TellEngine);
        }
        Event::DrillStart => {
            if !item.allowed_operations().contains(&Operation::TestFailover) {
                return Err(item.refuse("test failover"));
            }
            next.drill = DrillState::Starting;
        }
        Event::DrillReady => {
            next.drill = drill(
                &item,
                DrillState::Starting,
                DrillState::WaitingForCleanup,
                "end of a test failover",
            )?
        }
        Event::DrillAbort => {
            // Also a drill that was ready for a moment may be taken back by the job that made it.
            let from = match item.drill {
                DrillState::WaitingForCleanup => DrillState::WaitingForCleanup,
                _ => DrillState::Starting,
            };
            next.drill = drill(&item, from, DrillState::None, "abort of a test failover")?;
        }
        Event::CleanupStart => {
            next.drill = drill(
                &item,
                DrillState::WaitingForCleanup,
                DrillState::CleaningUp,
                "test failover cleanup",
            )?;
        }
        Event::CleanupDone => {
            next.drill = drill(
                &item,
                DrillState::CleaningUp,
                DrillState::None,
                "end of a cleanup",
            )?
        }
        Event::CleanupFail => {
            next.drill = drill(
                &item,
                DrillState::CleaningUp,
                DrillState::WaitingForCleanup,
                "failure of a cleanup",
            )?;
        }
        Event::Resynchronise => {
            // The engine counts the requests itself; its report moves the state.
            if !item
                .allowed_operations()
                .contains(&Operation::RepairReplication)
            {
                return Err(item.refuse("resynchronisation"));
            }
            effects.push(Effect::TellEngine);
        }
        Event::Disable { delete_replica } => {
            if item.replication == ReplicationState::Removed || item.drill != DrillState::None {
                return Err(item.refuse("disabling protection"));
            }
            next.replication = ReplicationState::DisablingProtection;
            next.disabled = Some(Disabled { delete_replica });
            effects.push(Effect::TellEngine);
        }
        Event::Purge => {
            next.replication = ReplicationState::Removed;
            next.drill = DrillState::None;
            effects.push(Effect::RemoveRecord);
        }
    }
    Ok((next, effects))
}

fn report(next: &mut Item, observed: Observed, effects: &mut Vec<Effect>) {
    use ReplicationState as R;
    match next.replication {
        R::Removed | R::Fenced => {}
        R::DisablingProtection => {
            if observed == Observed::Retired {
                next.replication = R::Removed;
                effects.push(Effect::RemoveRecord);
            }
        }
        R::EnablingProtection | R::InitialReplication | R::Protected | R::Resynchronising => {
            match observed {
                // Blocked says nothing of how far replication got: health tells it.
                // Retired without our asking is an engine that has not read the desired state yet.
                Observed::Blocked | Observed::Retired | Observed::Starting => {}
                Observed::Fenced => next.replication = R::Fenced,
                Observed::InitialReplication => next.replication = R::InitialReplication,
                Observed::Comparing => {
                    next.replication = if next.copied_once {
                        R::Resynchronising
                    } else {
                        // A first copy that was interrupted goes on by comparing.
                        R::InitialReplication
                    };
                }
                Observed::Protected => {
                    next.replication = R::Protected;
                    if !next.copied_once {
                        next.copied_once = true;
                        effects.push(Effect::InitialReplicationFinished);
                    }
                }
            }
        }
    }
}

fn drill(
    item: &Item,
    from: DrillState,
    to: DrillState,
    event: &'static str,
) -> Result<DrillState, Refusal> {
    // Repeating a step that has already been made is no error: sagas repeat nodes.
    if item.drill == from || item.drill == to {
        Ok(to)
    } else {
        Err(item.refuse(event))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_observed() -> impl Strategy<Value = Observed> {
        prop_oneof![
            Just(Observed::Starting),
            Just(Observed::InitialReplication),
            Just(Observed::Protected),
            Just(Observed::Comparing),
            Just(Observed::Blocked),
            Just(Observed::Retired),
            Just(Observed::Fenced),
        ]
    }

    fn any_drill_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::DrillStart),
            Just(Event::DrillReady),
            Just(Event::DrillAbort),
            Just(Event::CleanupStart),
            Just(Event::CleanupDone),
            Just(Event::CleanupFail),
        ]
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..4u64, any_observed()).prop_map(|(generation, observed)| Event::Report {
                generation: Generation(generation),
                observed
            }),
            4 => any_drill_event(),
            1 => (0..4u64).prop_map(|generation| Event::Activate { generation: Generation(generation) }),
            1 => any::<bool>().prop_map(|delete_replica| Event::Disable { delete_replica }),
            1 => Just(Event::Resynchronise),
        ]
    }

    fn run(events: &[Event]) -> Item {
        events.iter().fold(Item::new(Generation(1)), |item, event| {
            step(item, *event).map_or(item, |(next, _)| next)
        })
    }

    proptest! {
        #[test]
        fn every_state_has_a_way_out(events in prop::collection::vec(any_event(), 0..40)) {
            let mut item = run(&events);
            // The runner always ends a drill it began; after that the API alone must lead out.
            for event in [Event::DrillAbort, Event::CleanupStart, Event::CleanupDone] {
                item = step(item, event).map_or(item, |(next, _)| next);
            }
            prop_assert_eq!(item.drill, DrillState::None);
            if item.replication != ReplicationState::Removed {
                let (disabling, effects) = step(item, Event::Disable { delete_replica: true }).expect("a way out");
                prop_assert!(effects.contains(&Effect::TellEngine));
                let retired = Event::Report { generation: disabling.generation, observed: Observed::Retired };
                let (removed, effects) = step(disabling, retired).expect("reports are never refused");
                prop_assert_eq!(removed.replication, ReplicationState::Removed);
                prop_assert!(effects.contains(&Effect::RemoveRecord));
            }
            let (purged, _) = step(item, Event::Purge).expect("purge always works");
            prop_assert_eq!(purged.replication, ReplicationState::Removed);
        }

        #[test]
        fn a_drill_never_changes_replication(events in prop::collection::vec(any_event(), 0..40), drill in any_drill_event()) {
            let item = run(&events);
            if let Ok((next, effects)) = step(item, drill) {
                prop_assert_eq!(next.replication, item.replication);
                prop_assert_eq!(next.generation, item.generation);
                prop_assert_eq!(next.is_active(), item.is_active());
                prop_assert!(effects.is_empty());
            }
        }

        #[test]
        fn a_report_never_changes_the_drill(events in prop::collection::vec(any_event(), 0..40), observed in any_observed()) {
            let item = run(&events);
            let (next, _) = step(item, Event::Report { generation: item.generation, observed }).expect("never refused");
            prop_assert_eq!(next.drill, item.drill);
        }

        #[test]
        fn a_stale_generation_is_ignored(events in prop::collection::vec(any_event(), 0..40), observed in any_observed(), generation in 0..9u64) {
            let item = run(&events);
            prop_assume!(generation != item.generation.0);
            let (next, effects) = step(item, Event::Report { generation: Generation(generation), observed }).expect("never refused");
            prop_assert_eq!(next, item);
            prop_assert!(effects.is_empty());
        }

        #[test]
        fn a_repeated_event_changes_nothing_more(events in prop::collection::vec(any_event(), 0..40), event in any_event()) {
            if let Ok((once, _)) = step(run(&events), event)
                && let Ok((twice, effects)) = step(once, event)
            {
                prop_assert_eq!(once, twice);
                prop_assert!(!effects.contains(&Effect::InitialReplicationFinished));
            }
        }

        #[test]
        fn what_is_allowed_can_be_done(events in prop::collection::vec(any_event(), 0..40)) {
            let item = run(&events);
            for operation in item.allowed_operations() {
                let event = match operation {
                    Operation::DisableProtection => Event::Disable { delete_replica: false },
                    Operation::TestFailover => Event::DrillStart,
                    Operation::TestFailoverCleanup => Event::CleanupStart,
                    Operation::RepairReplication => Event::Resynchronise,
                    other => panic!("an item alone does not offer {other:?}"),
                };
                prop_assert!(step(item, event).is_ok());
            }
        }
    }

    #[test]
    fn no_drill_before_the_first_copy_is_done() {
        let item = Item::new(Generation(1));
        assert!(step(item, Event::DrillStart).is_err());
        let copying = Event::Report {
            generation: Generation(1),
            observed: Observed::InitialReplication,
        };
        let (item, _) = step(item, copying).expect("report");
        assert!(step(item, Event::DrillStart).is_err());
    }
}
