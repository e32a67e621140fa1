//! The one ordinary thread beside the workers: signals, metrics and health, the admin socket, ticket keys, and in fleet
//! mode the control stream. Nothing here is on the way of a request.

use std::{
    cell::RefCell, convert::Infallible, io, path::PathBuf, pin::pin, rc::Rc, sync::Arc, thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use sd_notify::NotifyState;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    task::{AbortHandle, LocalSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Source},
    clock,
    config::{Config, Mode},
    control::{ControlSwitch, EdgeStatus, UsageEnd},
    drain::DrainSwitch,
    handover::{self, Conversation, Giver, Relaunch, Shared, Surfaces},
    limits::{self, Deadlines},
    listen::Kept,
    memory,
    server::Edge,
    tls::TICKET_KEY_SECONDS,
    traces::Exporter,
    upstream,
};

/// The service thread's runtime.
#[derive(Debug)]
pub struct Service {
    runtime: tokio::runtime::Runtime,
    local: LocalSet,
    reopen: RefCell<Option<Signal>>,
}

/// What this thread serves and hands over, beside the workers' listeners.
#[derive(Debug)]
pub struct Beside {
    pub surfaces: Surfaces,
    pub shared: Shared,
    pub relaunch: Relaunch,
    /// Addresses that a predecessor had.
    pub kept: Kept,
    /// With a predecessor that waits for us to serve.
    pub conversation: Option<Conversation>,
    pub control: Option<RunningControl>,
    /// Of spans, where they are exported.
    pub exporter: Option<Exporter>,
}

/// The control side, on its way.
#[derive(Debug)]
pub struct RunningControl {
    switch: ControlSwitch,
    caught_up: watch::Receiver<bool>,
    shutdown: CancellationToken,
    usage_end: Option<UsageEnd>,
}

impl Service {
    /// From here on SIGUSR1 no longer ends the process: whoever rotates logs sends it to one that still starts, too.
    ///
    /// # Errors
    /// When the operating system gives no descriptors.
    pub fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let reopen = runtime.block_on(async { signal(SignalKind::user_defined1()) })?;
        Ok(Self { runtime, local: LocalSet::new(), reopen: RefCell::new(Some(reopen)) })
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(self.local.run_until(future))
    }

    /// Opens the stream of an edge of a fleet.
    pub fn start_control(&self, source: &mut Source, edge: &Arc<Edge>) -> Option<RunningControl> {
        let Source::Fleet(control) = source else { return None };
        let control = control.take()?;
        let (switch, caught_up, shutdown) = (control.switch(), control.caught_up(), CancellationToken::new());
        let reporting = Arc::clone(edge);
        let status = move || status_of(&reporting);
        let (running, usage_end) = control.run(status, shutdown.clone());
        self.local.spawn_local(running);
        Some(RunningControl { switch, caught_up, shutdown, usage_end: Some(usage_end) })
    }

    /// Waits, no longer than `within`, until what changed since the last good state has come.
    pub fn catch_up(&self, control: Option<&RunningControl>, within: Duration) {
        let Some(control) = control else { return };
        let mut caught_up = control.caught_up.clone();
        self.block_on(async {
            let waiting = caught_up.wait_for(|caught_up| *caught_up);
            if tokio::time::timeout(within, waiting).await.is_err() {
                tracing::warn!("the control plane is slow; serving what was there");
            }
        });
    }

    /// Runs until the drain has ended: ordered by a signal or by the admin call, begun after `config.withdraw` or a second
    /// order, then at most `config.drain` for the workers.
    ///
    /// # Errors
    /// When the operating system refuses a descriptor; the edge then does not start.
    pub fn run(
        &self,
        config: &Config,
        edge: &Arc<Edge>,
        source: Source,
        switch: &DrainSwitch,
        workers: Vec<JoinHandle<()>>,
        mut beside: Beside,
    ) -> anyhow::Result<()> {
        self.block_on(async {
            let mut drain = edge.drain.clone();
            let shutdown =
                beside.control.as_ref().map(|control| control.shutdown.clone()).unwrap_or_default();
            let usage_end = beside.control.as_mut().and_then(|control| control.usage_end.take());
            if let Some(reopen) = self.reopen.take() {
                tokio::task::spawn_local(reopen_on_signal(reopen, Arc::clone(edge)));
            }
            let exporting = beside.exporter.take().map(export);
            let started = start(config, edge, source, switch, beside);
            match &started {
                Ok(_) => {
                    drain.ordered().await;
                    edge.metrics.draining.set(1.0);
                    if edge.successor.get().is_none() {
                        let _ = sd_notify::notify(&[NotifyState::Stopping]);
                    }
                    let _ = tokio::time::timeout(config.withdraw, drain.begun()).await;
                    switch.begin();
                }
                Err(_) => switch.begin(),
            }
            let allowed = if started.is_ok() { config.drain } else { Duration::ZERO };
            wait_for(workers, allowed).await;
            if let Some(usage_end) = usage_end {
                usage_end.finish().await;
            }
            if let Some((exporting, ends)) = exporting {
                ends.cancel();
                let _ = exporting.await;
            }
            shutdown.cancel();
            started.map(drop)
        })
    }
}

