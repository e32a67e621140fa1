//! `portico`: one binary with every part of the edge, its control plane, and the operator's commands.
//!
//! `portico edge run` and `portico control-plane run` are the two services, the same code as `portico-edge` and
//! `portico-control-plane`. Everything else talks to a running control plane over its API. `portico quickstart` (feature
//! `quickstart`) runs the whole system on loopback with a test CA.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not ready yet.
//!
//! With `-o json` a command prints exactly one JSON document on standard output, or none when it fails before it has one; a
//! failure is one RFC 9457 problem on standard error. The commands that run a part of the system print no answer and
//! refuse the flag.

mod clock;
mod commands;
mod duration;
mod failure;
mod listing;
mod output;
mod progress;
#[cfg(feature = "quickstart")]
mod quickstart;
mod records;
mod revision;
mod service;
mod settings;
mod shell;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

use commands::{
    adopt, audit, backup, backup_cert, budget, cache, cell, cert, check, domain, edge, issuer, plan, preview,
    rekey, removal, renewals, shadow, tenant, token, usage, webhook,
};
use failure::{Failure, Outcome};
use output::Format;
use settings::{Settings, SettingsArgs};

#[cfg(not(feature = "heap-profile"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "heap-profile")]
#[global_allocator]
static ALLOCATOR: portico_edge::heap::Jemalloc = portico_edge::heap::Jemalloc;

#[derive(Debug, Parser)]
#[command(
    name = "portico",
    version,
    about = "A multi-tenant TLS edge: its parts, and the operator's commands"
)]
struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    /// End when standard input ends: the quickstart's children have it as a pipe from their parent
    #[cfg(feature = "quickstart")]
    #[arg(long, hide = true)]
    lifeline: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the whole system on loopback with a test CA, and print what to try
    #[cfg(feature = "quickstart")]
    Quickstart(quickstart::QuickstartArgs),
    /// Run an edge, or ask the control plane about its edges
    Edge {
        #[command(subcommand)]
        command: EdgeCommand,
    },
    /// Run the control plane, or replace the key that seals its secrets
    ControlPlane {
        #[command(subcommand)]
        command: ControlPlaneCommand,
    },
    #[command(flatten)]
    Api(ApiCommand),
    /// Print the version, as --version does
    Version,
    /// Write a backup of the control plane, which may run
    Backup(backup::BackupArgs),
    /// Put a backup back; the control plane must not run
    Restore(backup::BackupArgs),
    #[cfg(feature = "quickstart")]
    #[command(hide = true)]
    QuickstartCa(Box<portico_acme_ca::CaArgs>),
    #[cfg(feature = "quickstart")]
    #[command(hide = true)]
    QuickstartDns(portico_acme_ca::DnsArgs),
    #[cfg(feature = "quickstart")]
    #[command(hide = true)]
    QuickstartOrigin(quickstart::origin::OriginArgs),
}

