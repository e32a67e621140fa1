//! The services, the same code as their own binaries run.

use crate::failure::{Failure, Outcome};

/// Runs an edge until it has drained.
pub(crate) fn edge(args: portico_edge::Args) -> Outcome {
    portico_edge::start_logging();
    portico_edge::run(args).map_err(|error| Failure::from(error).about("edge"))
}

/// Runs the control plane until a signal ends it.
pub(crate) fn control_plane(args: portico_control_plane::Args) -> Outcome {
    start_logging("info");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(portico_control_plane::run(args));
    ended.map_err(|error| Failure::from(error).about("control plane"))
}

/// Runs a part of the quickstart until a signal ends it.
#[cfg(feature = "quickstart")]
pub(crate) fn run_to_end(part: impl Future<Output = anyhow::Result<()>>) -> Outcome {
    start_logging("warn");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(part)?)
}

/// Log lines to standard error; `RUST_LOG` chooses the level.
fn start_logging(level: &str) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let _already_there = fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
