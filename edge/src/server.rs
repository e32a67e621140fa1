//! Starts the edge, watches it, and ends it. Reads as the story of a process: configuration, sockets, tables, workers,
//! service, drain.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use clap::Args as ClapArgs;
use portico_cert_store::{CellKeys, Generation};

use crate::{
    access_log::{self, AccessLog, AccessLogWriter},
    admin::Source,
    cache::Cache,
    clock,
    config::{Config, ControlConfig, Mode},
    control::{Control, ControlDeadlines, ControlError, ControlOptions, Identity, JoinToken},
    drain::{DrainSwitch, DrainWatch},
    handover::{self, Conversation, Relaunch, Shared, Surfaces, Taken},
    io::{Backend, IoChoice, sockets_of_the_service_manager},
    limits::{self, Deadlines},
    listen::{self, BoundListener, Inherited, Kept, quic::QuicProcess},
    live::Live,
    memory::Memory,
    metrics::Metrics,
    process,
    service::{Beside, Service},
    sources::Sources,
    standalone,
    tls::{TicketSecret, TlsConfigs},
    traces::Traces,
    upstream::{self, OriginSockets, OriginTls, OriginWatch},
    worker,
};
use anyhow::Context;

/// The edge's command line, the same for `portico-edge` and `portico edge`.
#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// The edge's TOML file.
    #[arg(long, default_value = "/etc/portico/edge.toml")]
    pub config: PathBuf,
    /// What moves the bytes: auto, uring or epoll; wins over the file.
    #[arg(long)]
    pub io: Option<IoChoice>,
    /// Join the fleet of the control plane at host:port; wins over the file.
    #[arg(long, value_name = "HOST:PORT")]
    pub join: Option<String>,
    /// One-time join token, needed while the state folder holds no identity.
    #[arg(long, env = "PORTICO_JOIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Where identity and last-good files are; wins over the file.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Check the file and end.
    #[arg(long)]
    pub check: bool,
    /// Take the sockets of the running edge with the same admin socket, or of the one that hands over at PATH, and let it
    /// drain: no connection is refused and no request is lost.
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true)]
    pub take_over: Option<Option<PathBuf>>,
}

/// What all threads share.
#[derive(Debug)]
pub struct Edge {
    pub backend: Backend,
    pub live: Arc<Live>,
    pub tls: TlsConfigs,
    pub metrics: Arc<Metrics>,
    pub access_log: AccessLog,
    pub traces: Traces,
    pub drain: DrainWatch,
    /// Set before the drain begins: what a successor serves on.
    pub successor: OnceLock<Kept>,
    pub origin_tls: OriginTls,
    pub origin_watch: Arc<OriginWatch>,
    pub cache: Arc<Cache>,
    pub resolvers: Vec<SocketAddr>,
    /// Where the edge itself listens: never an origin.
    pub own_sockets: Vec<SocketAddr>,
    pub connections_per_worker_max: usize,
    pub origin_sockets: Arc<OriginSockets>,
    pub sources: Arc<Sources>,
    pub memory: Arc<Memory>,
    pub deadlines: Deadlines,
    pub readiness: Readiness,
}

/// How far the start has come.
#[derive(Debug, Default)]
pub struct Readiness {
    listening: AtomicBool,
    workers: AtomicUsize,
    connections: AtomicU64,
}

