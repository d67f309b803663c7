//! What every part of the orchestrator shares: store, fleet, clock, the bell that wakes waiters.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use azure_compute::Target;
use engine_protocol::Authority;
use plan_script::Scripts;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use crate::access::Loans;
use crate::auth::token::TokenIssuer;
use crate::fleet::Fleet;
use crate::seal::Sealer;
use crate::store::ResourceStore;

/// Times after which waiting gives up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For an engine to take up a replication, in milliseconds.
    pub engine_ms: i64,
    /// For a recovered VM to write its first line, in milliseconds.
    pub boot_ms: i64,
    /// For a recovered VM to go away, and for a replica to be retired, in milliseconds.
    pub removal_ms: i64,
    /// For a guest to shut down and its last changes to be sent, in milliseconds.
    pub shut_down_ms: i64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            engine_ms: 120_000,
            boot_ms: 900_000,
            removal_ms: 600_000,
            shut_down_ms: 600_000,
        }
    }
}

/// See the module.
pub struct App {
    /// Resource store.
    pub store: Arc<dyn ResourceStore>,
    /// Engines as last seen.
    pub fleet: Fleet,
    /// Certificate authority.
    pub authority: Authority,
    /// Issuer of access tokens.
    pub tokens: TokenIssuer,
    /// Absolute base of our URLs, without a slash at the end.
    pub public_url: String,
    /// `host:port` of the engine gateway as hosts reach it.
    pub gateway: String,
    /// Regions of this installation; empty = any.
    pub regions: Vec<String>,
    /// Tenant of the built-in issuer.
    pub tenant_id: String,
    /// Times after which waiting gives up.
    pub patience: Patience,
    /// Seals secrets before they are stored.
    pub sealer: Sealer,
    /// What is borrowed to reach storage accounts, and what went wrong with it.
    pub loans: Loans,
    scripts: OnceLock<Arc<Scripts>>,
    azure: OnceLock<Arc<Target>>,
    /// Milliseconds that our clock is ahead of the system's; tests move it.
    ahead_ms: AtomicI64,
    bell: watch::Sender<u64>,
    jobs: mpsc::UnboundedSender<String>,
}

// === impl App ===

/// The parts of an [`App`] that are made outside.
pub struct Parts {
    /// Resource store.
    pub store: Arc<dyn ResourceStore>,
    /// Certificate authority.
    pub authority: Authority,
    /// Issuer of access tokens.
    pub tokens: TokenIssuer,
    /// Absolute base of our URLs.
    pub public_url: String,
    /// `host:port` of the engine gateway as hosts reach it.
    pub gateway: String,
    /// Regions; empty = any.
    pub regions: Vec<String>,
    /// Tenant of the built-in issuer.
    pub tenant_id: String,
    /// Times after which waiting gives up.
    pub patience: Patience,
    /// Seals secrets before they are stored.
    pub sealer: Sealer,
}

impl App {
    /// Puts it together. The receiver gives the keys of jobs that shall be run.
    #[must_use]
    pub fn new(parts: Parts) -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (jobs, receiver) = mpsc::unbounded_channel();
        let app = Self {
            store: parts.store,
            fleet: Fleet::default(),
            authority: parts.authority,
            tokens: parts.tokens,
            public_url: parts.public_url,
            gateway: parts.gateway,
            regions: parts.regions,
            tenant_id: parts.tenant_id,
            patience: parts.patience,
            sealer: parts.sealer,
            loans: Loans::default(),
            scripts: OnceLock::new(),
            azure: OnceLock::new(),
            ahead_ms: AtomicI64::new(0),
            bell: watch::Sender::new(0),
            jobs,
        };
        (Arc::new(app), receiver)
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
            + time::Duration::milliseconds(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Moves the clock, for tests of what happens hours later.
    pub fn advance(&self, by: std::time::Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.ahead_ms.fetch_add(by, Ordering::Relaxed);
        self.ring();
    }

    /// Now, Unix milliseconds.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        i64::try_from(self.now().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
    }

    /// Now, as the API writes it.
    #[must_use]
    pub fn now_text(&self) -> String {
        arm_model::timestamp::format(self.now())
    }

    /// What everything that follows from the store and a moved clock follows from; as time goes by, look again anyway.
    #[must_use]
    pub fn revision(&self) -> (u64, i64) {
        (self.store.revision(), self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Scripts of recovery plans run on this machine, too.
    pub fn run_scripts(&self, scripts: Arc<Scripts>) {
        // The first ones know what runs.
        let _known = self.scripts.set(scripts);
    }

    /// What runs scripts here, if anything does.
    #[must_use]
    pub fn scripts(&self) -> Option<&Arc<Scripts>> {
        self.scripts.get()
    }

    /// VMs may be recovered in Azure, this way.
    pub fn recover_in_azure(&self, target: Arc<Target>) {
        // The first one is what VMs were made with.
        let _known = self.azure.set(target);
    }

    /// The way into Azure, if there is one.
    #[must_use]
    pub fn azure(&self) -> Option<&Arc<Target>> {
        self.azure.get()
    }

    /// Wakes everybody who waits for a change of resources or reports.
    pub fn ring(&self) {
        self.bell
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The bell.
    #[must_use]
    pub fn listen(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// Hands a stored job to the runner. Without a runner (it is stopping) the next start takes it up.
    pub fn start_job(&self, key: &str) {
        let _runner_is_gone = self.jobs.send(key.to_owned());
    }
}
