//! `portico domain set` and `portico domain maintenance`: what holds for a whole domain.

use std::path::PathBuf;
use std::time::Duration;

use portico_api::v1::client::Client;
use portico_api::v1::{ClientCertificateMode, ClientCertificates, DomainSpec, MinimumTls};
use serde_json::{Map, Value, json};

use crate::commands::domain::WaitArgs;
use crate::commands::named_domain::{DomainArgs, whose};
use crate::failure::{Failure, Outcome};
use crate::revision::on_newest;
use crate::settings::Settings;

/// What a domain tells browsers, and how it may be spoken to.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// How long browsers shall know the name by https only, such as 365d; 0s: they forget it; off: they are told nothing
    #[arg(long, value_name = "DURATION", value_parser = HstsAge::parse)]
    hsts_max_age: Option<HstsAge>,
    /// For all names below it too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    hsts_include_subdomains: Option<bool>,
    /// Let browsers build it in, which is hard to take back
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    hsts_preload: Option<bool>,
    /// Port 80 leads to https (true, from the start), or goes to the routes
    #[arg(long, value_name = "BOOL")]
    https_redirect: Option<bool>,
    /// Have certificates issued (true, from the start), or show uploaded ones alone
    #[arg(long, value_name = "BOOL")]
    issue_certificates: Option<bool>,
    /// Have a backup certificate stand by, of another issuer and with another key: true, false, or tenant, as its tenant has it
    #[arg(long, value_name = "WISH", value_parser = BackupWish::parse)]
    backup_certificate: Option<BackupWish>,
    #[command(flatten)]
    tls: TlsArgs,
}

#[derive(Clone, Debug, clap::Args)]
struct TlsArgs {
    /// The oldest version of TLS that clients may speak
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    minimum_tls: Option<MinimumTls>,
    /// Offer HTTP/2 (true, from the start)
    #[arg(long, value_name = "BOOL")]
    http2: Option<bool>,
    /// Offer HTTP/3, where an edge has it (true, from the start)
    #[arg(long, value_name = "BOOL")]
    http3: Option<bool>,
    /// Take safe requests before the handshake has ended (0-RTT), over HTTP/3 (false, from the start)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    early_data: Option<bool>,
    /// Ask clients for a certificate: require, optional or off; the first two with --client-ca
    #[arg(long, value_name = "MODE", value_parser = ["require", "optional", "off"])]
    client_certificates: Option<String>,
    /// The authorities of clients' certificates: a PEM file
    #[arg(long, value_name = "FILE", requires = "client_certificates")]
    client_ca: Option<PathBuf>,
}

/// What browsers are told; absent: nothing.
#[derive(Clone, Copy, Debug)]
struct HstsAge(Option<u32>);

impl HstsAge {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        // Browsers keep to it, so a guess at what was meant lasts.
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{text} of what? write {text}s, {text}d, or off"));
        }
        let age = crate::duration::parse(text).map_err(|error| format!("{error}, or off"))?;
        Ok(Self(Some(u32::try_from(age.as_secs()).unwrap_or(u32::MAX))))
    }
}

/// Whether a backup stands by; absent: as the tenant has it.
#[derive(Clone, Copy, Debug)]
struct BackupWish(Option<bool>);

impl BackupWish {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "true" => Ok(Self(Some(true))),
            "false" => Ok(Self(Some(false))),
            "tenant" => Ok(Self(None)),
            _ => Err("true, false or tenant".to_owned()),
        }
    }
}

fn parse_version(text: &str) -> Result<MinimumTls, String> {
    match text {
        "1.2" => Ok(MinimumTls::Tls12),
        "1.3" => Ok(MinimumTls::Tls13),
        _ => Err("1.2 or 1.3".to_owned()),
    }
}

