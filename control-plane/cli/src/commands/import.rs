//! `portico domain import FILE.csv`: many domains of many tenants at once.
//!
//! Three visible steps: read and judge the file ([`rows`]), send it ([`send`]), and where asked wait until every domain is
//! served ([`wait`]). A faulty row is reported with its line and the rest goes on; with `--atomic` nothing goes on.
//! Domains need proof of control as ever: `--records-out` writes the TXT records that their owners have to set.

mod rows;
mod send;
mod wait;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use portico_api::v1::client::Client;
use portico_api::v1::{Domain, IDS_MAX};
use portico_cert_store::DomainId;
use serde::Serialize;

use crate::commands::tenant::TenantArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, Table, line};
use crate::records;
use crate::settings::Settings;
use rows::RowError;
use wait::WaitReport;

#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// Header `tenant,hostname,action,target[,sharing]`; action is proxy, redirect, redirect:301 or static
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,
    /// All or nothing: with a faulty row or a refused domain no tenant and no domain is made; at most 5,000 rows
    #[arg(long)]
    atomic: bool,
    /// How tenants are made that do not exist yet
    #[command(flatten)]
    tenant: TenantArgs,
    /// Write the DNS records that the owners have to set: CSV, or JSON where the file ends in .json
    #[arg(long, value_name = "FILE")]
    records_out: Option<PathBuf>,
    #[command(flatten)]
    publish: records::PublishArgs,
    /// Wait until every domain is served on all edges or has failed
    #[arg(long)]
    wait: bool,
    /// How long --wait waits
    #[arg(long, default_value = "10m", value_parser = crate::duration::parse)]
    timeout: Duration,
}

/// What an import came to.
#[derive(Debug, Default, Serialize)]
struct ImportReport {
    rows: usize,
    tenants_created: usize,
    domains_created: usize,
    /// Were there already, the same.
    domains_existing: usize,
    refused: Vec<RowError>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<WaitReport>,
}

pub(crate) async fn run(settings: &Settings, client: &Client, args: ImportArgs) -> Outcome {
    let start = crate::clock::now();
    let read = rows::read(&args.file)?;
    let mut report = ImportReport { rows: read.rows.len() + read.errors.len(), ..ImportReport::default() };
    if args.atomic && !read.errors.is_empty() {
        report.refused = read.errors;
        return finish(settings, &args, &report);
    }

    let sent = if args.atomic {
        send::send_atomic(client, read.rows, &args.tenant).await?
    } else {
        send::send(client, read.rows, &args.tenant).await?
    };
    report.refused = read.errors;
    report.refused.extend(sent.refused);
    report.refused.sort_by_key(|error| error.line);
    report.tenants_created = sent.tenants_created;
    if args.tenant.is_given() && !sent.tenants_existing.is_empty() {
        output::remark(existing_text(sent.tenants_existing));
    }
    if args.atomic && !report.refused.is_empty() {
        return finish(settings, &args, &report);
    }
    report.domains_created = sent.created.len();
    report.domains_existing = sent.existing.len();
    report.seconds = start.elapsed().as_secs_f64();

    let ids: HashSet<DomainId> = sent.created.into_iter().chain(sent.existing).collect();
    if args.records_out.is_some() || args.publish.is_wanted() {
        let domains = imported(client, &ids).await?;
        let sets = records::needed(&domains);
        if let Some(file) = &args.records_out {
            records::write(file, &sets)?;
        }
        if args.publish.is_wanted() {
            args.publish.publish(settings, sets).await?;
            send::check(client, &domains).await;
        }
    }
    if args.wait {
        report.wait = Some(wait::until_settled(client, &ids, start, args.timeout).await?);
    }
    finish(settings, &args, &report)
}

/// What became of the flags for new tenants, for tenants that were there.
fn existing_text(mut names: Vec<String>) -> String {
    const SHOWN_MAX: usize = 5;
    names.sort();
    let count = names.len();
    names.truncate(SHOWN_MAX);
    let more = if count > SHOWN_MAX { format!(" and {} more", count - SHOWN_MAX) } else { String::new() };
    format!(
        "--sharing, --cell, --egress-grant and --domains-max are for new tenants; as they were stay {}{more} (`tenant set` \
         changes them)",
        names.join(", ")
    )
}

/// The imported domains as the control plane shows them.
async fn imported(client: &Client, ids: &HashSet<DomainId>) -> Outcome<Vec<Domain>> {
    let ids: Vec<DomainId> = ids.iter().copied().collect();
    let mut domains = Vec::with_capacity(ids.len());
    for part in ids.chunks(IDS_MAX) {
        domains.extend(client.domains_of(part).await?);
    }
    Ok(domains)
}

fn finish(settings: &Settings, args: &ImportArgs, report: &ImportReport) -> Outcome {
    if settings.format == Format::Json {
        output::json(report)?;
    } else {
        print(report);
    }
    if !report.refused.is_empty() {
        let file = args.file.display();
        return Err(Failure::failed(report.refusal())
            .next(format!("domain import {file}   (after mending the rows; what is there already stays)")));
    }
    match &report.wait {
        Some(wait) if wait.active < wait.domains => {
            let text = format!("{} of {} domains are active", wait.active, wait.domains);
            Err(Failure::not_ready(text).next("domain list --status failed"))
        }
        _ => Ok(()),
    }
}

impl ImportReport {
    /// How many rows were refused, and what became of the others.
    fn refusal(&self) -> String {
        let others = match self.domains_created + self.domains_existing {
            0 => "nothing was imported",
            _ => "the rest was imported",
        };
        format!("{} of {} rows were refused; {others}", self.refused.len(), self.rows)
    }
}

fn print(report: &ImportReport) {
    let mut table = Table::new(&["LINE", "HOSTNAME", "REFUSED BECAUSE"]);
    for error in &report.refused {
        table.row([
            error.line.to_string(),
            output::or_dash(Some(error.hostname.clone())),
            error.text.clone(),
        ]);
    }
    if !table.is_empty() {
        table.print();
    }
    line(format!(
        "{} rows: {} domains added, {} there already, {} refused; {} tenants added; {:.1} s",
        report.rows,
        report.domains_created,
        report.domains_existing,
        report.refused.len(),
        report.tenants_created,
        report.seconds
    ));
    if let Some(wait) = &report.wait {
        line(wait.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_of_which_every_row_was_refused_does_not_say_that_the_rest_was_imported() {
        let refused = |line| RowError { line, hostname: String::new(), text: String::new() };
        let none = ImportReport { rows: 2, refused: vec![refused(2), refused(3)], ..ImportReport::default() };
        assert_eq!(none.refusal(), "2 of 2 rows were refused; nothing was imported");
        let some = ImportReport {
            rows: 2,
            refused: vec![refused(2)],
            domains_existing: 1,
            ..ImportReport::default()
        };
        assert_eq!(some.refusal(), "1 of 2 rows were refused; the rest was imported");
    }
}
