//! `[[issuer]]`: the CAs, each with how we are known there and what it allows.

use std::path::PathBuf;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use portico_cert_store::DomainName;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::acme::ChallengeMethod;
use crate::plan::ledger::{Limits, LimitsConfig, Rate};
use crate::secret_file;

/// Names that an issuer may have in CAA records; CAs have one, some a few.
const CAA_MAX: usize = 8;
/// Bytes of an external account's secret. CAs give out 32 or 64; less than 16 is no secret.
const HMAC_KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=256;

/// One CA account configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    pub name: String,
    /// A CA whose address and name in CAA records are known; instead of `directory`.
    preset: Option<Preset>,
    /// URL of the ACME directory; after the configuration is read never empty.
    #[serde(default)]
    pub directory: String,
    /// What the CA calls itself in CAA records; empty: what its directory says.
    #[serde(default)]
    pub caa: Vec<String>,
    /// Whether tenants that name no issuer of their own get certificates of this one, in the order of the file.
    #[serde(default = "yes")]
    pub by_default: bool,
    /// For CAs that bind an ACME account to one that was made elsewhere.
    pub external_account: Option<ExternalAccountConfig>,
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
    /// One of the CA's certificate profiles, as `tlsserver`; absent: the CA's default.
    pub profile: Option<String>,
    /// The CA's limits, which our own ledger keeps; absent: Let's Encrypt's.
    #[serde(default)]
    limits: LimitsConfig,
    /// Requests per second to the CA, all kinds.
    #[serde(default = "requests_per_second_default")]
    pub requests_per_second: u32,
    /// Of them, newNonce.
    #[serde(default = "nonces_per_second_default")]
    pub nonces_per_second: u32,
}

/// A CA that needs no further words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Preset {
    #[serde(rename = "letsencrypt")]
    LetsEncrypt,
    /// Its certificates lead to a root that no system trusts: `roots_pem` has to name it.
    #[serde(rename = "letsencrypt-staging")]
    LetsEncryptStaging,
}

/// External account binding (RFC 8555 section 7.3.4). The secret is not in the configuration but in a file of its own. It is
/// stored, sealed, before the CA hears of it; then the file is no longer needed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccountConfig {
    /// As the CA gave it.
    pub key_id: String,
    /// 0600: the secret as the CA gave it, base64url.
    pub hmac_key_file: PathBuf,
}

impl Preset {
    fn directory(self) -> &'static str {
        match self {
            Self::LetsEncrypt => "https://acme-v02.api.letsencrypt.org/directory",
            Self::LetsEncryptStaging => "https://acme-staging-v02.api.letsencrypt.org/directory",
        }
    }
}

impl IssuerConfig {
    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.limits.limits(&self.directory)
    }

    /// The limits in force if the account had other orders.
    pub fn limits_with(&self, orders: Rate) -> Limits {
        self.limits.with_orders(orders).limits(&self.directory)
    }

    /// Puts in what a preset stands for. The faulty key and what is wrong with it.
    pub(super) fn complete(&mut self) -> Result<(), (String, String)> {
        let fault = |key: &str, message: &str| Err((key.to_owned(), message.to_owned()));
        match (self.preset, self.directory.is_empty()) {
            (Some(_), false) => fault("preset", "preset and directory exclude each other; keep one"),
            (None, true) => fault(
                "directory",
                "write directory = \"https://..\", the URL of the CA's ACME directory, or preset = \"letsencrypt\"",
            ),
            (None, false) => Ok(()),
            (Some(preset), true) => {
                preset.directory().clone_into(&mut self.directory);
                if self.caa.is_empty() {
                    self.caa.push("letsencrypt.org".to_owned());
                }
                Ok(())
            }
        }
    }

    /// What works, and is hardly what somebody wants.
    pub(super) fn warning(&self) -> Option<String> {
        let external = self.external_account.as_ref().filter(|external| !external.hmac_key_file.exists());
        if let Some(external) = external {
            return Some(format!(
                "issuer \"{}\": {} is not there: right once the account is registered, else put the secret there",
                self.name,
                external.hmac_key_file.display()
            ));
        }
        (self.preset == Some(Preset::LetsEncryptStaging) && self.roots_pem.is_none()).then(|| {
            format!(
                "issuer \"{}\": no system trusts the roots of Let's Encrypt's staging; without roots_pem its certificates \
                 are refused, unless you have added them to the system's",
                self.name
            )
        })
    }

    /// The faulty key, and what is wrong with its value.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        self.check_values().map_err(|(key, message)| (key.to_owned(), message))?;
        self.limits.check()
    }

    fn check_values(&self) -> Result<(), (&'static str, String)> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=64).contains(&self.name.len()) || !self.name.bytes().all(is_word) {
            let message = "name must be 1 to 64 of a-z, A-Z, 0-9, `.`, `_` and `-`".to_owned();
            return Err(("name", message));
        }
        if !self.directory.starts_with("https://") {
            return Err(("directory", "directory must be an https:// URL".to_owned()));
        }
        if self.caa.len() > CAA_MAX {
            return Err(("caa", format!("caa must be at most {CAA_MAX} names")));
        }
        if let Some(wrong) = self.caa.iter().find(|name| DomainName::parse(name).is_err()) {
            let message = format!("caa: \"{wrong}\" is no domain name; write caa = [\"letsencrypt.org\"]");
            return Err(("caa", message));
        }
        if let Some(external) = &self.external_account
            && (external.key_id.is_empty() || !external.key_id.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            let message = "external_account.key_id must be the key id that the CA gave, without spaces";
            return Err(("external_account.key_id", message.to_owned()));
        }
        if let Some(contact) = self.contact.as_deref().filter(|contact| !contact.starts_with("mailto:")) {
            let message =
                format!("contact = \"{contact}\" must begin with mailto:, as mailto:ops@provider.example");
            return Err(("contact", message));
        }
        if self.challenges.is_empty() {
            return Err(("challenges", "challenges must name at least one kind".to_owned()));
        }
        if !(1..=100).contains(&self.names_per_certificate_max) {
            let message = "names_per_certificate_max must be from 1 to 100".to_owned();
            return Err(("names_per_certificate_max", message));
        }
        if let Some(profile) = &self.profile
            && !(1..=64).contains(&profile.len())
        {
            return Err(("profile", "profile must be a name of 1 to 64 bytes, as tlsserver".to_owned()));
        }
        self.check_rates()
    }

    fn check_rates(&self) -> Result<(), (&'static str, String)> {
        if !(10..=60_000).contains(&self.poll_ms) {
            return Err(("poll_ms", "poll_ms must be from 10 to 60000".to_owned()));
        }
        let rates = [
            ("requests_per_second", self.requests_per_second),
            ("nonces_per_second", self.nonces_per_second),
        ];
        match rates.into_iter().find(|(_, rate)| *rate == 0) {
            Some((key, _)) => Err((key, format!("{key} must be above 0"))),
            None => Ok(()),
        }
    }
}

