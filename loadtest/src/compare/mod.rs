//! Servers side by side in one run: each round asks every server the same, in turn, and the median of the rounds counts.
//!
//! The server has one core, the client another. On a shared machine the server's CPU time per operation is the steady
//! figure; rates are what one client core could drive. A row is a comparison within this run and nothing else.

mod material;
mod servers;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::engine::{self, LoadArgs, Work};
use crate::names::NamesArgs;
use crate::origin::Origin;
use crate::report::Report;
pub(crate) use material::{BODY_BYTES, Material};
use servers::KEPT_PATH;
pub(crate) use servers::{Server, start_attacked_edge, start_edge, start_fleet_edge, start_quic_edge};

const NAMES_MAX: usize = 100_000;
const ROUNDS_MAX: usize = 20;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// The edge's binary; by default `portico-edge` beside this one.
    #[arg(long)]
    edge: Option<PathBuf>,
    /// Another build of the edge to compare with.
    #[arg(long)]
    other_edge: Option<PathBuf>,
    /// nginx to compare with; by default the one on the PATH, if any.
    #[arg(long)]
    nginx: Option<PathBuf>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Single-name P-256 certificates loaded in each server; SNI rotates over them.
    #[arg(long, default_value_t = 100)]
    names: usize,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
    #[arg(long)]
    json: bool,
}

/// What is asked of each server.
#[derive(Clone, Copy, Debug)]
struct Question {
    name: &'static str,
    work: Work,
    get: bool,
    resume: bool,
    http2: bool,
    path: &'static str,
}

const QUESTIONS: [Question; 6] = [
    Question {
        name: "full handshake",
        work: Work::Handshakes,
        get: false,
        resume: false,
        http2: false,
        path: "/",
    },
    Question {
        name: "full handshake + GET",
        work: Work::Handshakes,
        get: true,
        resume: false,
        http2: false,
        path: "/",
    },
    Question {
        name: "resumed handshake + GET",
        work: Work::Handshakes,
        get: true,
        resume: true,
        http2: false,
        path: "/",
    },
    Question {
        name: "1 KiB, kept h1",
        work: Work::Requests,
        get: true,
        resume: false,
        http2: false,
        path: "/",
    },
    Question {
        name: "1 KiB, kept h2 x 10",
        work: Work::Requests,
        get: true,
        resume: false,
        http2: true,
        path: "/",
    },
    Question {
        name: "1 KiB from the cache, kept h1",
        work: Work::Requests,
        get: true,
        resume: false,
        http2: false,
        path: KEPT_PATH,
    },
];

#[derive(Clone, Debug, Serialize)]
struct Row {
    question: &'static str,
    server: String,
    /// Medians over the rounds.
    server_cpu_us: f64,
    per_second: f64,
    p99_us: u64,
    /// Of `server_cpu_us`, over the rounds.
    lowest: f64,
    highest: f64,
    unclean_rounds: usize,
    resident_mib: u64,
}

pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    if args.rounds == 0 || args.rounds > ROUNDS_MAX {
        bail!("--rounds {}: between 1 and {ROUNDS_MAX}", args.rounds);
    }
    if args.names == 0 || args.names > NAMES_MAX {
        bail!("--names {}: between 1 and {NAMES_MAX}", args.names);
    }
    let folder = tempfile::tempdir()?;
    eprintln!("making {} certificates ...", args.names);
    let material = Material::make(folder.path(), args.names)?;
    let origin = Origin::start(BODY_BYTES)?;
    let mut servers = servers::start_all(args, &material, origin.address)?;
    for server in &servers {
        eprintln!("{}: ready after {:.2} s", server.title, server.ready_after.as_secs_f64());
    }
    let mut rows = Vec::new();
    for question in QUESTIONS {
        let mut reports: Vec<Vec<Report>> = servers.iter().map(|_| Vec::new()).collect();
        for round in 0..args.rounds {
            for (at, server) in servers.iter().enumerate() {
                let report = engine::measure(&load(args, &material, server, question), question.work)?;
                eprintln!(
                    "{} round {}: {}: {:.1} us, {:.0}/s, failed {}",
                    question.name,
                    round + 1,
                    server.title,
                    report.server_cpu_us.unwrap_or(f64::NAN),
                    report.per_second,
                    report.attempted - report.answered
                );
                reports[at].push(report);
            }
        }
        for (server, reports) in servers.iter().zip(&reports) {
            rows.push(row(question, server, reports)?);
        }
    }
    for server in &mut servers {
        server.stop();
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    if rows.iter().any(|r| r.unclean_rounds > 0) {
        bail!("some rounds had answers that failed or were wrong; see the rows");
    }
    Ok(())
}

fn load(args: &CompareArgs, material: &Material, server: &Server, question: Question) -> LoadArgs {
    LoadArgs {
        connect: server.address,
        // Resumption needs names that come again soon: a ticket belongs to its name.
        names: if question.resume {
            NamesArgs::of(&material.names[..1])
        } else {
            NamesArgs::of(&material.names)
        },
        roots: material.roots.clone(),
        seconds: args.seconds,
        connections: args.connections,
        rate: None,
        get: question.get,
        resume: question.resume,
        http2: question.http2,
        streams: 10,
        classical: true,
        path: question.path.to_owned(),
        body_bytes: question.get.then_some(BODY_BYTES),
        server_pid: Some(server.pid()),
        cpu: Some(args.client_cpu),
        json: false,
        over: Arc::default(),
    }
}

fn row(question: Question, server: &Server, reports: &[Report]) -> Result<Row> {
    let mut cpu: Vec<f64> = reports.iter().filter_map(|r| r.server_cpu_us).collect();
    let mut rates: Vec<f64> = reports.iter().map(|r| r.per_second).collect();
    let mut p99: Vec<u64> = reports.iter().map(|r| r.latency_us.p99).collect();
    cpu.sort_by(f64::total_cmp);
    rates.sort_by(f64::total_cmp);
    p99.sort_unstable();
    let middle = reports.len() / 2;
    Ok(Row {
        question: question.name,
        server: server.title.clone(),
        server_cpu_us: cpu[middle],
        per_second: rates[middle],
        p99_us: p99[middle],
        lowest: cpu[0],
        highest: cpu[cpu.len() - 1],
        unclean_rounds: reports.iter().filter(|r| !r.is_clean()).count(),
        resident_mib: crate::server_cpu::resident_bytes(server.pid())? >> 20,
    })
}

fn print(rows: &[Row]) {
    println!("| question | server | server CPU us (lowest..highest) | per second | p99 us | RSS MiB |");
    println!("|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {} | {:.1} ({:.1}..{:.1}) | {:.0} | {} | {} |",
            row.question,
            row.server,
            row.server_cpu_us,
            row.lowest,
            row.highest,
            row.per_second,
            row.p99_us,
            row.resident_mib
        );
    }
}
