//! `portico usage`: what was served, for invoices and for who is busiest.

use portico_api::v1::client::UsageQuery;
use portico_api::v1::{UsageBy, UsageOrder, UsageRow};
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, UtcOffset};

use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table};
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct UsageArgs {
    /// From this day or hour on (UTC): 2026-11-01 or 2026-11-01T05:00:00Z
    #[arg(long, value_name = "TIME", value_parser = hour)]
    from: Option<String>,
    /// Up to this day or hour, which is not in itself
    #[arg(long, value_name = "TIME", value_parser = hour)]
    to: Option<String>,
    /// Of this tenant alone; its name or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Of this domain alone
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Summed by these, with commas between
    #[arg(long, value_name = "tenant,domain,day,hour", value_delimiter = ',', default_value = "tenant")]
    by: Vec<UsageBy>,
    /// The busiest first: requests or response-bytes
    #[arg(long, value_name = "FIGURE", value_parser = order)]
    top: Option<UsageOrder>,
    /// As CSV, all rows unless --limit says fewer
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    limit: LimitArgs,
}

pub(crate) async fn run(settings: &Settings, args: UsageArgs) -> Outcome {
    let client = settings.client()?;
    let tenant = match &args.tenant {
        Some(tenant) => match tenant.parse() {
            // It may be gone, and its invoice still to be written.
            Ok(id) => Some(id),
            Err(_) => Some(super::tenant::find(&client, tenant).await?.id),
        },
        None => None,
    };
    let query = UsageQuery {
        from: args.from,
        to: args.to,
        tenant,
        domain: args.domain,
        by: args.by.clone(),
        order: args.top.unwrap_or_default(),
    };
    let limit = if args.csv { args.limit.or_all() } else { args.limit.of(settings.format) };
    let rows = Listing::read(limit, async |cursor, items| {
        client.usage(&query, cursor.as_deref(), Some(items)).await
    });
    let rows = rows.await?;
    if rows.items.is_empty() && (args.csv || settings.format == Format::Table) {
        output::remark(why_empty(&query));
    }
    if args.csv {
        return csv_of(&args.by, &rows.items);
    }
    if settings.format == Format::Json {
        return output::json(&rows.items);
    }
    table(&args.by, &rows.items).print();
    rows.print_more();
    Ok(())
}

/// A head without rows says neither whether nobody came nor whether nothing has been told yet.
fn why_empty(query: &UsageQuery) -> String {
    let of = [
        query.tenant.map(|id| format!(" of tenant {id}")),
        query.domain.as_ref().map(|name| format!(" of {name}")),
        query.from.as_ref().map(|from| format!(" from {from} on")),
        query.to.as_ref().map(|to| format!(" before {to}")),
    ];
    let of: String = of.into_iter().flatten().collect();
    format!(
        "no edge has reported requests{of}; edges report once a minute and when they end, so those of the last minute come \
         yet, and those of an edge that is not connected when it is"
    )
}

fn csv_of(by: &[UsageBy], rows: &[UsageRow]) -> Outcome {
    let failed = |error: csv::Error| Failure::failed(error.to_string());
    let mut text = csv::Writer::from_writer(Vec::new());
    let figures = ["requests", "request_bytes", "response_bytes", "cached_bytes"];
    let head = by.iter().flat_map(|by| match by {
        UsageBy::Tenant => &["tenant", "tenant_id"][..],
        UsageBy::Domain => &["domain", "domain_id"],
        UsageBy::Day | UsageBy::Hour => &["from"],
    });
    text.write_record(head.chain(&figures)).map_err(failed)?;
    for row in rows {
        text.write_record(keys(by, row).into_iter().chain(figures_of(row))).map_err(failed)?;
    }
    let bytes = text.into_inner().map_err(|error| Failure::failed(error.to_string()))?;
    output::line(String::from_utf8_lossy(&bytes).trim_end());
    Ok(())
}

fn table(by: &[UsageBy], rows: &[UsageRow]) -> Table {
    let mut table = Table::new(&["OF", "REQUESTS", "BYTES IN", "BYTES OUT", "FROM CACHE"]);
    for row in rows {
        let shown: Vec<String> = by.iter().map(|by| shown(*by, row)).collect();
        let of = if shown.is_empty() { "all".to_owned() } else { shown.join("  ") };
        let [requests, request_bytes, response_bytes, cached_bytes] = figures_of(row);
        table.row([of, requests, request_bytes, response_bytes, cached_bytes]);
    }
    table
}

fn keys(by: &[UsageBy], row: &UsageRow) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut keys = Vec::new();
    for by in by {
        match by {
            UsageBy::Tenant => keys.extend([text(&row.tenant_name), text(&row.tenant_id)]),
            UsageBy::Domain => keys.extend([text(&row.domain), text(&row.domain_id)]),
            UsageBy::Day | UsageBy::Hour => keys.push(text(&row.from)),
        }
    }
    keys
}

/// For people: a tenant that is gone has its id alone.
fn shown(by: UsageBy, row: &UsageRow) -> String {
    let text = match by {
        UsageBy::Tenant => row.tenant_name.as_ref().or(row.tenant_id.as_ref()),
        UsageBy::Domain => row.domain.as_ref(),
        UsageBy::Day | UsageBy::Hour => row.from.as_ref(),
    };
    text.cloned().unwrap_or_default()
}

fn figures_of(row: &UsageRow) -> [String; 4] {
    [row.requests, row.request_bytes, row.response_bytes, row.cached_bytes].map(|figure| figure.to_string())
}

fn order(text: &str) -> Result<UsageOrder, String> {
    match text {
        "requests" => Ok(UsageOrder::Requests),
        "response-bytes" => Ok(UsageOrder::ResponseBytes),
        _ => Err("not requests or response-bytes".to_owned()),
    }
}

/// A day or an hour, as the API takes it.
fn hour(text: &str) -> Result<String, String> {
    let wrong = || "not a day as 2026-11-01 or a whole hour as 2026-11-01T05:00:00Z".to_owned();
    let time = match Date::parse(text, format_description!("[year]-[month]-[day]")) {
        Ok(day) => day.midnight().assume_utc(),
        Err(_) => OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?,
    };
    if time.unix_timestamp() % 3600 != 0 || time.nanosecond() != 0 {
        return Err(wrong());
    }
    time.to_offset(UtcOffset::UTC).format(&Rfc3339).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_says_of_what_and_that_figures_come_late() {
        let query = UsageQuery {
            from: Some("2026-11-01T00:00:00Z".to_owned()),
            domain: Some("shop.example".to_owned()),
            ..UsageQuery::default()
        };
        let text = why_empty(&query);
        assert!(text.starts_with("no edge has reported requests of shop.example from 2026-11-01T"), "{text}");
        assert!(text.contains("once a minute"), "{text}");
        assert!(why_empty(&UsageQuery::default()).starts_with("no edge has reported requests; "));
    }

    #[test]
    fn times_are_days_or_whole_hours() {
        assert_eq!(hour("2026-11-01").unwrap(), "2026-11-01T00:00:00Z");
        assert_eq!(hour("2026-11-01T05:00:00+01:00").unwrap(), "2026-11-01T04:00:00Z");
        for wrong in ["", "november", "2026-11-31", "2026-11-01T05:30:00Z", "2026-11-01T05:00:00.5Z"] {
            assert!(hour(wrong).unwrap_err().contains("whole hour"), "{wrong}");
        }
    }
}
