//! `portico renewals`: what is due, what is late, and how far a mass replacement is.

use portico_api::v1::RenewalsReport;

use crate::failure::Outcome;
use crate::output::{self, Format, line};
use crate::settings::Settings;

pub(crate) async fn run(settings: &Settings) -> Outcome {
    let report = settings.client()?.renewals().await?;
    if settings.format == Format::Json {
        return output::json(&report);
    }
    print(&report);
    Ok(())
}

fn print(report: &RenewalsReport) {
    line(format!(
        "{} certificates in use; {} are renewed when their CA suggests (ARI), {} by share of the lifetime",
        report.live,
        report.by_ari,
        report.live.saturating_sub(report.by_ari)
    ));
    line(format!(
        "due: {}, of them {} beyond the CA's window; late: {}; expired: {}",
        report.due, report.overdue, report.late, report.expired
    ));
    if let Some(deadline) = &report.first_deadline {
        line(format!("first to be replaced by {}", output::time(deadline)));
    }
    line(format!("orders under way: {}; replaced in 15 minutes: {}", report.orders, report.replaced_15min));
    if let Some(done_at) = &report.done_at {
        line(format!("at this pace all that is due is replaced at {}", output::time(done_at)));
    }
}
