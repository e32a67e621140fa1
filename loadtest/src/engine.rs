//! The load itself: closed loop (as fast as the connections allow) or open loop (at a stated rate).

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_cert_store::DomainName;
use rustls::ClientConfig;
use tokio::task::LocalSet;

use crate::client::{self, ConnectError, TlsChoice};
use crate::names::NamesArgs;
use crate::report::{Report, Tally};
use crate::server_cpu;

/// Connections of one run; descriptors are bounded at 20,000 a process.
const CONNECTIONS_MAX: usize = 15_000;
/// No run is longer, so that a forgotten one ends by itself.
const SECONDS_MAX: u64 = 3600;
/// From sending a request to the last byte of its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// What one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Connect, handshake, optionally one GET, close.
    Handshakes,
    /// One GET on a kept connection.
    Requests,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// The edge's address, on loopback.
    #[arg(long)]
    pub(crate) connect: SocketAddr,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
    /// PEM file with the trust anchors of the certificates.
    #[arg(long)]
    pub(crate) roots: PathBuf,
    #[arg(long, default_value_t = 5)]
    pub(crate) seconds: u64,
    /// Connections at once.
    #[arg(long, default_value_t = 64)]
    pub(crate) connections: usize,
    /// Operations a second in all (open loop); without it the loop is closed.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// One GET after each handshake.
    #[arg(long)]
    pub(crate) get: bool,
    /// Resume sessions (implies --get: tickets come after the handshake).
    #[arg(long)]
    pub(crate) resume: bool,
    #[arg(long)]
    pub(crate) http2: bool,
    /// Streams at once on each HTTP/2 connection.
    #[arg(long, default_value_t = 10)]
    pub(crate) streams: usize,
    /// X25519 alone instead of X25519MLKEM768 first.
    #[arg(long)]
    pub(crate) classical: bool,
    #[arg(long, default_value = "/")]
    pub(crate) path: String,
    /// Every body must have this many bytes.
    #[arg(long)]
    pub(crate) body_bytes: Option<usize>,
    /// Process of the server: its CPU time is reported per operation.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Run the client on this core only.
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
    #[arg(long)]
    pub(crate) json: bool,
    /// Ends it before its time.
    #[arg(skip)]
    pub(crate) over: Arc<AtomicBool>,
}

/// Runs the load, prints the report; an unclean run is an error.
pub(crate) fn run(args: &LoadArgs, work: Work) -> Result<()> {
    let report = measure(args, work)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print_text();
    }
    if !report.is_clean() {
        bail!("not every operation came back right; the report above says which did not");
    }
    Ok(())
}

/// Runs the load and returns its figures.
pub(crate) fn measure(args: &LoadArgs, work: Work) -> Result<Report> {
    check(args)?;
    if let Some(cpu) = args.cpu {
        pin(cpu)?;
    }
    let run = Run::new(args, work)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cpu_before = args.server_pid.map(server_cpu::cpu_time).transpose()?;
    let started = Instant::now();
    let tally = LocalSet::new().block_on(&runtime, Rc::new(run).load());
    let elapsed = started.elapsed();
    let cpu = match (args.server_pid, cpu_before) {
        (Some(pid), Some(before)) => Some(server_cpu::cpu_time(pid)?.saturating_sub(before)),
        _ => None,
    };
    Ok(Report::new(describe(args, work), &tally, elapsed, cpu))
}

fn check(args: &LoadArgs) -> Result<()> {
    if !args.connect.ip().is_loopback() {
        bail!(
            "{} is not on loopback: this load generator only loads servers on the same machine",
            args.connect
        );
    }
    if args.connections == 0 || args.connections > CONNECTIONS_MAX {
        bail!("--connections {}: between 1 and {CONNECTIONS_MAX}", args.connections);
    }
    if args.seconds == 0 || args.seconds > SECONDS_MAX {
        bail!("--seconds {}: between 1 and {SECONDS_MAX}", args.seconds);
    }
    if args.rate.is_some_and(|r| !(r > 0.0 && r <= 1e6)) {
        bail!("--rate: above 0, at most 1,000,000 a second");
    }
    Ok(())
}

