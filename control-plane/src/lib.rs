//! The control plane: the tenants' API, issuance over ACME, and distribution to the edges.
//!
//! [`start`] assembles the parts in one process: each is one function that takes [`Parts`] and ends when
//! `parts.shutdown` is cancelled. They meet in the store: a part writes what it decided in one transaction, the others
//! are woken by [`store::Store::changes`] and read. Nothing that crosses a process boundary is defined here; that is
//! `portico-api`.

pub mod acme;
mod admission;
mod app;
pub mod backup;
pub mod ca;
pub mod clock;
pub mod config;
pub mod distribution;
pub mod dns;
pub mod http;
pub mod limits;
mod metrics;
mod parts;
pub mod plan;
mod process;
pub mod proof;
mod roots;
pub mod rotation;
pub mod sealer;
pub mod secret_file;
pub mod store;
pub mod tasks;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tracing_subscriber::filter::{LevelFilter, Targets};

pub use app::App;
pub use app::fleet::FleetLink;
pub use parts::{DataLock, Parts};

use clock::Clock;
use config::Config;
use distribution::Distribution;
use sealer::KeyEncryptionKey;
use tasks::terms;

/// Command line of the service.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Make the key-encryption key file when it does not exist yet.
    #[arg(long)]
    pub create_kek: bool,
    /// Make one more operator's token, for when all are lost; it goes to operator_token_file, which must be gone.
    #[arg(long)]
    pub new_operator_token: bool,
    /// Check the file and end.
    #[arg(long)]
    pub check: bool,
}

/// A control plane that runs in this process. Dropping it does not end it; [`Running::shutdown`] does.
#[derive(Debug)]
pub struct Running {
    pub parts: Parts,
    pub distribution: Distribution,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where the challenge zone is answered, if it is.
    pub responder: Option<SocketAddr>,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// Runs until SIGTERM or SIGINT.
///
/// Boxed: the service is compiled once, in this crate, and not again in every program that awaits it.
///
/// # Errors
/// What keeps it from starting, or the part that failed while running.
pub fn run(args: Args) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(run_until_signal(args))
}

async fn run_until_signal(args: Args) -> anyhow::Result<()> {
    process::forbid_dumps();
    if args.check {
        for warning in Config::read_with_files(&args.config, args.create_kek)?.warnings() {
            eprintln!("warning: {warning}");
        }
        println!("{}: good", args.config.display());
        return Ok(());
    }
    process::raise_descriptor_limit();
    let config = Config::read(&args.config)?;
    if args.create_kek {
        create_kek(&config)?;
    }
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let distribution = config.distribution;
    let mut running = Box::pin(assemble(config, Clock::default(), args.new_operator_token)).await?;
    tracing::info!(api = %running.api, %distribution, "ready");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        result = tokio::signal::ctrl_c() => result.map_err(Into::into),
        result = running.failed() => result,
    };
    running.shutdown().await?;
    ended
}

/// Starts all parts and returns once every address is bound.
///
/// # Errors
/// What keeps a part from starting.
pub fn start(config: Config) -> BoxFuture<'static, anyhow::Result<Running>> {
    start_at(config, Clock::default())
}

/// [`start`] with a clock that the caller can move.
///
/// # Errors
/// As [`start`].
pub fn start_at(config: Config, clock: Clock) -> BoxFuture<'static, anyhow::Result<Running>> {
    Box::pin(assemble(config, clock, false))
}

async fn assemble(config: Config, clock: Clock, new_operator_token: bool) -> anyhow::Result<Running> {
    let parts = Parts::open(config, clock).await?;
    parts.clock.holds();
    tasks::clock_jumps::since_last_run(&parts).await?;
    http::ensure_operator_token(&parts, new_operator_token).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(tasks::clock_jumps::run(parts.clone()));
    let distribution = distribution::start(&parts, &mut tasks).await?;
    let app = App::new(&parts, FleetLink::to(&distribution))?;
    spawn_reconcilers(&parts, &app, &mut tasks);
    let issuing = tasks::issuance::start(parts.clone(), distribution.fleet.clone()).await?;
    let responder = issuing.responder;
    tasks.spawn(async move { issuing.run().await });
    let api = http::start(&app, &mut tasks).await?;
    Ok(Running { parts, distribution, api, responder, tasks })
}

/// Of replicas on one database, one does each kind of work.
fn spawn_reconcilers(parts: &Parts, app: &App, tasks: &mut JoinSet<anyhow::Result<()>>) {
    let (of, proving) = (parts.clone(), app.clone());
    tasks.spawn(async move {
        terms::hold(&of, "ownership", |parts| tasks::prove::run(proving.within(parts))).await
    });
    let (of, sending) = (parts.clone(), app.clone());
    tasks.spawn(async move {
        terms::hold(&of, "webhooks", |parts| tasks::webhooks::run(sending.within(parts))).await
    });
    let of = parts.clone();
    tasks.spawn(async move { terms::hold(&of, "uploads", tasks::uploads::run).await });
    let of = parts.clone();
    tasks.spawn(async move { terms::hold(&of, "origin identities", tasks::origin_identities::run).await });
}