/// What is asked of a running control plane, or of the addresses that it fills.
#[derive(Debug, clap::Subcommand)]
enum ApiCommand {
    /// Tenants: whose domains these are
    Tenant {
        #[command(subcommand)]
        command: tenant::TenantCommand,
    },
    /// Tokens: who may call the API, for all or for one tenant
    Token {
        #[command(subcommand)]
        command: token::TokenCommand,
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
    /// Backup certificates: of another issuer and with another key, on the edges beside what serves
    BackupCert {
        #[command(subcommand)]
        command: backup_cert::BackupCertCommand,
    },
    /// What edges keep of origins' answers
    Cache {
        #[command(subcommand)]
        command: cache::CacheCommand,
    },
    /// Removals that are held back because too many names would have left at once
    Removal {
        #[command(subcommand)]
        command: removal::RemovalCommand,
    },
    /// The record of all writes: who wrote what, and whether it is as it was written
    Audit {
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    /// Webhooks: where events are sent
    Webhook {
        #[command(subcommand)]
        command: webhook::WebhookCommand,
    },
    /// What was served, per tenant, domain and hour: for invoices (--csv), and for who is busiest (--top)
    Usage(usage::UsageArgs),
    /// Which names share certificates, how many orders that takes, and when the CA's limits let them through
    Plan(plan::PlanArgs),
    /// The CAs that issue, whether orders go there, and our accounts
    Issuer {
        #[command(subcommand)]
        command: issuer::IssuerCommand,
    },
    /// Cells: edges that share their keys, or one edge that keeps its own
    Cell {
        #[command(subcommand)]
        command: cell::CellCommand,
    },
    /// Keys that are replaced before their time, and how far that is
    Rekey {
        #[command(subcommand)]
        command: rekey::RekeyCommand,
    },
    /// How renewals stand: what is due, late or expired, and how far a mass replacement is
    Renewals,
    /// What CAs still let us order: used, free, the next slot, and when the orders that wait are through
    Budget(budget::BudgetArgs),
    /// Take over what certbot, Caddy, acme.sh or nginx serves: certificates, keys, routes and accounts, with no order
    Adopt(Box<adopt::AdoptArgs>),
    /// Spot check: what do these addresses serve for these names? Follows no redirect
    Check(check::CheckArgs),
    /// How to try a site on an edge before DNS moves
    Preview(preview::PreviewArgs),
    /// Lines for the present server of a site, so that the edge gets its certificate before DNS moves
    Shadow(shadow::ShadowArgs),
}

#[derive(Debug, clap::Subcommand)]
enum EdgeCommand {
    /// Run an edge in the foreground, as portico-edge does
    Run(portico_edge::Args),
    #[command(flatten)]
    Fleet(edge::FleetCommand),
}

#[derive(Debug, clap::Subcommand)]
enum ControlPlaneCommand {
    /// Run the control plane in the foreground, as portico-control-plane does
    Run(portico_control_plane::Args),
    /// Put another key-encryption key in the place of the present one; the control plane must not run
    RotateKek(portico_control_plane::RotateArgs),
}

fn main() -> ExitCode {
    let (format, ended) = match Cli::try_parse() {
        Ok(cli) => (cli.settings.format(), run(cli)),
        // Help and version are no faults.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => match settings::format_of(std::env::args()) {
            Format::Table => error.exit(),
            Format::Json => (Format::Json, Err(Failure::from(error))),
        },
    };
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    report(format, &failure);
    ExitCode::from(failure.code)
}

fn run(cli: Cli) -> Outcome {
    #[cfg(feature = "quickstart")]
    if cli.lifeline {
        if let Command::Edge { command: EdgeCommand::Run(args) } = &cli.command
            && args.take_over.is_some()
        {
            return Err(Failure::failed(
                "an edge of the quickstart cannot be started again in place: it lives and ends with the quickstart; \
                 end that (Ctrl-C) and start it again. The edge that runs serves on",
            ));
        }
        quickstart::lifeline::watch()?;
    }
    let settings = Settings::new(cli.settings)?;
    if settings.format == Format::Json && !cli.command.answers() {
        return Err(Failure::usage(
            "this command runs a part of the system and prints no JSON; leave -o json out",
        ));
    }
    match cli.command {
        Command::Edge { command: EdgeCommand::Run(args) } => service::edge(args),
        Command::Edge { command: EdgeCommand::Fleet(command) } => block_on(edge::run(&settings, command)),
        Command::ControlPlane { command: ControlPlaneCommand::Run(args) } => service::control_plane(args),
        Command::ControlPlane { command: ControlPlaneCommand::RotateKek(args) } => service::rotate_kek(args),
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            output::done(
                settings.format,
                format!("portico {version}"),
                &serde_json::json!({ "version": version }),
            )
        }
        Command::Backup(args) => block_on(backup::backup(&settings, args)),
        Command::Restore(args) => block_on(backup::restore(&settings, args)),
        Command::Api(command) => block_on(operate(&settings, command)),
        #[cfg(feature = "quickstart")]
        Command::Quickstart(args) => block_on(quickstart::run(args)),
        #[cfg(feature = "quickstart")]
        Command::QuickstartCa(args) => service::run_to_end(portico_acme_ca::run_ca(*args)),
        #[cfg(feature = "quickstart")]
        Command::QuickstartDns(args) => service::run_to_end(portico_acme_ca::run_dns(args)),
        #[cfg(feature = "quickstart")]
        Command::QuickstartOrigin(args) => block_on(quickstart::origin::run(args)),
    }
}

