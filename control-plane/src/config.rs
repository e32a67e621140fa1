//! The configuration file: TOML, read once at start.
//!
//! Each error names the file, line and column: an unknown key, a wrong type, a value that cannot be.

mod issuer;
mod leavers;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use portico_api::strict::by_name;
use portico_api::v1::TenantLimits;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub use self::issuer::{ExternalAccountConfig, IssuerConfig};
pub use self::leavers::LeaversConfig;
use crate::plan::cells::{ANY_NAME, borne};
use crate::plan::issuers::Patience;
use crate::sealer::KeyEncryptionKey;
use crate::store::DATABASE_FILE;

mod database;

pub use database::PASSWORD_CREDENTIAL;

/// What the control plane was told, checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The data folder, 0700; holds `portico.db` unless `database` is set.
    pub data: PathBuf,
    /// `postgresql://USER@HOST/NAME`, which several control planes may share; absent: a file in `data`.
    pub database: Option<String>,
    /// 0600; a systemd credential goes before it.
    pub database_password_file: Option<PathBuf>,
    /// Where the API listens, plain HTTP; loopback only.
    pub api: SocketAddr,
    /// Where edges connect.
    pub distribution: SocketAddr,
    /// `host:port` that edges are told to connect to; absent: `distribution`.
    pub distribution_advertised: Option<String>,
    /// How long an edge's identity and the distribution listener's certificate are valid; absent: 30 days.
    pub identity_lifetime_seconds: Option<u32>,
    /// 0600, 32 bytes or 64 hex digits, outside `data`; a systemd credential goes before it.
    pub key_encryption_key_file: Option<PathBuf>,
    /// The first start writes the operator's token there, 0600.
    pub operator_token_file: Option<PathBuf>,
    #[serde(default)]
    pub dns: DnsConfig,
    #[serde(default)]
    pub fleet: FleetConfig,
    #[serde(default)]
    pub egress: EgressConfig,
    #[serde(default)]
    pub renewal: RenewalConfig,
    #[serde(default)]
    pub audit: AuditConfig,
    #[serde(default)]
    pub usage: UsageConfig,
    #[serde(default)]
    pub preflight: PreflightConfig,
    #[serde(default)]
    pub failover: FailoverConfig,
    #[serde(default)]
    pub leavers: LeaversConfig,
    #[serde(default)]
    pub webhooks: WebhooksConfig,
    #[serde(default)]
    pub backup_certificates: BackupCertificatesConfig,
    #[serde(default, rename = "issuer")]
    pub issuers: Vec<IssuerConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// Absent: the system's `resolv.conf`.
    #[serde(default)]
    pub resolvers: Vec<SocketAddr>,
    /// The port at which each server of a name's zone is asked, too, before an order; absent: 53; 0: none is asked.
    pub authoritative_port: Option<u16>,
    /// Own authoritative DNS for `challenge_zone`; absent: off.
    pub responder: Option<SocketAddr>,
    /// `_acme-challenge.<host>` CNAME `<label>.<challenge_zone>`
    pub challenge_zone: Option<String>,
    /// `<host>` CNAME `<label>.<cname_zone>`: proof and traffic at once.
    pub cname_zone: Option<String>,
    /// Who writes DNS-01's records in zones that others serve.
    #[serde(default)]
    pub writer: Vec<DnsWriterConfig>,
}

/// One zone whose records are written in one of three ways.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsWriterConfig {
    /// Of its names, and those beneath.
    pub zone: String,
    pub update: Option<DnsUpdateConfig>,
    /// With its first arguments; `add NAME VALUE` or `remove NAME VALUE` follows.
    pub program: Option<Vec<String>>,
    pub webhook: Option<DnsWebhookConfig>,
    /// Servers that must show a record before the CA is told; absent: the one that takes updates, and none for the other ways.
    pub shown_by: Option<Vec<SocketAddr>>,
}

/// Dynamic updates (RFC 2136).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsUpdateConfig {
    pub server: SocketAddr,
    /// Name of the TSIG key.
    pub key: String,
    #[serde(default = "tsig_algorithm")]
    pub algorithm: String,
    /// The secret in base64; 0600.
    pub secret_file: PathBuf,
}

