//! The worlds that are explored, by what goes wrong in them.

/// A way that messages take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Orders for the source.
    ToSource,
    /// Orders for the recovery host.
    ToRecovery,
    /// Reports of the source.
    FromSource,
    /// Reports of the recovery host.
    FromRecovery,
}

/// Whether people bring the VM back to another host than the one that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// Never.
    Never,
    /// Once.
    Once,
    /// And back to the former one, again and again.
    AndBack,
}

/// How adverse the world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// On these ways a message may be late. On each way messages may be lost.
    pub late: &'static [Channel],
    /// A second orchestrator acts on what it read earlier.
    pub slow: bool,
    /// People ask for drills and repairs, too, and replication has troubles.
    pub drills: bool,
    /// A hypervisor or a person starts the source's VM without asking the engine, until that knows of a hold.
    pub stubborn: bool,
    /// The source becomes another host.
    pub moves: Moves,
}

/// Hosts restart, orchestrators die between writing and sending, messages are lost; nothing more.
pub const CALM: Settings = Settings {
    late: &[],
    slow: false,
    drills: false,
    stubborn: false,
    moves: Moves::Never,
};

/// The worlds that are explored. Adversities that would multiply each other are explored apart.
pub const WORLDS: [(&str, Settings); 5] = [
    (
        "drills, repairs, replication in trouble",
        Settings {
            drills: true,
            ..CALM
        },
    ),
    (
        "somebody starts the source's VM without asking",
        Settings {
            stubborn: true,
            ..CALM
        },
    ),
    (
        "late, lost and repeated messages",
        Settings {
            late: &[
                Channel::ToSource,
                Channel::ToRecovery,
                Channel::FromSource,
                Channel::FromRecovery,
            ],
            ..CALM
        },
    ),
    (
        "two orchestrators",
        Settings {
            slow: true,
            late: &[Channel::FromSource, Channel::FromRecovery],
            ..CALM
        },
    ),
    (
        "to another host, somebody starts VMs",
        Settings {
            stubborn: true,
            moves: Moves::Once,
            ..CALM
        },
    ),
];

/// Explored only when they are asked for by their name: they take minutes.
pub const LONG_WORLDS: [(&str, Settings); 1] = [(
    "the VM goes to another host and back again",
    Settings {
        moves: Moves::AndBack,
        ..CALM
    },
)];
