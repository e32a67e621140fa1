//! Where a proxied request goes: parsed once at the border.

use std::net::IpAddr;

use http::HeaderValue;
use http::uri::Authority;

use super::Fault;
use super::route::parse_url;

/// Where a request is sent on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub scheme: OriginScheme,
    pub host: OriginHost,
    pub port: u16,
    /// Sent as Host; absent: the request's own authority.
    pub host_header: Option<HeaderValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OriginScheme {
    Http,
    Https,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OriginHost {
    /// Lower case A-labels, without a trailing dot; may be one label.
    Name(Box<str>),
    Address(IpAddr),
}

impl Origin {
    /// Reads `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    /// A [`Fault`] if there is anything else, such as a path or credentials, or the Host header is not an authority.
    pub fn parse(text: &str, host_header: Option<&str>) -> Result<Self, Fault> {
        let bad =
            |why: &str| Fault::new("BadOrigin", format!("origin `{:.200}`: {why}", text.escape_debug()));
        let url = parse_url(text).ok_or_else(|| bad("not a URL such as https://origin.example:8443"))?;
        let scheme = match url.scheme() {
            "http" => OriginScheme::Http,
            "https" => OriginScheme::Https,
            _ => return Err(bad("only http and https are spoken")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("credentials do not belong in an origin"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("an origin has no path; the request's own is kept"));
        }
        let host = match url.host() {
            Some(url::Host::Domain(name)) => {
                OriginHost::Name(parse_origin_name(name).ok_or_else(|| bad("not a host name"))?)
            }
            Some(url::Host::Ipv4(address)) => OriginHost::Address(address.into()),
            Some(url::Host::Ipv6(address)) => OriginHost::Address(address.into()),
            None => return Err(bad("no host")),
        };
        let port = url.port_or_known_default().filter(|port| *port != 0).ok_or_else(|| bad("no port"))?;
        let host_header = match host_header {
            Some(text) => {
                Some(parse_authority(text).ok_or_else(|| bad("the Host header is not an authority"))?)
            }
            None => None,
        };
        Ok(Self { scheme, host, port, host_header })
    }
}

fn parse_origin_name(name: &str) -> Option<Box<str>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (name.len() <= 253 && name.split('.').all(label_fits)).then(|| name.to_ascii_lowercase().into())
}

fn parse_authority(text: &str) -> Option<HeaderValue> {
    let authority: Authority = text.parse().ok()?;
    let plain = !text.contains('@') && !authority.host().is_empty() && text.len() <= 300;
    if plain { HeaderValue::from_str(text).ok() } else { None }
}
