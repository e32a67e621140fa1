//! `portico token ...`: who may call the API.

use std::collections::HashMap;

use portico_api::v1::TokenRequest;
use portico_api::v1::client::Client;
use portico_cert_store::TenantId;
use serde_json::json;

use crate::commands::tenant;
use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, for one tenant or for operators; it is shown this once
    Add(AddArgs),
    /// List tokens, without their secrets
    List(ListArgs),
    /// End a token at once
    Rm {
        /// Its id, as `token list` prints it
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// What it is for; the list of tokens shows it
    label: String,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct ReachArgs {
    /// It sees and changes what is this tenant's: name or id
    #[arg(long)]
    tenant: Option<String>,
    /// It may do everything
    #[arg(long)]
    operator: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    limit: LimitArgs,
}

pub(crate) async fn run(settings: &Settings, command: TokenCommand) -> Outcome {
    let client = settings.client()?;
    match command {
        TokenCommand::Add(args) => add(settings, &client, args).await,
        TokenCommand::List(args) => list(settings, &client, args).await,
        TokenCommand::Rm { id } => {
            // The secret's text holds the id; whoever has only that need not take it apart.
            let id = id.strip_prefix("ptk_").and_then(|rest| rest.split('_').next()).unwrap_or(&id);
            let known = tokens(&client, 0).await?.items;
            if !known.iter().any(|token| token.id == id) {
                return Err(Failure::not_found(format!("no token {id}")).next("token list"));
            }
            client.delete_token(id).await?;
            output::done(settings.format, format!("token {id} has ended"), &json!({ "removed": id }))
        }
    }
}

async fn add(settings: &Settings, client: &Client, args: AddArgs) -> Outcome {
    let tenant_id = match &args.reach.tenant {
        Some(tenant) => Some(tenant::find(client, tenant).await?.id),
        None => None,
    };
    let made = client.create_token(&TokenRequest { tenant_id, label: args.label }).await?;
    if settings.format == Format::Json {
        return output::json(&made);
    }
    line(&made.token);
    // Not with the token: standard output may be the token's file.
    output::remark("shown this once and kept nowhere; give it as PORTICO_TOKEN or in a --token-file");
    Ok(())
}

async fn tokens(client: &Client, limit: usize) -> Outcome<Listing<portico_api::v1::Token>> {
    Listing::read(limit, async |cursor, items| client.tokens(cursor.as_deref(), Some(items)).await).await
}

async fn list(settings: &Settings, client: &Client, args: ListArgs) -> Outcome {
    let tokens = tokens(client, args.limit.of(settings.format)).await?;
    if settings.format == Format::Json {
        return output::json(&tokens.items);
    }
    let mut names: HashMap<TenantId, String> = HashMap::new();
    let mut table = Table::new(&["LABEL", "FOR", "CREATED", "ID"]);
    for token in &tokens.items {
        let reach = match token.tenant_id {
            None => "operators".to_owned(),
            Some(id) => match names.get(&id) {
                Some(name) => name.clone(),
                None => names.entry(id).or_insert(client.tenant(id).await?.spec.name).clone(),
            },
        };
        table.row([token.label.clone(), reach, output::time(&token.created_at), token.id.clone()]);
    }
    table.print();
    tokens.print_more();
    Ok(())
}
