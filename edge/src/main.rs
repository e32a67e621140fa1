//! `portico-edge`: the data plane as a program of its own.

use clap::Parser;

#[cfg(not(feature = "heap-profile"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "heap-profile")]
#[global_allocator]
static ALLOCATOR: portico_edge::heap::Jemalloc = portico_edge::heap::Jemalloc;

/// The Portico edge: TLS and HTTP for every name, on one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    edge: portico_edge::Args,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    portico_edge::start_logging();
    match portico_edge::run(cli.edge) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portico-edge: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
