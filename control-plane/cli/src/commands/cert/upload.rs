//! `portico cert upload` and `portico cert rm`: certificates that tenants bring.

use std::path::{Path, PathBuf};

use portico_api::v1::client::Client;
use portico_api::v1::{CertificateRequestId, CertificateSummary, CertificateUpload, Domain, SecretPem};
use portico_cert_store::{CredentialId, Custody, GroupId};
use serde_json::json;

use super::{key_text, one, request};
use crate::commands::named_domain::{find, whose};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, line};
use crate::settings::Settings;
use crate::shell::shell_word;

#[derive(Debug, clap::Args)]
pub(crate) struct UploadArgs {
    /// The domains that it is for, hostnames or ids: proved ones of one tenant, whose names it holds
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// PEM: the site's own certificate, then its intermediates
    #[arg(long, value_name = "FILE")]
    chain: PathBuf,
    /// PEM: its private key, not encrypted; it is sealed for the cells that serve the names, and shown to nobody again. Without
    /// it: the key is here already, of a request (`shadow csr`) or of the certificate in service
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Whose, when several tenants claim the names: the tenant's name or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// It is from an authority of the tenant's own, which browsers do not know
    #[arg(long)]
    private_ca: bool,
    /// Replace the present one also where that is valid for longer
    #[arg(long)]
    replace_longer: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Its credential id (crd_...), a hostname that it serves, or the id of a request (csr_...)
    #[arg(value_name = "ID|HOSTNAME")]
    which: String,
    /// Of a hostname with several: the one with this kind of key, rsa or ecdsa
    #[arg(long, value_name = "KIND", value_parser = ["rsa", "ecdsa"])]
    key_type: Option<String>,
    /// Whose, when several tenants claim the hostname: the tenant's name or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Also where a name is left without any certificate
    #[arg(long)]
    leave_unserved: bool,
}

pub(super) async fn upload(settings: &Settings, args: UploadArgs) -> Outcome {
    let client = settings.client()?;
    let chain_pem = read("--chain", &args.chain)?;
    let key_pem = args.key.as_deref().map(|key| read("--key", key).map(SecretPem::new)).transpose()?;
    let mut domains: Vec<Domain> = Vec::with_capacity(args.names.len());
    for name in &args.names {
        let found = find(&client, name, args.tenant.as_deref()).await?;
        if let Some(first) = domains.first().filter(|first| first.tenant_id != found.tenant_id) {
            return Err(Failure::usage(format!(
                "{} and {}: one upload is for the names of one tenant",
                whose(first),
                whose(&found)
            )));
        }
        domains.push(found);
    }
    let Some(tenant) = domains.first().map(|domain| domain.tenant_id) else {
        return Err(Failure::usage("name the domains that it is for"));
    };
    let upload = CertificateUpload {
        hostnames: domains.iter().map(|domain| domain.spec.hostname.clone()).collect(),
        chain_pem,
        key_pem,
        private_ca: args.private_ca,
        replace_longer: args.replace_longer,
    };
    let made = client
        .upload_certificate(tenant, &upload)
        .await
        .map_err(|error| Failure::from(error).about(format!("certificate {}", args.chain.display())))?;
    if settings.format == Format::Json {
        return output::json(&made);
    }
    for certificate in &made.certificates {
        let summary = &certificate.summary;
        line(format!(
            "{}  {}  cell {}  until {}",
            summary.credential_id,
            key_text(summary),
            summary.cell,
            output::time(&summary.not_after)
        ));
    }
    line(format!("shown for {} from now on; upload the next before it ends", upload.hostnames.join(", ")));
    Ok(())
}

pub(super) async fn remove(settings: &Settings, args: RmArgs) -> Outcome {
    let client = settings.client()?;
    if let Ok(id) = args.which.parse::<CertificateRequestId>() {
        return request::remove(settings, &client, id).await;
    }
    let summary = match args.which.parse::<CredentialId>() {
        Ok(id) => one(&client, id).await?.summary,
        Err(_) => of_hostname(&client, &args).await?,
    };
    let id = summary.credential_id;
    client
        .delete_certificate(id, args.leave_unserved)
        .await
        .map_err(|error| Failure::from(error).about(format!("certificate {id}")))?;
    let text =
        format!("certificate {id} ({}) is removed from all cells, and its key forgotten", key_text(&summary));
    output::done(settings.format, text, &json!({ "removed": id }))
}

/// The uploaded certificate of a hostname; in several cells it is one.
async fn of_hostname(client: &Client, args: &RmArgs) -> Outcome<CertificateSummary> {
    let domain = find(client, &args.which, args.tenant.as_deref()).await?;
    let wanted = |summary: &&CertificateSummary| {
        let kind = summary.key_type.map(|kind| if kind.is_rsa() { "rsa" } else { "ecdsa" });
        let of_kind = args.key_type.as_deref().is_none_or(|wanted| kind == Some(wanted));
        summary.custody == Custody::Uploaded && of_kind
    };
    let found: Vec<_> = domain.certificates.iter().filter(wanted).collect();
    let mut groups: Vec<GroupId> = found.iter().map(|summary| summary.group_id).collect();
    groups.sort();
    groups.dedup();
    let hostname = &domain.spec.hostname;
    match (found.first(), groups.len()) {
        (None, _) => Err(Failure::not_found(format!("{hostname} has no such uploaded certificate"))
            .next(format!("cert list --domain {}", shell_word(hostname)))),
        (Some(first), 1) => Ok((*first).clone()),
        _ => Err(Failure::usage(format!("{hostname} has several uploaded certificates; nothing was done"))
            .next_text("the same command with --key-type rsa or ecdsa, or with an id")),
    }
}

fn read(option: &str, file: &Path) -> Outcome<String> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("{option} {}: {error}", file.display())))
}
