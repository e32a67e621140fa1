//! What attacks cost an edge: those of `portico-attacker`, many connections at once, beside visitors.
//!
//! Each attack has an edge of its own. The rows say how many attackers saw the end that a sound server makes for them, how
//! the visitors fared meanwhile, and what memory and CPU time went.

mod origin;

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use portico_attacker::{Attack, Target};
use portico_edge::limits;
use serde::Serialize;

use crate::compare::{BODY_BYTES, Material, Server, start_attacked_edge};
use crate::engine::{self, LoadArgs, Work};
use crate::names::NamesArgs;
use crate::report::Report;
use crate::server_cpu::{cpu_time, resident_bytes};

/// Each takes a thread here, or (half-open) a descriptor, of which a process has 20,000.
const ATTACKERS_MAX: usize = 1000;
const HALF_OPEN_MAX: usize = 15_000;
const SECONDS_MAX: u64 = 600;
/// How long the visitors are alone before each attack.
const CALM_SECONDS: u64 = 5;
const VISITORS: usize = 20;
const VISITS_PER_SECOND: f64 = 500.0;
/// Of attackers whose every connection brings a hundred to the origin with it, which is in this process.
const ATTACKERS_OF_MANY_MAX: usize = 20;
/// Attackers begin one after the other: as many handshakes at one moment are a load by themselves.
const BEGUN_WITHIN: Duration = Duration::from_secs(1);
/// The least that a thread is given of the processors.
const LOWEST_PRIORITY: i32 = 19;
const HALF_OPEN: &str = "half-open handshakes";
/// Descriptors beside those of attackers.
const DESCRIPTORS_SPARE: u64 = 500;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = format!("Attacks: {}", names().join(", ")))]
pub(crate) struct AttacksArgs {
    /// Attacking connections at once.
    #[arg(long, default_value_t = 100)]
    attackers: usize,
    /// Connections that send a part of a ClientHello and no more; 0: this is left out.
    #[arg(long, default_value_t = HALF_OPEN_MAX)]
    half_open: usize,
    /// The longest that one attack may go on, beside 5 s before it in which the visitors are alone; the edge's longest deadline
    /// is 30 s.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only attacks whose names have this in them (`Quic`, `ZeroWindow`); may be given several times. All names stand below.
    #[arg(long, value_name = "NAME", value_parser = known)]
    only: Vec<String>,
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
    /// Attackers who saw the end that a sound server makes for them.
    ended: usize,
    visitors: u64,
    visitors_failed: u64,
    visitors_p99_us: u64,
    visitors_p99_us_before: u64,
    seconds: f64,
    /// Beyond what the visitors alone would have taken.
    server_cpu_ms: u64,
    resident_bytes_before: u64,
    resident_bytes_peak: u64,
    resident_bytes_after: u64,
    /// What each attacker may make the edge hold.
    bytes_each_max: u64,
    /// Parts of the promise that did not hold; none: it held.
    broken: Vec<&'static str>,
}

/// What an attack may cost, beside that visitors are answered.
mod promise {
    /// Of one core, for each attacking connection.
    pub(super) const CPU_PERCENT: f64 = 1.0;
    /// The visitors' p99, to that of before.
    pub(super) const P99_FACTOR: f64 = 2.0;
    /// Of the visitors.
    pub(super) const FAILED_SHARE: f64 = 0.0001;
    /// For each attacking connection that has no more than a few exchanges under way.
    pub(super) const MEMORY_BYTES: u64 = 256 * 1024;
    /// For one that has as many as it may.
    pub(super) const MEMORY_BYTES_OF_MANY: u64 = portico_edge::limits::MEMORY_OF_CONNECTION_BYTES;
    /// More than before, when it is over: 5 %.
    const MEMORY_BACK_SHARE: u64 = 20;
    /// An edge of two sites has some 26 MiB, of which 5 % is less than what an allocator keeps of pages that it has begun.
    const MEMORY_BACK_TOLERATED: u64 = 4 << 20;

    pub(super) fn memory_back(before: u64) -> u64 {
        before + (before / MEMORY_BACK_SHARE).max(MEMORY_BACK_TOLERATED)
    }
}

