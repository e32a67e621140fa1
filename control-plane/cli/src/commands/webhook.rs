//! `portico webhook ...`: where events are sent.

use portico_api::v1::client::Client;
use portico_api::v1::{Webhook, WebhookReplay, WebhookRequest, WebhookState};
use serde_json::json;

use crate::commands::tenant;
use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum WebhookCommand {
    /// Have events sent to an endpoint; its secret is shown this once
    Add(AddArgs),
    /// List webhooks, how far each has come, and what is wrong
    List(ListArgs),
    /// Show one with its last tries, newest first
    Show {
        /// As `webhook list` prints it
        id: String,
        /// The most tries that are listed
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        tries: u32,
    },
    /// Send a message of the kind webhook.test now, and say what became of it
    Test {
        /// As `webhook list` prints it
        id: String,
    },
    /// Send events again, or on where it stands; one that was disabled goes on
    Replay {
        /// As `webhook list` prints it
        id: String,
        /// Events after this number; they are kept for 90 days, and a refusal says from where on. Absent: on from where it stands
        #[arg(long, value_name = "SEQUENCE")]
        since: Option<u64>,
    },
    /// Make a new secret, shown this once; the old one signs too for a day
    Secret {
        /// As `webhook list` prints it
        id: String,
    },
    /// End a webhook
    Rm {
        /// As `webhook list` prints it
        id: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    /// https://..; http:// for an address in a private range only
    url: String,
    /// This tenant's events (name or id); absent: all, for operators
    #[arg(long)]
    tenant: Option<String>,
    /// Events of this kind, such as domain.left; may be repeated. Absent: all kinds
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// What it is for
    #[arg(long, default_value = "")]
    label: String,
    /// Begin behind this event; they are kept for 90 days, and a refusal says from where on. Absent: with what happens from now on
    #[arg(long, value_name = "SEQUENCE")]
    since: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    limit: LimitArgs,
}

pub(crate) async fn run(settings: &Settings, command: WebhookCommand) -> Outcome {
    let client = settings.client()?;
    match command {
        WebhookCommand::Add(args) => add(settings, &client, args).await,
        WebhookCommand::List(args) => list(settings, &client, args).await,
        WebhookCommand::Show { id, tries } => show(settings, &client, &id, tries).await,
        WebhookCommand::Test { id } => test(settings, &client, &id).await,
        WebhookCommand::Replay { id, since } => {
            let shown = client.replay_webhook(&id, &WebhookReplay { since }).await.map_err(|e| of(e, &id))?;
            let text = format!("{id} sends on from behind event {}", shown.delivered_to);
            output::done(settings.format, text, &shown)
        }
        WebhookCommand::Secret { id } => {
            let made = client.renew_webhook_secret(&id).await.map_err(|error| of(error, &id))?;
            if settings.format == Format::Json {
                return output::json(&made);
            }
            line(&made.secret);
            output::remark(format!(
                "shown this once; the secret before signs too until {}",
                output::time(&made.previous_until)
            ));
            Ok(())
        }
        WebhookCommand::Rm { id } => {
            client.delete_webhook(&id).await.map_err(|error| of(error, &id))?;
            output::done(settings.format, format!("webhook {id} has ended"), &json!({ "removed": id }))
        }
    }
}

fn of(error: portico_api::v1::client::ClientError, id: &str) -> Failure {
    let failure = Failure::from(error);
    match failure.status() {
        Some(404) => Failure::not_found(format!("no webhook {id}")).next("webhook list"),
        _ => failure,
    }
}

async fn add(settings: &Settings, client: &Client, args: AddArgs) -> Outcome {
    let request = WebhookRequest { url: args.url, kinds: args.kind, label: args.label, since: args.since };
    let made = match &args.tenant {
        Some(tenant) => {
            let id = tenant::find(client, tenant).await?.id;
            client.create_tenant_webhook(id, &request).await?
        }
        None => client.create_webhook(&request).await?,
    };
    if settings.format == Format::Json {
        return output::json(&made);
    }
    line(&made.secret);
    // Not with the secret: standard output may be the secret's file.
    output::remark(format!("the secret of {}, shown this once; receivers verify by it", made.webhook.id));
    Ok(())
}

fn state(webhook: &Webhook) -> String {
    match webhook.state {
        WebhookState::Active => "active".to_owned(),
        WebhookState::Failing => format!("failing ({})", webhook.failures),
        WebhookState::Disabled => "disabled".to_owned(),
    }
}

async fn list(settings: &Settings, client: &Client, args: ListArgs) -> Outcome {
    let limit = args.limit.of(settings.format);
    let page = async |cursor: Option<String>, items| client.webhooks(cursor.as_deref(), Some(items)).await;
    let webhooks = Listing::read(limit, page).await?;
    if settings.format == Format::Json {
        return output::json(&webhooks.items);
    }
    let mut table = Table::new(&["ID", "URL", "STATE", "UP TO", "FOR", "LABEL"]);
    for webhook in &webhooks.items {
        table.row([
            webhook.id.clone(),
            webhook.url.clone(),
            state(webhook),
            webhook.delivered_to.to_string(),
            webhook.tenant_id.map_or_else(|| "operators".to_owned(), |id| id.to_string()),
            webhook.label.clone(),
        ]);
    }
    table.print();
    webhooks.print_more();
    Ok(())
}

async fn show(settings: &Settings, client: &Client, id: &str, count: u32) -> Outcome {
    let shown = client.webhook(id).await.map_err(|error| of(error, id))?;
    let tries = client.webhook_tries(id, Some(count)).await?.items;
    if settings.format == Format::Json {
        return output::json(&json!({ "webhook": shown, "tries": tries }));
    }
    output::fact("url", &shown.url);
    output::fact("state", &state(&shown));
    let kinds = if shown.kinds.is_empty() { "all".to_owned() } else { shown.kinds.join(", ") };
    output::fact("kinds", &kinds);
    output::fact("sent up to", &format!("event {}", shown.delivered_to));
    if let Some(error) = &shown.error {
        output::fact("error", error);
    }
    if let Some(next) = &shown.next_try_at {
        output::fact("tried again", &output::time(next));
    }
    let mut table = Table::new(&["EVENT", "KIND", "AT", "STATUS", "TOOK", "ERROR"]);
    for tried in &tries {
        table.row([
            tried.sequence.to_string(),
            tried.kind.clone(),
            output::time(&tried.at),
            output::or_dash(tried.status.map(|status| status.to_string())),
            format!("{} ms", tried.took_ms),
            output::or_dash(tried.error.clone()),
        ]);
    }
    if !table.is_empty() {
        table.print();
    }
    Ok(())
}

async fn test(settings: &Settings, client: &Client, id: &str) -> Outcome {
    let tried = client.test_webhook(id).await.map_err(|error| of(error, id))?;
    match &tried.error {
        None => {
            let text = format!("taken: {} in {} ms", tried.status.unwrap_or_default(), tried.took_ms);
            output::done(settings.format, text, &tried)
        }
        Some(error) => {
            Err(Failure::failed(format!("webhook {id}: {error}")).next(format!("webhook show {id}")))
        }
    }
}
