//! The edge's side of the control plane: joins once, keeps its identity fresh, takes snapshots and deltas, and keeps on
//! disk what it needs to serve again with nobody to ask.
//!
//! [`Control::open`] brings the tables to the last good state before any connection; [`Control::run`] then keeps them
//! current on the service thread. Nothing that workers do waits for any of it. State folder (0700):
//! `identity/identity.json`, `cell-keys/<epoch>.key`, `keys/`, `last-good/`, `usage/`.
//!
//! Deliberately absent: any change that does not come over the stream. In fleet mode there is no other way in.

mod applier;
mod backoff;
mod cell_keys;
mod files;
mod identity;
mod incoming;
mod join;
mod key_requests;
pub mod limits;
pub mod metrics;
mod own_keys;
mod saving;
mod switch;
mod sync;
mod tls;
mod token;
mod urgent;
mod usage;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use portico_cert_store::{CellKeys, LastGood, LastGoodError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::clock;
use crate::live::Live;
use applier::{Applier, Keys};
use backoff::Backoff;
use cell_keys::CellKeyFiles;
use metrics::ControlMetrics;
use switch::Orders;
use sync::Syncer;
use usage::UsageReporter;

pub use files::FileError;
pub use identity::{Identity, IdentityError};
pub use join::JoinError;
pub use limits::ControlDeadlines;
pub use own_keys::OwnKeys;
pub(crate) use own_keys::{OWN_EPOCH, not_here};
pub use switch::ControlSwitch;
pub use tls::SERVER_NAME;
pub use token::{JoinToken, TokenError};
pub use usage::UsageEnd;

/// How an edge finds its control plane and its own state.
#[derive(Clone, Debug)]
pub struct ControlOptions {
    /// `host:port`.
    pub address: String,
    /// The state folder.
    pub state: PathBuf,
    /// Used once, when the state folder holds no identity.
    pub join_token: Option<JoinToken>,
    /// Version text, for the operator's list of edges.
    pub build: String,
    /// Sizes the tables; they grow by themselves.
    pub expected_names: usize,
    /// Parsed keys held ready, bytes.
    pub key_cache_bytes: u64,
    /// What purges are done to.
    pub cache: Arc<Cache>,
    pub deadlines: ControlDeadlines,
}

/// What the edge reports of itself every five seconds.
#[derive(Clone, Debug, Default)]
pub struct EdgeStatus {
    /// `uring` or `epoll`.
    pub io_backend: String,
    pub connections: u64,
    /// `address:port` of each listener.
    pub listeners: Vec<String>,
}

/// The control side of a running edge.
pub struct Control {
    syncer: Syncer,
    switch: ControlSwitch,
    orders: Orders,
    live: Arc<Live>,
    usage_end: UsageEnd,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "this edge has not joined a fleet yet: give it a join token (`portico edge join` on the control plane prints one)"
    )]
    NotJoined,
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    LastGood(#[from] LastGoodError),
}

impl Control {
    /// Reads the state folder and publishes the last good state. An edge without an identity joins first and waits for
    /// its control plane as long as that is away; one with an identity needs nobody.
    ///
    /// # Errors
    /// [`ControlError`] if there is neither identity nor token, the token is refused, or the state folder is damaged or
    /// open to others. Damaged last-good files are no error: what can be read is served.
    pub async fn open(options: ControlOptions) -> Result<Self, ControlError> {
        let metrics = ControlMetrics::new();
        files::private_folder(&options.state)?;
        let identity_folder = options.state.join(identity::FOLDER);
        let identity = match Identity::load(&identity_folder)? {
            Some(identity) if !needs_new_identity(&identity, &options) => identity,
            before => {
                let identity = join_patiently(&options, before.as_ref()).await?;
                identity.store(&identity_folder)?;
                tracing::info!(edge = %identity.edge, cell = %identity.cell, "joined");
                identity
            }
        };
        metrics.set_identity_not_after(identity.certificate.not_after.as_secs());
        let cell_key_files = CellKeyFiles::open(&options.state.join("cell-keys"))?;
        let cell_keys = CellKeys::new();
        for warning in cell_key_files.load(&identity, &cell_keys)? {
            tracing::error!(%warning, "a cell key cannot be used");
        }
        let own_keys = OwnKeys::open(&options.state.join("keys"), &identity.cell, &cell_keys)?;
        let (live, publisher) = Live::new(options.expected_names, options.key_cache_bytes, cell_keys.clone());
        let last_good = LastGood::open(options.state.join("last-good"))?;
        let keys = Keys { of_cell: cell_keys, own: own_keys };
        let mut applier = Applier::new(publisher, keys, identity.cell.clone(), last_good, metrics.clone());
        applier.boot()?;
        let (switch, orders) = switch::switch();
        let folder = options.state.join("usage");
        let (usage, usage_end) = UsageReporter::start(&folder, Arc::clone(&live), &metrics)?;
        let syncer = Syncer {
            address: options.address,
            build: options.build,
            deadlines: options.deadlines,
            identity,
            identity_folder,
            cell_key_files,
            applier,
            cache: options.cache,
            live: Arc::clone(&live),
            status: Box::new(EdgeStatus::default),
            metrics,
            usage,
            renew_not_before: None,
            in_step_at: clock::now(),
            caught_up: watch::Sender::new(false),
        };
        Ok(Self { syncer, switch, orders, live, usage_end })
    }

    /// The tables, for workers.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Becomes true when the first stream has told what is new since the last good state, challenges too, or when there is
    /// no stream to be had.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.syncer.caught_up.subscribe()
    }

    /// For handing over to a successor.
    pub fn switch(&self) -> ControlSwitch {
        self.switch.clone()
    }

    pub fn identity(&self) -> &Identity {
        &self.syncer.identity
    }

    /// Keeps the tables current until `shutdown`; the second half is for the time before that.
    pub fn run(
        self,
        status: impl Fn() -> EdgeStatus + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> (impl Future<Output = ()>, UsageEnd) {
        let Self { mut syncer, mut orders, usage_end, .. } = self;
        syncer.status = Box::new(status);
        (async move { syncer.run(&mut orders, &shutdown).await }, usage_end)
    }
}

/// An identity that has expired is of no use; a token shows that the operator wants the edge back.
fn needs_new_identity(identity: &Identity, options: &ControlOptions) -> bool {
    let expired = clock::unix_time() > identity.certificate.not_after;
    expired && options.join_token.is_some()
}

async fn join_patiently(
    options: &ControlOptions,
    before: Option<&Identity>,
) -> Result<Identity, ControlError> {
    let token = options.join_token.as_ref().ok_or(ControlError::NotJoined)?;
    let mut backoff = Backoff::default();
    loop {
        match join::join(&options.address, token, &options.build, before, &options.deadlines).await {
            Ok(identity) => return Ok(identity),
            Err(error) if error.is_worth_retrying() => {
                let wait = backoff.next();
                tracing::warn!(%error, retry_in_ms = wait.as_millis(), "not joined yet");
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("identity", &self.syncer.identity).finish_non_exhaustive()
    }
}