pub(crate) fn run(args: &AttacksArgs) -> Result<()> {
    if !(1..=ATTACKERS_MAX).contains(&args.attackers) || args.half_open > HALF_OPEN_MAX {
        bail!("--attackers: 1 to {ATTACKERS_MAX}; --half-open: at most {HALF_OPEN_MAX}");
    }
    if !(1..=SECONDS_MAX).contains(&args.seconds) {
        bail!("--seconds: 1 to {SECONDS_MAX}");
    }
    has_descriptors(args)?;
    let folder = tempfile::tempdir()?;
    let material = Material::make(folder.path(), 2)?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("portico-edge"),
    };
    let (attacked, origin) = (material.names[0].to_string(), origin::start()?);
    let start =
        |title: &str| start_attacked_edge(&material, &program, (&args.io, title), (&attacked, origin));
    let mut rows = Vec::new();
    // At once: all of them take an hour.
    let mut add = |row: Row| {
        let row = row.judged();
        if !args.json {
            print(&row, rows.is_empty());
        }
        rows.push(row);
    };
    for attack in Attack::all().filter(|attack| args.takes(&format!("{attack:?}"))) {
        let title = format!("{attack:?}");
        let (count, bytes_each_max) = match attack.is_of_many() {
            true => (args.attackers.min(ATTACKERS_OF_MANY_MAX), promise::MEMORY_BYTES_OF_MANY),
            false => (args.attackers, promise::MEMORY_BYTES),
        };
        eprintln!("{title}: {count} attackers ...");
        let server = start(&title)?;
        let attackers = Attackers { title: &title, count, bytes_each_max };
        add(measure(&server, &material, attackers, || {
            run_attackers(attack, count, args, &server, &material)
        })?);
    }
    if args.half_open > 0 && args.takes(HALF_OPEN) {
        eprintln!("{} half-open handshakes ...", args.half_open);
        let server = start("half-open")?;
        let (count, bytes_each_max) = (args.half_open, promise::MEMORY_BYTES);
        let attackers = Attackers { title: HALF_OPEN, count, bytes_each_max };
        add(measure(&server, &material, attackers, || {
            half_open(server.address, count, Duration::from_secs(args.seconds))
        })?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    let held = rows.iter().filter(|row| row.broken.is_empty()).count();
    eprintln!(
        "{held} of {} attacks stayed within the promise: {}% of a core and {} KiB each ({} KiB with as many exchanges under way \
         as a connection may have), visitors' p99 at most {} times what it was, at most {}% of them not answered, memory back \
         within 5% or 4 MiB",
        rows.len(),
        promise::CPU_PERCENT,
        promise::MEMORY_BYTES / 1024,
        promise::MEMORY_BYTES_OF_MANY / 1024,
        promise::P99_FACTOR,
        100.0 * promise::FAILED_SHARE
    );
    match rows.iter().find(|row| row.visitors == 0 || row.visitors_failed > 0) {
        Some(row) => bail!("visitors were not all answered beside {}; see the rows", row.attack),
        None => Ok(()),
    }
}

impl Row {
    /// Of a core, each.
    fn cpu_percent(&self) -> f64 {
        self.server_cpu_ms as f64 / self.seconds / 10.0 / self.attackers.max(1) as f64
    }

    fn bytes_each(&self) -> u64 {
        self.resident_bytes_peak.saturating_sub(self.resident_bytes_before) / self.attackers.max(1) as u64
    }

    fn judged(mut self) -> Self {
        let failed = self.visitors_failed as f64 / self.visitors.max(1) as f64;
        let back = promise::memory_back(self.resident_bytes_before);
        let parts = [
            ("attackers not ended", self.ended < self.attackers),
            ("visitors", self.visitors == 0 || failed > promise::FAILED_SHARE),
            ("p99", self.visitors_p99_us as f64 > promise::P99_FACTOR * self.visitors_p99_us_before as f64),
            ("CPU", self.cpu_percent() > promise::CPU_PERCENT),
            ("memory", self.bytes_each() > self.bytes_each_max),
            ("memory afterwards", self.resident_bytes_after > back),
        ];
        self.broken = parts.into_iter().filter(|(_, is_broken)| *is_broken).map(|(part, _)| part).collect();
        self
    }
}

fn names() -> Vec<String> {
    Attack::all().map(|attack| format!("{attack:?}")).chain([HALF_OPEN.to_owned()]).collect()
}

/// A part of at least one attack's name.
fn known(text: &str) -> Result<String, String> {
    match names().iter().any(|name| name.contains(text)) {
        true => Ok(text.to_owned()),
        false => Err(format!("no attack's name has {text:?} in it; all of them: {}", names().join(", "))),
    }
}

impl AttacksArgs {
    fn takes(&self, attack: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| attack.contains(only))
    }
}

/// Says what is missing before anything is begun.
fn has_descriptors(args: &AttacksArgs) -> Result<()> {
    let of_many = ATTACKERS_OF_MANY_MAX.min(args.attackers) * (limits::H2_STREAMS_MAX as usize + 1);
    let needed = args.half_open.max(of_many).max(args.attackers) as u64 + DESCRIPTORS_SPARE;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        bail!(
            "this needs {needed} descriptors, and the process may have {}: raise it with `ulimit -n {needed}`, or give \
             --half-open and --attackers",
            limit.current.unwrap_or_default()
        );
    }
    Ok(())
}

