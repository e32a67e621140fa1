//! The `[[tls]]` sections of a standalone edge: how its names may be spoken to.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use portico_api::v1::ClientCertificateMode;
use portico_cert_store::{ClientAuthorities, NamePattern, TlsPolicy, TlsVersion};
use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::{limits, live::ClientAuth};

#[derive(Debug, Clone)]
pub struct TlsSection {
    /// `None`: every name that no other section is for (`host = "*"`).
    pub host: Option<NamePattern>,
    pub policy: TlsPolicy,
    pub client_auth: Option<Arc<ClientAuth>>,
    /// Safe requests are taken before the handshake has ended, over HTTP/3.
    pub early_data: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    host: Spanned<String>,
    #[serde(default)]
    minimum_version: TlsVersion,
    #[serde(default = "yes")]
    http2: bool,
    #[serde(default = "yes")]
    http3: bool,
    early_data: Option<Spanned<bool>>,
    client_certificates: Option<Spanned<ClientCertificateMode>>,
    client_ca_file: Option<Spanned<PathBuf>>,
}

fn yes() -> bool {
    true
}

impl TlsSection {
    /// The section for a name: its own, that of a wildcard over it, or that of `*`.
    pub fn of<'a>(sections: &'a [Self], name: &NamePattern) -> Option<&'a Self> {
        let own = sections.iter().find(|section| section.host.as_ref() == Some(name));
        let covers = |section: &&Self| section.host.as_ref().is_some_and(|host| host.covers(name));
        own.or_else(|| sections.iter().find(covers))
            .or_else(|| sections.iter().find(|section| section.host.is_none()))
    }
}

pub(super) fn check(source: Source<'_>, raw: &[Spanned<RawTls>]) -> Result<Vec<TlsSection>, ConfigError> {
    let mut seen = HashSet::new();
    let mut sections = Vec::with_capacity(raw.len());
    for spanned in raw {
        let raw = spanned.get_ref();
        let host = source.host(&raw.host)?;
        if !seen.insert(host.clone()) {
            let problem = format!("{} has a [[tls]] already; remove one", raw.host.get_ref());
            return Err(source.error(Some(raw.host.span()), problem));
        }
        let client_auth = client_auth(source, raw)?;
        let policy = TlsPolicy {
            minimum_version: raw.minimum_version,
            http2: raw.http2,
            http3: raw.http3,
            client_certificates: client_auth.as_ref().map(|auth| auth.policy()),
        };
        let early_data = early_data(source, raw)?;
        sections.push(TlsSection { host, policy, client_auth, early_data });
    }
    Ok(sections)
}

fn early_data(source: Source<'_>, raw: &RawTls) -> Result<bool, ConfigError> {
    let Some(wish) = raw.early_data.as_ref().filter(|wish| *wish.get_ref()) else { return Ok(false) };
    let problem = match (raw.http3, &raw.client_certificates) {
        (true, None) => return Ok(true),
        (false, _) => "early data comes over HTTP/3 only: remove it, or http3 = false",
        (true, Some(_)) => {
            "what comes before the end of the handshake comes before the client's certificate: remove one of them"
        }
    };
    Err(source.error(Some(wish.span()), problem.into()))
}

