//! `portico rekey list|show`, and what `edge rekey`, `cell rekey` and `cert rekey` have in common.

use std::time::Duration;

use portico_api::v1::client::Client;
use portico_api::v1::{Rekey, RekeyId, RekeyRequest, RekeyScope};
use portico_cert_store::{CellId, CredentialId, EdgeId};

use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::progress::bar;
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RekeyCommand {
    /// List what was replaced and what goes on, the newest first
    List(LimitArgs),
    /// Report a key compromised by its public part: what is certified for it is replaced and revoked, and it is never accepted
    /// again, of uploads neither
    Key {
        /// SHA-256 of its SubjectPublicKeyInfo in hex, as `cert show` has it
        spki_sha256: String,
        #[command(flatten)]
        args: RekeyArgs,
    },
    /// Show one: how far it is, when the CA's limits let the rest through, and what is in its way
    Show {
        /// Its id (rky_...)
        id: RekeyId,
        /// Wait until all is replaced and every edge that can be reached has it
        #[arg(long)]
        wait: bool,
    },
}

/// How keys are replaced.
#[derive(Debug, clap::Args)]
pub(crate) struct RekeyArgs {
    /// How many certificates get a new key, as the command says without it; with another number by now nothing is done
    #[arg(long, value_name = "COUNT")]
    replaces: Option<u64>,
    /// Why, for those who look at it later
    #[arg(long, default_value = "")]
    note: String,
    /// Others may have the keys: order new ones before all else, and revoke the certificates as soon as the edges have those, 24
    /// hours from now at the latest; the keys are never accepted again
    #[arg(long)]
    compromised: bool,
    /// Wait until all is replaced and every edge that can be reached has it
    #[arg(long)]
    wait: bool,
}

pub(crate) async fn run(settings: &Settings, command: RekeyCommand) -> Outcome {
    match command {
        RekeyCommand::List(limit) => list(settings, &limit).await,
        RekeyCommand::Key { spki_sha256, args } => {
            let command = format!("rekey key {spki_sha256}");
            let request = RekeyRequest { spki_sha256: Some(spki_sha256), ..RekeyRequest::default() };
            start(settings, request, RekeyArgs { compromised: true, ..args }, &command).await
        }
        RekeyCommand::Show { id, wait } => {
            let client = settings.client()?;
            let found = client
                .rekey(id)
                .await
                .map_err(|error| Failure::from(error).about(format!("rekey {id}")).next("rekey list"))?;
            let found = if wait { finished(&client, id, &found).await? } else { found };
            show(settings, &found)
        }
    }
}

pub(crate) async fn cell(settings: &Settings, cell: CellId, args: RekeyArgs) -> Outcome {
    let command = format!("cell rekey {cell}");
    let request = RekeyRequest { cell: Some(cell), ..RekeyRequest::default() };
    start(settings, request, args, &command).await
}

pub(crate) async fn edge(settings: &Settings, edge: EdgeId, args: RekeyArgs) -> Outcome {
    let request = RekeyRequest { edge: Some(edge), ..RekeyRequest::default() };
    start(settings, request, args, &format!("edge rekey {edge}")).await
}

pub(crate) async fn certificate(settings: &Settings, id: CredentialId, args: RekeyArgs) -> Outcome {
    let request = RekeyRequest { certificate: Some(id), ..RekeyRequest::default() };
    start(settings, request, args, &format!("cert rekey {id}")).await
}

/// Says first what would be done, and does it when that is agreed to.
async fn start(settings: &Settings, request: RekeyRequest, args: RekeyArgs, command: &str) -> Outcome {
    let client = settings.client()?;
    let request = RekeyRequest { note: args.note, compromised: args.compromised, ..request };
    let would = client.create_rekey(&RekeyRequest { dry_run: true, ..request.clone() }).await?;
    if args.replaces != Some(would.certificates) && would.certificates > 0 {
        let text = match (would.compromised, would.certificates.saturating_sub(would.replaced)) {
            (true, 0) => format!(
                "{} certificates would be revoked, each of which has a successor; nothing was done",
                would.certificates
            ),
            (compromised, _) => format!(
                "{} certificates would get a new key{}: {}; nothing was done",
                would.certificates,
                if compromised { " and be revoked" } else { "" },
                forecast(&would)
            ),
        };
        let flag = if would.compromised { " --compromised" } else { "" };
        return Err(Failure::usage(text).next(format!("{command}{flag} --replaces {}", would.certificates)));
    }
    let mut begun = client.create_rekey(&request).await?;
    if let Some(id) = begun.id.filter(|_| args.wait) {
        begun = finished(&client, id, &begun).await?;
    }
    show(settings, &begun)
}