/// At once.
struct Attackers<'a> {
    title: &'a str,
    count: usize,
    /// What each may make the edge hold.
    bytes_each_max: u64,
}

/// How many requests were begun, and how many attackers saw their end.
type Attacked = Result<(u64, usize)>;

fn run_attackers(
    attack: Attack,
    count: usize,
    args: &AttacksArgs,
    server: &Server,
    material: &Material,
) -> Attacked {
    let target = Target { address: server.address, host: material.names[0].to_string() };
    let time = Duration::from_secs(args.seconds);
    let outcomes = std::thread::scope(|scope| {
        let begin = |number: usize| {
            let (target, after) = (&target, BEGUN_WITHIN.mul_f64(number as f64 / count as f64));
            scope.spawn(move || {
                yield_to_others()?;
                std::thread::sleep(after);
                attack.run(target, time)
            })
        };
        let attackers: Vec<_> = (0..count).map(begin).collect();
        attackers.into_iter().filter_map(|attacker| attacker.join().ok()).collect::<Vec<_>>()
    });
    let outcomes: Vec<_> =
        outcomes.into_iter().collect::<Result<_, _>>().context("an attacker's connection")?;
    let requests = outcomes.iter().map(|outcome| outcome.requests).sum();
    Ok((requests, outcomes.iter().filter(|outcome| outcome.ended).count()))
}

/// Attackers are on other machines: what they compute here is to take nothing from the edge and the visitors.
fn yield_to_others() -> std::io::Result<()> {
    // Of this thread and those that it begins: setpriority(2), "C library/kernel differences".
    Ok(rustix::process::setpriority_process(None, LOWEST_PRIORITY)?)
}

/// All open at once; the edge ends each at its deadline, or for a newcomer where it is full.
fn half_open(address: SocketAddr, count: usize, time: Duration) -> Attacked {
    let mut open = Vec::with_capacity(count);
    for _ in 0..count {
        let mut socket = TcpStream::connect(address)?;
        socket.write_all(&[22, 3, 1, 2, 0, 1])?;
        open.push(socket);
    }
    let until = Instant::now() + time;
    let is_ended = |socket: &mut TcpStream| {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let read =
            socket.set_read_timeout(Some(left)).and_then(|()| std::io::Read::read(socket, &mut [0; 64]));
        read.map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |_| true)
    };
    Ok((0, open.iter_mut().map(is_ended).filter(|ended| *ended).count()))
}

/// The attack beside visitors, who came alone before.
fn measure(
    server: &Server,
    material: &Material,
    attackers: Attackers<'_>,
    attack: impl FnOnce() -> Attacked,
) -> Result<Row> {
    let calm_cpu = cpu_time(server.pid())?;
    let calm = visit(server, material, CALM_SECONDS, &Arc::default())?;
    let calm_cpu = cpu_time(server.pid())?.saturating_sub(calm_cpu).div_f64(calm.seconds);
    let (before, cpu, begun) = (resident_bytes(server.pid())?, cpu_time(server.pid())?, Instant::now());
    let (over, attack_is_over) = (Arc::<AtomicBool>::default(), AtomicBool::new(false));
    let (attacked, visited, peak) = std::thread::scope(|scope| {
        let visiting = scope.spawn(|| visit(server, material, SECONDS_MAX, &over));
        let watching = scope.spawn(|| peak_bytes(server, &attack_is_over));
        let attacked = attack();
        attack_is_over.store(true, Ordering::SeqCst);
        let least = Duration::from_secs(CALM_SECONDS);
        std::thread::sleep(least.saturating_sub(begun.elapsed()));
        over.store(true, Ordering::SeqCst);
        (attacked, visiting.join(), watching.join())
    });
    let panicked = |_| anyhow!("a thread panicked");
    let ((requests, ended), visited, peak) =
        (attacked?, visited.map_err(panicked)??, peak.map_err(panicked)??);
    let elapsed = begun.elapsed();
    let spent = cpu_time(server.pid())?.saturating_sub(cpu);
    let for_attackers = spent.saturating_sub(calm_cpu.mul_f64(elapsed.as_secs_f64()));
    Ok(Row {
        attack: attackers.title.to_owned(),
        attackers: attackers.count,
        requests,
        ended,
        visitors: visited.attempted,
        visitors_failed: visited.attempted - visited.answered,
        visitors_p99_us: visited.latency_us.p99,
        visitors_p99_us_before: calm.latency_us.p99,
        seconds: elapsed.as_secs_f64(),
        server_cpu_ms: u64::try_from(for_attackers.as_millis()).unwrap_or(u64::MAX),
        resident_bytes_before: before,
        resident_bytes_peak: peak,
        resident_bytes_after: settled_bytes(server, before)?,
        bytes_each_max: attackers.bytes_each_max,
        broken: Vec::new(),
    })
}

