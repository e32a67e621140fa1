//! `portico backup FILE` and `portico restore FILE`: on the control plane's own machine, over its configuration file.

use std::path::PathBuf;

use portico_control_plane::backup;
use portico_control_plane::clock::Clock;
use portico_control_plane::config::Config;
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, line};
use crate::progress;
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    /// The backup's file
    file: PathBuf,
    /// The control plane's configuration
    #[arg(long, default_value = "/etc/portico/control-plane.toml", value_name = "FILE")]
    config: PathBuf,
}

impl BackupArgs {
    fn config(&self) -> Outcome<Config> {
        Config::read(&self.config).map_err(|error| {
            Failure::from(anyhow::Error::from(error))
                .next_text("--config FILE names the control plane's configuration")
        })
    }
}

/// Writes a backup; the control plane may run.
pub(crate) async fn backup(settings: &Settings, args: BackupArgs) -> Outcome {
    let config = args.config()?;
    let bar = progress::bar("writing the backup", 0);
    backup::backup(&config, &args.file).await?;
    bar.finish_and_clear();
    let file = args.file.display().to_string();
    let text = format!("{file} holds everything but the key-encryption key; keep that key apart");
    output::done(settings.format, text, &json!({ "file": file }))
}

/// Puts a backup back; the control plane must not run.
pub(crate) async fn restore(settings: &Settings, args: BackupArgs) -> Outcome {
    let config = args.config()?;
    let bar = progress::bar("restoring", 0);
    let restored = backup::restore(&config, &args.file, &Clock::default()).await?;
    bar.finish_and_clear();
    let next = format!("{} control-plane run --config {}", crate::invocation(), args.config.display());
    if settings.format == Format::Json {
        let kept = restored.kept.map(|kept| kept.display().to_string());
        return output::json(&json!({ "epoch": restored.epoch, "kept": kept, "next": next }));
    }
    line(format!("restored; generations go on in epoch {}", restored.epoch));
    if let Some(kept) = restored.kept {
        line(format!("the database that was there is kept as {}", kept.display()));
    }
    line(format!("next: {next}"));
    Ok(())
}