fn client_auth(source: Source<'_>, raw: &RawTls) -> Result<Option<Arc<ClientAuth>>, ConfigError> {
    let (mode, file) = match (&raw.client_certificates, &raw.client_ca_file) {
        (None, None) => return Ok(None),
        (Some(mode), Some(file)) => (mode, file),
        (Some(mode), None) => {
            let problem = "client certificates need authorities: add client_ca_file = \"clients.pem\"";
            return Err(source.error(Some(mode.span()), problem.into()));
        }
        (None, Some(file)) => {
            let problem =
                "nobody is asked for a certificate: add client_certificates = \"require\" or \"optional\"";
            return Err(source.error(Some(file.span()), problem.into()));
        }
    };
    let path = source.resolve(file.get_ref());
    let wrong = |problem: String| {
        source.error(Some(file.span()), format!("client_ca_file {}: {problem}", path.display()))
    };
    let size = std::fs::metadata(&path).map_err(|error| wrong(error.to_string()))?.len();
    if size > limits::CERTIFICATE_FILE_BYTES_MAX {
        return Err(wrong(format!("{size} bytes; at most {}", limits::CERTIFICATE_FILE_BYTES_MAX)));
    }
    let pem = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let authorities = ClientAuthorities::from_pem(&pem).map_err(|error| wrong(error.to_string()))?;
    let required = *mode.get_ref() == ClientCertificateMode::Require;
    ClientAuth::new(required, authorities).map(|auth| Some(Arc::new(auth))).map_err(|fault| wrong(fault.text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Mode};
    use std::path::Path;

    const HEAD: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n";

    fn parse(folder: &Path, sections: &str) -> Result<Vec<TlsSection>, String> {
        let text = format!("{HEAD}{sections}");
        match Config::parse(&folder.join("edge.toml"), &text).map_err(|error| error.to_string())?.mode {
            Mode::Standalone(standalone) => Ok(standalone.tls),
            Mode::Fleet(_) => panic!("it is a standalone file"),
        }
    }

    fn authority() -> String {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn the_nearest_section_is_for_a_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("clients.pem"), authority()).unwrap();
        let sections = parse(
            folder.path(),
            "[[tls]]\nhost = \"*\"\nhttp3 = false\n[[tls]]\nhost = \"*.a.example\"\nminimum_version = \"1.3\"\n\
             early_data = true\n[[tls]]\nhost = \"x.a.example\"\nclient_certificates = \"require\"\nclient_ca_file = \"clients.pem\"\n",
        )
        .unwrap();
        let of = |name: &str| TlsSection::of(&sections, &NamePattern::parse(name).unwrap()).unwrap();
        assert!(of("x.a.example").client_auth.as_ref().unwrap().required);
        assert!(of("x.a.example").policy.client_certificates.is_some());
        assert_eq!(of("y.a.example").policy.minimum_version, TlsVersion::Tls13);
        assert_eq!(of("*.a.example").policy.minimum_version, TlsVersion::Tls13);
        assert!(!of("b.example").policy.http3 && of("b.example").policy.http2);
        assert!(of("y.a.example").early_data && !of("x.a.example").early_data && !of("b.example").early_data);
        assert!(TlsSection::of(&sections[1..], &NamePattern::parse("b.example").unwrap()).is_none());
    }

    #[test]
    fn each_wrong_section_is_pointed_at() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("empty.pem"), "").unwrap();
        std::fs::write(folder.path().join("clients.pem"), authority()).unwrap();
        let large = " ".repeat(usize::try_from(limits::CERTIFICATE_FILE_BYTES_MAX).unwrap() + 1);
        std::fs::write(folder.path().join("large.pem"), large).unwrap();
        for (text, place, hint) in [
            ("[[tls]]\nhost = \"a..b\"\n", "5:8", "empty label"),
            ("[[tls]]\nhost = \"*\"\n[[tls]]\nhost = \"*\"\n", "7:8", "already; remove one"),
            ("[[tls]]\nhost = \"*\"\nminimum_version = \"1.1\"\n", "6:19", "1.1"),
            ("[[tls]]\nhost = \"*\"\nhttp4 = true\n", "6:1", "unknown field"),
            ("[[tls]]\nhost = \"*\"\nhttp3 = false\nearly_data = true\n", "7:14", "over HTTP/3 only"),
            (
                "[[tls]]\nhost = \"*\"\nearly_data = true\nclient_certificates = \"require\"\n\
                 client_ca_file = \"clients.pem\"\n",
                "6:14",
                "before the client's certificate",
            ),
            ("[[tls]]\nhost = \"*\"\nclient_certificates = \"maybe\"\n", "6:23", "maybe"),
            ("[[tls]]\nhost = \"*\"\nclient_certificates = \"require\"\n", "6:23", "add client_ca_file"),
            ("[[tls]]\nhost = \"*\"\nclient_ca_file = \"empty.pem\"\n", "6:18", "add client_certificates"),
            (
                "[[tls]]\nhost = \"*\"\nclient_certificates = \"optional\"\nclient_ca_file = \"empty.pem\"\n",
                "7:18",
                "holds 0 certificates",
            ),
            (
                "[[tls]]\nhost = \"*\"\nclient_certificates = \"optional\"\nclient_ca_file = \"none.pem\"\n",
                "7:18",
                "No such file",
            ),
            (
                "[[tls]]\nhost = \"*\"\nclient_certificates = \"optional\"\nclient_ca_file = \"large.pem\"\n",
                "7:18",
                "at most 262144",
            ),
            (
                "[[tls]]\nhost = \"a.example\"\nclient_certificates = \"require\"\nclient_ca_file = \"clients.pem\"\n\
                 [[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\nplain_http = true\n",
                "9:8",
                "plain_http",
            ),
        ] {
            let error = parse(folder.path(), text).expect_err("the text is wrong");
            assert!(error.contains(&format!("edge.toml:{place}: ")), "{text:?} gave {error:?}");
            assert!(error.contains(hint), "{text:?} gave {error:?}");
        }
    }
}
