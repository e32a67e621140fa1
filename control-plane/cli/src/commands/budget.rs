//! `portico budget`: what CAs, and the operator, still let us order.

use portico_api::v1::{BudgetBucket, BudgetLimit, IssuerBudget};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct BudgetArgs {
    /// The limits of this hostname: its registered domain's, its certificates', its failed validations'
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Of this issuer only
    #[arg(long, value_name = "ISSUER")]
    issuer: Option<String>,
}

pub(crate) async fn run(settings: &Settings, args: BudgetArgs) -> Outcome {
    let client = settings.client()?;
    let report =
        client.budget(args.issuer.as_deref(), args.name.as_deref()).await.map_err(|error| {
            match args.name.as_deref().filter(|_| error.status() == Some(404) && args.issuer.is_none()) {
                Some(name) => Failure::from(error).next(format!("domain show {name}")),
                None => error.into(),
            }
        })?;
    if settings.format == Format::Json {
        return output::json(&report);
    }
    if report.issuers.is_empty() {
        line(
            "no issuer is configured, so nothing is ordered; add an [[issuer]] to the control plane's configuration",
        );
    }
    for issuer in &report.issuers {
        print(issuer);
    }
    Ok(())
}

fn print(issuer: &IssuerBudget) {
    line(format!("issuer {}", issuer.issuer));
    match (issuer.orders_needed, &issuer.through_at) {
        (Some(0), _) => line("every name has its certificate: no order is needed"),
        (Some(orders), Some(at)) => {
            line(format!("{orders} orders are needed; the last can go at {}", output::time(at)));
        }
        (Some(orders), None) => line(format!("{orders} orders are needed; all can go now")),
        (None, _) => {}
    }
    let mut table =
        Table::new(&["LIMIT", "OF", "USED", "UNDER WAY", "KEPT", "FREE", "NEXT", "WAITING", "THROUGH"]);
    for bucket in &issuer.buckets {
        table.row([
            limit(bucket),
            bucket.subject.clone().unwrap_or_else(|| "-".to_owned()),
            used(bucket),
            bucket.reserved.to_string(),
            bucket.kept.to_string(),
            bucket.free.to_string(),
            bucket.next_at.as_deref().map_or_else(|| "now".to_owned(), output::time),
            bucket.waiting.to_string(),
            output::or_dash(bucket.waiting_through_at.as_deref().map(output::time)),
        ]);
    }
    if table.is_empty() {
        line("nothing is spent of any limit");
        return;
    }
    table.print();
    let listed = u64::try_from(issuer.buckets.len()).unwrap_or(u64::MAX);
    if listed < issuer.buckets_in_use {
        line(format!(
            "the fullest of {} limits in use; of one name: {} budget NAME",
            issuer.buckets_in_use,
            crate::invocation()
        ));
    }
}

/// By its key in `[issuer.limits]`; those that others spend of, too, have a star.
fn limit(bucket: &BudgetBucket) -> String {
    let star = if bucket.shared_with_others { "*" } else { "" };
    format!("{}{star}", bucket.limit.as_str())
}

/// Failures in a row have no period: one is forgiven after some time, and all by a success.
fn used(bucket: &BudgetBucket) -> String {
    let (used, count, period) = (bucket.used, bucket.count, bucket.period_seconds);
    if bucket.limit != BudgetLimit::ConsecutiveFailures {
        return format!("{used} of {count} in {}", self::period(period));
    }
    let each = self::period(period.checked_div(count.into()).unwrap_or(period));
    format!("{used} of {count}, one less every {each}")
}

fn period(seconds: u64) -> String {
    match seconds {
        seconds if seconds >= 86_400 && seconds.is_multiple_of(86_400) => format!("{} d", seconds / 86_400),
        seconds if seconds >= 3_600 && seconds.is_multiple_of(3_600) => format!("{} h", seconds / 3_600),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_are_not_told_as_a_count_in_years() {
        let bucket: BudgetBucket = serde_json::from_value(serde_json::json!({
            "limit": "consecutive_failures", "subject": "a.example", "used": 0, "count": 1152,
            "period_seconds": 1152 * 86_400, "reserved": 0, "kept": 0, "free": 1152, "waiting": 0,
            "shared_with_others": false,
        }))
        .unwrap();
        assert_eq!(used(&bucket), "0 of 1152, one less every 1 d");
        let orders =
            BudgetBucket { limit: BudgetLimit::Orders, count: 300, period_seconds: 10_800, ..bucket };
        assert_eq!(used(&orders), "0 of 300 in 3 h");
    }

    #[test]
    fn periods_are_told_in_the_unit_that_fits() {
        assert_eq!([10_800, 604_800, 90, 0].map(period), ["3 h", "7 d", "90 s", "0 s"]);
    }
}