/// Looks until it is over.
async fn finished(client: &Client, id: RekeyId, before: &Rekey) -> Outcome<Rekey> {
    let bar = bar("rekey", before.certificates);
    loop {
        let now = client.rekey(id).await?;
        bar.set_length(now.certificates);
        bar.set_position(now.retired);
        if now.finished_at.is_some() {
            bar.finish_and_clear();
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn list(settings: &Settings, limit: &LimitArgs) -> Outcome {
    let client = settings.client()?;
    let all = Listing::read(limit.of(settings.format), async |cursor, items| {
        client.rekeys(cursor.as_deref(), Some(items)).await
    });
    let all = all.await?;
    if settings.format == Format::Json {
        return output::json(&all.items);
    }
    let mut table =
        Table::new(&["REKEY", "OF", "BEGAN", "CERTIFICATES", "REPLACED", "ON ALL EDGES", "STATE"]);
    for rekey in &all.items {
        table.row([
            rekey.id.map(|id| id.to_string()).unwrap_or_default(),
            subject(rekey),
            output::time(&rekey.requested_at),
            rekey.certificates.to_string(),
            rekey.replaced.to_string(),
            rekey.retired.to_string(),
            state(rekey),
        ]);
    }
    table.print();
    all.print_more();
    Ok(())
}

fn show(settings: &Settings, rekey: &Rekey) -> Outcome {
    if settings.format == Format::Json {
        return output::json(rekey);
    }
    let id = rekey.id.map(|id| id.to_string()).unwrap_or_default();
    line(format!("{id}  {}  {}", subject(rekey), state(rekey)));
    line(format!("  asked for    {} by {}", output::time(&rekey.requested_at), rekey.requested_by));
    if !rekey.note.is_empty() {
        line(format!("  note         {}", rekey.note));
    }
    line(format!(
        "  certificates {}, of them {} replaced, {} on all edges that can be reached (their old keys are forgotten)",
        rekey.certificates, rekey.replaced, rekey.retired
    ));
    if let Some(by) = &rekey.revoked_by {
        line(format!(
            "  revoked      {} of {}, as compromised; all by {}",
            rekey.revoked,
            rekey.certificates,
            output::time(by)
        ));
    }
    if rekey.uploaded > 0 {
        line(format!(
            "  uploaded     {} certificates of tenants' own: they were told to bring others",
            rekey.uploaded
        ));
    }
    if rekey.finished_at.is_none() {
        line(format!("  orders       {}", forecast(rekey)));
    }
    for edge in &rekey.behind {
        line(format!("  behind       {edge}"));
    }
    for trouble in &rekey.troubles {
        line(format!(
            "  trouble      {} ({}): {}",
            trouble.names.join(" "),
            trouble.certificate,
            trouble.text
        ));
    }
    Ok(())
}

fn subject(rekey: &Rekey) -> String {
    let kind = match rekey.scope {
        RekeyScope::Edge => "edge",
        RekeyScope::Cell => "cell",
        RekeyScope::Certificate => "certificate",
        RekeyScope::Key => "key",
    };
    format!("{kind} {}", rekey.subject)
}

fn state(rekey: &Rekey) -> String {
    let what = if rekey.compromised { "compromised, " } else { "" };
    match &rekey.finished_at {
        Some(at) => output::paint(&format!("{what}done at {}", output::time(at)), output::Colour::Green),
        None => output::paint(&format!("{what}goes on"), output::Colour::Yellow),
    }
}

/// What the CA's limits let through and when.
fn forecast(rekey: &Rekey) -> String {
    let forecast = &rekey.forecast;
    let mut text = match forecast.orders {
        0 => "none are needed any more".to_owned(),
        orders => format!("{orders} orders, {} of them can go at once", forecast.at_once),
    };
    for hold in &forecast.held_by {
        text = format!(
            "{text}; {} wait for the CA's limit on {}, the last until {}",
            hold.orders,
            hold.limit,
            output::time(&hold.last_at)
        );
    }
    text
}
