//! `portico-simulate`: a fleet's issuance for months on a virtual clock; prints what came of it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use portico_simulator::ca::{Exemption, Profile};
use portico_simulator::simulation::classic;
use portico_simulator::time::{DAY_MS, HOUR_MS};
use portico_simulator::{Scenario, Start, plot, run};

/// Runs months of issuance for a fleet on a virtual clock. Ends with 1 if a promise did not hold.
#[derive(Debug, Parser)]
struct Args {
    #[arg(long, default_value_t = 100_000)]
    names: usize,
    #[arg(long, default_value_t = 90)]
    days: i64,
    /// The same seed is the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value = "established")]
    start: Start,
    /// What the CA exempts an order from that replaces a certificate.
    #[arg(long, value_enum, default_value = "covered-names")]
    exemption: Exemption,
    /// Neither outage, revocation nor changes of the profile.
    #[arg(long)]
    quiet: bool,
    /// Where to write report.json and orders.svg.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let shrinking = vec![
        (0, classic()),
        (30, Profile { lifetime_ms: 64 * DAY_MS, reuse_ms: 10 * DAY_MS }),
        (60, Profile { lifetime_ms: 45 * DAY_MS, reuse_ms: 7 * HOUR_MS }),
    ];
    let scenario = Scenario {
        seed: args.seed,
        names: args.names,
        days: args.days,
        start: args.start,
        exemption: args.exemption,
        edges_per_cell: 2,
        churn: 0.01,
        profiles: if args.quiet { vec![(0, classic())] } else { shrinking },
        outage: (!args.quiet).then_some((40, 3)),
        revocation: (!args.quiet).then_some((50, 0.2)),
        sites_with_others: args.names / 1000,
        stolen_orders: 0,
    };
    let outcome = run(&scenario);
    print!("{}", outcome.text());
    if let Some(folder) = &args.report {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))
        };
        write("report.json", serde_json::to_string_pretty(&outcome)?)?;
        write("orders.svg", plot::svg(&outcome))?;
        println!("written: {}", folder.join("report.json").display());
    }
    Ok(if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
