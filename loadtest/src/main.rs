//! `portico-loadtest`: load, measurement and comparison for TLS edges.
//!
//! Latency is counted from the moment a request was due, not from the moment it could be sent, so that a stalled
//! server cannot hide its stall (coordinated omission). Each report says how much was attempted, answered, wrong and
//! failed; nothing attempted is a failure. All traffic stays on loopback.

#![expect(clippy::disallowed_methods, reason = "it measures real time and nothing else")]

mod attacks;
mod boot;
mod client;
mod compare;
mod csv_tenants;
mod engine;
mod fleet_state;
mod idle;
mod names;
mod origin;
mod report;
mod restarts;
mod server_cpu;
mod shares;
mod verify;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    name = "portico-loadtest",
    version,
    about = "Load and side-by-side comparison for TLS edges, on loopback"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Full (or resumed) TLS handshakes, one connection each, over rotating names.
    Handshakes(engine::LoadArgs),
    /// Requests over kept connections, HTTP/1.1 or HTTP/2.
    Requests(engine::LoadArgs),
    /// Portico on io_uring and on epoll, and an nginx found on this machine: interleaved rounds, server CPU per operation.
    Compare(compare::CompareArgs),
    /// How soon an edge serves after its start with many names: from last-good files, or standalone from PEM files.
    Boot(boot::BootArgs),
    /// Resident memory of an edge per idle TLS connection.
    Idle(idle::IdleArgs),
    /// Requests and failures while an edge is restarted again and again: HTTP/1.1, 2 and 3.
    Restarts(restarts::RestartsArgs),
    /// What the attacks on HTTP servers that have names cost an edge, and its visitors meanwhile.
    Attacks(attacks::AttacksArgs),
    /// The hit ratio and bytes of a tenant's cache beside one that asks for far more than there is room for.
    Shares(shares::SharesArgs),
    /// A CSV of heavy-tailed tenants for `portico domain import`.
    Tenants(csv_tenants::TenantsArgs),
    /// Asks every name of a CSV on every edge and checks certificate, chain and the tenant's own body.
    Verify(verify::VerifyArgs),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Handshakes(args) => engine::run(&args, engine::Work::Handshakes),
        Command::Requests(args) => engine::run(&args, engine::Work::Requests),
        Command::Compare(args) => compare::run(&args),
        Command::Boot(args) => boot::run(&args),
        Command::Idle(args) => idle::run(&args),
        Command::Restarts(args) => restarts::run(&args),
        Command::Attacks(args) => attacks::run(&args),
        Command::Shares(args) => shares::run(&args),
        Command::Tenants(args) => csv_tenants::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}