fn tsig_algorithm() -> String {
    "hmac-sha256".to_owned()
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsWebhookConfig {
    /// https, or http to this machine.
    pub url: String,
    /// What follows `Authorization: Bearer`; 0600.
    pub bearer_file: Option<PathBuf>,
    /// Beside the system's roots.
    pub root_pem: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetConfig {
    /// What tenants' names should resolve to. No connect on a tenant's behalf reaches them.
    pub public_addresses: Vec<std::net::IpAddr>,
    pub http_port: u16,
    pub https_port: u16,
    /// What a tenant may take of each edge that has no limits of its own.
    pub tenant_limits: TenantLimits,
}

/// Ranges that the control plane's own checks (pre-flight, proof file) may reach for every tenant although the guard
/// refuses them. The pre-flight of a tenant's name may reach what that tenant was granted, too.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressConfig {
    #[serde(default)]
    pub allow: Vec<EgressAllow>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressAllow {
    pub cidr: IpNet,
    pub ports: Vec<u16>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenewalConfig {
    /// Renewal is due after this share of the lifetime, 0.1 to 0.95.
    pub share: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Entries of the audit trail are forgotten when they are older, 30 to 36500; absent: two years.
    pub keep_days: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UsageConfig {
    /// Figures of hours that are longer ago are forgotten, 30 to 36500; absent: two years.
    pub keep_days: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PreflightConfig {
    pub enabled: bool,
}

/// Where events are sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhooksConfig {
    /// Authorities of endpoints, beside the system's roots.
    pub root_pem: Option<PathBuf>,
}

/// When orders leave an issuer, and when they come back.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverConfig {
    /// Orders fail for so long, one after the other, before their issuer is away; 0 to 86400, absent: 300.
    pub after_seconds: u32,
    /// So long after that one order tries it; twice as long after each failure. 1 to 86400; absent: 1800.
    pub back_after_seconds: u32,
}

/// Certificates that stand by, of another issuer.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackupCertificatesConfig {
    /// Whether names have one whose tenant and domain say nothing; absent: they have none.
    pub by_default: bool,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} cannot be read")]
    Read { path: PathBuf, source: std::io::Error },
    /// `at` is `line:column`, both from 1.
    #[error("{path}:{at}: {message}")]
    Text { path: PathBuf, at: String, message: String },
}

/// A value that cannot be.
#[derive(Debug)]
struct Fault {
    /// Where it stands: keys with dots between, and numbers for the places in an array, as `issuer.0.contact`.
    key: String,
    /// Names the key, what is wrong with its value and what to write instead.
    message: String,
}

impl Fault {
    fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file, line and column.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&text_of(path)?, path)
    }

    /// As [`Config::read`], and reads the files that the start needs and does not make, so that `--check` refuses what the
    /// start refuses.
    /// With `makes_key` the start makes the key-encryption key where there is none.
    ///
    /// # Errors
    /// As [`Config::read`], also for the first file that cannot be read.
    pub fn read_with_files(path: &Path, makes_key: bool) -> Result<Self, ConfigError> {
        let text = text_of(path)?;
        let config = Self::parse(&text, path)?;
        config.check_files(makes_key).map_err(|fault| located(&text, path, fault))?;
        Ok(config)
    }

    /// How long an edge's identity is valid, in milliseconds.
    pub(crate) fn identity_lifetime_ms(&self) -> i64 {
        let default = crate::ca::IDENTITY_LIFETIME.whole_seconds();
        self.identity_lifetime_seconds.map_or(default, i64::from).saturating_mul(1000)
    }

    /// The most names that any issuer puts on one certificate, so that a group can go to each.
    pub(crate) fn names_per_certificate_max(&self) -> usize {
        self.issuers.iter().map(|issuer| issuer.names_per_certificate_max).min().unwrap_or(1)
    }

    /// What works, and is hardly what somebody wants of a control plane in earnest.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let key = self.key_encryption_key_file.as_deref().filter(|_| !KeyEncryptionKey::is_credential());
        if let Some(key) = key.filter(|key| !key.exists()) {
            warnings.push(format!(
                "{} is not there yet: the first start makes it with --create-kek",
                key.display()
            ));
        }
        if self.issuers.is_empty() {
            warnings.push(
                "no [[issuer]]: no certificate will be ordered, so no name gets served over https".to_owned(),
            );
        }
        warnings.extend(self.issuers.iter().filter_map(IssuerConfig::warning));
        warnings.extend(self.issuers.iter().filter_map(cells_warning));
        if self.fleet.public_addresses.is_empty() {
            warnings.push(
                "fleet.public_addresses is empty: tenants are not told where to point their names, and whether a name \
                 points here is never known"
                    .to_owned(),
            );
        }
        warnings
    }

    /// Checks `text`; `path` is for the errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let read = toml::Deserializer::parse(text).and_then(|document| Self::deserialize(by_name(document)));
        let mut config = read.map_err(|error| ConfigError::Text {
            path: path.to_owned(),
            at: position(text, error.span().map_or(0, |span| span.start)),
            message: with_example(error.message().trim()),
        })?;
        config.complete().and_then(|()| config.check()).map_err(|fault| located(text, path, fault))?;
        Ok(config)
    }

    fn check_files(&self, makes_key: bool) -> Result<(), Fault> {
        let key = self.key_encryption_key_file.as_deref();
        // Before the first start there is neither; what was sealed needs its key.
        let is_first = makes_key || (self.database.is_none() && !self.data.join(DATABASE_FILE).exists());
        let is_made = is_first && key.is_some_and(|key| !key.exists());
        if let Some(key) = key.filter(|_| !is_made && !KeyEncryptionKey::is_credential()) {
            KeyEncryptionKey::load(Some(key), &self.data).map_err(|error| {
                let cause =
                    std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                Fault::new("key_encryption_key_file", format!("{error}{cause}"))
            })?;
        }
        let read = self.webhooks.root_pem.as_ref().map(|file| crate::roots::roots(Some(file), false));
        if let Some(Err(error)) = read {
            return Err(Fault::new("webhooks.root_pem", format!("webhooks.root_pem: {error:#}")));
        }
        for (index, writer) in self.dns.writer.iter().enumerate() {
            writer
                .check_files()
                .map_err(|message| Fault::new(format!("dns.writer.{index}.{}", writer.way()), message))?;
        }
        self.server().map_err(|error| Fault::new("database_password_file", format!("{error:#}")))?;
        for (index, issuer) in self.issuers.iter().enumerate() {
            for (key, file) in [("root_pem", &issuer.root_pem), ("roots_pem", &issuer.roots_pem)] {
                let read = file.as_ref().map(|file| crate::roots::roots(Some(file), false));
                if let Some(Err(error)) = read {
                    let message = format!("issuer \"{}\": {key}: {error:#}", issuer.name);
                    return Err(Fault::new(format!("issuer.{index}.{key}"), message));
                }
            }
            let external =
                issuer.external_account.as_ref().filter(|external| external.hmac_key_file.exists());
            if let Some(error) = external.and_then(|external| external.read_secret().err()) {
                let fault = ("external_account.hmac_key_file".to_owned(), error);
                return Err(of_issuer(index, &issuer.name, fault));
            }
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<(), Fault> {
        for (index, issuer) in self.issuers.iter_mut().enumerate() {
            issuer.complete().map_err(|fault| of_issuer(index, &issuer.name, fault))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Fault> {
        self.check_addresses()?;
        self.check_database()?;
        if let Some(key) = self.key_encryption_key_file.as_deref().filter(|key| key.starts_with(&self.data)) {
            let message = format!(
                "key_encryption_key_file = \"{}\" is inside data = \"{}\"; keep the key apart from what it seals",
                key.display(),
                self.data.display()
            );
            return Err(Fault::new("key_encryption_key_file", message));
        }
        if !(0.1..=0.95).contains(&self.renewal.share) {
            let message = format!("renewal.share = {} must be from 0.1 to 0.95", self.renewal.share);
            return Err(Fault::new("renewal.share", message));
        }
        for (key, days) in
            [("audit.keep_days", self.audit.keep_days), ("usage.keep_days", self.usage.keep_days)]
        {
            if !(30..=36_500).contains(&days) {
                return Err(Fault::new(key, format!("{key} = {days} must be from 30 to 36500")));
            }
        }
        let failover = [
            ("failover.after_seconds", self.failover.after_seconds, 0),
            ("failover.back_after_seconds", self.failover.back_after_seconds, 1),
        ];
        for (key, seconds, least) in failover {
            if !(least..=86_400).contains(&seconds) {
                return Err(Fault::new(key, format!("{key} = {seconds} must be from {least} to 86400")));
            }
        }
        self.leavers.check()?;
        if let Some((field, message)) = self.fleet.tenant_limits.faults().into_iter().next() {
            let key = format!("fleet.tenant_limits.{field}");
            return Err(Fault::new(&key, format!("{key} {message}")));
        }
        self.dns.check()?;
        if !self.issuers.is_empty() && !self.issuers.iter().any(|issuer| issuer.by_default) {
            let message = "no issuer is by_default: a tenant that names none would get no certificate";
            return Err(Fault::new("issuer.0.by_default", message));
        }
        if self.backup_certificates.by_default
            && self.issuers.iter().filter(|issuer| issuer.by_default).count() < 2
        {
            let message = "a backup certificate is of another issuer, and fewer than two are by_default; add one, or remove this";
            return Err(Fault::new("backup_certificates.by_default", message));
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            if self.issuers[..index].iter().any(|earlier| earlier.name == issuer.name) {
                let message = format!("two issuers are named \"{}\"", issuer.name);
                return Err(Fault::new(format!("issuer.{index}.name"), message));
            }
            issuer.check().map_err(|fault| of_issuer(index, &issuer.name, fault))?;
        }
        Ok(())
    }

    fn check_addresses(&self) -> Result<(), Fault> {
        if !self.api.ip().is_loopback() {
            let message = format!(
                "api = \"{}\" is not a loopback address; the API is plain HTTP: bind 127.0.0.1 or [::1] and put a \
                 TLS proxy before it",
                self.api
            );
            return Err(Fault::new("api", message));
        }
        if self.api == self.distribution && self.api.port() != 0 {
            let message = format!("api and distribution are both \"{}\"; give each its own port", self.api);
            return Err(Fault::new("distribution", message));
        }
        Ok(())
    }
}

impl DnsConfig {
    fn check(&self) -> Result<(), Fault> {
        if self.responder.is_some() && self.challenge_zone.is_none() {
            let message = "dns.responder is set without dns.challenge_zone: name the zone that it answers";
            return Err(Fault::new("dns.responder", message));
        }
        for (key, zone) in
            [("dns.challenge_zone", &self.challenge_zone), ("dns.cname_zone", &self.cname_zone)]
        {
            let wrong = zone.as_deref().and_then(|zone| portico_cert_store::DomainName::parse(zone).err());
            if let Some(error) = wrong {
                return Err(Fault::new(key, format!("{key}: {error}")));
            }
        }
        if self.challenge_zone.is_some() && self.challenge_zone == self.cname_zone {
            let message = "dns.challenge_zone and dns.cname_zone must be two zones";
            return Err(Fault::new("dns.cname_zone", message));
        }
        for (index, writer) in self.writer.iter().enumerate() {
            if self.responder.is_some() && self.challenge_zone.as_deref() == Some(&writer.zone) {
                let message =
                    "dns.responder answers this zone, so nobody else writes it: leave out one of both";
                return Err(Fault::new(format!("dns.writer.{index}.zone"), message));
            }
            if self.writer[..index].iter().any(|earlier| earlier.zone == writer.zone) {
                let message = format!("two writers are of zone \"{}\"", writer.zone);
                return Err(Fault::new(format!("dns.writer.{index}.zone"), message));
            }
            writer.check().map_err(|(key, message)| {
                let message = format!("dns.writer of \"{}\": {message}", writer.zone);
                Fault::new(format!("dns.writer.{index}.{key}"), message)
            })?;
        }
        Ok(())
    }
}

impl DnsWriterConfig {
    /// The faulty key, and what is wrong with its value.
    fn check(&self) -> Result<(), (&'static str, String)> {
        match portico_cert_store::DomainName::parse(&self.zone) {
            Err(error) => return Err(("zone", error.to_string())),
            Ok(zone) if zone.as_str() != self.zone => {
                return Err(("zone", format!("write it as \"{zone}\"")));
            }
            Ok(_) => {}
        }
        let ways = [self.update.is_some(), self.program.is_some(), self.webhook.is_some()];
        if ways.into_iter().filter(|way| *way).count() != 1 {
            return Err(("zone", "say one of update, program and webhook".to_owned()));
        }
        if self.program.as_ref().is_some_and(|words| !words.first().is_some_and(|word| word.starts_with('/')))
        {
            return Err((
                "program",
                "program must begin with the path of a file, as [\"/usr/local/bin/dns-hook\"]".to_owned(),
            ));
        }
        if let Some(webhook) = &self.webhook {
            let url: Option<http::Uri> = webhook.url.parse().ok();
            let is_local = |host: &str| host == "localhost" || host == "127.0.0.1" || host == "[::1]";
            let is_safe = url.as_ref().is_some_and(|url| match (url.scheme_str(), url.host()) {
                (Some("https"), Some(_)) => true,
                (Some("http"), Some(host)) => is_local(host),
                _ => false,
            });
            if !is_safe {
                let message = "url must begin with https://, or with http:// to this machine (localhost, 127.0.0.1, [::1])";
                return Err(("webhook", message.to_owned()));
            }
            if url.and_then(|url| url.authority().cloned()).is_some_and(|host| host.as_str().contains('@')) {
                let message = "url must not hold a user or a password; a token goes into bearer_file";
                return Err(("webhook", message.to_owned()));
            }
        }
        Ok(())
    }

    /// The key that says how it writes.
    fn way(&self) -> &'static str {
        match (&self.update, &self.program, &self.webhook) {
            (Some(_), ..) => "update",
            (_, Some(_), _) => "program",
            (.., Some(_)) => "webhook",
            (None, None, None) => "zone",
        }
    }

    /// Secrets and programs that cannot be used, as the start would find them.
    fn check_files(&self) -> Result<(), String> {
        crate::dns::writer::Writer::new(self).map(drop).map_err(|error| format!("{error:#}"))
    }
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            public_addresses: Vec::new(),
            http_port: 80,
            https_port: 443,
            tenant_limits: TenantLimits::default(),
        }
    }
}

