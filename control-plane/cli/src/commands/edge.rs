//! `portico edge list|show|join|rm|rekey|default`: the edges as the control plane knows them.

use portico_api::v1::client::{CertificateQuery, Client};
use portico_api::v1::{
    CertificateState, DefaultCertificate, DefaultCertificateRequest, Edge, JoinTokenRequest,
};
use portico_cert_store::{CellId, EdgeId};

use crate::commands::rekey::{self, RekeyArgs};
use crate::failure::{Failure, Outcome};
use crate::listing::Listing;
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;
use crate::shell::shell_word;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum FleetCommand {
    /// List the edges with the generation that each has applied
    List,
    /// Show one edge, with the resources that it refused
    Show {
        /// Its id (edge_...)
        id: EdgeId,
    },
    /// Make a token with which one new edge joins a cell, once
    Join(JoinArgs),
    /// Forget an edge; its cell gets a new key, and all certificates of the cell are ordered anew
    Rm {
        /// Its id (edge_...)
        id: EdgeId,
        /// How many certificates are ordered anew by that, as the command says without it; with another number by now nothing is
        /// done
        #[arg(long, value_name = "COUNT")]
        replaces: Option<usize>,
    },
    /// Replace all keys that an edge could read, those of its cell, also when it was forgotten before. If others are still on it,
    /// take it out first (`edge rm`): as long as it is in its cell, it gets the new keys
    Rekey {
        /// Its id (edge_...)
        id: EdgeId,
        #[command(flatten)]
        args: RekeyArgs,
    },
    /// Show or choose the certificate that answers for names that nobody brought
    Default(DefaultArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DefaultArgs {
    /// Take the certificate of this domain, now and after each renewal
    name: Option<String>,
    /// Take none: unknown names are refused
    #[arg(long, conflicts_with = "name")]
    none: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct JoinArgs {
    /// The cell that the edge will belong to
    #[arg(long, default_value = "default")]
    cell: CellId,
    /// How long the token is good
    #[arg(long, default_value = "1h", value_parser = crate::duration::parse)]
    ttl: std::time::Duration,
}

pub(crate) async fn run(settings: &Settings, command: FleetCommand) -> Outcome {
    match command {
        FleetCommand::List => list(settings).await,
        FleetCommand::Show { id } => {
            let edge = settings.client()?.edge(id).await;
            show(settings, &edge.map_err(|error| not_found(error, id))?)
        }
        FleetCommand::Join(args) => join(settings, args).await,
        FleetCommand::Rm { id, replaces } => remove(settings, id, replaces).await,
        FleetCommand::Rekey { id, args } => rekey::edge(settings, id, args).await,
        FleetCommand::Default(args) => default(settings, args).await,
    }
}

async fn remove(settings: &Settings, id: EdgeId, agreed: Option<usize>) -> Outcome {
    let client = settings.client()?;
    // Deleting is idempotent: it would not say that the id is wrong.
    let edge = client.edge(id).await.map_err(|error| not_found(error, id))?;
    let replaced = certificates_of(&client, &edge.cell).await?;
    if agreed.unwrap_or(0) != replaced {
        let text = format!(
            "{id} could read the keys of cell {}, so {replaced} certificates would be ordered anew; nothing was done",
            edge.cell
        );
        return Err(Failure::usage(text).next(format!("edge rm {id} --replaces {replaced}")));
    }
    client.delete_edge(id).await.map_err(|error| not_found(error, id))?;
    let document = serde_json::json!({ "removed": id.to_string(), "cell": edge.cell, "replaces": replaced });
    let text = format!("{id} is forgotten; {replaced} certificates of cell {} are ordered anew", edge.cell);
    output::done(settings.format, text, &document)
}

/// How many certificates of a cell are in use, whose keys its edges can read.
async fn certificates_of(client: &Client, cell: &CellId) -> Outcome<usize> {
    let mut query = CertificateQuery::default();
    let all = Listing::read(0, async |cursor, items| {
        (query.cursor, query.limit) = (cursor, Some(items));
        client.certificates(&query).await
    });
    let of_cell = all.await?.items.into_iter().filter(|certificate| {
        certificate.summary.cell == *cell && certificate.state == CertificateState::Live
    });
    Ok(of_cell.count())
}

async fn default(settings: &Settings, args: DefaultArgs) -> Outcome {
    let client = settings.client()?;
    let chosen = match args.name {
        Some(hostname) => {
            let request = DefaultCertificateRequest { hostname };
            let chosen = client.choose_default_certificate(&request).await;
            Some(chosen.map_err(|error| {
                Failure::from(error).next(format!("domain show {}", shell_word(&request.hostname)))
            })?)
        }
        None if args.none => {
            client.delete_default_certificate().await?;
            None
        }
        None => match client.default_certificate().await {
            Ok(chosen) => Some(chosen),
            Err(error) if error.status() == Some(404) => None,
            Err(error) => return Err(error.into()),
        },
    };
    if settings.format == Format::Json {
        return output::json(&chosen);
    }
    let Some(DefaultCertificate { hostname, cells, .. }) = chosen else {
        line("none: a client that names an unknown host, or none, is refused");
        return Ok(());
    };
    let cells: Vec<_> = cells.iter().map(ToString::to_string).collect();
    line(format!(
        "{hostname}, in cells: {}",
        output::or_dash(Some(cells.join(", ")).filter(|text| !text.is_empty()))
    ));
    Ok(())
}

fn not_found(error: portico_api::v1::client::ClientError, id: EdgeId) -> Failure {
    Failure::from(error).about(format!("edge {id}")).next("edge list")
}

async fn list(settings: &Settings) -> Outcome {
    let edges = settings.client()?.edges().await?.items;
    if settings.format == Format::Json {
        return output::json(&edges);
    }
    let mut table =
        Table::new(&["EDGE", "CELL", "STATE", "APPLIED", "PUBLISHED", "NAMES", "REFUSED", "I/O", "BUILD"]);
    for edge in &edges {
        table.row([
            edge.id.to_string(),
            edge.cell.to_string(),
            state(edge),
            edge.applied_generation.clone(),
            edge.published_generation.clone(),
            edge.names.to_string(),
            edge.nacks.len().to_string(),
            edge.io_backend.clone(),
            edge.build.clone(),
        ]);
    }
    table.print();
    if !edges.is_empty() {
        line("names as each edge last reported them, which it does every 5 s; the generations are of now");
    }
    if edges.is_empty() {
        line(format!("no edge has joined yet; `{} edge join` makes a token for one", crate::invocation()));
    }
    Ok(())
}

fn state(edge: &Edge) -> String {
    match (edge.connected, edge.applied_generation == edge.published_generation) {
        (true, true) => output::paint("current", output::Colour::Green),
        (true, false) => output::paint("behind", output::Colour::Yellow),
        (false, _) => output::paint("away", output::Colour::Red),
    }
}

fn show(settings: &Settings, edge: &Edge) -> Outcome {
    if settings.format == Format::Json {
        return output::json(edge);
    }
    line(format!("{}  {}", edge.id, state(edge)));
    line(format!("  cell         {}", edge.cell));
    line(format!("  build        {}, I/O by {}", edge.build, edge.io_backend));
    line(format!("  generation   {} of {}", edge.applied_generation, edge.published_generation));
    line(format!("  names        {}, as of its last report (one in 5 s)", edge.names));
    line(format!("  connections  {}, likewise", edge.connections));
    line(format!("  joined       {}", edge.joined_at));
    line(format!("  last seen    {}", output::or_dash(edge.last_seen_at.clone())));
    line(format!("  identity     until {}; it renews by itself", edge.identity_not_after));
    for nack in &edge.nacks {
        line(format!(
            "  refused      {} {} version {}: {} ({})",
            nack.kind, nack.id, nack.version, nack.text, nack.code
        ));
    }
    Ok(())
}

async fn join(settings: &Settings, args: JoinArgs) -> Outcome {
    let ttl_seconds = u32::try_from(args.ttl.as_secs()).map_err(|_| Failure::usage("--ttl is at most 1d"))?;
    let request = JoinTokenRequest { cell: args.cell, ttl_seconds };
    let token = settings.client()?.create_join_token(&request).await?;
    if settings.format == Format::Json {
        return output::json(&token);
    }
    line(format!("# good once, until {}; on the new edge:", token.expires_at));
    line(format!(
        "portico edge run --config edge.toml --join {} --token {}",
        token.distribution, token.token
    ));
    Ok(())
}
