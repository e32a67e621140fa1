//! `portico cert ...`

use portico_api::v1::Certificate;
use portico_api::v1::client::CertificateQuery;

use crate::failure::{Failure, Outcome};
use crate::listing::{LimitArgs, Listing};
use crate::output::{self, Format, Table, line};
use crate::settings::Settings;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CertCommand {
    /// List certificates
    List(ListArgs),
    /// Show one certificate, with its chain in PEM
    Show {
        /// Its credential id (crd_...)
        id: portico_cert_store::CredentialId,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Of this domain only: hostname or id
    #[arg(long)]
    domain: Option<String>,
    /// That expire before this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    expires_before: Option<String>,
    #[command(flatten)]
    limit: LimitArgs,
}

pub(crate) async fn run(settings: &Settings, command: CertCommand) -> Outcome {
    match command {
        CertCommand::List(args) => list(settings, args).await,
        CertCommand::Show { id } => {
            let certificate = settings.client()?.certificate(id).await;
            let certificate = certificate
                .map_err(|error| Failure::from(error).about(format!("certificate {id}")).next("cert list"))?;
            show(settings, &certificate)
        }
    }
}

async fn list(settings: &Settings, args: ListArgs) -> Outcome {
    let client = settings.client()?;
    let mut query = CertificateQuery {
        domain: args.domain,
        expires_before: args.expires_before,
        ..CertificateQuery::default()
    };
    let certificates = Listing::read(args.limit.of(settings.format), async |cursor, items| {
        (query.cursor, query.limit) = (cursor, Some(items));
        client.certificates(&query).await
    });
    let certificates = certificates.await?;
    if settings.format == Format::Json {
        return output::json(&certificates.items);
    }
    let mut table = Table::new(&["NAMES", "STATE", "EXPIRES", "RENEWED AFTER", "CELL", "ISSUER", "ID"]);
    for certificate in &certificates.items {
        let summary = &certificate.summary;
        table.row([
            names_text(&summary.names),
            output::word(&certificate.state),
            summary.not_after.clone(),
            summary.renew_at.clone(),
            summary.cell.to_string(),
            summary.issuer.clone(),
            summary.credential_id.to_string(),
        ]);
    }
    table.print();
    certificates.print_more();
    Ok(())
}

fn show(settings: &Settings, certificate: &Certificate) -> Outcome {
    if settings.format == Format::Json {
        return output::json(certificate);
    }
    let summary = &certificate.summary;
    line(format!("{}  {}", summary.credential_id, output::word(&certificate.state)));
    for name in &summary.names {
        line(format!("  name         {name}"));
    }
    line(format!("  issuer       {}", summary.issuer));
    line(format!("  valid        {} to {}", summary.not_before, summary.not_after));
    line(format!("  renewed after {}", summary.renew_at));
    line(format!("  cell         {}", summary.cell));
    line(format!("  sha256       {}", summary.fingerprint_sha256));
    line(format!("  public key   {}", summary.spki_sha256));
    line(certificate.chain_pem.trim_end());
    Ok(())
}

/// `shop.test and 24 more`
pub(crate) fn names_text(names: &[String]) -> String {
    match names {
        [] => "-".to_owned(),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}