impl Default for RenewalConfig {
    fn default() -> Self {
        Self { share: 0.667 }
    }
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self { keep_days: 730 }
    }
}

impl Default for UsageConfig {
    fn default() -> Self {
        Self { keep_days: 730 }
    }
}

impl FailoverConfig {
    pub(crate) fn patience(&self) -> Patience {
        Patience {
            after_ms: i64::from(self.after_seconds) * 1000,
            back_after_ms: i64::from(self.back_after_seconds) * 1000,
        }
    }
}

impl Default for FailoverConfig {
    fn default() -> Self {
        Self { after_seconds: 300, back_after_seconds: 1800 }
    }
}

impl Default for PreflightConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}

fn of_issuer(index: usize, name: &str, (key, message): (String, String)) -> Fault {
    Fault::new(format!("issuer.{index}.{key}"), format!("issuer \"{name}\": {message}"))
}

/// The parsers of addresses say that the syntax is wrong, not what a right one looks like.
fn with_example(message: &str) -> String {
    match message {
        "invalid socket address syntax" => {
            format!("{message}; write address and port, such as \"127.0.0.1:7070\" or \"[::1]:7070\"")
        }
        "invalid IP address syntax" => {
            format!("{message}; write an address without port, such as \"203.0.113.10\" or \"2001:db8::10\"")
        }
        _ => message.to_owned(),
    }
}

