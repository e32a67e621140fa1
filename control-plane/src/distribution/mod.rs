//! Distribution: what the database says, on every edge, within milliseconds.
//!
//! The flow of a change: a row and its entry in `changes` are committed; `publisher` reads them, `projection` turns the
//! rows into resources, and the in-memory `image` moves to the next generation; each edge's `feed` sees that its edge
//! lacks something and sends it as a delta (`delta` cuts), or a snapshot when the edge's base is unknown; the ack goes to
//! `fleet`, where others wait for it. Challenges and suspensions take the short way, `urgent`.
//!
//! Deliberately absent: waiting for edges. A publication never waits for any of them, and none waits for another.

mod context;
mod delta;
mod edges;
mod feed;
mod fleet;
mod fleet_policy;
mod image;
mod join;
mod metrics;
mod projection;
mod publisher;
mod purge;
mod refusals;
mod relay;
mod resource;
mod server;
mod sync;
mod urgent;
mod usage;

pub use edges::RemovedEdge;
pub use fleet::{Applied, EdgeView, Facts, Fleet, SILENCE_MAX};
pub(crate) use fleet_policy::FleetPolicy;
pub use join::{JoinError, TOKEN_TTL_SECONDS};
pub use publisher::GATE_WINDOW;
pub use urgent::{CHALLENGE_DEADLINE, SUSPEND_DEADLINE, UrgentOutcome};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use portico_cert_store::{CellId, Generation};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Parts;
use crate::ca::{CaError, IDENTITY_LIFETIME, ServerIdentity};
use crate::config::Config;
use crate::sealer::SealerError;
use crate::store::cell::DEFAULT_CELL;
use crate::store::{StoreError, cell, edge};
use context::{Context, Signals};
use publisher::Publisher;

/// Snapshots made at the same time: each holds a chunk of 1 MiB and one core.
const SNAPSHOTS_AT_ONCE: usize = 8;
const OBSERVATIONS_EVERY: Duration = Duration::from_secs(2);
/// The listener's certificate is looked at this often, or twelve times in a short life.
const IDENTITY_CHECK_MAX: Duration = Duration::from_secs(60);

/// The running distribution. Clones share it.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Who is connected; pushes and waits.
    pub fleet: Fleet,
    /// Where edges connect.
    pub address: SocketAddr,
    context: Arc<Context>,
}

/// Why the distribution cannot start or publish.
#[derive(Debug, thiserror::Error)]
pub enum DistributionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the internal CA's key cannot be opened")]
    Sealer(#[from] SealerError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("the fleet's policy has no JSON form")]
    Policy,
}