impl Command {
    /// Whether it prints an answer, which `-o json` gives another form.
    fn answers(&self) -> bool {
        match self {
            Self::Edge { command: EdgeCommand::Run(_) } | Self::ControlPlane { .. } => false,
            Self::Edge { command: EdgeCommand::Fleet(_) }
            | Self::Api(_)
            | Self::Backup(_)
            | Self::Restore(_)
            | Self::Version => true,
            #[cfg(feature = "quickstart")]
            Self::Quickstart(_)
            | Self::QuickstartCa(_)
            | Self::QuickstartDns(_)
            | Self::QuickstartOrigin(_) => false,
        }
    }
}

fn block_on(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn operate(settings: &Settings, command: ApiCommand) -> Outcome {
    match command {
        ApiCommand::Tenant { command } => tenant::run(settings, command).await,
        ApiCommand::Token { command } => token::run(settings, command).await,
        ApiCommand::Domain { command } => domain::run(settings, command).await,
        ApiCommand::Cache { command } => cache::run(settings, command).await,
        ApiCommand::Cert { command } => cert::run(settings, command).await,
        ApiCommand::BackupCert { command } => backup_cert::run(settings, command).await,
        ApiCommand::Removal { command } => removal::run(settings, command).await,
        ApiCommand::Audit { command } => audit::run(settings, command).await,
        ApiCommand::Webhook { command } => webhook::run(settings, command).await,
        ApiCommand::Usage(args) => usage::run(settings, args).await,
        ApiCommand::Plan(args) => plan::run(settings, args).await,
        ApiCommand::Issuer { command } => issuer::run(settings, command).await,
        ApiCommand::Cell { command } => cell::run(settings, command).await,
        ApiCommand::Rekey { command } => rekey::run(settings, command).await,
        ApiCommand::Renewals => renewals::run(settings).await,
        ApiCommand::Budget(args) => budget::run(settings, args).await,
        ApiCommand::Adopt(args) => adopt::run(settings, *args).await,
        ApiCommand::Check(args) => check::run(settings, args).await,
        ApiCommand::Preview(args) => preview::run(settings, args).await,
        ApiCommand::Shadow(args) => shadow::run(settings, args).await,
    }
}

/// Says what went wrong and what to try, on standard error.
fn report(format: Format, failure: &Failure) {
    let mut error = std::io::stderr().lock();
    if format == Format::Json
        && let Ok(text) = serde_json::to_string_pretty(&failure.document())
    {
        let _nobody_listens = writeln!(error, "{text}");
        return;
    }
    let _nobody_listens = writeln!(error, "error: {}", output::harmless(&failure.text));
    if let Some(next) = failure.next_line() {
        let _nobody_listens = writeln!(error, "next:  {next}");
    }
}

/// This program as it was called, with its context, so that a printed command works as it is.
pub(crate) fn invocation() -> String {
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

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    /// clap looks at that itself in debug builds alone; of two options of one name, both fields get what either is given.
    #[test]
    fn options_of_one_command_have_names_of_their_own() {
        fn look(command: &clap::Command) {
            let mut ids: Vec<&str> = command.get_arguments().map(|option| option.get_id().as_str()).collect();
            let all = ids.len();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), all, "{}: {ids:?}", command.get_name());
            command.get_subcommands().for_each(look);
        }
        let mut command = super::Cli::command();
        command.build();
        look(&command);
    }

    #[test]
    fn one_binary_has_the_commands_of_both_services() {
        for line in [
            "portico edge run --config edge.toml",
            "portico control-plane run --config control-plane.toml",
            "portico control-plane rotate-kek --config control-plane.toml --new-key-file kek.new",
        ] {
            super::Cli::try_parse_from(line.split(' ')).unwrap();
        }
    }
}
