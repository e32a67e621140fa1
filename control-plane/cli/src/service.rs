//! The services, the same code as their own binaries run.

use portico_control_plane::start_logging;
use tracing_subscriber::filter::LevelFilter;

use crate::failure::{Failure, Outcome};

/// Runs an edge until it has drained.
pub(crate) fn edge(args: portico_edge::Args) -> Outcome {
    portico_edge::start_logging();
    portico_edge::run(args).map_err(|error| Failure::from(error).about("edge"))
}

/// Runs the control plane until a signal ends it.
pub(crate) fn control_plane(args: portico_control_plane::Args) -> Outcome {
    start_logging(LevelFilter::INFO);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(portico_control_plane::run(args));
    ended.map_err(|error| Failure::from(error).about("control plane"))
}

/// Replaces the key-encryption key.
pub(crate) fn rotate_kek(args: portico_control_plane::RotateArgs) -> Outcome {
    start_logging(LevelFilter::INFO);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rotated = runtime.block_on(portico_control_plane::run_rotate_kek(args));
    rotated.map_err(|error| Failure::from(error).about("rotate-kek"))
}

/// Runs a part of the quickstart until a signal ends it.
#[cfg(feature = "quickstart")]
pub(crate) fn run_to_end(part: impl Future<Output = anyhow::Result<()>>) -> Outcome {
    start_logging(LevelFilter::WARN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(part)?)
}
