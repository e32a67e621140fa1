//! The configuration file: TOML, read once at start.
//!
//! An unknown key and a wrong type are errors that name file, line and column; a value out of range names file and key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use crate::acme::ChallengeMethod;

/// What the control plane was told, checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The data folder, 0700; holds `portico.db`.
    pub data: PathBuf,
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
    pub preflight: PreflightConfig,
    #[serde(default, rename = "issuer")]
    pub issuers: Vec<IssuerConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsConfig {
    /// Absent: the system's `resolv.conf`.
    #[serde(default)]
    pub resolvers: Vec<SocketAddr>,
    /// Own authoritative DNS for `challenge_zone`; absent: off.
    pub responder: Option<SocketAddr>,
    /// `_acme-challenge.<host>` CNAME `<label>.<challenge_zone>`
    pub challenge_zone: Option<String>,
    /// `<host>` CNAME `<label>.<cname_zone>`: proof and traffic at once.
    pub cname_zone: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetConfig {
    /// What tenants' names should resolve to. No connect on a tenant's behalf reaches them.
    pub public_addresses: Vec<std::net::IpAddr>,
    pub http_port: u16,
    pub https_port: u16,
    pub unknown_sni: UnknownSni,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownSni {
    #[default]
    Refuse,
    Default,
}

/// Ranges that the control plane's own checks may reach although the guard refuses them.
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
pub struct PreflightConfig {
    pub enabled: bool,
}

/// One CA account configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    pub name: String,
    pub directory: String,
    /// A further trust anchor for the CA's API; absent: the system's roots.
    pub root_pem: Option<PathBuf>,
    pub contact: Option<String>,
    /// Trust anchors for issued chains; absent: the system's roots.
    pub roots_pem: Option<PathBuf>,
    #[serde(default)]
    pub serialize_orders: bool,
    /// In the order of preference.
    #[serde(default = "challenges_default")]
    pub challenges: Vec<ChallengeMethod>,
    #[serde(default = "poll_ms_default")]
    pub poll_ms: u64,
    #[serde(default = "names_per_certificate_default")]
    pub names_per_certificate_max: usize,
    /// The CA's published limits, which our own ledger keeps; absent: Let's Encrypt's.
    #[serde(default)]
    pub limits: crate::plan::ledger::Limits,
    /// Requests per second to the CA, all kinds.
    #[serde(default = "requests_per_second_default")]
    pub requests_per_second: u32,
    /// Of them, newNonce.
    #[serde(default = "nonces_per_second_default")]
    pub nonces_per_second: u32,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration {path} cannot be read")]
    Read { path: PathBuf, source: std::io::Error },
    /// `at` is `line:column`, both from 1.
    #[error("{path}:{at}: {message}")]
    Text { path: PathBuf, at: String, message: String },
    #[error("{path}: {message}")]
    Value { path: PathBuf, message: String },
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`ConfigError`], which names the file and, for faults of the text, line and column.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks `text`; `path` is for the errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Text {
            path: path.to_owned(),
            at: position(text, error.span().map_or(0, |span| span.start)),
            message: with_example(error.message().trim()),
        })?;
        config.check().map_err(|message| ConfigError::Value { path: path.to_owned(), message })?;
        Ok(config)
    }

    /// Reads the files that the start needs and does not make, so that `--check` refuses what the start refuses.
    ///
    /// # Errors
    /// The issuer and the file that cannot be read.
    pub fn check_files(&self) -> Result<(), String> {
        for issuer in &self.issuers {
            for (key, file) in [("root_pem", &issuer.root_pem), ("roots_pem", &issuer.roots_pem)] {
                if let Some((file, error)) =
                    file.as_ref().and_then(|file| Some((file, std::fs::read(file).err()?)))
                {
                    return Err(format!(
                        "issuer \"{}\": {key} = \"{}\": {error}",
                        issuer.name,
                        file.display()
                    ));
                }
            }
        }
        Ok(())
    }

    /// # Errors
    /// A text that names the key, what is wrong with its value and what to write instead.
    pub fn check(&self) -> Result<(), String> {
        if !self.api.ip().is_loopback() {
            return Err(format!(
                "api = \"{}\" is not a loopback address; the API is plain HTTP: bind 127.0.0.1 or [::1] and put a \
                 TLS proxy before it",
                self.api
            ));
        }
        if self.api == self.distribution && self.api.port() != 0 {
            return Err(format!("api and distribution are both \"{}\"; give each its own port", self.api));
        }
        if let Some(key) = self.key_encryption_key_file.as_deref().filter(|key| key.starts_with(&self.data)) {
            return Err(format!(
                "key_encryption_key_file = \"{}\" is inside data = \"{}\"; keep the key apart from what it seals",
                key.display(),
                self.data.display()
            ));
        }
        if !(0.1..=0.95).contains(&self.renewal.share) {
            return Err(format!("renewal.share = {} must be from 0.1 to 0.95", self.renewal.share));
        }
        if self.fleet.unknown_sni == UnknownSni::Default {
            return Err(
                "fleet.unknown_sni = \"default\" needs a default certificate, and a fleet has no way to \
                 choose one yet: leave it at \"refuse\""
                    .to_owned(),
            );
        }
        if self.dns.responder.is_some() && self.dns.challenge_zone.is_none() {
            return Err(
                "dns.responder is set without dns.challenge_zone: name the zone that it answers".to_owned()
            );
        }
        for (key, zone) in
            [("challenge_zone", &self.dns.challenge_zone), ("cname_zone", &self.dns.cname_zone)]
        {
            let wrong = zone.as_deref().and_then(|zone| portico_cert_store::DomainName::parse(zone).err());
            if let Some(error) = wrong {
                return Err(format!("dns.{key}: {error}"));
            }
        }
        if self.dns.challenge_zone.is_some() && self.dns.challenge_zone == self.dns.cname_zone {
            return Err("dns.challenge_zone and dns.cname_zone must be two zones".to_owned());
        }
        let mut names: Vec<&str> = self.issuers.iter().map(|issuer| issuer.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("two issuers are named \"{}\"", pair[0]));
        }
        self.issuers.iter().try_for_each(IssuerConfig::check)
    }
}