impl TlsArgs {
    /// None: nothing was said. Some(None): nobody is asked any more.
    fn client_certificates(&self) -> Outcome<Option<Option<ClientCertificates>>> {
        let mode = match (self.client_certificates.as_deref(), &self.client_ca) {
            (None, _) => return Ok(None),
            (Some("off"), None) => return Ok(Some(None)),
            (Some("off"), Some(_)) => {
                return Err(Failure::usage("nobody is asked for a certificate; leave --client-ca out"));
            }
            (Some("optional"), _) => ClientCertificateMode::Optional,
            (Some(_), _) => ClientCertificateMode::Require,
        };
        let Some(file) = &self.client_ca else {
            return Err(Failure::usage(
                "whose certificates? add --client-ca FILE, a PEM file of authorities",
            ));
        };
        let ca_pem = std::fs::read_to_string(file)
            .map_err(|error| Failure::usage(format!("--client-ca {}: {error}", file.display())))?;
        Ok(Some(Some(ClientCertificates { mode, ca_pem })))
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    which: DomainArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MaintenanceArgs {
    #[command(flatten)]
    which: DomainArgs,
    /// Serve again
    #[arg(long, conflicts_with_all = ["text", "retry_after"])]
    end: bool,
    /// Shown to visitors; at most 500 bytes
    #[arg(long, default_value = "")]
    text: String,
    /// When clients shall come again
    #[arg(long, default_value = "5m", value_parser = crate::duration::parse)]
    retry_after: Duration,
    #[command(flatten)]
    wait: WaitArgs,
}

impl PolicyArgs {
    /// # Errors
    /// A wish that is incomplete; a file that cannot be read.
    pub(crate) fn apply(&self, spec: &mut DomainSpec) -> Outcome {
        if let Some(age) = self.hsts_max_age {
            spec.hsts_max_age_seconds = age.0;
        }
        spec.hsts_include_subdomains = self.hsts_include_subdomains.unwrap_or(spec.hsts_include_subdomains);
        spec.hsts_preload = self.hsts_preload.unwrap_or(spec.hsts_preload);
        spec.https_redirect = self.https_redirect.unwrap_or(spec.https_redirect);
        spec.issue_certificates = self.issue_certificates.unwrap_or(spec.issue_certificates);
        if let Some(wish) = self.backup_certificate {
            spec.backup_certificate = wish.0;
        }
        spec.minimum_tls = self.tls.minimum_tls.unwrap_or(spec.minimum_tls);
        spec.http2 = self.tls.http2.unwrap_or(spec.http2);
        spec.http3 = self.tls.http3.unwrap_or(spec.http3);
        spec.early_data = self.tls.early_data.unwrap_or(spec.early_data);
        if let Some(wish) = self.tls.client_certificates()? {
            spec.client_certificates = wish;
        }
        Ok(())
    }

    fn patch(&self) -> Outcome<Map<String, Value>> {
        let wishes = [
            ("hsts_max_age_seconds", self.hsts_max_age.map(|age| json!(age.0))),
            ("hsts_include_subdomains", self.hsts_include_subdomains.map(Value::from)),
            ("hsts_preload", self.hsts_preload.map(Value::from)),
            ("https_redirect", self.https_redirect.map(Value::from)),
            ("issue_certificates", self.issue_certificates.map(Value::from)),
            ("backup_certificate", self.backup_certificate.map(|wish| json!(wish.0))),
            ("minimum_tls", self.tls.minimum_tls.map(|version| json!(version))),
            ("http2", self.tls.http2.map(Value::from)),
            ("http3", self.tls.http3.map(Value::from)),
            ("early_data", self.tls.early_data.map(Value::from)),
            ("client_certificates", self.tls.client_certificates()?.map(|wish| json!(wish))),
        ];
        Ok(wishes.into_iter().filter_map(|(name, wish)| Some((name.to_owned(), wish?))).collect())
    }
}

/// What browsers are told of https, and what port 80 does, beside the usual.
pub(crate) fn https_text(spec: &DomainSpec) -> Option<String> {
    let names_below = if spec.hsts_include_subdomains { " with all names below" } else { "" };
    let preload = if spec.hsts_preload { ", preload" } else { "" };
    let hsts = spec.hsts_max_age_seconds.map(|seconds| match seconds {
        0 => "HSTS taken back".to_owned(),
        seconds => format!("HSTS {seconds} s{names_below}{preload}"),
    });
    let plain = (!spec.https_redirect).then(|| "port 80 goes to the routes".to_owned());
    let wishes: Vec<String> = hsts.into_iter().chain(plain).collect();
    (!wishes.is_empty()).then(|| wishes.join("; "))
}

/// What is asked of TLS beside the usual.
pub(crate) fn tls_text(spec: &DomainSpec) -> Option<String> {
    let wishes = [
        (spec.minimum_tls == MinimumTls::Tls13).then_some("TLS 1.3 or newer"),
        (!spec.issue_certificates).then_some("uploaded certificates alone"),
        spec.backup_certificate
            .map(|wish| if wish { "a backup certificate" } else { "no backup certificate" }),
        (!spec.http2).then_some("no HTTP/2"),
        (!spec.http3).then_some("no HTTP/3"),
        spec.early_data.then_some("early data"),
        spec.client_certificates.as_ref().map(|asked| match asked.mode {
            ClientCertificateMode::Require => "client certificates required",
            ClientCertificateMode::Optional => "client certificates optional",
        }),
    ];
    let wishes: Vec<&str> = wishes.into_iter().flatten().collect();
    (!wishes.is_empty()).then(|| wishes.join(", "))
}

pub(crate) async fn set(settings: &Settings, client: &Client, args: SetArgs) -> Outcome {
    let patch = args.policy.patch()?;
    if patch.is_empty() {
        return Err(Failure::usage("nothing to change; name an option, such as --hsts-max-age 365d"));
    }
    patched(settings, client, &args.which, &Value::Object(patch), args.wait).await
}

pub(crate) async fn maintenance(settings: &Settings, client: &Client, args: MaintenanceArgs) -> Outcome {
    let wish = match args.end {
        true => Value::Null,
        false => json!({ "text": args.text, "retry_after_seconds": args.retry_after.as_secs() }),
    };
    patched(settings, client, &args.which, &json!({ "maintenance": wish }), args.wait).await
}

async fn patched(
    settings: &Settings,
    client: &Client,
    which: &DomainArgs,
    patch: &Value,
    wait: WaitArgs,
) -> Outcome {
    let changed = on_newest(async || {
        let found = which.find(client).await?;
        let patched = client.patch_domain(found.id, patch, Some(found.revision)).await;
        patched.map_err(|error| Failure::from(error).about(whose(&found)))
    });
    wait.show(settings, client, changed.await?).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hsts_for_a_number_without_a_unit_is_refused() {
        assert!(HstsAge::parse("365").is_err_and(|why| why.contains("365d")));
        assert_eq!(HstsAge::parse("365d").unwrap().0, Some(31_536_000));
        assert_eq!((HstsAge::parse("0s").unwrap().0, HstsAge::parse("off").unwrap().0), (Some(0), None));
        assert!(HstsAge::parse("").is_err());
    }

    #[test]
    fn hsts_and_a_port_80_without_redirect_are_shown() {
        let mut spec = DomainSpec::new("a.example");
        assert_eq!(https_text(&spec), None);
        spec.https_redirect = false;
        assert_eq!(https_text(&spec).as_deref(), Some("port 80 goes to the routes"));
        (spec.hsts_max_age_seconds, spec.hsts_include_subdomains) = (Some(60), true);
        let wanted = "HSTS 60 s with all names below; port 80 goes to the routes";
        assert_eq!(https_text(&spec).as_deref(), Some(wanted));
    }
}
