//! What suspend and resume of tenants and domains have in common.

use portico_api::v1::{Suspension, SuspensionAnswer, SuspensionMode};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, line};
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct SuspendArgs {
    /// What clients get
    #[arg(long, value_enum, default_value_t)]
    mode: ModeArg,
    /// Shown on the page
    #[arg(long, default_value = "")]
    reason: String,
    /// When it ends by itself, RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum ModeArg {
    /// 503 with a neutral page
    #[default]
    Page,
    /// 410
    Gone,
    /// 451
    Legal,
    /// The connection is closed
    Drop,
}

impl From<SuspendArgs> for Suspension {
    fn from(args: SuspendArgs) -> Self {
        let mode = match args.mode {
            ModeArg::Page => SuspensionMode::Page,
            ModeArg::Gone => SuspensionMode::Gone,
            ModeArg::Legal => SuspensionMode::Legal,
            ModeArg::Drop => SuspensionMode::Drop,
        };
        Self { mode, reason: args.reason, until: args.until }
    }
}

/// `page, until 2027-01-31T12:00:00Z: unpaid`
pub(crate) fn suspension_text(suspension: &Suspension) -> String {
    let mut text = output::word(&suspension.mode);
    if let Some(until) = &suspension.until {
        text += &format!(", until {}", output::time(until));
    }
    if !suspension.reason.is_empty() {
        text += &format!(": {}", suspension.reason);
    }
    text
}

/// Says which edges confirmed. Edges that did not are a reason for exit code 4.
pub(crate) fn print_answer(settings: &Settings, subject: &str, answer: &SuspensionAnswer) -> Outcome {
    if settings.format == Format::Json {
        output::json(answer)?;
    } else {
        line(format!("{subject}: confirmed by {} edges", answer.acked.len()));
        for edge in &answer.not_acked {
            line(format!("  not yet by {edge}; it follows when it reconnects"));
        }
    }
    if answer.not_acked.is_empty() {
        return Ok(());
    }
    Err(Failure::not_ready(format!("{} edges have not confirmed", answer.not_acked.len())).next("edge list"))
}
