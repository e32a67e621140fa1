//! The one ordinary thread beside the workers: signals, metrics and health, the admin socket, ticket keys, and in fleet
//! mode the control stream. Nothing here is on the way of a request.

use std::{
    cell::RefCell, convert::Infallible, io, path::Path, rc::Rc, sync::Arc, thread::JoinHandle, time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    task::LocalSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Source},
    clock,
    config::{Config, Mode},
    control::EdgeStatus,
    drain::DrainSwitch,
    limits,
    server::Edge,
    tls::TICKET_KEY_SECONDS,
    upstream,
};

/// The service thread's runtime.
#[derive(Debug)]
pub struct Service {
    runtime: tokio::runtime::Runtime,
    local: LocalSet,
}

impl Service {
    /// # Errors
    /// When the operating system gives no descriptors.
    pub fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, local: LocalSet::new() })
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(self.local.run_until(future))
    }

    /// Runs until the drain has ended: ordered by a signal or by the admin call, begun after `config.withdraw` or a second
    /// order, then at most `config.drain` for the workers.
    ///
    /// # Errors
    /// When the admin socket cannot be bound; the edge then does not start.
    pub fn run(
        &self,
        config: &Config,
        edge: &Arc<Edge>,
        source: Source,
        switch: &DrainSwitch,
        workers: Vec<JoinHandle<()>>,
        metrics: Option<std::net::TcpListener>,
    ) -> anyhow::Result<()> {
        self.block_on(async {
            let mut drain = edge.drain.clone();
            let shutdown = CancellationToken::new();
            let started = start(config, edge, source, switch, &shutdown, metrics).await;
            match &started {
                Ok(()) => {
                    drain.ordered().await;
                    edge.metrics.draining.set(1.0);
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                    let _ = tokio::time::timeout(config.withdraw, drain.begun()).await;
                    switch.begin();
                }
                Err(_) => switch.begin(),
            }
            let allowed = if started.is_ok() { config.drain } else { Duration::ZERO };
            wait_for(workers, allowed).await;
            shutdown.cancel();
            if started.is_ok() {
                let _ = std::fs::remove_file(&config.admin_socket);
            }
            started
        })
    }
}

async fn start(
    config: &Config,
    edge: &Arc<Edge>,
    mut source: Source,
    switch: &DrainSwitch,
    shutdown: &CancellationToken,
    metrics: Option<std::net::TcpListener>,
) -> anyhow::Result<()> {
    let mode = Rc::new(config.mode.clone());
    let socket = bind_admin(&config.admin_socket)
        .with_context(|| format!("admin socket {}", config.admin_socket.display()))?;
    if let Some(listener) = metrics {
        let listener = TcpListener::from_std(listener)?;
        tracing::info!(address = %listener.local_addr()?, "metrics");
        tokio::task::spawn_local(serve_metrics(listener, Arc::clone(edge), Rc::clone(&mode)));
    }
    if let Source::Fleet(control) = &mut source
        && let Some(control) = control.take()
    {
        let reporting = Arc::clone(edge);
        let status = move || status_of(&reporting);
        tokio::task::spawn_local(control.run(status, shutdown.clone()));
    }
    let admin = Rc::new(admin::Admin {
        edge: Arc::clone(edge),
        source: RefCell::new(source),
        switch: switch.clone(),
        workers: config.workers,
        mode,
    });
    tokio::task::spawn_local(admin::serve(socket, admin));
    tokio::task::spawn_local(rotate_tickets(Arc::clone(edge)));
    tokio::task::spawn_local(upkeep(Arc::clone(edge)));
    tokio::task::spawn_local(check_origins(Arc::clone(edge)));
    tokio::task::spawn_local(drain_on_signal(switch.clone())?);
    Ok(())
}

fn status_of(edge: &Edge) -> EdgeStatus {
    EdgeStatus {
        io_backend: edge.backend.as_str().to_owned(),
        connections: edge.open_connections(),
        listeners: edge.own_sockets.iter().map(ToString::to_string).collect(),
    }
}

/// The folder is made private, an old socket file is removed, the new one is for this user alone.
fn bind_admin(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = "another edge answers there; set another admin_socket";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn drain_on_signal(switch: DrainSwitch) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "ordered to end");
            switch.order();
        }
    })
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
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (edge, mode) = (Arc::clone(&edge), Rc::clone(&mode));
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer_metrics(&request, &edge, &mode);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::task::spawn_local(serve_small(TokioIo::new(stream), service));
    }
}

/// Serves one connection of a surface of our own, with small limits.
pub(crate) async fn serve_small<I, S>(io: I, service: S)
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
    if let Err(error) = connection.await {
        tracing::trace!(%error, "a connection of our own surfaces failed");
    }
}

fn answer_metrics(request: &Request<Incoming>, edge: &Edge, mode: &Mode) -> Response<Full<Bytes>> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        _ if !is_read => text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into()),
        "/metrics" => {
            edge.metrics.names.set(u32::try_from(edge.live.sni.len()).map_or(f64::MAX, f64::from));
            text(StatusCode::OK, edge.metrics.render())
        }
        "/healthz" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => match edge.missing(mode) {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(missing) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
