//! `portico cert requests`, and `portico cert rm` of one: keys that wait for certificates which tenants order themselves.

use portico_api::v1::CertificateRequestId;
use portico_api::v1::client::Client;
use serde_json::json;

use crate::commands::tenant;
use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table};
use crate::settings::Settings;

use super::names_text;

#[derive(Debug, clap::Args)]
pub(crate) struct RequestsArgs {
    /// Whose: the tenant's name or id [default: the token's own]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    #[command(flatten)]
    limit: LimitArgs,
}

pub(super) async fn list(settings: &Settings, args: RequestsArgs) -> Outcome {
    let client = settings.client()?;
    let tenant = match &args.tenant {
        Some(tenant) => tenant::find(&client, tenant).await?.id,
        None => tenant::own(&client).await?.id,
    };
    let requests = Listing::read(args.limit.of(settings.format), async |cursor, items| {
        client.certificate_requests(tenant, cursor.as_deref(), Some(items)).await
    });
    let requests = requests.await?;
    if settings.format == Format::Json {
        return output::json(&requests.items);
    }
    let mut table = Table::new(&["NAMES", "KEY", "UNTIL", "ID"]);
    for request in &requests.items {
        table.row([
            names_text(&request.hostnames),
            request.key_type.to_string(),
            output::time(&request.expires_at),
            request.id.to_string(),
        ]);
    }
    table.print();
    requests.print_more();
    Ok(())
}

pub(super) async fn remove(settings: &Settings, client: &Client, id: CertificateRequestId) -> Outcome {
    client
        .delete_certificate_request(id)
        .await
        .map_err(|error| Failure::from(error).about(format!("request {id}")))?;
    let text = format!("request {id} is removed, and its key destroyed");
    output::done(settings.format, text, &json!({ "removed": id }))
}
