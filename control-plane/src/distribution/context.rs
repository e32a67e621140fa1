//! What every part of the distribution needs, made once at start.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::fleet::Fleet;
use super::publisher::Publisher;
use crate::ca::InternalCa;
use crate::clock::Clock;
use crate::sealer::Sealer;
use crate::store::Store;

#[derive(Debug)]
pub(super) struct Context {
    pub(super) store: Store,
    pub(super) sealer: Sealer,
    pub(super) clock: Clock,
    pub(super) ca: InternalCa,
    pub(super) identity_lifetime: time::Duration,
    /// `host:port` that edges are told.
    pub(super) advertised: String,
    pub(super) publisher: Arc<Publisher>,
    pub(super) fleet: Fleet,
    /// Which control plane this is, of those on one database.
    pub(super) replica: String,
    pub(super) signals: Signals,
    /// Snapshots that are made at the same time.
    pub(super) snapshots: Semaphore,
    pub(super) shutdown: CancellationToken,
}

/// Wakes for streams, beside the publisher's.
#[derive(Debug)]
pub(super) struct Signals {
    /// A cell has a new key.
    pub(super) cell_keys: watch::Sender<()>,
    /// An operator signed removals off: until then (Unix milliseconds) snapshots may shrink.
    pub(super) signed_off_until: watch::Sender<i64>,
}

impl Default for Signals {
    fn default() -> Self {
        Self { cell_keys: watch::Sender::new(()), signed_off_until: watch::Sender::new(0) }
    }
}
