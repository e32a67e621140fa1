//! `portico removal list|sign-off`: names that stay on the edges because too many would have left at once.

use portico_api::v1::client::Client;

use crate::failure::{Failure, Outcome};
use crate::listing::Listing;
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

/// Rows of the table; all are counted, and `-o json` has them all.
const ROWS_MAX: usize = 200;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RemovalCommand {
    /// List the names whose removal waits for your word
    List,
    /// Let all held removals go
    SignOff {
        /// How many `removal list` showed; with another number held by now nothing goes
        #[arg(long, value_name = "COUNT")]
        held: u64,
    },
}

pub(crate) async fn run(settings: &Settings, command: RemovalCommand) -> Outcome {
    let client = settings.client()?;
    match command {
        RemovalCommand::List => list(settings, &client).await,
        RemovalCommand::SignOff { held } => {
            let signed_off = client.sign_off_removals(held).await.map_err(|error| {
                let changed = error.code() == Some("removals_changed");
                let failure = Failure::from(error);
                if changed { failure.next("removal list") } else { failure }
            })?;
            if settings.format == Format::Json {
                return output::json(&signed_off);
            }
            line(match signed_off.released {
                0 => "no removal was held".to_owned(),
                1 => "1 removal was let go; the edges stop serving the name now".to_owned(),
                released => {
                    format!("{released} removals were let go; the edges stop serving these names now")
                }
            });
            Ok(())
        }
    }
}

async fn list(settings: &Settings, client: &Client) -> Outcome {
    // All, so that their number is right.
    let held =
        Listing::read(0, async |cursor, items| client.held_removals(cursor.as_deref(), Some(items)).await);
    let held = held.await?.items;
    if settings.format == Format::Json {
        return output::json(&held);
    }
    if held.is_empty() {
        line("no removal is held");
        return Ok(());
    }
    let mut table = Table::new(&["HOSTNAME", "TENANT", "HELD SINCE", "DOMAIN"]);
    for removal in held.iter().take(ROWS_MAX) {
        table.row([
            removal.hostname.clone(),
            removal.tenant_name.clone(),
            output::time(&removal.held_at),
            removal.domain_id.to_string(),
        ]);
    }
    table.print();
    if held.len() > ROWS_MAX {
        line(format!("... and {} more; -o json has them all", held.len() - ROWS_MAX));
    }
    let count = held.len();
    let what = if count == 1 {
        "1 name is removed and still"
    } else {
        &*format!("{count} names are removed and still")
    };
    line(format!(
        "{what} served; to take all of this off the edges: {} removal sign-off --held {count}",
        crate::invocation()
    ));
    Ok(())
}
