//! `portico-acme-ca ca` and `portico-acme-ca dns`: the test CA and the DNS stub as processes.

use clap::{Parser, Subcommand};
use portico_acme_ca::{CaArgs, DnsArgs, run_ca, run_dns};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

#[derive(Parser)]
#[command(version, about = "An ACME server and a DNS stub for tests and trials; never for production")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// The ACME server.
    Ca(Box<CaArgs>),
    /// The DNS stub.
    Dns(DnsArgs),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let chosen = std::env::var("PORTICO_LOG").ok().and_then(|text| text.parse().ok());
    let filter = chosen.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.part {
            Part::Ca(args) => run_ca(*args).await,
            Part::Dns(args) => run_dns(args).await,
        }
    });
    // The thread that reads standard input never returns while the parent lives.
    runtime.shutdown_background();
    result
}
