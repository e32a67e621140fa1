//! What attacks cost an edge: those of `portico-attacker`, many connections at once, beside visitors.
//!
//! Each attack has an edge of its own. The rows say how many attackers saw the end that a sound server makes for them, how
//! the visitors fared meanwhile, and what memory and CPU time went.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portico_attacker::{Attack, Target};
use serde::Serialize;

use crate::client::{self, TlsChoice};
use crate::compare::{Material, Server, start_edge};
use crate::server_cpu::{cpu_time, resident_bytes};

/// Each takes a thread here, or (half-open) a descriptor, of which a process has 20,000.
const ATTACKERS_MAX: usize = 1000;
const HALF_OPEN_MAX: usize = 15_000;
const SECONDS_MAX: u64 = 600;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AttacksArgs {
    /// Attacking connections at once.
    #[arg(long, default_value_t = 100)]
    attackers: usize,
    /// Connections that send a part of a ClientHello and no more; 0: this is left out.
    #[arg(long, default_value_t = HALF_OPEN_MAX)]
    half_open: usize,
    /// The longest that one attack may go on; the edge's longest deadline is 30 s.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The edge's binary; by default `portico-edge` beside this one.
    #[arg(long)]
    program: Option<PathBuf>,
    #[arg(long, default_value = "uring")]
    io: String,
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    attack: String,
    attackers: usize,
    requests: u64,
    ended: usize,
    visitors_answered: u64,
    visitors_failed: u64,
    visitors_slowest_ms: u64,
    server_cpu_ms: u64,
    resident_growth_bytes: u64,
}

pub(crate) fn run(args: &AttacksArgs) -> Result<()> {
    if !(1..=ATTACKERS_MAX).contains(&args.attackers) || args.half_open > HALF_OPEN_MAX {
        bail!("--attackers: 1 to {ATTACKERS_MAX}; --half-open: at most {HALF_OPEN_MAX}");
    }
    if !(1..=SECONDS_MAX).contains(&args.seconds) {
        bail!("--seconds: 1 to {SECONDS_MAX}");
    }
    let folder = tempfile::tempdir()?;
    let material = Material::make(folder.path(), 2)?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("portico-edge"),
    };
    let mut rows = Vec::new();
    for attack in Attack::ALL {
        let title = format!("{attack:?}");
        let server = start_edge(0, &material, &program, &args.io, &title, None)?;
        rows.push(measure(&server, &material, &title, args.attackers, || {
            attackers(attack, args, &server, &material)
        })?);
    }
    if args.half_open > 0 {
        let server = start_edge(0, &material, &program, &args.io, "half-open", None)?;
        rows.push(measure(&server, &material, "half-open handshakes", args.half_open, || {
            half_open(server.address, args.half_open)
        })?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    match rows.iter().find(|row| row.visitors_answered == 0 || row.visitors_failed > 0) {
        Some(row) => bail!("visitors were not all answered beside {}; see the rows", row.attack),
        None => Ok(()),
    }
}

/// How many requests were begun, and how many attackers saw their end.
type Attacked = Result<(u64, usize)>;

fn attackers(attack: Attack, args: &AttacksArgs, server: &Server, material: &Material) -> Attacked {
    let target = Target { address: server.address, host: material.names[0].to_string() };
    let time = Duration::from_secs(args.seconds);
    let outcomes = std::thread::scope(|scope| {
        let begin = |_| scope.spawn(|| attack.run(&target, time));
        let attackers: Vec<_> = (0..args.attackers).map(begin).collect();
        attackers.into_iter().filter_map(|attacker| attacker.join().ok()).collect::<Vec<_>>()
    });
    let outcomes: Vec<_> =
        outcomes.into_iter().collect::<Result<_, _>>().context("an attacker's connection")?;
    let requests = outcomes.iter().map(|outcome| outcome.requests).sum();
    Ok((requests, outcomes.iter().filter(|outcome| outcome.ended).count()))
}

/// All open at once; the edge ends each at its deadline, or for a newcomer where it is full.
fn half_open(address: SocketAddr, count: usize) -> Attacked {
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut socket = TcpStream::connect(address)?;
        socket.write_all(&[22, 3, 1, 2, 0, 1])?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        open.push(socket);
    }
    let is_ended = |socket: &mut TcpStream| match std::io::Read::read(socket, &mut [0; 64]) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    Ok((0, open.iter_mut().map(is_ended).filter(|ended| *ended).count()))
}

fn measure(
    server: &Server,
    material: &Material,
    title: &str,
    attackers: usize,
    attack: impl FnOnce() -> Attacked,
) -> Result<Row> {
    let visitors = Arc::new(Visitors::default());
    let watching = visitors.start(server, material)?;
    let (before, cpu) = (resident_bytes(server.pid())?, cpu_time(server.pid())?);
    let (requests, ended) = attack()?;
    visitors.over.store(true, Ordering::SeqCst);
    let peak = watching.join().map_err(|_| anyhow::anyhow!("the visitors' thread panicked"))??;
    let spent = cpu_time(server.pid())?.saturating_sub(cpu);
    Ok(Row {
        attack: title.to_owned(),
        attackers,
        requests,
        ended,
        visitors_answered: visitors.answered.load(Ordering::SeqCst),
        visitors_failed: visitors.failed.load(Ordering::SeqCst),
        visitors_slowest_ms: visitors.slowest_ms.load(Ordering::SeqCst),
        server_cpu_ms: u64::try_from(spent.as_millis()).unwrap_or(u64::MAX),
        resident_growth_bytes: peak.saturating_sub(before),
    })
}

/// One after the other, each with a handshake of its own.
#[derive(Debug, Default)]
struct Visitors {
    over: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    slowest_ms: AtomicU64,
}

impl Visitors {
    /// Answers the most memory that the server had meanwhile.
    fn start(
        self: &Arc<Self>,
        server: &Server,
        material: &Material,
    ) -> Result<std::thread::JoinHandle<Result<u64>>> {
        let choice = TlsChoice { resume: false, http2: false, classical: true };
        let config = client::config(client::read_roots(&material.roots)?, choice)?;
        let (address, name, pid) = (server.address, material.names[1].clone(), server.pid());
        let visitors = Arc::clone(self);
        Ok(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let mut peak = 0;
            while !visitors.over.load(Ordering::SeqCst) {
                peak = peak.max(resident_bytes(pid)?);
                let begun = Instant::now();
                let connecting = client::connect(address, &name, &config);
                let connected = runtime.block_on(tokio::time::timeout(Duration::from_secs(30), connecting));
                let counter =
                    if matches!(connected, Ok(Ok(_))) { &visitors.answered } else { &visitors.failed };
                counter.fetch_add(1, Ordering::SeqCst);
                let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                visitors.slowest_ms.fetch_max(took, Ordering::SeqCst);
            }
            Ok(peak)
        }))
    }
}

fn print(rows: &[Row]) {
    println!(
        "| attack | attackers | requests | ended | visitors answered | failed | slowest ms | server CPU ms | memory KiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.attack,
            row.attackers,
            row.requests,
            row.ended,
            row.visitors_answered,
            row.visitors_failed,
            row.visitors_slowest_ms,
            row.server_cpu_ms,
            row.resident_growth_bytes / 1024
        );
    }
}