fn describe(args: &LoadArgs, work: Work) -> String {
    let protocol = if args.http2 { "h2" } else { "http/1.1" };
    let pace = args.rate.map_or_else(|| "closed loop".to_owned(), |r| format!("open loop at {r}/s"));
    let what = match (work, args.resume, args.get) {
        (Work::Handshakes, true, _) => "resumed handshakes + GET".to_owned(),
        (Work::Handshakes, false, true) => "full handshakes + GET".to_owned(),
        (Work::Handshakes, false, false) => "full handshakes".to_owned(),
        (Work::Requests, ..) => format!("{protocol} requests"),
    };
    format!("{what}, {} connections, {pace}", args.connections)
}

/// Keeps this process on one core, so that client and server do not share theirs.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("run on core {cpu} only"))
}

/// One run's settings and the state that its connections share; one thread.
struct Run {
    work: Work,
    args: LoadArgs,
    names: Vec<DomainName>,
    config: Arc<ClientConfig>,
    next: Cell<u64>,
    started: Instant,
    tally: RefCell<Tally>,
}

impl Run {
    fn new(args: &LoadArgs, work: Work) -> Result<Self> {
        let choice = TlsChoice { resume: args.resume, http2: args.http2, classical: args.classical };
        Ok(Self {
            work,
            args: LoadArgs { get: args.get || args.resume, ..args.clone() },
            names: args.names.read()?,
            config: client::config(client::read_roots(&args.roots)?, choice)?,
            next: Cell::new(0),
            started: Instant::now(),
            tally: RefCell::new(Tally::new()),
        })
    }

    async fn load(self: Rc<Self>) -> Tally {
        let mut tasks = Vec::new();
        for at in 0..self.args.connections {
            tasks.push(tokio::task::spawn_local(Rc::clone(&self).connection(at)));
        }
        for task in tasks {
            if let Err(e) = task.await {
                self.tally.borrow_mut().failed(format!("client task: {e}"));
            }
        }
        self.tally.replace(Tally::new())
    }

    async fn connection(self: Rc<Self>, at: usize) {
        match (self.work, self.args.http2) {
            (Work::Handshakes, _) => self.handshakes().await,
            (Work::Requests, false) => self.requests_http1(at).await,
            (Work::Requests, true) => self.requests_http2(at).await,
        }
    }

    /// The next operation: its number and when it is due. None when the run is over.
    async fn due(&self) -> Option<(u64, Instant)> {
        let number = self.next.get();
        let due = match self.args.rate {
            Some(rate) => self.started + Duration::from_secs_f64(number as f64 / rate),
            None => Instant::now(),
        };
        let is_over = self.args.over.load(Ordering::Relaxed);
        if is_over || due >= self.started + Duration::from_secs(self.args.seconds) {
            return None;
        }
        self.next.set(number + 1);
        tokio::time::sleep_until(due.into()).await;
        self.tally.borrow_mut().attempted += 1;
        Some((number, due))
    }

    /// Spreads over all names without a random generator, so that two runs ask alike.
    fn name(&self, number: u64) -> &DomainName {
        const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 divided by the golden ratio
        let spread = number.wrapping_mul(STRIDE) >> 20;
        let index = usize::try_from(spread % self.names.len() as u64).expect("an index fits usize");
        &self.names[index]
    }

    async fn handshakes(&self) {
        while let Some((number, due)) = self.due().await {
            let name = self.name(number);
            let stream = match client::connect(self.args.connect, name, &self.config).await {
                Ok(stream) => stream,
                Err(e) => {
                    self.refused(e);
                    continue;
                }
            };
            if client::was_resumed(&stream) {
                self.tally.borrow_mut().resumed += 1;
            }
            if !self.args.get {
                self.tally.borrow_mut().answered_after(due.elapsed());
                continue;
            }
            match http1::handshake(TokioIo::new(stream)).await {
                Ok((mut sender, driver)) => {
                    let driver = tokio::task::spawn_local(driver);
                    let outcome = get(&self.args, name, false, |r| sender.send_request(r)).await;
                    self.record(due, outcome);
                    drop(sender);
                    let _closed = driver.await;
                }
                Err(e) => self.tally.borrow_mut().failed(format!("http/1.1: {e}")),
            }
        }
    }

