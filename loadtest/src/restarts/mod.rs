//! What visitors notice of an edge that is restarted again and again under load: nothing, or the run fails.
//!
//! Clients of each version ask without a pause, on kept connections and on new ones, and strictly: they obey
//! `Connection: close` and GOAWAY as every client has to, and try nothing again that has left them, but for what HTTP/2 and
//! HTTP/3 themselves tell them to (shown apart). So each request that gets no whole right answer is a lost one. Meanwhile the
//! edge is told to restart (SIGUSR2), one restart after the other.

mod clients;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use self::clients::{Kind, Outcome};
use crate::client::read_roots;
use crate::compare::Material;

const RESTARTS_MAX: u32 = 1000;
/// From the signal to a successor that serves.
const RESTART_DEADLINE: Duration = Duration::from_secs(60);
/// The last predecessors' drains, once the load is over.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// Failures told in full.
const FAILURES_TOLD: usize = 10;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RestartsArgs {
    /// Restarts, one after the other.
    #[arg(long, default_value_t = 20)]
    restarts: u32,
    /// Load before the first restart, between two, and after the last, milliseconds.
    #[arg(long, default_value_t = 500)]
    pause_ms: u64,
    /// Clients of each kind.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    /// The edge's binary. By default `portico-edge` beside this one.
    #[arg(long)]
    edge: Option<PathBuf>,
    /// I/O backend of the edge.
    #[arg(long, default_value = "auto")]
    io: String,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    restarts: u32,
    /// From the signal to a successor that is ready.
    restart_ms: Vec<u64>,
    requests: u64,
    failures: u64,
    /// Processes of the chain that had not ended a minute after the load.
    still_draining: usize,
    kinds: Vec<KindReport>,
}

#[derive(Debug, Serialize)]
struct KindReport {
    kind: &'static str,
    requests: u64,
    failures: u64,
    /// Crossed a GOAWAY that says that nothing was done for them.
    sent_again: u64,
    connections: u64,
    p50_us: u64,
    p99_us: u64,
    longest_us: u64,
    first_failures: Vec<String>,
}

