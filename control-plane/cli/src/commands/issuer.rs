//! `portico issuer`: the CAs of the configuration, and accounts that are taken over.

use std::path::PathBuf;

use portico_api::v1::{AccountOrigin, Issuer, IssuerState, SecretPem};

use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum IssuerCommand {
    /// List the issuers, whether orders go there, and our accounts
    List,
    /// Take over the ACME account of another client, so that what it has ordered is renewed without spending limits
    Adopt(AdoptArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct AdoptArgs {
    /// The issuer's name in the configuration
    issuer: String,
    /// PEM: the account's private key, P-256, or RSA with --change-key; it is sealed, and shown to nobody
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Give the account of an RSA key a new P-256 key, made here. From then on the old key opens it no more
    #[arg(long)]
    change_key: bool,
}

pub(crate) async fn run(settings: &Settings, command: IssuerCommand) -> Outcome {
    match command {
        IssuerCommand::List => list(settings).await,
        IssuerCommand::Adopt(args) => adopt(settings, &args).await,
    }
}

async fn list(settings: &Settings) -> Outcome {
    let issuers = settings.client()?.issuers().await?.items;
    if settings.format == Format::Json {
        return output::json(&issuers);
    }
    let mut table = Table::new(&["ISSUER", "STATE", "SINCE", "CERTIFICATES", "DUE", "ORDERS", "ACCOUNTS"]);
    for issuer in &issuers {
        table.row([
            if issuer.by_default { issuer.name.clone() } else { format!("{} (named only)", issuer.name) },
            output::word(&issuer.state),
            output::or_dash(issuer.failing_since.as_deref().map(output::time)),
            issuer.certificates.to_string(),
            issuer.due.to_string(),
            issuer.orders.to_string(),
            accounts(issuer),
        ]);
    }
    table.print();
    for issuer in issuers.iter().filter(|issuer| issuer.state != IssuerState::Well) {
        if let Some(reason) = &issuer.reason {
            let tried = output::or_dash(issuer.tried_at.as_deref().map(output::time));
            line(format!("{}: {reason}; tried again from {tried}", issuer.name));
        }
    }
    Ok(())
}

fn accounts(issuer: &Issuer) -> String {
    let adopted = issuer.accounts.iter().filter(|account| account.origin == AccountOrigin::Adopted).count();
    let own = if issuer
        .accounts
        .iter()
        .any(|account| account.origin == AccountOrigin::Made && account.registered)
    {
        "own"
    } else {
        "not registered"
    };
    if adopted == 0 { own.to_owned() } else { format!("{own}, {adopted} adopted") }
}

async fn adopt(settings: &Settings, args: &AdoptArgs) -> Outcome {
    let key = std::fs::read_to_string(&args.key)
        .map_err(|error| Failure::usage(format!("--key {}: {error}", args.key.display())))?;
    let adopted =
        settings.client()?.adopt_account(&args.issuer, SecretPem::new(key), args.change_key).await?;
    if settings.format == Format::Json {
        return output::json(&adopted);
    }
    line(format!("account {} is ours too", adopted.url.as_deref().unwrap_or("-")));
    Ok(())
}