/// The sockets' paths, which go with the process.
type Paths = Vec<handover::OwnSocket>;

fn start(
    config: &Config,
    edge: &Arc<Edge>,
    source: Source,
    switch: &DrainSwitch,
    beside: Beside,
) -> anyhow::Result<Paths> {
    // Before anything says that the edge is there: whoever hears that may end it.
    let last_steps = Rc::default();
    tokio::task::spawn_local(drain_on_signal(switch.clone(), Rc::clone(&last_steps))?);
    let mode = Rc::new(config.mode.clone());
    let Beside { surfaces, shared, relaunch, conversation, control, .. } = beside;
    let mut metrics = None;
    if let Some(listener) = surfaces.metrics {
        let listener = TcpListener::from_std(listener)?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        let serving = serve_metrics(listener, Arc::clone(edge), Rc::clone(&mode));
        metrics = Some(tokio::task::spawn_local(serving).abort_handle());
    }
    let admin = Rc::new(admin::Admin {
        edge: Arc::clone(edge),
        source: RefCell::new(source),
        switch: switch.clone(),
        workers: config.workers,
        mode,
    });
    let socket = UnixListener::from_std(surfaces.admin.listener.try_clone()?)?;
    tokio::task::spawn_local(admin::serve(socket, admin));
    let mut paths = vec![surfaces.admin];
    if let Some(hand_over) = surfaces.hand_over {
        let giver = giver(edge, switch, shared, control.map(|control| control.switch), metrics, &last_steps);
        let socket = UnixListener::from_std(hand_over.listener.try_clone()?)?;
        tokio::task::spawn_local(handover::serve(socket, giver));
        let relaunching =
            relaunch_on_signal(relaunch, hand_over.path().to_owned(), switch.clone(), Arc::clone(edge))?;
        tokio::task::spawn_local(relaunching);
        paths.push(hand_over);
    }
    tokio::task::spawn_local(rotate_tickets(Arc::clone(edge)));
    tokio::task::spawn_local(upkeep(Arc::clone(edge)));
    tokio::task::spawn_local(memory::watch(Arc::clone(edge)));
    tokio::task::spawn_local(check_origins(Arc::clone(edge)));
    if let Some(conversation) = conversation {
        conversation.serving()?;
    }
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    Ok(paths)
}

fn giver(
    edge: &Arc<Edge>,
    switch: &DrainSwitch,
    shared: Shared,
    control: Option<ControlSwitch>,
    metrics: Option<AbortHandle>,
    last_steps: &Rc<Mutex<()>>,
) -> Rc<Giver> {
    Rc::new(Giver {
        edge: Arc::clone(edge),
        shared,
        control,
        switch: switch.clone(),
        metrics: RefCell::new(metrics),
        last_steps: Rc::clone(last_steps),
    })
}

fn status_of(edge: &Edge) -> EdgeStatus {
    EdgeStatus {
        io_backend: edge.backend.as_str().to_owned(),
        connections: edge.open_connections(),
        listeners: edge.own_sockets.iter().map(ToString::to_string).collect(),
    }
}

