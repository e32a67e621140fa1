//! The service binary; everything is in the library.

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use tracing_subscriber::filter::LevelFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, clap::Parser)]
#[command(name = "portico-control-plane", version, about = "Portico's control plane")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct CommandLine {
    #[command(flatten)]
    args: Option<portico_control_plane::Args>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Put another key-encryption key in the place of the present one; the control plane must not run
    RotateKek(portico_control_plane::RotateArgs),
}

fn main() -> anyhow::Result<()> {
    let command_line = CommandLine::parse();
    portico_control_plane::start_logging(LevelFilter::INFO);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match (command_line.command, command_line.args) {
        (Some(Command::RotateKek(args)), _) => runtime.block_on(portico_control_plane::run_rotate_kek(args)),
        (None, Some(args)) => runtime.block_on(portico_control_plane::run(args)),
        (None, None) => {
            CommandLine::command().error(ErrorKind::MissingRequiredArgument, "give --config FILE").exit()
        }
    }
}