impl Running {
    /// Waits for the first part that fails; for ever when none does.
    async fn failed(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        std::future::pending().await
    }

    /// Asks every part to end, waits for them, closes the store.
    ///
    /// # Errors
    /// The first part that failed.
    pub fn shutdown(self) -> BoxFuture<'static, anyhow::Result<()>> {
        Box::pin(self.end())
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.parts.shutdown.cancel();
        let mut first = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            first = first.and(ended.map_err(Into::into).flatten());
        }
        self.parts.store.close().await;
        first
    }
}

/// Log lines to standard error; `RUST_LOG` chooses the level, as `info` or `info,portico_control_plane=debug`, else
/// `level`. Does nothing when the program has a logger already.
pub fn start_logging(level: LevelFilter) {
    use tracing_subscriber::{fmt, prelude::*};
    let filter = filter(std::env::var("RUST_LOG").ok().as_deref(), level);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let _already_there = tracing_subscriber::registry().with(lines).with(filter).try_init();
}

/// What is logged. The resolver's library says at INFO what it was asked, tenants' names by the thousand, and those of
/// protocols warn of what strangers send, with its bytes: only `chosen` lets them.
fn filter(chosen: Option<&str>, level: LevelFilter) -> Targets {
    const LIBRARIES: [(&str, LevelFilter); 4] = [
        ("hickory", LevelFilter::WARN),
        ("rustls", LevelFilter::ERROR),
        ("h2", LevelFilter::ERROR),
        ("hyper", LevelFilter::ERROR),
    ];
    let text = chosen.unwrap_or_default();
    let filter = chosen.and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(level));
    let default = filter.default_level().unwrap_or(level);
    let silent = LIBRARIES.iter().filter(|(library, _)| !text.contains(library));
    silent.fold(filter, |filter, (library, most)| filter.with_target(*library, default.min(*most)))
}

/// Command line of `rotate-kek`.
#[derive(Clone, Debug, clap::Args)]
pub struct RotateArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where to write the new key, when the present one is a systemd credential.
    #[arg(long, value_name = "FILE")]
    pub new_key_file: Option<PathBuf>,
}

/// Puts another key-encryption key in the place of the present one.
///
/// # Errors
/// As [`rotation::rotate_kek`].
pub fn run_rotate_kek(args: RotateArgs) -> BoxFuture<'static, anyhow::Result<()>> {
    Box::pin(rotate_kek(args))
}

async fn rotate_kek(args: RotateArgs) -> anyhow::Result<()> {
    process::forbid_dumps();
    let config = Config::read(&args.config)?;
    let rotated = rotation::rotate_kek(&config, args.new_key_file.as_deref(), &Clock::default()).await?;
    tracing::info!(key = rotated.key_id, file = %rotated.new_file.display(), "the key-encryption key was replaced");
    if let Some(kept) = rotated.old_file {
        tracing::info!(file = %kept.display(), "backups made before need this key; keep it as long as them");
    }
    Ok(())
}

fn create_kek(config: &Config) -> anyhow::Result<()> {
    let Some(file) = &config.key_encryption_key_file else {
        anyhow::bail!("--create-kek needs key_encryption_key_file in the configuration");
    };
    if !file.exists() {
        KeyEncryptionKey::create(file, &config.data)?;
        tracing::info!(file = %file.display(), "made a key-encryption key; keep a copy apart from the backups");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn the_resolver_does_not_log_each_question_unless_it_is_asked_to() {
        let question = "hickory_resolver::name_server_pool";
        for chosen in [None, Some("info"), Some("debug"), Some("debug,portico_control_plane=trace")] {
            let filter = filter(chosen, LevelFilter::INFO);
            assert!(!filter.would_enable(question, &Level::INFO), "{chosen:?}");
            assert!(filter.would_enable(question, &Level::WARN), "{chosen:?}");
            assert!(!filter.would_enable("rustls::msgs::handshake", &Level::WARN), "{chosen:?}");
            assert!(filter.would_enable(module_path!(), &Level::INFO), "{chosen:?}");
        }
        assert!(!filter(Some("error"), LevelFilter::INFO).would_enable(question, &Level::WARN));
        assert!(
            filter(Some("info,hickory_resolver=debug"), LevelFilter::INFO)
                .would_enable(question, &Level::DEBUG)
        );
    }
}