fn drain_on_signal(switch: DrainSwitch, last_steps: Rc<Mutex<()>>) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "ordered to end");
            // Not between two owners of the sockets.
            let _clear = last_steps.lock().await;
            switch.order();
        }
    })
}

/// Sends spans until told to end; that takes no longer than its last call may.
fn export(exporter: Exporter) -> (tokio::task::JoinHandle<()>, CancellationToken) {
    let ends = CancellationToken::new();
    (tokio::task::spawn_local(exporter.run(ends.clone())), ends)
}

/// SIGUSR1: the access log was moved away.
async fn reopen_on_signal(mut asked: Signal, edge: Arc<Edge>) {
    while asked.recv().await.is_some() {
        match edge.access_log.reopen().await {
            Ok(()) => tracing::info!("access log: opened again"),
            Err(error) => tracing::error!("access log: not opened again: {error}"),
        }
    }
}

/// SIGUSR2 starts a successor, and so does SIGHUP where it does not say that our terminal is gone.
fn relaunch_on_signal(
    relaunch: Relaunch,
    hand_over: PathBuf,
    switch: DrainSwitch,
    edge: Arc<Edge>,
) -> io::Result<impl Future<Output = ()>> {
    let mut asked = signal(SignalKind::user_defined2())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            let by_hangup = tokio::select! {
                _ = asked.recv() => false,
                _ = hung_up.recv() => true,
            };
            if by_hangup && std::fs::File::open("/dev/tty").is_ok() {
                tracing::info!("the terminal is gone; ordered to end");
                switch.order();
                continue;
            }
            if edge.drain.is_ordered() {
                tracing::warn!("asked for a successor while ending; not started");
                continue;
            }
            watch_successor(&relaunch, &hand_over, &edge).await;
        }
    })
}

/// Until it has taken over or has ended; a second one would find nothing to take.
async fn watch_successor(relaunch: &Relaunch, hand_over: &std::path::Path, edge: &Edge) {
    // The successor says when that is over; if it cannot, we do.
    let mut reloading = vec![NotifyState::Reloading];
    reloading.extend(NotifyState::monotonic_usec_now());
    let _ = sd_notify::notify(&reloading);
    let mut child = match relaunch.start(hand_over) {
        Ok(child) => child,
        Err(error) => {
            tracing::error!(%error, "a successor could not be started; this edge serves on");
            edge.metrics.last_reload_successful.set(0.0);
            let _ = sd_notify::notify(&[NotifyState::Ready]);
            return;
        }
    };
    tracing::info!(process = child.id(), "started a successor");
    let mut drain = edge.drain.clone();
    tokio::select! {
        () = drain.begun() => {}
        ended = child.wait() => {
            let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            edge.metrics.last_reload_successful.set(0.0);
            tracing::error!(status, "the successor ended before it served, its own message is above; this edge serves on");
            let _ = sd_notify::notify(&[NotifyState::Ready]);
        }
    }
}

async fn rotate_tickets(edge: Arc<Edge>) {
    loop {
        tokio::time::sleep(Duration::from_secs(TICKET_KEY_SECONDS.into())).await;
        if let Err(error) = edge.tls.tickets().rotate() {
            tracing::error!(%error, "the session ticket key was not replaced");
        }
    }
}

async fn check_origins(edge: Arc<Edge>) {
    if let Err(error) = upstream::check_origins(edge).await {
        tracing::error!(%error, "origins are not checked");
    }
}

async fn upkeep(edge: Arc<Edge>) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        edge.metrics.upkeep();
    }
}

async fn wait_for(workers: Vec<JoinHandle<()>>, allowed: Duration) {
    let deadline = clock::now() + allowed;
    while workers.iter().any(|worker| !worker.is_finished()) {
        if clock::now() >= deadline {
            tracing::warn!("the drain's time is over; what is still open is cut");
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tracing::info!("drained");
}

async fn serve_metrics(listener: TcpListener, edge: Arc<Edge>, mode: Rc<Mode>) {
    let places = Places::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(place) = places.take() else { continue };
        let deadlines = edge.deadlines;
        let (edge, mode) = (Arc::clone(&edge), Rc::clone(&mode));
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = read_only(request.method(), request.uri().path(), &edge, &mode);
            let answer = answer.unwrap_or_else(nothing_here);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::task::spawn_local(serve_small(TokioIo::new(stream), service, place, deadlines));
    }
}

/// Connections that a surface of our own may have; further ones are closed.
pub(crate) struct Places(Arc<Semaphore>);

impl Places {
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }
}

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(limits::SURFACE_CONNECTIONS_MAX)))
    }
}

