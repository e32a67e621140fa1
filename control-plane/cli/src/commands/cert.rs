//! `portico cert ...`

use portico_api::v1::client::{CertificateQuery, Client};
use portico_api::v1::{BackupState, Certificate, CertificateSummary, Domain, RenewalSuggestion};
use portico_cert_store::{CredentialId, Custody};

use crate::commands::named_domain::find;
use crate::commands::rekey::{self, RekeyArgs};
use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;
use crate::shell::shell_word;

mod request;
mod upload;

use request::RequestsArgs;
use upload::{RmArgs, UploadArgs};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CertCommand {
    /// List certificates
    List(ListArgs),
    /// Show certificates with their chains in PEM: one by its id, or those that serve a hostname
    Show {
        /// Its credential id (crd_...), or a hostname; of a hostname -o json prints an array, one for each cell
        #[arg(value_name = "ID|HOSTNAME")]
        which: String,
        /// Whose, when several tenants claim the hostname: the tenant's name or id
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
    },
    /// Replace the key of a certificate before its time
    Rekey {
        /// Its credential id (crd_...)
        id: CredentialId,
        #[command(flatten)]
        args: RekeyArgs,
    },
    /// Upload a certificate of a tenant's own; RSA and ECDSA stand side by side, one takes the place of its kind
    Upload(UploadArgs),
    /// List requests for certificates that a tenant orders itself (`shadow csr`), whose keys wait here
    Requests(RequestsArgs),
    /// Remove an uploaded (or, by its id, an adopted) certificate with its key, its names fall back to their others; or, by its
    /// id, a request with its key
    Rm(RmArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Of this domain only: hostname or id
    #[arg(long)]
    domain: Option<String>,
    /// Whose domain, when several tenants claim the name: the tenant's name or id
    #[arg(long, value_name = "TENANT", requires = "domain")]
    tenant: Option<String>,
    /// That expire before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    expires_before: Option<String>,
    #[command(flatten)]
    limit: LimitArgs,
}

pub(crate) async fn run(settings: &Settings, command: CertCommand) -> Outcome {
    match command {
        CertCommand::List(args) => list(settings, args).await,
        CertCommand::Show { which, tenant } => show(settings, &which, tenant.as_deref()).await,
        CertCommand::Rekey { id, args } => rekey::certificate(settings, id, args).await,
        CertCommand::Upload(args) => upload::upload(settings, args).await,
        CertCommand::Requests(args) => request::list(settings, args).await,
        CertCommand::Rm(args) => upload::remove(settings, args).await,
    }
}

async fn list(settings: &Settings, args: ListArgs) -> Outcome {
    let client = settings.client()?;
    let domain = match &args.domain {
        // A name that is no domain would be an empty list.
        Some(domain) => Some(find(&client, domain, args.tenant.as_deref()).await?.id.to_string()),
        None => None,
    };
    let mut query =
        CertificateQuery { domain, expires_before: args.expires_before, ..CertificateQuery::default() };
    let certificates = Listing::read(args.limit.of(settings.format), async |cursor, items| {
        (query.cursor, query.limit) = (cursor, Some(items));
        client.certificates(&query).await
    });
    let certificates = certificates.await?;
    if settings.format == Format::Json {
        return output::json(&certificates.items);
    }
    let mut table =
        Table::new(&["NAMES", "STATE", "EXPIRES", "RENEWAL", "BY", "KEY", "CELL", "ISSUER", "ID"]);
    for certificate in &certificates.items {
        let summary = &certificate.summary;
        table.row([
            names_text(&summary.names),
            output::word(&certificate.state),
            output::date(&summary.not_after),
            renewal(summary, output::date),
            renewed_by(summary),
            key_text(summary),
            summary.cell.to_string(),
            summary.issuer.clone(),
            summary.credential_id.to_string(),
        ]);
    }
    table.print();
    certificates.print_more();
    Ok(())
}

async fn show(settings: &Settings, which: &str, tenant: Option<&str>) -> Outcome {
    let client = settings.client()?;
    if let Ok(id) = which.parse::<CredentialId>() {
        let certificate = one(&client, id).await?;
        if settings.format == Format::Json {
            return output::json(&certificate);
        }
        print(&certificate);
        return Ok(());
    }
    if which.starts_with("crd_") {
        let text = format!("{which} is no id of a certificate; it is crd_ with 26 letters and digits");
        return Err(Failure::not_found(text).next("cert list"));
    }
    let domain = serving(&client, which, tenant).await?;
    let mut certificates = Vec::with_capacity(domain.certificates.len());
    for summary in &domain.certificates {
        certificates.push(one(&client, summary.credential_id).await?);
    }
    if settings.format == Format::Json {
        output::json(&certificates)?;
    } else {
        certificates.iter().for_each(print);
    }
    if certificates.is_empty() {
        let hostname = &domain.spec.hostname;
        return Err(Failure::not_ready(format!("{hostname} has no certificate yet"))
            .next(format!("domain show {}", shell_word(hostname))));
    }
    Ok(())
}

async fn one(client: &Client, id: CredentialId) -> Outcome<Certificate> {
    client
        .certificate(id)
        .await
        .map_err(|error| Failure::from(error).about(format!("certificate {id}")).next("cert list"))
}

/// The domain of a name, or the wildcard that covers it.
async fn serving(client: &Client, name: &str, tenant: Option<&str>) -> Outcome<Domain> {
    let missing = match find(client, name, tenant).await {
        Err(failure) if failure.code == 3 => failure,
        found => return found,
    };
    let Some((_, base)) = name.split_once('.').filter(|(label, _)| *label != "*") else {
        return Err(missing);
    };
    match find(client, &format!("*.{base}"), tenant).await {
        Err(failure) if failure.code == 3 => Err(missing),
        found => found,
    }
}

fn print(certificate: &Certificate) {
    let summary = &certificate.summary;
    line(format!("{}  {}", summary.credential_id, output::word(&certificate.state)));
    for name in &summary.names {
        line(format!("  name         {name}"));
    }
    line(format!("  issuer       {}", summary.issuer));
    line(format!("  valid        {} to {}", summary.not_before, summary.not_after));
    line(format!("  renewal      {}", renewal(summary, output::time)));
    if let Some(renewal) = &summary.renewal {
        print_suggestion(renewal);
    }
    line(format!("  key          {}", key_text(summary)));
    line(format!("  cell         {}", summary.cell));
    line(format!("  sha256       {}", summary.fingerprint_sha256));
    line(format!("  public key   {}", summary.spki_sha256));
    line(certificate.chain_pem.trim_end());
}

/// `ECDSA P-256`, `ECDSA P-256, kept by the edge`, `RSA 2048, uploaded`, `ECDSA P-256, backup`
pub(crate) fn key_text(summary: &CertificateSummary) -> String {
    let kind = summary.key_type.map_or_else(|| "-".to_owned(), |kind| kind.to_string());
    match (summary.custody, summary.backup) {
        (Custody::Uploaded, _) => format!("{kind}, uploaded"),
        (Custody::Edge, None) => format!("{kind}, kept by the edge"),
        (Custody::Edge, Some(BackupState::Shown)) => format!("{kind}, kept by the edge, backup, shown"),
        (Custody::Edge, Some(_)) => format!("{kind}, kept by the edge, backup"),
        (Custody::Cell, None) if summary.adopted => format!("{kind}, adopted"),
        (Custody::Cell, None) => kind,
        (Custody::Cell, Some(BackupState::Shown)) => format!("{kind}, backup, shown"),
        (Custody::Cell, Some(_)) => format!("{kind}, backup"),
    }
}

/// When it is renewed; an uploaded one never is.
fn renewal(summary: &CertificateSummary, shown: impl Fn(&str) -> String) -> String {
    match summary.custody {
        Custody::Cell | Custody::Edge => shown(&summary.renew_at),
        Custody::Uploaded => "by upload".to_owned(),
    }
}

/// `ari` or `share`, or `-` of one that is not renewed.
fn renewed_by(summary: &CertificateSummary) -> String {
    summary.renewal.as_ref().map_or_else(|| "-".to_owned(), |renewal| output::word(&renewal.source))
}

/// Whose wish the time of renewal is.
fn print_suggestion(renewal: &RenewalSuggestion) {
    match (&renewal.window_start, &renewal.window_end) {
        (Some(start), Some(end)) => line(format!("  window       {start} to {end}, by the CA (ARI)")),
        _ => line("  window       none; by share of the lifetime"),
    }
    if let Some(note) = &renewal.note {
        line(format!("               {note}"));
    }
    if let Some(url) = &renewal.explanation_url {
        line(format!("  explained at {url}"));
    }
}

/// `shop.test and 24 more`
pub(crate) fn names_text(names: &[String]) -> String {
    match names {
        [] => "-".to_owned(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}