impl IssuerConfig {
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if !self.directory.starts_with("https://") {
            return Err(format!("issuer \"{name}\": directory must be an https:// URL"));
        }
        if let Some(contact) = self.contact.as_deref().filter(|contact| !contact.starts_with("mailto:")) {
            return Err(format!(
                "issuer \"{name}\": contact = \"{contact}\" must begin with mailto:, as mailto:ops@provider.example"
            ));
        }
        if self.challenges.is_empty() {
            return Err(format!("issuer \"{name}\": challenges must name at least one kind"));
        }
        if !(1..=100).contains(&self.names_per_certificate_max) {
            return Err(format!("issuer \"{name}\": names_per_certificate_max must be from 1 to 100"));
        }
        if !(10..=60_000).contains(&self.poll_ms) {
            return Err(format!("issuer \"{name}\": poll_ms must be from 10 to 60000"));
        }
        if self.requests_per_second == 0 || self.nonces_per_second == 0 {
            return Err(format!(
                "issuer \"{name}\": requests_per_second and nonces_per_second must be above 0"
            ));
        }
        Ok(())
    }
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self { public_addresses: Vec::new(), http_port: 80, https_port: 443, unknown_sni: UnknownSni::Refuse }
    }
}

impl Default for RenewalConfig {
    fn default() -> Self {
        Self { share: 0.667 }
    }
}

impl Default for PreflightConfig {
    fn default() -> Self {
        Self { enabled: true }
    }
}

fn challenges_default() -> Vec<ChallengeMethod> {
    vec![ChallengeMethod::Http01, ChallengeMethod::TlsAlpn01, ChallengeMethod::Dns01]
}

fn poll_ms_default() -> u64 {
    1000
}

/// 80 % of the 250 below /acme/ that Let's Encrypt allows one address.
fn requests_per_second_default() -> u32 {
    200
}

/// 80 % of the 20 that Let's Encrypt allows one address.
fn nonces_per_second_default() -> u32 {
    16
}

fn names_per_certificate_default() -> usize {
    25
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
             [fleet]\npublic_addresses = [\"127.0.0.11\"]\nunknown_sni = \"refuse\"\n\
             [egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [8080] }}]\n\
             [[issuer]]\nname = \"test\"\ndirectory = \"https://127.0.0.1:14000/dir\"\nchallenges = [\"dns-01\"]\n"
        ))
        .unwrap();
        assert_eq!(full.issuers[0].challenges, [ChallengeMethod::Dns01]);
        assert_eq!(full.fleet.unknown_sni, UnknownSni::Refuse);
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
    fn values_out_of_range_are_named() {
        for (more, part) in [
            ("[renewal]\nshare = 1.5\n", "renewal.share"),
            ("[fleet]\nunknown_sni = \"default\"\n", "no way to choose one yet"),
            ("[dns]\nresponder = \"127.0.0.1:53\"\n", "challenge_zone"),
            ("[dns]\ncname_zone = \"not a zone\"\n", "dns.cname_zone"),
            ("[[issuer]]\nname = \"a\"\ndirectory = \"http://x\"\n", "https://"),
            ("[[issuer]]\nname = \"a\"\ndirectory = \"https://x\"\ncontact = \"a@b\"\n", "mailto:"),
            ("key_encryption_key_file = \"/d/kek\"\n", "apart from what it seals"),
        ] {
            let error = parse(&format!("{SMALL}{more}")).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
