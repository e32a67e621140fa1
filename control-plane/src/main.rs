//! The service binary; everything is in the library.

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, clap::Parser)]
#[command(name = "portico-control-plane", version, about = "Portico's control plane")]
struct CommandLine {
    #[command(flatten)]
    args: portico_control_plane::Args,
}

fn main() -> anyhow::Result<()> {
    let command_line = CommandLine::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(portico_control_plane::run(command_line.args))
}