/// Runs an edge until it has drained.
///
/// # Errors
/// A wrong configuration, an address that is taken, `--io uring` on a kernel that refuses it: each says what to do.
pub fn run(args: Args) -> anyhow::Result<()> {
    let config = configure(&args)?;
    if args.check {
        check_files(&config, args.token.as_deref())?;
        println!("{}: good", args.config.display());
        return Ok(());
    }
    process::forbid_dumps();
    process::forbid_huge_pages();
    let service = Service::new()?;
    let relaunch = Relaunch::of_this_process().context("how this program was started")?;
    let descriptors = process::raise_descriptor_limit();
    let metrics = Arc::new(Metrics::register());
    let backend = choose_backend(config.io, &metrics)?;
    let (conversation, mut sockets) = Sockets::find(&config, args.take_over.as_ref())?;
    let listeners = listen::bind_or_adopt_all(
        &config.listeners,
        config.workers,
        &mut sockets.inherited,
        &sockets.process,
    )?;
    let surface = sockets.metrics(config.metrics)?;
    let surfaces = Surfaces::bind(&config.admin_socket, surface, conversation.is_some())?;
    let own_sockets = own_sockets(&listeners, surfaces.metrics.as_ref())?;
    let (access_log, log_writer) =
        AccessLog::open(&config.access_log, &config.privacy, Arc::clone(&metrics))?;
    let (traces, exporter) = Traces::new(config.traces.as_ref(), &config.privacy, &metrics);
    let (switch, drain) = DrainSwitch::new();
    let memory = Memory::new(config.memory_bytes);
    let ports = listeners.iter().flatten().map(|bound| &bound.config);
    let cache = Cache::new(
        config.cache_bytes.unwrap_or_else(|| memory.cache_bytes()),
        ports.flat_map(|config| [config.address.port(), config.public_https_port]),
    );
    let (live, source) = tables(&config, args.token.as_deref(), &service, &cache)?;
    let tls = TlsConfigs::new()?;
    if let Some(secret) = sockets.tickets.take() {
        tls.tickets().succeed(secret)?;
    }
    let shared = Shared::of(&listeners, &sockets.process, surfaces.metrics.as_ref())?;
    let edge = Arc::new(Edge {
        backend,
        live,
        tls,
        sources: Sources::new(config.sources.clone(), Arc::clone(&metrics)),
        metrics,
        access_log,
        traces,
        drain,
        successor: OnceLock::new(),
        origin_tls: OriginTls::from_system(),
        origin_watch: Arc::default(),
        cache,
        resolvers: resolvers(&config),
        own_sockets,
        connections_per_worker_max: connections_per_worker(descriptors, config.workers),
        origin_sockets: Arc::new(OriginSockets::new(connections(descriptors), config.workers)),
        memory,
        deadlines: Deadlines::default(),
        readiness: Readiness::default(),
    });
    let kept = sockets.inherited.kept;
    let beside = Beside { surfaces, shared, relaunch, kept, conversation, control: None, exporter };
    serve(&config, edge, listeners, source, (&service, &switch), beside, log_writer)
}

/// What others have bound for us.
struct Sockets {
    inherited: Inherited,
    metrics: Option<TcpListener>,
    process: Arc<QuicProcess>,
    tickets: Option<TicketSecret>,
}

impl Sockets {
    /// From a predecessor, or from the service manager, or none.
    fn find(
        config: &Config,
        take_over: Option<&Option<PathBuf>>,
    ) -> anyhow::Result<(Option<Conversation>, Self)> {
        let Some(path) = take_over else {
            let descriptors = sockets_of_the_service_manager().context("sockets of the service manager")?;
            let inherited =
                Inherited::from_service_manager(descriptors).context("sockets of the service manager")?;
            return Ok((
                None,
                Self { inherited, metrics: None, process: Arc::new(QuicProcess::generate()?), tickets: None },
            ));
        };
        let path = path.clone().unwrap_or_else(|| handover::socket_of(&config.admin_socket));
        let (conversation, Taken { inherited, metrics, process, tickets }) = handover::take_over(&path)?;
        Ok((Some(conversation), Self { inherited, metrics, process: Arc::new(process), tickets }))
    }

    /// The predecessor's, where the file still says the same.
    fn metrics(&mut self, address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
        let Some(address) = address else { return Ok(None) };
        let fits = |listener: &TcpListener| {
            listener.local_addr().is_ok_and(|bound| match address.port() {
                0 => bound.ip() == address.ip(),
                _ => bound == address,
            })
        };
        match self.metrics.take().filter(fits) {
            Some(listener) => Ok(Some(listener)),
            None => bind_metrics(address).map(Some),
        }
    }
}

/// Reads what the start would read, so that `--check` refuses what the start refuses, and warns of what it leaves out.
fn check_files(config: &Config, token: Option<&str>) -> anyhow::Result<()> {
    access_log::check(&config.access_log.target)?;
    match &config.mode {
        Mode::Standalone(standalone) => {
            let names = standalone::count_files(standalone).max(1024);
            let (_live, publisher) = Live::new(names, limits::KEY_CACHE_BYTES, CellKeys::new());
            standalone::load(standalone, publisher)?;
        }
        Mode::Fleet(control) => {
            if join_token(control, token)?.is_none() && !Identity::may_be_in(&config.state) {
                let named = control.join_token_file.as_ref();
                return Err(named.map_or_else(
                    || ControlError::NotJoined.into(),
                    |named| {
                        named.fault(&format!("there is no such file. {}", ControlError::NotJoined)).into()
                    },
                ));
            }
        }
    }
    Ok(())
}

