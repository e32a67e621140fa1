//! The sections of a standalone edge: certificates from files, routes, and what origins may be reached.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use http::{StatusCode, uri::PathAndQuery};
use ipnet::IpNet;
use portico_api::{distribution as wire, v1};
use portico_cert_store::NamePattern;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, RawConfig, Source};
use crate::{
    limits,
    live::{Redirect, Upstream},
};

#[derive(Debug, Clone, Default)]
pub struct StandaloneConfig {
    pub unknown_sni: UnknownSniChoice,
    pub certificates: CertificateFiles,
    pub routes: Vec<RouteConfig>,
    pub egress: Vec<EgressAllow>,
}

/// What a client gets that names a host without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownSniChoice {
    /// The alert `unrecognized_name`.
    #[default]
    Refuse,
    /// The default certificate, and 421 for every request.
    Default,
}

/// Where PEM files are: each holds a chain, and its key in the same file or beside it as `<stem>.key`.
#[derive(Debug, Clone, Default)]
pub struct CertificateFiles {
    pub folder: Option<PathBuf>,
    /// One path a line, or two: chain and key. `#` begins a comment.
    pub list_file: Option<PathBuf>,
    pub default: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// `None`: every name of every certificate (`host = "*"`).
    pub host: Option<NamePattern>,
    pub path: String,
    pub action: RouteAction,
    /// Seconds of Strict-Transport-Security for the host; 0: none.
    pub hsts_max_age_seconds: u32,
    /// Port 80 answers this route itself instead of pointing to https.
    pub plain_http: bool,
}

#[derive(Debug, Clone)]
pub enum RouteAction {
    Proxy(Arc<Upstream>),
    Redirect { location: String, status: StatusCode, keep_path: bool },
    Static { status: StatusCode, content_type: String, body: Vec<u8> },
}