/// Of an issuer whose limits bear no second cell.
fn cells_warning(issuer: &IssuerConfig) -> Option<String> {
    let borne = borne(&issuer.limits(), &[ANY_NAME.to_owned()]);
    (borne.cells < 2).then(|| {
        format!(
            "issuer \"{}\": its limits bear {} cell for each name, so that no name can be in two: {}",
            issuer.name,
            borne.cells,
            borne.why()
        )
    })
}

fn text_of(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// The fault with the place of its value in `text`.
fn located(text: &str, path: &Path, fault: Fault) -> ConfigError {
    let at = position(text, offset_of(text, &fault.key).unwrap_or(0));
    ConfigError::Text { path: path.to_owned(), at, message: fault.message }
}

/// Where the value of `key` begins in `text`, a document that parses; of a key that is not given, what it would be in.
fn offset_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut found: Option<&Spanned<DeValue<'_>>> = None;
    for step in key.split('.') {
        let next = match found.map(Spanned::get_ref) {
            None => document.get_ref().get(step),
            Some(DeValue::Table(table)) => table.get(step),
            Some(DeValue::Array(items)) => step.parse().ok().and_then(|index: usize| items.get(index)),
            Some(_) => None,
        };
        let Some(next) = next else { break };
        found = Some(next);
    }
    found.map(|value| value.span().start)
}