/// Serves one connection of a surface of our own, with small limits. Who takes no answers loses the place in the end.
pub(crate) async fn serve_small<I, S>(io: I, service: S, _place: OwnedSemaphorePermit, deadlines: Deadlines)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
    S: hyper::service::HttpService<Incoming, ResBody = Full<Bytes>> + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_DEADLINE)
        .max_buf_size(16 * 1024)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let served = match tokio::time::timeout(deadlines.surface_age, connection.as_mut()).await {
        Ok(served) => served,
        Err(_) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(deadlines.write_stall, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::trace!(%error, "a connection of our own surfaces failed");
    }
}

/// What both surfaces answer: it names nobody and changes nothing. `None`: it is something else.
pub(crate) fn read_only(
    method: &Method,
    path: &str,
    edge: &Edge,
    mode: &Mode,
) -> Option<Response<Full<Bytes>>> {
    let is_read = matches!(*method, Method::GET | Method::HEAD);
    Some(match path {
        "/metrics" | "/healthz" | "/readyz" if !is_read => {
            text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into())
        }
        "/metrics" => {
            edge.metrics.names.set(u32::try_from(edge.live.sni.len()).map_or(f64::MAX, f64::from));
            edge.cache.show(&edge.metrics);
            edge.metrics.memory(&edge.memory);
            text(StatusCode::OK, edge.metrics.render())
        }
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => match edge.missing(mode) {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(missing) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        },
        _ => return None,
    })
}

fn nothing_here() -> Response<Full<Bytes>> {
    let said =
        "here are /metrics, /healthz and /readyz; all else is on the admin socket (curl --unix-socket)\n";
    text(StatusCode::NOT_FOUND, said.into())
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// With a control plane that says nothing until `says`.
    fn control(says: watch::Receiver<bool>) -> RunningControl {
        let (switch, shutdown) = (ControlSwitch::to_nobody(), CancellationToken::new());
        RunningControl { switch, caught_up: says, shutdown, usage_end: None }
    }

    #[test]
    fn a_successor_waits_for_a_silent_control_plane_no_longer_than_was_said() {
        let (ended, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (service, (told, says)) = (Service::new().expect("a runtime"), watch::channel(false));
            let control = control(says);
            let soon = Deadlines { catch_up: Duration::from_millis(10), ..Deadlines::default() };
            service.catch_up(Some(&control), soon.catch_up);
            ended.send(()).expect("the test waits");
            told.send_replace(true);
            // What only a failure takes.
            service.catch_up(Some(&control), Duration::from_secs(600));
            ended.send(()).expect("the test waits");
        });
        for what in ["it serves without", "it serves as soon as it may"] {
            assert!(end.recv_timeout(Duration::from_secs(60)).is_ok(), "{what}");
        }
    }

    #[tokio::test]
    async fn a_surface_has_so_many_places_and_who_takes_no_answer_loses_its_own() {
        let places = Places::default();
        let mut taken: Vec<_> = std::iter::from_fn(|| places.take()).collect();
        assert_eq!(taken.len(), limits::SURFACE_CONNECTIONS_MAX);
        let place = taken.pop().expect("there are some");
        let (ours, mut theirs) = tokio::io::duplex(64);
        let soon = Duration::from_millis(10);
        let deadlines = Deadlines { surface_age: soon, write_stall: soon, ..Deadlines::default() };
        let large = |_| async { Ok::<_, Infallible>(text(StatusCode::OK, "x".repeat(1 << 20))) };
        let serving = serve_small(TokioIo::new(ours), service_fn(large), place, deadlines);
        theirs.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("there is room");
        // What only a failure takes.
        tokio::time::timeout(Duration::from_secs(60), serving).await.expect("it ends");
        assert!(places.take().is_some());
    }
}
