//! `portico cert ...`

use portico_api::v1::Certificate;
use portico_api::v1::client::CertificateQuery;

use crate::failure::{Failure, Outcome};
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
    /// The most certificates shown; 0: all
    #[arg(long, default_value_t = 200)]
    limit: usize,
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
        cursor: None,
        limit: Some(1000),
    };
    let mut certificates: Vec<Certificate> = Vec::new();
    loop {
        let page = client.certificates(&query).await?;
        certificates.extend(page.items);
        query.cursor = page.next_cursor;
        if query.cursor.is_none() || (args.limit > 0 && certificates.len() >= args.limit) {
            break;
        }
    }
    let more = query.cursor.is_some() || (args.limit > 0 && certificates.len() > args.limit);
    if args.limit > 0 {
        certificates.truncate(args.limit);
    }
    if settings.format == Format::Json {
        return output::json(&certificates);
    }
    let mut table = Table::new(&["NAMES", "STATE", "EXPIRES", "RENEWED AFTER", "CELL", "ISSUER", "ID"]);
    for certificate in &certificates {
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
    if more {
        line(format!("the first {}; --limit 0 shows all", args.limit));
    }
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