/// What is served from the first moment on: the standalone files, or the last good state of a fleet's edge.
fn tables(
    config: &Config,
    token: Option<&str>,
    service: &Service,
    cache: &Arc<Cache>,
) -> anyhow::Result<(Arc<Live>, Source)> {
    match &config.mode {
        Mode::Standalone(standalone) => {
            let names = standalone::count_files(standalone).max(1024);
            let (live, publisher) = Live::new(names, limits::KEY_CACHE_BYTES, CellKeys::new());
            let sites = standalone::load(standalone, publisher)?;
            Ok((live, Source::Standalone(Box::new(sites))))
        }
        Mode::Fleet(control) => {
            let join_token = join_token(control, token)?;
            if let (None, Some(named)) = (&join_token, &control.join_token_file) {
                tracing::info!(file = %named.path().display(), "no join token file; an edge that has joined needs none");
            }
            let options = ControlOptions {
                address: control.address.clone(),
                state: config.state.clone(),
                join_token,
                build: env!("CARGO_PKG_VERSION").to_owned(),
                expected_names: 100_000,
                key_cache_bytes: limits::KEY_CACHE_BYTES,
                cache: Arc::clone(cache),
                deadlines: ControlDeadlines::default(),
            };
            let control = service.block_on(Control::open(options))?;
            Ok((control.live(), Source::Fleet(Some(Box::new(control)))))
        }
    }
}

/// From the command line or its file. An edge that has an identity needs none, so a missing file is no error by itself.
fn join_token(control: &ControlConfig, given: Option<&str>) -> anyhow::Result<Option<JoinToken>> {
    match (given, &control.join_token_file) {
        (Some(text), _) => Ok(Some(JoinToken::parse(text)?)),
        (None, Some(named)) => match std::fs::read_to_string(named.path()) {
            Ok(text) => JoinToken::parse(&text).map(Some).map_err(|error| named.fault(&error).into()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named.fault(&error).into()),
        },
        (None, None) => Ok(None),
    }
}

fn configure(args: &Args) -> anyhow::Result<Config> {
    let mut config = Config::load(&args.config)?;
    if let Some(io) = args.io {
        config.io = io;
    }
    if let Some(state) = &args.state {
        config.state.clone_from(state);
    }
    if let Some(address) = &args.join {
        match &mut config.mode {
            Mode::Fleet(control) => control.address.clone_from(address),
            Mode::Standalone(_) => {
                anyhow::bail!(
                    "--join with a standalone file; remove its [certificates] and [[route]] sections"
                )
            }
        }
    }
    Ok(config)
}

fn choose_backend(choice: IoChoice, metrics: &Metrics) -> anyhow::Result<Backend> {
    let (backend, refused) = crate::io::choose(choice)?;
    match refused {
        Some(refused) => tracing::warn!(backend = backend.as_str(), "{refused}; serving on epoll"),
        None => tracing::info!(backend = backend.as_str(), "I/O backend chosen"),
    }
    metrics.io_backend(backend);
    Ok(backend)
}

fn serve(
    config: &Config,
    edge: Arc<Edge>,
    listeners: Vec<Vec<BoundListener>>,
    mut source: Source,
    (service, switch): (&Service, &DrainSwitch),
    mut beside: Beside,
    log_writer: AccessLogWriter,
) -> anyhow::Result<()> {
    let mut addresses = Vec::new();
    for bound in listeners.iter().flatten().map(|bound| bound.config.address) {
        if !addresses.contains(&bound) {
            addresses.push(bound);
        }
    }
    if let Some(conversation) = &mut beside.conversation {
        conversation.ready()?;
    }
    beside.control = service.start_control(&mut source, &edge);
    if let Some(conversation) = &mut beside.conversation {
        service.catch_up(beside.control.as_ref(), edge.deadlines.catch_up);
        conversation.begin(&beside.kept)?;
    }
    beside.surfaces.publish().context("admin socket")?;
    let workers = start_workers(&edge, listeners)?;
    edge.metrics.workers(workers.len());
    edge.readiness.listening.store(true, Ordering::Release);
    for address in &addresses {
        tracing::info!(%address, "listening");
    }
    let drained = service.run(config, &edge, source, switch, workers, beside);
    // A worker that was cut still holds its end of the log; then the last lines are not waited for.
    let within = edge.deadlines.access_log_finish;
    if Arc::into_inner(edge).is_some() {
        log_writer.finish(within);
    }
    drained
}

/// Starts the threads that serve; they end when the drain does.
///
/// # Errors
/// When the operating system gives no thread.
pub fn start_workers(
    edge: &Arc<Edge>,
    listeners: Vec<Vec<BoundListener>>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let count = listeners.len();
    let start = |(index, listeners): (usize, Vec<BoundListener>)| {
        let edge = Arc::clone(edge);
        std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            process::pin_to_core(index, count);
            supervise(&edge, index, &listeners);
        })
    };
    listeners.into_iter().enumerate().map(start).collect()
}

