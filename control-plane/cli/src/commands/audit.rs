//! `portico audit list|verify`: who wrote what, and whether that record is as it was written.

use portico_api::v1::client::Client;
use portico_api::v1::{AuditEntry, AuditVerdict, Page};
use serde_json::json;

use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::progress;
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditCommand {
    /// List writes, oldest first; -o json has each with what was before and after
    List(ListArgs),
    /// Follow the chain of hashes: has an entry been altered or taken out?
    Verify {
        /// The mark that an earlier run printed: shows, too, whether the end was cut since, or all of it written anew
        #[arg(long, value_name = "SEQUENCE:HASH")]
        mark: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// After this entry
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    since: u64,
    #[command(flatten)]
    limit: LimitArgs,
}

pub(crate) async fn run(settings: &Settings, command: AuditCommand) -> Outcome {
    let client = settings.client()?;
    match command {
        AuditCommand::List(args) => list(settings, &client, args).await,
        AuditCommand::Verify { mark } => verify(settings, &client, mark.as_deref()).await,
    }
}

async fn list(settings: &Settings, client: &Client, args: ListArgs) -> Outcome {
    let entries = Listing::read(args.limit.of(settings.format), async |cursor, items| {
        // This list's cursor is the last entry's number.
        let since = cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(args.since);
        let page: Page<AuditEntry> = client.audit(since, Some(items)).await?;
        Ok(page)
    });
    let entries = entries.await?;
    if settings.format == Format::Json {
        return output::json(&entries.items);
    }
    let mut table = Table::new(&["ENTRY", "AT", "ACTION", "SUBJECT", "BY"]);
    for entry in &entries.items {
        table.row([
            entry.sequence.to_string(),
            output::time(&entry.at),
            entry.action.clone(),
            entry.subject.clone(),
            entry.actor.clone(),
        ]);
    }
    table.print();
    if let (true, Some(last)) = (entries.more, entries.items.last()) {
        line(format!("the first {}; --since {} goes on", entries.items.len(), last.sequence));
    }
    Ok(())
}

async fn verify(settings: &Settings, client: &Client, mark: Option<&str>) -> Outcome {
    if let Some(mark) = mark {
        // Is the entry that was noted there still, the same? The walk below then shows whether what came before it fits.
        let noted = client.verify_audit(Some(mark)).await.map_err(|error| {
            let failure = Failure::from(error);
            match failure.status() {
                Some(410) => failure.next("audit verify"),
                Some(400) => {
                    Failure::usage(format!("--mark {mark} is no mark, SEQUENCE:HASH")).next("audit verify")
                }
                _ => failure,
            }
        })?;
        if let Some(entry) = noted.altered {
            let text =
                format!("the audit trail was changed since that mark: entry {entry} is another, or is gone");
            return Err(altered(&text, entry));
        }
    }
    let bar = progress::bar("verifying", 0);
    let mut whole = client.verify_audit(None).await?;
    while !whole.complete {
        let next: AuditVerdict = client.verify_audit(whole.mark.as_deref()).await?;
        whole = AuditVerdict { checked: whole.checked + next.checked, ..next };
        bar.set_message(format!("{} entries", whole.checked));
    }
    bar.finish_and_clear();
    if let Some(entry) = whole.altered {
        let text = format!(
            "the audit trail was changed: entry {entry} is altered or gone; the {} before it are as they were written",
            whole.checked
        );
        return Err(altered(&text, entry));
    }
    if settings.format == Format::Json {
        return output::json(
            &json!({ "checked": whole.checked, "mark": whole.mark, "forgotten": whole.forgotten }),
        );
    }
    line(format!("{} entries, each as it was written", whole.checked));
    if whole.forgotten > 0 {
        line(format!(
            "entries up to {} are older than [audit] keep_days and were forgotten",
            whole.forgotten
        ));
    }
    if let Some(mark) = &whole.mark {
        line("to see later that nothing was cut off or written anew, keep this elsewhere:");
        line(format!("{} audit verify --mark {mark}", crate::invocation()));
    }
    Ok(())
}

fn altered(text: &str, entry: u64) -> Failure {
    let before = entry.saturating_sub(2);
    Failure::failed(text)
        .next(format!("audit list --since {before} --limit 3   (and compare it with a backup)"))
}