    async fn requests_http1(&self, at: usize) {
        let name = self.name(at as u64).clone();
        let mut sender: Option<http1::SendRequest<Empty<Bytes>>> = None;
        while let Some((_, due)) = self.due().await {
            if sender.as_ref().is_none_or(http1::SendRequest::is_closed) {
                sender = self.open_http1(&name).await;
            }
            let Some(open) = sender.as_mut() else { continue };
            if let Err(e) = open.ready().await {
                self.tally.borrow_mut().failed(format!("connection: {e}"));
                sender = None;
                continue;
            }
            let outcome = get(&self.args, &name, false, |r| open.send_request(r)).await;
            self.record(due, outcome);
        }
    }

    async fn open_http1(&self, name: &DomainName) -> Option<http1::SendRequest<Empty<Bytes>>> {
        let stream =
            client::connect(self.args.connect, name, &self.config).await.map_err(|e| self.refused(e)).ok()?;
        match http1::handshake(TokioIo::new(stream)).await {
            Ok((sender, driver)) => {
                tokio::task::spawn_local(driver);
                Some(sender)
            }
            Err(e) => {
                self.tally.borrow_mut().failed(format!("http/1.1: {e}"));
                None
            }
        }
    }

    async fn requests_http2(self: Rc<Self>, at: usize) {
        let name = self.name(at as u64).clone();
        let opened = async {
            let stream = client::connect(self.args.connect, &name, &self.config).await?;
            http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(1 << 20)
                .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|e| ConnectError::Failed(format!("h2: {e}")))
        };
        let (sender, driver) = match opened.await {
            Ok(opened) => opened,
            Err(e) => {
                self.tally.borrow_mut().attempted += 1;
                self.refused(e);
                return;
            }
        };
        tokio::task::spawn_local(driver);
        let mut streams = Vec::new();
        for _ in 0..self.args.streams.max(1) {
            let (run, name, mut sender) = (Rc::clone(&self), name.clone(), sender.clone());
            streams.push(tokio::task::spawn_local(async move {
                while let Some((_, due)) = run.due().await {
                    let outcome = match sender.ready().await {
                        Ok(()) => get(&run.args, &name, true, |r| sender.send_request(r)).await,
                        Err(e) => Err(Outcome::Failed(format!("connection: {e}"))),
                    };
                    let lost = sender.is_closed();
                    run.record(due, outcome);
                    if lost {
                        break;
                    }
                }
            }));
        }
        for stream in streams {
            let _ended = stream.await;
        }
    }

    fn refused(&self, e: ConnectError) {
        let mut tally = self.tally.borrow_mut();
        match e {
            ConnectError::WrongCertificate(_) => tally.wrong_certificates += 1,
            ConnectError::Failed(why) => tally.failed(why),
        }
    }

    fn record(&self, due: Instant, outcome: Result<(), Outcome>) {
        let mut tally = self.tally.borrow_mut();
        match outcome {
            Ok(()) => tally.answered_after(due.elapsed()),
            Err(Outcome::WrongBody) => tally.wrong_bodies += 1,
            Err(Outcome::Failed(why)) => tally.failed(why),
        }
    }
}

/// How a GET did not come back right.
enum Outcome {
    WrongBody,
    Failed(String),
}

async fn get<F>(
    args: &LoadArgs,
    name: &DomainName,
    http2: bool,
    send: impl FnOnce(http::Request<Empty<Bytes>>) -> F,
) -> Result<(), Outcome>
where
    F: Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
{
    let request = if http2 {
        http::Request::get(format!("https://{name}:{}{}", args.connect.port(), args.path))
    } else {
        http::Request::get(&args.path).header(http::header::HOST, format!("{name}:{}", args.connect.port()))
    };
    let request = request.body(Empty::new()).map_err(|e| Outcome::Failed(e.to_string()))?;
    let exchange = async {
        let response = send(request).await.map_err(|e| Outcome::Failed(format!("request: {e}")))?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|e| Outcome::Failed(format!("body: {e}")))?
            .to_bytes();
        if !status.is_success() {
            return Err(Outcome::Failed(format!("status {}", status.as_u16())));
        }
        match args.body_bytes {
            Some(expected) if body.len() != expected => Err(Outcome::WrongBody),
            _ => Ok(()),
        }
    };
    tokio::time::timeout(ANSWER_DEADLINE, exchange)
        .await
        .unwrap_or_else(|_| Err(Outcome::Failed(format!("no answer within {ANSWER_DEADLINE:?}"))))
}
