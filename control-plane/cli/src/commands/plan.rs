//! `portico plan`: which names share certificates, how many orders that takes and when the CA lets them through.

use portico_api::v1::client::PlanQuery;
use portico_api::v1::{PlanReport, Sharing};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

/// Of the table of groups, unless asked for more.
const ROWS: u32 = 20;

#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    /// Say why this name is on the certificate that it is on
    #[arg(long, value_name = "NAME")]
    explain: Option<String>,
    /// Other terms, to see what they would change: names-per-certificate=N, sharing=alone|registered-domain|tenant,
    /// orders-3h=N, cells=N; once for each
    #[arg(long = "what-if", value_name = "TERM=VALUE", value_parser = parse_term)]
    what_if: Vec<Term>,
    /// Rows of the table of groups, the largest first; up to 10000, without it 20
    #[arg(long, value_name = "N")]
    groups: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Term {
    NamesPerCertificate(u32),
    Sharing(Sharing),
    Orders3h(u32),
    Cells(u32),
}

fn parse_term(text: &str) -> Result<Term, String> {
    let (term, value) = text.split_once('=').ok_or("write TERM=VALUE, such as sharing=tenant")?;
    let number = || value.parse::<u32>().map_err(|error| format!("{value}: {error}"));
    match term {
        "names-per-certificate" => Ok(Term::NamesPerCertificate(number()?)),
        "orders-3h" => Ok(Term::Orders3h(number()?)),
        "cells" => Ok(Term::Cells(number()?)),
        "sharing" => match value {
            "alone" => Ok(Term::Sharing(Sharing::Alone)),
            "registered-domain" => Ok(Term::Sharing(Sharing::RegisteredDomain)),
            "tenant" => Ok(Term::Sharing(Sharing::Tenant)),
            _ => Err("sharing is alone, registered-domain or tenant".to_owned()),
        },
        _ => Err("the terms are names-per-certificate, sharing, orders-3h and cells".to_owned()),
    }
}

pub(crate) async fn run(settings: &Settings, args: PlanArgs) -> Outcome {
    let groups = args.groups.or((settings.format != Format::Json).then_some(ROWS));
    let mut query = PlanQuery { explain: args.explain, groups, ..PlanQuery::default() };
    for term in args.what_if {
        let (name, twice) = match term {
            Term::NamesPerCertificate(names) => {
                ("names-per-certificate", query.names_per_certificate_max.replace(names).is_some())
            }
            Term::Sharing(sharing) => ("sharing", query.sharing.replace(sharing).is_some()),
            Term::Orders3h(orders) => ("orders-3h", query.orders_3h.replace(orders).is_some()),
            Term::Cells(cells) => ("cells", query.cells.replace(cells).is_some()),
        };
        if twice {
            return Err(Failure::usage(format!("--what-if {name} is given twice; ask once for each value")));
        }
    }
    let report = settings.client()?.plan(&query).await.map_err(|error| {
        let unknown = query.explain.as_deref().filter(|_| error.status() == Some(404));
        match unknown {
            Some(name) => Failure::from(error).next(format!("domain add {name} --tenant TENANT --proxy URL")),
            None => error.into(),
        }
    })?;
    if settings.format == Format::Json {
        return output::json(&report);
    }
    match &report.explanation {
        Some(explanation) => line(explanation),
        None => print(&report),
    }
    Ok(())
}

fn print(report: &PlanReport) {
    line(format!(
        "{} names in {} groups; {} more wait for pre-flight, {} for proof; {} orders now, {} changes at renewal",
        report.names,
        report.groups,
        report.waiting,
        report.unproved,
        report.orders_now,
        report.changes_at_renewal
    ));
    let limits = &report.limits;
    let orders = match limits.orders_3h {
        0 => "any number of orders".to_owned(),
        most => format!("{} of {most} orders left in these 3 h", limits.orders_left),
    };
    line(format!(
        "limits: {} names on a certificate; {orders}, {} an hour for one tenant, {} a week for one registered domain",
        limits.names_per_certificate_max,
        or_none(limits.tenant_1h),
        or_none(limits.registered_domain_7d)
    ));
    for eta in &report.eta {
        line(format!("  {:>3} % of the names without a certificate: {}", eta.percent, in_words(eta.seconds)));
    }
    for hold in &report.held_by {
        line(format!(
            "held: {} orders ({} names) by {}, the last for {}",
            hold.orders,
            hold.names,
            hold.limit,
            in_words(hold.seconds)
        ));
    }
    for lever in &report.levers {
        line(format!("lever: {}: {} orders, {}", lever.text, lever.orders_now, in_words(lever.seconds)));
    }
    line(format!(
        "one key, one revocation or one dead name at an order touches at most {} names of {} tenants",
        report.names_per_key_max, report.tenants_per_key_max
    ));
    line(format!(
        "handshake: at most about {} bytes of QUIC's {} before a client's address is validated; {} groups need more",
        report.handshake_bytes_max, report.handshake_bytes_budget, report.groups_over_budget
    ));
    for cells in &report.cells {
        line(format!("cells {}: {} groups: {}", cells.cells.join(" "), cells.groups, cells.text));
    }
    print_largest(report);
}

fn print_largest(report: &PlanReport) {
    let mut table = Table::new(&["GROUP", "NAMES", "TENANTS", "BYTES", "FIRST NAMES", "WHY"]);
    for group in &report.largest {
        table.row([
            group.id.clone().unwrap_or_else(|| "new".to_owned()),
            group.names_count.to_string(),
            group.tenants.to_string(),
            group.handshake_bytes.to_string(),
            group.names.join(" "),
            group.basis.clone(),
        ]);
    }
    if table.is_empty() {
        return;
    }
    table.print();
    let shown = u64::try_from(report.largest.len()).unwrap_or(u64::MAX);
    if shown < report.groups {
        let all = report.groups.min(10_000);
        let groups = report.groups;
        let invocation = crate::invocation();
        line(format!("{shown} of {groups} groups, the largest; more: {invocation} plan --groups {all}"));
    }
}

fn or_none(limit: u32) -> String {
    if limit == 0 { "any number of".to_owned() } else { limit.to_string() }
}

fn in_words(seconds: u64) -> String {
    match seconds {
        0 => "at once".to_owned(),
        1..7_200 => format!("{} min", seconds.div_ceil(60)),
        7_200..172_800 => format!("{} h", seconds.div_ceil(3_600)),
        _ => format!("{} days", seconds.div_ceil(86_400)),
    }
}