/// A range that origins may be in although the egress guard refuses it otherwise.
#[derive(Debug, Clone)]
pub struct EgressAllow {
    pub net: IpNet,
    pub ports: Vec<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStandalone {
    unknown_sni: Option<UnknownSniChoice>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCertificates {
    folder: Option<PathBuf>,
    list_file: Option<PathBuf>,
    default: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    host: Spanned<String>,
    path: Option<Spanned<String>>,
    proxy: Option<Spanned<RawProxy>>,
    host_header: Option<String>,
    #[serde(default)]
    protocol: v1::OriginProtocol,
    server_name: Option<String>,
    ca_file: Option<Spanned<PathBuf>>,
    health_check: Option<v1::HealthCheck>,
    timeouts: Option<v1::ProxyTimeouts>,
    breaker: Option<v1::CircuitBreaker>,
    redirect: Option<Spanned<String>>,
    status: Option<Spanned<u16>>,
    #[serde(default)]
    keep_path: bool,
    static_file: Option<Spanned<PathBuf>>,
    static_body: Option<Spanned<String>>,
    content_type: Option<String>,
    #[serde(default)]
    hsts_max_age_seconds: u32,
    #[serde(default)]
    plain_http: bool,
}

/// One origin, or several, each with a weight or without.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected an origin's URL, or a list of them")]
enum RawProxy {
    One(String),
    Several(Vec<RawOrigin>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected an origin's URL, or { url = \"http://..\", weight = 1 }")]
enum RawOrigin {
    Url(String),
    Weighted(v1::WeightedOrigin),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEgress {
    #[serde(default)]
    allow: Vec<RawAllow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAllow {
    cidr: Spanned<String>,
    ports: Vec<u16>,
}

pub(super) fn check(source: Source<'_>, raw: &RawConfig) -> Result<StandaloneConfig, ConfigError> {
    let files = raw.certificates.as_ref().map(Spanned::get_ref);
    let path = |path: Option<&PathBuf>| path.map(|path| source.resolve(path));
    let certificates = CertificateFiles {
        folder: path(files.and_then(|files| files.folder.as_ref())),
        list_file: path(files.and_then(|files| files.list_file.as_ref())),
        default: path(files.and_then(|files| files.default.as_ref())),
    };
    let unknown_sni =
        raw.standalone.as_ref().and_then(|section| section.get_ref().unknown_sni).unwrap_or_default();
    if unknown_sni == UnknownSniChoice::Default && certificates.default.is_none() {
        return Err(source.error(
            raw.standalone.as_ref().map(Spanned::span),
            "unknown_sni = \"default\" needs a default certificate: set default = \"file.pem\" in [certificates]"
                .into(),
        ));
    }
    let allow = raw.egress.as_ref().map_or(&[][..], |section| &section.get_ref().allow);
    Ok(StandaloneConfig {
        unknown_sni,
        certificates,
        routes: routes(source, raw)?,
        egress: allow.iter().map(|raw| egress(source, raw)).collect::<Result<_, _>>()?,
    })
}

/// Of two routes for one host and path the second would never be asked, so it is a fault.
fn routes(source: Source<'_>, raw: &RawConfig) -> Result<Vec<RouteConfig>, ConfigError> {
    let mut routes: Vec<RouteConfig> = Vec::with_capacity(raw.route.len());
    let mut seen = HashSet::with_capacity(raw.route.len());
    for spanned in &raw.route {
        let route = route(source, spanned)?;
        if !seen.insert((route.host.clone(), route.path.clone())) {
            let host = &spanned.get_ref().host;
            let problem = format!("{} has a route for {} already; remove one", host.get_ref(), route.path);
            return Err(source.error(Some(host.span()), problem));
        }
        routes.push(route);
    }
    Ok(routes)
}

fn route(source: Source<'_>, spanned: &Spanned<RawRoute>) -> Result<RouteConfig, ConfigError> {
    let raw = spanned.get_ref();
    let host = match raw.host.get_ref().as_str() {
        "*" => None,
        text => Some(
            NamePattern::parse(text)
                .map_err(|error| source.error(Some(raw.host.span()), error.to_string()))?,
        ),
    };
    let path = raw.path.as_ref().map_or("/", |path| path.get_ref().as_str());
    if !path.starts_with('/') || path.parse::<PathAndQuery>().map_or(true, |parsed| parsed.query().is_some())
    {
        return Err(source.error(
            raw.path.as_ref().map(Spanned::span),
            format!("{path:?} is not a path prefix; it begins with / and has no query"),
        ));
    }
    Ok(RouteConfig {
        host,
        path: path.to_owned(),
        action: action(source, spanned)?,
        hsts_max_age_seconds: raw.hsts_max_age_seconds,
        plain_http: raw.plain_http,
    })
}

fn action(source: Source<'_>, spanned: &Spanned<RawRoute>) -> Result<RouteAction, ConfigError> {
    let raw = spanned.get_ref();
    match (&raw.proxy, &raw.redirect, &raw.static_file, &raw.static_body) {
        (Some(proxy), None, None, None) => {
            let upstream = Upstream::parse(&wire_proxy(source, raw, proxy.get_ref())?)
                .map_err(|fault| source.error(Some(proxy.span()), fault.to_string()))?;
            Ok(RouteAction::Proxy(Arc::new(upstream)))
        }
        (None, Some(location), None, None) => {
            let status = status(source, raw.status.as_ref(), StatusCode::FOUND, 300..=399)?;
            Redirect::parse(location.get_ref(), u32::from(status.as_u16()), raw.keep_path)
                .map_err(|fault| source.error(Some(location.span()), fault.to_string()))?;
            Ok(RouteAction::Redirect {
                location: location.get_ref().clone(),
                status,
                keep_path: raw.keep_path,
            })
        }
        (None, None, Some(file), None) => {
            let path = source.resolve(file.get_ref());
            let body = read_body(&path).map_err(|problem| {
                source.error(Some(file.span()), format!("static_file {}: {problem}", path.display()))
            })?;
            fixed(source, raw, body)
        }
        (None, None, None, Some(body)) => fixed(source, raw, body.get_ref().clone().into_bytes()),
        _ => Err(source.error(
            Some(spanned.span()),
            "a route needs exactly one of proxy, redirect, static_file, static_body".into(),
        )),
    }
}

/// The route as the control plane would send it, so that there is one reader of what it may say.
fn wire_proxy(source: Source<'_>, raw: &RawRoute, proxy: &RawProxy) -> Result<wire::Proxy, ConfigError> {
    let weighted = |url: &String, weight| wire::WeightedOrigin { url: url.clone(), weight };
    let origins = match proxy {
        RawProxy::One(url) => vec![weighted(url, 1)],
        RawProxy::Several(list) => list
            .iter()
            .map(|origin| match origin {
                RawOrigin::Url(url) => weighted(url, 1),
                RawOrigin::Weighted(origin) => weighted(&origin.url, origin.weight),
            })
            .collect(),
    };
    let timeouts = raw.timeouts.clone().unwrap_or_default();
    Ok(wire::Proxy {
        origin: origins.first().map(|origin| origin.url.clone()).unwrap_or_default(),
        host_header: raw.host_header.clone().unwrap_or_default(),
        origins,
        protocol: match raw.protocol {
            v1::OriginProtocol::Auto => wire::OriginProtocol::Auto,
            v1::OriginProtocol::Http1 => wire::OriginProtocol::Http1,
            v1::OriginProtocol::Http2 => wire::OriginProtocol::Http2,
        }
        .into(),
        tls_server_name: raw.server_name.clone().unwrap_or_default(),
        tls_ca_der: raw
            .ca_file
            .as_ref()
            .map(|file| authorities(source, file))
            .transpose()?
            .unwrap_or_default(),
        health_check: raw.health_check.as_ref().map(|check| wire::HealthCheck {
            path: check.path.clone(),
            interval_seconds: check.interval_seconds,
            healthy_after: check.healthy_after,
            unhealthy_after: check.unhealthy_after,
        }),
        connect_timeout_ms: timeouts.connect_ms.unwrap_or_default(),
        first_byte_timeout_ms: timeouts.first_byte_ms.unwrap_or_default(),
        idle_timeout_ms: timeouts.idle_ms.unwrap_or_default(),
        in_flight_max: raw.breaker.as_ref().map(|breaker| breaker.in_flight_max).unwrap_or_default(),
        pending_max: raw.breaker.as_ref().map(|breaker| breaker.pending_max).unwrap_or_default(),
    })
}

fn authorities(source: Source<'_>, file: &Spanned<PathBuf>) -> Result<Vec<bytes::Bytes>, ConfigError> {
    let path = source.resolve(file.get_ref());
    let wrong =
        |problem: String| source.error(Some(file.span()), format!("ca_file {}: {problem}", path.display()));
    let size = std::fs::metadata(&path).map_err(|error| wrong(error.to_string()))?.len();
    if size > limits::CERTIFICATE_FILE_BYTES_MAX {
        return Err(wrong(format!("{size} bytes; at most {}", limits::CERTIFICATE_FILE_BYTES_MAX)));
    }
    let pem = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| wrong(format!("is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(found.into_iter().map(|certificate| certificate.to_vec().into()).collect())
}

fn fixed(source: Source<'_>, raw: &RawRoute, body: Vec<u8>) -> Result<RouteAction, ConfigError> {
    Ok(RouteAction::Static {
        status: status(source, raw.status.as_ref(), StatusCode::OK, 200..=599)?,
        content_type: raw.content_type.clone().unwrap_or_else(|| "text/html; charset=utf-8".to_owned()),
        body,
    })
}

fn read_body(path: &std::path::Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > limits::STATIC_BODY_BYTES_MAX {
        return Err(format!(
            "{size} bytes; a static body has at most {} bytes",
            limits::STATIC_BODY_BYTES_MAX
        ));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

fn status(
    source: Source<'_>,
    raw: Option<&Spanned<u16>>,
    default: StatusCode,
    allowed: std::ops::RangeInclusive<u16>,
) -> Result<StatusCode, ConfigError> {
    let Some(raw) = raw else { return Ok(default) };
    let status = Some(*raw.get_ref()).filter(|status| allowed.contains(status));
    status.and_then(|status| StatusCode::from_u16(status).ok()).ok_or_else(|| {
        source.error(
            Some(raw.span()),
            format!(
                "status {} does not fit here; use {} to {}",
                raw.get_ref(),
                allowed.start(),
                allowed.end()
            ),
        )
    })
}

fn egress(source: Source<'_>, raw: &RawAllow) -> Result<EgressAllow, ConfigError> {
    let text = raw.cidr.get_ref();
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)).map_err(
        |_| {
            source.error(
                Some(raw.cidr.span()),
                format!("{text:?} is not an address range such as \"10.0.0.0/8\""),
            )
        },
    )?;
    if raw.ports.is_empty() {
        return Err(source.error(
            Some(raw.cidr.span()),
            "a grant without ports grants nothing; list them, for example ports = [8080]".into(),
        ));
    }
    Ok(EgressAllow { net, ports: raw.ports.clone() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Mode};

    fn parse(sections: &str) -> Result<Config, String> {
        let text = format!("[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n{sections}");
        Config::parse(Path::new("/srv/edge.toml"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_whole_standalone_file_is_read() {
        let config = parse(
            "[certificates]\nfolder = \"certs\"\n[[route]]\nhost = \"*.example.org\"\nproxy = \"http://127.0.0.1:8081\"\n\
             [[route]]\nhost = \"*\"\npath = \"/old\"\nredirect = \"https://new.example/\"\nstatus = 308\nkeep_path = true\n\
             [egress]\nallow = [{ cidr = \"127.0.0.0/8\", ports = [8081] }]\n",
        )
        .expect("the file is right");
        let Mode::Standalone(standalone) = config.mode else { panic!("not standalone") };
        assert_eq!(standalone.certificates.folder.as_deref(), Some(Path::new("/srv/certs")));
        assert_eq!(standalone.routes.len(), 2);
        assert!(standalone.routes[1].host.is_none());
    }

    #[test]
    fn each_wrong_route_is_pointed_at() {
        let table = [
            ("[[route]]\nhost = \"shop.example\"\n", "4:1", "exactly one of"),
            ("[[route]]\nhost = \"10.0.0.1\"\nstatic_body = \"x\"\n", "5:8", ""),
            ("[[route]]\nhost = \"*.com\"\nstatic_body = \"x\"\n", "5:8", ""),
            ("[[route]]\nhost = \"a.example\"\npath = \"x\"\nstatic_body = \"x\"\n", "6:8", "begins with /"),
            (
                "[[route]]\nhost = \"a.example\"\nredirect = \"https://b\"\nstatus = 200\n",
                "7:10",
                "300 to 399",
            ),
            ("[[route]]\nhost = \"a.example\"\nstatic_file = \"nowhere\"\n", "6:15", "nowhere"),
            ("[[route]]\nhost = \"a.example\"\nproxy = \"nowhere\"\n", "6:9", "not a URL"),
            ("[[route]]\nhost = \"a.example\"\nredirect = \"nowhere\"\n", "6:12", "absolute URL"),
            (
                "[[route]]\nhost = \"a.example\"\nstatic_body = \"x\"\n[[route]]\nhost = \"A.example\"\n\
                 static_body = \"y\"\n",
                "8:8",
                "already",
            ),
            ("[egress]\nallow = [{ cidr = \"ten\", ports = [1] }]\n", "5:19", "10.0.0.0/8"),
            ("[egress]\nallow = [{ cidr = \"10.0.0.0/8\", ports = [] }]\n", "5:19", "grants nothing"),
            ("[standalone]\nunknown_sni = \"default\"\n", "4:1", "default certificate"),
        ];
        for (text, place, hint) in table {
            let error = parse(text).expect_err("the text is wrong");
            assert!(error.contains(&format!("/srv/edge.toml:{place}: ")), "{text:?} gave {error:?}");
            assert!(error.contains(hint), "{text:?} gave {error:?}");
        }
    }
}
