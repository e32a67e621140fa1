//! `portico cache ...`: what edges keep of origins' answers.

use portico_api::v1::{PurgeDone, PurgeRequest};

use crate::commands::tenant;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, line};
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CacheCommand {
    /// Make the edges forget answers of one tenant
    Purge(PurgeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PurgeArgs {
    /// Whose: name or id; with a tenant's own token it may be left out
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    what: WhatArgs,
    /// Keep them as stale ones: the origin is asked before, or behind, their next use
    #[arg(long)]
    soft: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct WhatArgs {
    /// One URL, as visitors see it; the port may be left out
    #[arg(long)]
    url: Vec<String>,
    /// What begins with this URL, such as https://shop.example/img/
    #[arg(long)]
    prefix: Vec<String>,
    /// Everything of a host, on all ports
    #[arg(long)]
    host: Vec<String>,
    /// What the origin marked so by Cache-Tag or Surrogate-Key
    #[arg(long)]
    tag: Vec<String>,
    /// Everything of the tenant
    #[arg(long)]
    everything: bool,
}

pub(crate) async fn run(settings: &Settings, command: CacheCommand) -> Outcome {
    let CacheCommand::Purge(args) = command;
    let client = settings.client()?;
    let tenant = match &args.tenant {
        Some(tenant) => tenant::find(&client, tenant).await?,
        None => tenant::own(&client).await?,
    };
    let WhatArgs { url, prefix, host, tag, everything } = args.what;
    let request =
        PurgeRequest { urls: url, prefixes: prefix, hosts: host, tags: tag, everything, soft: args.soft };
    let purge = client.purge(tenant.id, &request).await?;
    if settings.format == Format::Json {
        output::json(&purge)?;
    } else {
        line(format!("purge {}: done by {} edges", purge.number, purge.done.len()));
        for PurgeDone { edge, answers } in &purge.done {
            line(format!("  {edge}: {answers} kept answers"));
        }
        if purge.pending.is_empty() && purge.done.iter().all(|done| done.answers == 0) {
            line("no edge kept anything of what was named");
        }
        for edge in &purge.pending {
            line(format!("  not yet by {edge}; it is told when it reconnects"));
        }
    }
    if purge.pending.is_empty() {
        return Ok(());
    }
    Err(Failure::not_ready(format!("{} edges have not confirmed", purge.pending.len())).next("edge list"))
}
