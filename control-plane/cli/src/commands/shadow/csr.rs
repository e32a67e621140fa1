//! `portico shadow csr NAME`: MASTER orders on with its own client, for a key that is made here and never leaves.

use std::path::{Path, PathBuf};

use portico_api::v1::{CertificateRequest, CertificateRequestSpec};
use portico_cert_store::KeyType;

use crate::commands::named_domain::{find, whose};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format, line, remark};
use crate::settings::Settings;
use crate::shell::shell_word;

#[derive(Debug, clap::Args)]
pub(crate) struct CsrArgs {
    /// What the certificate is to hold: hostnames of domains of one tenant
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Whose domains, when several tenants claim the names: the tenant's name or id
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// ecdsa-p256, ecdsa-p384, rsa2048, rsa3072 or rsa4096
    #[arg(long, value_name = "KIND", value_parser = key_type, default_value = "ecdsa-p256")]
    key_type: KeyType,
    /// Write the request to this file, which must not be there [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn key_type(text: &str) -> Result<KeyType, String> {
    serde_json::from_value(text.into())
        .map_err(|_| "is no kind of key; use ecdsa-p256, ecdsa-p384, rsa2048, rsa3072 or rsa4096".to_owned())
}

pub(super) async fn run(settings: &Settings, args: CsrArgs) -> Outcome {
    let client = settings.client()?;
    let mut domains = Vec::with_capacity(args.names.len());
    for name in &args.names {
        let found = find(&client, name, args.tenant.as_deref()).await?;
        if let Some(first) =
            domains.first().filter(|first: &&portico_api::v1::Domain| first.tenant_id != found.tenant_id)
        {
            let text =
                format!("{} and {}: one request is for the names of one tenant", whose(first), whose(&found));
            return Err(Failure::usage(text));
        }
        domains.push(found);
    }
    let Some(first) = domains.first() else {
        return Err(Failure::usage("name the domains that the certificate is for"));
    };
    // Before a key is made for it.
    if let Some(file) = args.out.as_deref().filter(|file| file.exists()) {
        return Err(Failure::usage(format!(
            "--out {}: is there already; remove it, or name another",
            file.display()
        )));
    }
    let spec = CertificateRequestSpec {
        hostnames: domains.iter().map(|domain| domain.spec.hostname.clone()).collect(),
        key_type: Some(args.key_type),
    };
    let made = client.request_certificate(first.tenant_id, &spec).await?;
    if let Some(file) = &args.out {
        write_new(file, &made.csr_pem)?;
    }
    if settings.format == Format::Json {
        return output::json(&made);
    }
    let file =
        args.out.as_deref().map_or_else(|| "REQUEST.pem".to_owned(), |file| file.display().to_string());
    match &args.out {
        Some(_) => line(format!("{} is in {file}", made.id)),
        None => line(made.csr_pem.trim_end()),
    }
    explain(&made, &file);
    Ok(())
}

fn write_new(file: &Path, text: &str) -> Outcome {
    use std::io::Write as _;
    let failed = |error| Failure::file(file, error);
    let mut out = std::fs::OpenOptions::new().write(true).create_new(true).open(file).map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)
}

/// Beside the request, which may be going into a file.
fn explain(made: &CertificateRequest, file: &str) {
    let names: Vec<_> = made.hostnames.iter().map(|name| shell_word(name)).collect();
    remark(format!(
        "its key stays here, and waits until {} for the certificate; with certbot: certbot certonly --csr {file} --fullchain-path \
         CHAIN.pem ..., then: portico cert upload {} --chain CHAIN.pem; a renewal by the same request goes the same way",
        output::time(&made.expires_at),
        names.join(" ")
    ));
}