/// Runs a worker again when it panics or cannot start: its connections are lost, its listening sockets are not. It is
/// never given up: the kernel goes on to hand those sockets their share of the clients. The pause keeps a worker that
/// fails at once again and again from burning the core, and becomes longer, so that it does not fill the log either.
fn supervise(edge: &Arc<Edge>, index: usize, listeners: &[BoundListener]) {
    let mut failures = 0;
    loop {
        let began = clock::now();
        edge.readiness.workers.fetch_add(1, Ordering::AcqRel);
        let sockets = listeners.iter().map(BoundListener::try_clone).collect::<io::Result<Vec<_>>>();
        let run = || worker::run(Arc::clone(edge), index, sockets?);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        edge.readiness.workers.fetch_sub(1, Ordering::AcqRel);
        match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::error!(worker = index, %error, "a worker could not run"),
            Err(_) => {
                edge.metrics.worker_panics.increment(1);
                tracing::error!(worker = index, "a worker panicked and is started again");
            }
        }
        if edge.drain.is_begun() {
            return;
        }
        failures = if clock::now().duration_since(began) > limits::WORKER_RESTART_PAUSE_MAX {
            0
        } else {
            failures + 1
        };
        std::thread::sleep(restart_pause(failures));
    }
}

/// Before the next start of a worker that has failed so many times in a row.
fn restart_pause(failures: u32) -> Duration {
    let doubled = limits::WORKER_RESTART_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(limits::WORKER_RESTART_PAUSE_MAX)
}

fn resolvers(config: &Config) -> Vec<SocketAddr> {
    if !config.resolvers.is_empty() {
        return config.resolvers.clone();
    }
    upstream::system_servers().unwrap_or_else(|error| {
        tracing::warn!(%error, "no name servers: origins given by name cannot be reached");
        Vec::new()
    })
}

fn bind_metrics(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("metrics on {address}: change `metrics` in the edge's file if the port is taken")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// As bound, not as configured: a port 0 has become a real one.
fn own_sockets(
    listeners: &[Vec<BoundListener>],
    metrics: Option<&TcpListener>,
) -> io::Result<Vec<SocketAddr>> {
    let bound = listeners.first().into_iter().flatten().map(|bound| Ok(bound.config.address));
    bound.chain(metrics.map(TcpListener::local_addr)).collect()
}

/// Of clients, and as many again to origins.
fn connections(descriptors: u64) -> u64 {
    descriptors * limits::CONNECTIONS_SHARE_PERCENT / 100 / limits::DESCRIPTORS_PER_CONNECTION
}

fn connections_per_worker(descriptors: u64, workers: usize) -> usize {
    usize::try_from(connections(descriptors)).unwrap_or(usize::MAX) / workers.max(1)
}

impl Edge {
    /// Client connections open now, over all workers.
    pub fn open_connections(&self) -> u64 {
        self.readiness.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection that begins or ends.
    pub(crate) fn count_connection(&self, begins: bool) {
        if begins {
            self.readiness.connections.fetch_add(1, Ordering::Relaxed);
            self.metrics.connections.increment(1.0);
        } else {
            self.readiness.connections.fetch_sub(1, Ordering::Relaxed);
            self.metrics.connections.decrement(1.0);
        }
    }

    /// What is missing before traffic may be sent here; `None`: ready.
    pub fn missing(&self, mode: &Mode) -> Option<&'static str> {
        let readiness = &self.readiness;
        if self.drain.is_ordered() {
            Some("draining")
        } else if !readiness.listening.load(Ordering::Acquire) {
            Some("not listening yet")
        } else if readiness.workers.load(Ordering::Acquire) == 0 {
            Some("no worker runs")
        } else if matches!(mode, Mode::Fleet(_)) && **self.live.applied.load() == Generation::default() {
            Some("no generation has been applied yet")
        } else if self.memory.is_short() {
            // It refuses everybody: a balancer does better to send them elsewhere.
            Some("short of memory")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_fails_again_and_again_is_started_less_often_and_never_given_up() {
        assert_eq!(restart_pause(0), limits::WORKER_RESTART_PAUSE);
        assert_eq!(restart_pause(1), limits::WORKER_RESTART_PAUSE);
        assert_eq!(restart_pause(2), 2 * limits::WORKER_RESTART_PAUSE);
        for failures in [10, 100, u32::MAX] {
            assert_eq!(restart_pause(failures), limits::WORKER_RESTART_PAUSE_MAX);
        }
    }

    /// A full edge can still reach an origin for each of its clients, and its files and the control plane.
    #[test]
    fn connections_leave_descriptors_for_origins_and_for_the_edge_itself() {
        for (descriptors, workers) in [(1024, 1), (65_536, 4), (1_048_576, 64), (1_000_003, 7)] {
            let connections = connections_per_worker(descriptors, workers) as u64 * workers as u64;
            let taken = connections * limits::DESCRIPTORS_PER_CONNECTION;
            let share = descriptors * limits::CONNECTIONS_SHARE_PERCENT / 100;
            assert!(taken <= share && descriptors - taken >= descriptors / 5, "{taken} of {descriptors}");
            let lost = 2 * workers as u64 * limits::DESCRIPTORS_PER_CONNECTION;
            assert!(taken + lost > share, "{taken} where {share} may be taken");
        }
    }
}