pub(crate) fn run(args: &RestartsArgs) -> Result<()> {
    if args.restarts > RESTARTS_MAX || args.clients == 0 || args.clients > 64 {
        bail!("--restarts: at most {RESTARTS_MAX}; --clients: 1 to 64");
    }
    let folder = tempfile::tempdir()?;
    let material = Material::make(folder.path(), 1)?;
    let mut chain = Chain::start(args, &material)?;
    let roots = Arc::new(read_roots(&material.roots)?);
    let target = clients::Target { address: chain.address, name: material.names[0].to_string(), roots };
    let stop = Arc::new(AtomicBool::new(false));
    let start = |kind: &Kind| {
        let (kind, target, stop) = (*kind, target.clone(), Arc::clone(&stop));
        (kind, std::thread::spawn(move || clients::run(kind, &target, &stop)))
    };
    let running: Vec<_> = (0..args.clients).flat_map(|_| Kind::ALL.iter()).map(start).collect();
    let pause = Duration::from_millis(args.pause_ms);
    std::thread::sleep(pause);
    let mut restart_ms = Vec::new();
    let mut failed = None;
    for _ in 0..args.restarts {
        match chain.restart() {
            Ok(took) => restart_ms.push(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
        std::thread::sleep(pause);
    }
    stop.store(true, Ordering::SeqCst);
    let mut outcomes: Vec<(Kind, Outcome)> = Vec::new();
    for (kind, thread) in running {
        let outcome = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        match outcomes.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, known)) => known.add(outcome),
            None => outcomes.push((kind, outcome)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let report = report(args.restarts, restart_ms, outcomes, chain.wait_for_predecessors());
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", text(&report)),
    }
    if report.failures > 0 || report.kinds.iter().any(|kind| kind.requests == 0) || report.still_draining > 0
    {
        bail!("not every request was answered, or a predecessor has not ended; see above");
    }
    Ok(())
}

fn report(
    restarts: u32,
    restart_ms: Vec<u64>,
    outcomes: Vec<(Kind, Outcome)>,
    still_draining: usize,
) -> Report {
    let kinds: Vec<_> = outcomes
        .into_iter()
        .map(|(kind, outcome)| KindReport {
            kind: kind.title(),
            requests: outcome.requests,
            failures: outcome.failures.len() as u64,
            sent_again: outcome.sent_again,
            connections: outcome.connections,
            p50_us: outcome.latency.value_at_quantile(0.5),
            p99_us: outcome.latency.value_at_quantile(0.99),
            longest_us: outcome.latency.max(),
            first_failures: outcome.failures.into_iter().take(FAILURES_TOLD).collect(),
        })
        .collect();
    Report {
        restarts,
        restart_ms,
        requests: kinds.iter().map(|kind| kind.requests).sum(),
        failures: kinds.iter().map(|kind| kind.failures).sum(),
        still_draining,
        kinds,
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let longest = report.restart_ms.iter().max().copied().unwrap_or_default();
    let _ = writeln!(
        text,
        "{} restarts under load (each ready within {longest} ms): {} requests, {} failures\n",
        report.restarts, report.requests, report.failures
    );
    text += "| clients | requests | failures | sent again | connections | p50 us | p99 us | longest us |\n|---|---|---|---|---|---|---|---|\n";
    for kind in &report.kinds {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            kind.kind,
            kind.requests,
            kind.failures,
            kind.sent_again,
            kind.connections,
            kind.p50_us,
            kind.p99_us,
            kind.longest_us
        );
    }
    for kind in &report.kinds {
        for failure in &kind.first_failures {
            let _ = writeln!(text, "{}: {failure}", kind.kind);
        }
    }
    text
}

/// An edge and its successors.
struct Chain {
    address: SocketAddr,
    socket: PathBuf,
    first: Child,
    /// All but the present one.
    predecessors: Vec<i32>,
}

impl Chain {
    fn start(args: &RestartsArgs, material: &Material) -> Result<Self> {
        let edge = match &args.edge {
            Some(edge) => edge.clone(),
            None => std::env::current_exe()?.with_file_name("portico-edge"),
        };
        let address = portico_ports::reserve();
        let state = material.folder.join("edge");
        fs::create_dir(&state)?;
        let config = format!(
            "workers = {}\nio = \"{}\"\nstate = {state:?}\naccess_log = \"off\"\n\n\
             [[listen]]\naddress = \"{address}\"\nkind = \"https\"\nhttp3 = true\n\n\
             [certificates]\nfolder = {:?}\n\n[[route]]\nhost = \"*\"\nstatic_file = {:?}\n",
            args.workers, args.io, material.certificates, material.body
        );
        let file = state.join("edge.toml");
        fs::write(&file, config)?;
        let log = fs::File::create(state.join("log"))?;
        let mut command = Command::new(&edge);
        command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let first = command.spawn().with_context(|| format!("start {}", edge.display()))?;
        let chain = Self { address, socket: state.join("admin.sock"), first, predecessors: Vec::new() };
        chain.wait_for(|_, ready| ready).with_context(|| {
            format!("the edge does not start: {}", fs::read_to_string(state.join("log")).unwrap_or_default())
        })?;
        Ok(chain)
    }

    /// Ends when a process other than the present one is ready.
    fn restart(&mut self) -> Result<Duration> {
        let (present, _) = status(&self.socket).context("the edge's admin socket")?;
        let began = Instant::now();
        signal(present, Signal::USR2)?;
        self.wait_for(|process, ready| process != present && ready).context("no successor serves")?;
        self.predecessors.push(present);
        Ok(began.elapsed())
    }

    fn wait_for(&self, is_reached: impl Fn(i32, bool) -> bool) -> Result<()> {
        let deadline = Instant::now() + RESTART_DEADLINE;
        loop {
            if status(&self.socket).is_ok_and(|(process, ready)| is_reached(process, ready)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("nothing within {} s", RESTART_DEADLINE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many have not ended in time.
    fn wait_for_predecessors(&mut self) -> usize {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        loop {
            let _reaped = self.first.try_wait();
            let alive = self.predecessors.iter().filter(|process| is_alive(**process)).count();
            if alive == 0 || Instant::now() > deadline {
                return alive;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let present = status(&self.socket).map(|(process, _)| process);
        for process in self.predecessors.iter().copied().chain(present) {
            if is_alive(process) {
                let _gone = signal(process, Signal::KILL);
            }
        }
        let _gone = self.first.kill();
        let _reaped = self.first.wait();
    }
}

/// The process behind the admin socket, and whether it is ready.
fn status(socket: &Path) -> Result<(i32, bool)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status: serde_json::Value = serde_json::from_str(body)?;
    let process = status["process"].as_i64().and_then(|process| i32::try_from(process).ok());
    Ok((process.context("no process id")?, status["ready"].as_bool() == Some(true)))
}

fn signal(process: i32, signal: Signal) -> Result<()> {
    let process = Pid::from_raw(process).context("not a process id")?;
    Ok(kill_process(process, signal)?)
}

fn is_alive(process: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
    // A zombie has ended; whoever started it has not asked yet.
    !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}