/// Starts listening, publishing and all that goes with it; the tasks end with `parts.shutdown`.
///
/// # Errors
/// What keeps it from starting: the address, the database, or the internal CA.
pub async fn start(parts: &Parts, tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<Distribution> {
    let now = parts.clock.now_ms();
    let lifetime = parts.config.identity_lifetime_seconds;
    let lifetime = lifetime.map_or(IDENTITY_LIFETIME, |seconds| time::Duration::seconds(seconds.into()));
    let ca = edges::load_authority(&parts.store, &parts.sealer, now).await?;
    ensure_default_cell(parts, now).await?;
    let listener = TcpListener::bind(parts.config.distribution)
        .await
        .with_context(|| format!("bind distribution = \"{}\"", parts.config.distribution))?;
    let address = listener.local_addr()?;
    edges::refresh_fleet_policy(&parts.store, &parts.config, (&parts.replica, address)).await?;
    let advertised = parts.config.distribution_advertised.clone().unwrap_or_else(|| address.to_string());
    let names = listener_names(&advertised, address);
    let identity = ServerIdentity::new(&ca, names, join::date(now), lifetime)?;
    let publisher = Arc::new(Publisher::load(parts.store.clone(), parts.clock.clone()).await?);
    let rows = edge::all(&mut *parts.store.read().await?).await?;
    let (fleet, told) = Fleet::new(parts.clock.clone(), rows, parts.store.is_shared());
    let context = Arc::new(Context {
        store: parts.store.clone(),
        sealer: parts.sealer.clone(),
        clock: parts.clock.clone(),
        ca,
        identity_lifetime: lifetime,
        advertised,
        publisher,
        fleet: fleet.clone(),
        replica: parts.replica.clone(),
        signals: Signals::default(),
        snapshots: Semaphore::new(SNAPSHOTS_AT_ONCE),
        shutdown: parts.shutdown.clone(),
    });
    spawn(&context, &parts.config, listener, address, identity, tasks);
    if let Some(told) = told {
        tasks.spawn(relay::run(context.clone(), told));
    }
    Ok(Distribution { fleet, address, context })
}

fn spawn(
    context: &Arc<Context>,
    config: &Arc<Config>,
    listener: TcpListener,
    address: SocketAddr,
    identity: ServerIdentity,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) {
    let of = context.clone();
    tasks.spawn(async move { of.publisher.follow(&of.shutdown).await });
    tasks.spawn(server::serve(context.clone(), listener, identity.clone()));
    tasks.spawn(renew_identity(context.clone(), identity));
    tasks.spawn(keep_records(context.clone(), config.clone(), address));
}

impl Distribution {
    /// The generation that is published now.
    pub fn generation(&self) -> Generation {
        self.context.publisher.generation()
    }

    /// Publishes what is committed now, without waiting for the publisher's turn; answers the generation.
    ///
    /// # Errors
    /// The store's.
    pub async fn publish_now(&self) -> Result<Generation, StoreError> {
        self.context.publisher.advance().await
    }

    /// Names that are published to a cell.
    pub fn names(&self, cell: &CellId) -> u64 {
        self.context.publisher.names(cell)
    }
}

/// Tenants and tokens that name no cell mean this one.
async fn ensure_default_cell(parts: &Parts, now_ms: i64) -> anyhow::Result<()> {
    let default = CellId::parse(DEFAULT_CELL)?;
    let mut tx = parts.store.begin().await?;
    cell::ensure(&mut tx, &parts.sealer, &default, now_ms).await?;
    Ok(tx.commit().await?)
}

/// What edges may call this listener: the host that they are told, and the address that is bound.
fn listener_names(advertised: &str, address: SocketAddr) -> Vec<String> {
    let host = advertised.rsplit_once(':').map_or(advertised, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let bound = (!address.ip().is_unspecified()).then(|| address.ip().to_string());
    [Some(host), bound].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

async fn renew_identity(context: Arc<Context>, identity: ServerIdentity) -> anyhow::Result<()> {
    let share = Duration::try_from(context.identity_lifetime / 12).unwrap_or(IDENTITY_CHECK_MAX);
    let every = share.clamp(Duration::from_millis(100), IDENTITY_CHECK_MAX);
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
        let now = join::date(context.clock.now_ms());
        if now < identity.renew_at() {
            continue;
        }
        match identity.renew(&context.ca, now) {
            Ok(()) => tracing::info!("renewed the distribution listener's certificate"),
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew the listener's certificate"
                );
            }
        }
    }
}

/// Keeps the table of edges and the fleet's policy at what edges report.
async fn keep_records(context: Arc<Context>, config: Arc<Config>, address: SocketAddr) -> anyhow::Result<()> {
    let mut listeners = context.fleet.listeners_changed();
    loop {
        let (moved, ending) = tokio::select! {
            () = context.shutdown.cancelled() => (false, true),
            () = tokio::time::sleep(OBSERVATIONS_EVERY) => (false, false),
            _ = listeners.changed() => (true, false),
        };
        let (behind, sequences) = context.fleet.behind(context.publisher.generation());
        metrics::edges_behind(behind, sequences);
        let written = edges::write_observations(&context).await;
        if let Err(error) = written {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot note what edges report");
        }
        if ending {
            return Ok(());
        }
        let refresh = edges::refresh_fleet_policy(&context.store, &config, (&context.replica, address));
        let refreshed = if moved { refresh.await } else { Ok(()) };
        if let Err(error) = refreshed {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot publish the fleet's policy");
        }
    }
}