impl ExternalAccountConfig {
    /// The secret in its file.
    ///
    /// # Errors
    /// What is wrong with the file; never its content.
    pub(crate) fn read_secret(&self) -> Result<Zeroizing<Vec<u8>>, String> {
        let path = &self.hmac_key_file;
        let shown = path.display();
        let text = secret_file::read_text(path).map_err(|error| error.to_string())?;
        let secret =
            BASE64_URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('=')).ok().map(Zeroizing::new);
        secret.filter(|secret| HMAC_KEY_BYTES.contains(&secret.len())).ok_or_else(|| {
            format!(
                "{shown} must hold the secret as the CA gave it: base64url of {} to {} bytes",
                HMAC_KEY_BYTES.start(),
                HMAC_KEY_BYTES.end()
            )
        })
    }
}

fn yes() -> bool {
    true
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn completed(text: &str) -> Result<IssuerConfig, (String, String)> {
        let mut issuer: IssuerConfig = toml::from_str(text).unwrap();
        issuer.complete()?;
        issuer.check()?;
        Ok(issuer)
    }

    #[test]
    fn a_preset_stands_for_directory_caa_and_limits() {
        let production = completed("name = \"le\"\npreset = \"letsencrypt\"").unwrap();
        assert_eq!(production.directory, "https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!(
            (production.caa.as_slice(), production.by_default),
            (&["letsencrypt.org".to_owned()][..], true)
        );
        assert_eq!((production.limits().orders.count, production.warning()), (300, None));
        let staging = completed("name = \"le\"\npreset = \"letsencrypt-staging\"").unwrap();
        assert_eq!(staging.limits().orders.count, 1500);
        assert!(staging.warning().unwrap().contains("roots_pem"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, key, words) in [
            ("preset = \"letsencrypt\"\ndirectory = \"https://x\"", "preset", "exclude each other"),
            ("", "directory", "preset = \"letsencrypt\""),
            ("directory = \"https://x\"\ncaa = [\"not a name\"]", "caa", "no domain name"),
            (
                "directory = \"https://x\"\nexternal_account = { key_id = \"a b\", hmac_key_file = \"/f\" }",
                "external_account.key_id",
                "without spaces",
            ),
        ] {
            let (found, message) = completed(&format!("name = \"a\"\n{text}")).unwrap_err();
            assert!(found == key && message.contains(words), "{found}: {message}");
        }
        let names: Vec<String> = (0..=CAA_MAX).map(|n| format!("\"ca{n}.test\"")).collect();
        let many = format!("name = \"a\"\ndirectory = \"https://x\"\ncaa = [{}]", names.join(","));
        assert_eq!(completed(&many).unwrap_err().0, "caa");
    }

    #[test]
    fn the_secret_of_an_external_account_is_read_from_a_private_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hmac");
        let external = ExternalAccountConfig { key_id: "kid".to_owned(), hmac_key_file: file.clone() };
        assert!(external.read_secret().unwrap_err().contains("No such file"));
        let secret = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
        let set_mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        for (content, mode, found) in [
            (format!("{secret}\n"), 0o644, Err("must be 0600")),
            (format!("{secret}\n"), 0o600, Ok(vec![7; 32])),
            (format!("{secret}="), 0o600, Ok(vec![7; 32])),
            ("c2hvcnQ".to_owned(), 0o600, Err("16 to 256 bytes")),
            (BASE64_URL_SAFE_NO_PAD.encode([7; 257]), 0o600, Err("16 to 256 bytes")),
            ("no secret!".to_owned(), 0o600, Err("as the CA gave it")),
        ] {
            fs::write(&file, &content).unwrap();
            set_mode(mode);
            match (external.read_secret(), found) {
                (Ok(read), Ok(expected)) => assert_eq!(*read, expected),
                (Err(error), Err(words)) => {
                    assert!(error.contains(words) && !error.contains(content.trim()), "{error}");
                }
                (read, _) => panic!("{content}: {:?}", read.map(|_| ())),
            }
        }
    }
}