/// Requests at a rate, on kept connections, for a name that nobody attacks.
fn visit(server: &Server, material: &Material, seconds: u64, over: &Arc<AtomicBool>) -> Result<Report> {
    let args = LoadArgs {
        connect: server.address,
        names: NamesArgs::of(&material.names[1..]),
        roots: material.roots.clone(),
        seconds,
        connections: VISITORS,
        rate: Some(VISITS_PER_SECOND),
        get: true,
        resume: false,
        http2: false,
        streams: 1,
        classical: true,
        path: "/".to_owned(),
        body_bytes: Some(BODY_BYTES),
        server_pid: None,
        cpu: None,
        json: false,
        over: Arc::clone(over),
    };
    engine::measure(&args, Work::Requests)
}

/// The most memory that the server has until it is over.
fn peak_bytes(server: &Server, over: &AtomicBool) -> Result<u64> {
    let mut peak = 0;
    while !over.load(Ordering::SeqCst) {
        peak = peak.max(resident_bytes(server.pid())?);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(peak)
}

/// What the server has when it is back by the promise, or after 30 s; over QUIC who goes away says nothing, and is missed at the
/// idle deadline.
fn settled_bytes(server: &Server, before: u64) -> Result<u64> {
    let (ended, patience) = (Instant::now(), limits::IDLE_DEADLINE + Duration::from_secs(30));
    loop {
        let now = resident_bytes(server.pid())?;
        if now <= promise::memory_back(before) || ended.elapsed() > patience {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn print(row: &Row, is_first: bool) {
    if is_first {
        println!(
            "| attack | attackers | seconds | requests | ended | visitors | failed | p99 ms before | p99 ms | CPU % of a core \
             each | memory KiB each | memory MiB before | at most | after | promise |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    }
    let promise =
        if row.broken.is_empty() { "held".to_owned() } else { format!("not: {}", row.broken.join(", ")) };
    println!(
        "| {} | {} | {:.0} | {} | {} | {} | {} | {:.1} | {:.1} | {:.2} | {:.0} | {} | {} | {} | {promise} |",
        row.attack,
        row.attackers,
        row.seconds,
        row.requests,
        row.ended,
        row.visitors,
        row.visitors_failed,
        row.visitors_p99_us_before as f64 / 1000.0,
        row.visitors_p99_us as f64 / 1000.0,
        row.cpu_percent(),
        row.bytes_each() as f64 / 1024.0,
        row.resident_bytes_before >> 20,
        row.resident_bytes_peak >> 20,
        row.resident_bytes_after >> 20
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_promise_is_looked_at_by_itself() {
        let sound = Row {
            attack: String::new(),
            attackers: 10,
            requests: 0,
            ended: 10,
            visitors: 20_000,
            visitors_failed: 2,
            visitors_p99_us: 2000,
            visitors_p99_us_before: 1000,
            seconds: 10.0,
            server_cpu_ms: 1000,
            resident_bytes_before: 100 << 20,
            resident_bytes_peak: (100 << 20) + 10 * promise::MEMORY_BYTES,
            resident_bytes_after: 105 << 20,
            bytes_each_max: promise::MEMORY_BYTES,
            broken: Vec::new(),
        };
        assert!(sound.clone().judged().broken.is_empty());
        let broken = |row: Row| row.judged().broken;
        assert_eq!(broken(Row { ended: 9, ..sound.clone() }), ["attackers not ended"]);
        assert_eq!(broken(Row { visitors_failed: 3, ..sound.clone() }), ["visitors"]);
        assert_eq!(broken(Row { visitors_p99_us: 2001, ..sound.clone() }), ["p99"]);
        assert_eq!(broken(Row { server_cpu_ms: 1001, ..sound.clone() }), ["CPU"]);
        assert_eq!(broken(Row { resident_bytes_peak: 200 << 20, ..sound.clone() }), ["memory"]);
        assert_eq!(broken(Row { resident_bytes_after: 106 << 20, ..sound }), ["memory afterwards"]);
    }

    #[test]
    fn an_attack_that_does_not_exist_is_not_measured_in_silence() {
        assert!(known("Quic").is_ok() && known("ZeroWindow").is_ok() && known(HALF_OPEN).is_ok());
        assert!(known("MadeYou").is_err_and(|why| why.contains("RapidReset")));
    }
}
