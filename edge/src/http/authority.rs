//! Whose request is it? The request's own authority decides, never the connection's SNI.
//!
//! The rule (RFC 9110 section 7.4): a request is served when the certificate shown on its connection covers
//! its authority and both names have the same TLS policy, whatever the tenant. Else it is misdirected (421): browsers
//! then open a connection of its own. On the default certificate everything is misdirected. Where client certificates are
//! asked for, so is every name but the connection's own, and that one too once other certificates are asked for than this
//! connection was. The table of all cases is `tests/authority.golden`, one for all protocols.

use http::{HeaderMap, Uri, header, request::Parts, uri::Scheme};
use portico_cert_store::DomainName;

use crate::{live::Host, tls::Shown};

/// A request's authority, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    pub name: DomainName,
    pub port: Option<u16>,
}

/// Why a request has no authority that we could serve: each is a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityFault {
    Missing,
    Repeated,
    Differs,
    Malformed,
    AddressLiteral,
    ForeignPort,
    SchemeDiffers,
}

impl AuthorityFault {
    /// The log's word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "authority_missing",
            Self::Repeated => "authority_repeated",
            Self::Differs => "authority_differs",
            Self::Malformed => "authority_malformed",
            Self::AddressLiteral => "authority_address",
            Self::ForeignPort => "authority_port",
            Self::SchemeDiffers => "scheme_differs",
        }
    }
}

/// Where a request came in, as far as its authority is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Entrance {
    pub tls: bool,
    /// The client's own connection, perhaps to a proxy before us.
    pub client_tls: bool,
    pub local_port: u16,
    pub public_https_port: u16,
}

impl Authority {
    /// Reads the authority of a request on any protocol: Host, `:authority` or both (then they must agree).
    ///
    /// # Errors
    /// [`AuthorityFault`], to be answered 400.
    pub fn of(request: &Parts, entrance: Entrance) -> Result<Self, AuthorityFault> {
        check_scheme(&request.uri, entrance.tls)?;
        let host = host_header(&request.headers)?;
        let text = match (request.uri.authority(), host) {
            (None, None) => return Err(AuthorityFault::Missing),
            (None, Some(host)) => host,
            (Some(authority), None) => authority.as_str(),
            (Some(authority), Some(host)) if host.eq_ignore_ascii_case(authority.as_str()) => host,
            (Some(_), Some(_)) => return Err(AuthorityFault::Differs),
        };
        let authority = Self::parse(text)?;
        match authority.port {
            Some(port) if !entrance.knows_port(port) => Err(AuthorityFault::ForeignPort),
            _ => Ok(authority),
        }
    }

    fn parse(text: &str) -> Result<Self, AuthorityFault> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() && !text.starts_with('[') => {
                let digits_only =
                    !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
                let port = port.parse().ok().filter(|port| digits_only && *port != 0);
                (name, Some(port.ok_or(AuthorityFault::Malformed)?))
            }
            _ => (text, None),
        };
        if text.starts_with('[') || name.trim_end_matches('.').parse::<std::net::Ipv4Addr>().is_ok() {
            return Err(AuthorityFault::AddressLiteral);
        }
        // Before IDNA: in a request a name is ASCII already, and mapping would let two spellings reach one host.
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
            return Err(AuthorityFault::Malformed);
        }
        let name = DomainName::parse(name).map_err(|_| AuthorityFault::Malformed)?;
        Ok(Self { name, port })
    }
}

/// Whether a request for `name` may not be answered on this connection (421).
pub fn is_misdirected(shown: &Shown, name: &DomainName, host: Option<&Host>) -> bool {
    if shown.is_default {
        return true;
    }
    let asked = shown.client_auth.as_deref();
    if shown.sni.as_ref() == Some(name) {
        return host.is_some_and(|host| host.client_auth.as_deref() != asked);
    }
    asked.is_some() || !shown.credential.covers(name) || host.is_some_and(|host| host.policy != shown.policy)
}

impl Entrance {
    fn knows_port(self, port: u16) -> bool {
        let default = if self.client_tls { 443 } else { 80 };
        port == self.local_port || port == default || (self.client_tls && port == self.public_https_port)
    }
}

fn check_scheme(uri: &Uri, tls: bool) -> Result<(), AuthorityFault> {
    let expected = if tls { &Scheme::HTTPS } else { &Scheme::HTTP };
    match uri.scheme() {
        Some(scheme) if scheme != expected => Err(AuthorityFault::SchemeDiffers),
        _ => Ok(()),
    }
}

fn host_header(headers: &HeaderMap) -> Result<Option<&str>, AuthorityFault> {
    let mut values = headers.get_all(header::HOST).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthorityFault::Repeated);
    }
    let text = first.to_str().map_err(|_| AuthorityFault::Malformed)?;
    if text.is_empty() { Err(AuthorityFault::Malformed) } else { Ok(Some(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTPS: Entrance =
        Entrance { tls: true, client_tls: true, local_port: 8443, public_https_port: 9443 };

    fn read(target: &str, hosts: &[&str]) -> Result<String, AuthorityFault> {
        let mut request = http::Request::builder().uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Authority::of(&parts, HTTPS).map(|authority| authority.name.to_string())
    }

    #[test]
    fn one_spelling_reaches_the_index() {
        for host in [
            "shop.example",
            "SHOP.Example",
            "shop.example.",
            "shop.example:443",
            "shop.example:8443",
            "shop.example:9443",
        ] {
            assert_eq!(read("/", &[host]), Ok("shop.example".to_owned()), "{host}");
        }
        assert_eq!(read("https://shop.example/x", &["Shop.example"]), Ok("shop.example".to_owned()));
        assert_eq!(read("https://shop.example/x", &[]), Ok("shop.example".to_owned()));
    }

    #[test]
    fn everything_else_is_refused() {
        use AuthorityFault as F;
        let table: &[(&str, &[&str], F)] = &[
            ("/", &[], F::Missing),
            ("/", &["a.example", "a.example"], F::Repeated),
            ("https://b.example/", &["a.example"], F::Differs),
            ("http://a.example/", &["a.example"], F::SchemeDiffers),
            ("/", &[""], F::Malformed),
            ("/", &["a.example:80"], F::ForeignPort),
            ("/", &["a.example:0"], F::Malformed),
            ("/", &["a.example:"], F::Malformed),
            ("/", &["a.example:+443"], F::Malformed),
            ("/", &["a.example:443:443"], F::Malformed),
            ("/", &["user@a.example"], F::Malformed),
            ("/", &["a.example,b.example"], F::Malformed),
            ("/", &["a.example#"], F::Malformed),
            ("/", &["a.example/x"], F::Malformed),
            ("/", &["a_b.example"], F::Malformed),
            ("/", &["a..example"], F::Malformed),
            ("/", &["192.0.2.1"], F::AddressLiteral),
            ("/", &["192.0.2.1:443"], F::AddressLiteral),
            ("/", &["[2001:db8::1]"], F::AddressLiteral),
            ("/", &["[2001:db8::1]:443"], F::AddressLiteral),
            ("/", &["2130706433"], F::Malformed),
        ];
        for (target, hosts, fault) in table {
            assert_eq!(read(target, hosts), Err(*fault), "{target} {hosts:?}");
        }
    }
}