/// `line:column` of a byte offset, both from 1.
fn position(text: &str, offset: usize) -> String {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    let column = 1 + before.iter().rev().take_while(|&&byte| byte != b'\n').count();
    format!("{line}:{column}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acme::ChallengeMethod;

    const SMALL: &str = "data = \"/d\"\napi = \"127.0.0.1:7070\"\ndistribution = \"127.0.0.1:7443\"\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("cp.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_smallest_file_and_a_full_one_are_read() {
        let small = parse(SMALL).unwrap();
        assert_eq!((small.fleet.https_port, small.renewal.share), (443, 0.667));
        let full = parse(&format!(
            "{SMALL}[dns]\nresolvers = [\"127.0.0.1:8053\"]\nresponder = \"127.0.0.1:5354\"\n\
             challenge_zone = \"acme.provider.test\"\ncname_zone = \"edge.provider.test\"\n\
             [fleet]\npublic_addresses = [\"127.0.0.11\"]\n\
             [egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [8080] }}]\n\
             [[issuer]]\nname = \"test\"\ndirectory = \"https://127.0.0.1:14000/dir\"\nchallenges = [\"dns-01\"]\n"
        ))
        .unwrap();
        assert_eq!(full.issuers[0].challenges, [ChallengeMethod::Dns01]);
        assert_eq!(full.fleet.public_addresses.len(), 1);
    }

    #[test]
    fn faults_name_file_line_and_column() {
        let unknown = parse(&format!("{SMALL}dta = 1\n")).unwrap_err();
        assert!(unknown.starts_with("cp.toml:4:1: unknown field `dta`"), "{unknown}");
        let wrong = parse("data = \"/d\"\napi = \"nowhere\"\n").unwrap_err();
        assert!(wrong.starts_with("cp.toml:2:7:") && wrong.contains("127.0.0.1:7070"), "{wrong}");
        let syntax = parse("data = \"/d\n").unwrap_err();
        assert!(syntax.starts_with("cp.toml:1:"), "{syntax}");
    }

    #[test]
    fn a_public_bind_of_the_api_is_refused() {
        for address in ["0.0.0.0:7070", "[::]:7070", "192.0.2.1:7070", "[2001:db8::1]:7070"] {
            let error = parse(&SMALL.replace("127.0.0.1:7070", address)).unwrap_err();
            assert!(error.contains("not a loopback address"), "{error}");
        }
        assert!(parse(&SMALL.replace("127.0.0.1:7070", "[::1]:7070")).is_ok());
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_line_and_column() {
        let issuer = "[[issuer]]\nname = \"a\"\ndirectory = \"https://x\"\n";
        // The value begins there; the text before it has three lines.
        for (more, at, part) in [
            ("[renewal]\nshare = 1.5\n", "5:9", "renewal.share"),
            ("renewal = { share = 1.5 }\n", "4:21", "renewal.share"),
            ("renewal.share = 1.5\n", "4:17", "renewal.share"),
            ("[audit]\nkeep_days = 7\n", "5:13", "from 30"),
            ("[fleet]\ntenant_limits = { exchanges = 0 }\n", "5:31", "fleet.tenant_limits.exchanges must be"),
            ("[fleet.tenant_limits]\nrequests = 1\n", "5:1", "unknown field"),
            (
                "[fleet]\ntenant_limits = [5, 6]\n",
                "5:17",
                "fields by their names, such as `requests_per_second`",
            ),
            ("[[renewal]]\nshare = 0.5\n", "4:1", "such as `share`"),
            ("[failover]\nafter_seconds = 86401\n", "5:17", "from 0 to 86400"),
            ("[failover]\nback_after_seconds = 0\n", "5:22", "from 1 to 86400"),
            ("[leavers]\nlooks = 1\n", "5:9", "leavers.looks = 1 must be from 2 to 100"),
            ("[leavers]\nleave_within_seconds = 604800\n", "5:24", "to 518400"),
            ("[leavers]\nmost_percent = 0\n", "5:16", "from 1 to 100"),
            ("[backup_certificates]\nby_default = true\n", "5:14", "fewer than two"),
            (&format!("{issuer}by_default = false\n"), "7:14", "would get no certificate"),
            ("[usage]\nkeep_days = 7\n", "5:13", "usage.keep_days"),
            ("[dns]\nresponder = \"127.0.0.1:53\"\n", "5:13", "challenge_zone"),
            ("[dns]\ncname_zone = \"not a zone\"\n", "5:14", "dns.cname_zone"),
            ("[dns]\nchallenge_zone = \"a.test\"\ncname_zone = \"a.test\"\n", "6:14", "two zones"),
            ("[[issuer]]\nname = \"a\"\ndirectory = \"http://x\"\n", "6:13", "https://"),
            (&format!("{issuer}contact = \"a@b\"\n"), "7:11", "mailto:"),
            (&format!("{issuer}challenges = []\n"), "7:14", "at least one"),
            (&format!("{issuer}preset = \"letsencrypt\"\n"), "7:10", "exclude each other"),
            ("[[issuer]]\nname = \"a\"\n", "4:1", "write directory"),
            (&format!("{issuer}caa = [\"a b\"]\n"), "7:7", "no domain name"),
            (&format!("{issuer}profile = \"\"\n"), "7:11", "1 to 64 bytes"),
            (&format!("{issuer}nonces_per_second = 0\n"), "7:21", "above 0"),
            (&format!("{issuer}[issuer.limits]\nreserve = 1.5\n"), "8:11", "issuer \"a\": limits.reserve"),
            (&format!("{issuer}[issuer.limits]\norders = \"300\"\n"), "8:10", "write COUNT/PERIOD"),
            (&format!("{issuer}{issuer}"), "8:8", "two issuers"),
            (&format!("{issuer}{}poll_ms = 1\n", issuer.replace("\"a\"", "\"b\"")), "10:11", "poll_ms"),
            ("key_encryption_key_file = \"/d/kek\"\n", "4:27", "apart from what it seals"),
        ] {
            let error = parse(&format!("{SMALL}{more}")).unwrap_err();
            assert!(error.starts_with(&format!("cp.toml:{at}: ")) && error.contains(part), "{at} {error}");
        }
        let public = parse(&SMALL.replace("127.0.0.1:7070", "192.0.2.1:7070")).unwrap_err();
        assert!(public.starts_with("cp.toml:2:7: "), "{public}");
        let same = parse(&SMALL.replace("7443", "7070")).unwrap_err();
        assert!(same.starts_with("cp.toml:3:16: "), "{same}");
    }

    #[test]
    fn a_file_that_is_named_and_not_there_is_named_with_line_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cp.toml");
        let issuer = "[[issuer]]\nname = \"a\"\ndirectory = \"https://x\"\nroots_pem = \"/nonexistent\"\n";
        std::fs::write(&path, format!("{SMALL}{issuer}")).unwrap();
        Config::read(&path).unwrap();
        let error = Config::read_with_files(&path, false).unwrap_err().to_string();
        assert!(error.contains("cp.toml:7:13: issuer \"a\": roots_pem: /nonexistent: "), "{error}");
        let issuer = issuer.replace("roots_pem = \"/nonexistent\"", "root_pem = \"/dev/null\"");
        std::fs::write(&path, format!("{SMALL}{issuer}")).unwrap();
        let error = Config::read_with_files(&path, false).unwrap_err().to_string();
        assert!(
            error.contains("cp.toml:7:12: issuer \"a\": root_pem: /dev/null holds no certificate"),
            "{error}"
        );

        let (key, data) = (folder.path().join("kek"), folder.path().join("data"));
        let text = SMALL.replace("/d\"", &format!("{}\"", data.display()));
        std::fs::write(&path, format!("{text}key_encryption_key_file = \"{}\"\n", key.display())).unwrap();
        let config = Config::read_with_files(&path, false).unwrap();
        let warnings = config.warnings().join("\n");
        assert!(warnings.contains(key.to_str().unwrap()) && warnings.contains("--create-kek"), "{warnings}");
        assert!(warnings.contains("[[issuer]]") && warnings.contains("public_addresses"), "{warnings}");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join(DATABASE_FILE), "sealed").unwrap();
        let error = Config::read_with_files(&path, false).unwrap_err().to_string();
        assert!(error.contains("cp.toml:4:27: ") && error.contains(key.to_str().unwrap()), "{error}");
        KeyEncryptionKey::create(&key, &config.data).unwrap();
        Config::read_with_files(&path, false).unwrap();
    }
}
