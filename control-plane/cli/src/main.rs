//! `portico`: one binary with every part of the edge, its control plane, and the operator's commands.
//!
//! `portico edge run` and `portico control-plane run` are the two services, the same code as `portico-edge` and
//! `portico-control-plane`. Everything else talks to a running control plane over its API. `portico quickstart` (feature
//! `quickstart`) runs the whole system on loopback with a test CA.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not ready yet.

mod clock;
mod commands;
mod duration;
mod failure;
mod output;
mod progress;
mod records;
mod settings;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

use commands::{cert, check, domain, edge, preview, shadow, tenant};
use failure::{Failure, Next, Outcome};
use settings::{Settings, SettingsArgs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(
    name = "portico",
    version,
    about = "A multi-tenant TLS edge: its parts, and the operator's commands"
)]
struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run an edge, or ask the control plane about its edges
    Edge {
        #[command(subcommand)]
        command: edge::FleetCommand,
    },
    /// Tenants: whose domains these are
    Tenant {
        #[command(subcommand)]
        command: tenant::TenantCommand,
    },
    /// Domains: names that tenants bring
    Domain {
        #[command(subcommand)]
        command: domain::DomainCommand,
    },
    /// Certificates
    Cert {
        #[command(subcommand)]
        command: cert::CertCommand,
    },
    /// Spot check: what do these addresses serve for these names? Follows no redirect
    Check(check::CheckArgs),
    /// How to try a site on an edge before DNS moves
    Preview(preview::PreviewArgs),
    /// Lines for the present server of a site, so that the edge gets its certificate before DNS moves
    Shadow(shadow::ShadowArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let settings = Settings::new(cli.settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(operate(&settings, cli.command))
}

async fn operate(settings: &Settings, command: Command) -> Outcome {
    match command {
        Command::Edge { command } => edge::run(settings, command).await,
        Command::Tenant { command } => tenant::run(settings, command).await,
        Command::Domain { command } => domain::run(settings, command).await,
        Command::Cert { command } => cert::run(settings, command).await,
        Command::Check(args) => check::run(settings, args).await,
        Command::Preview(args) => preview::run(settings, args).await,
        Command::Shadow(args) => shadow::run(settings, args).await,
    }
}

/// Says what went wrong and what to try, on standard error.
fn report(failure: &Failure) {
    let mut error = std::io::stderr().lock();
    let _nobody_listens = writeln!(error, "error: {}", failure.text);
    let _nobody_listens = match &failure.next {
        Some(Next::Portico(arguments)) => writeln!(error, "next:  {} {arguments}", invocation()),
        Some(Next::Text(text)) => writeln!(error, "next:  {text}"),
        None => Ok(()),
    };
}

/// This program as it was called, with its context, so that a printed command works as it is.
fn invocation() -> String {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_else(|| "portico".to_owned());
    let rest: Vec<String> = words.collect();
    let context = rest.iter().enumerate().find_map(|(index, word)| match word.strip_prefix("--context=") {
        Some(folder) => Some(folder.to_owned()),
        None if word == "--context" => rest.get(index + 1).cloned(),
        None => None,
    });
    match context {
        Some(folder) => format!("{program} --context {folder}"),
        None => program,
    }
}
