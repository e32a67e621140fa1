//! Who asks, as far as somebody says so whom the operator trusts.
//!
//! On a listener with trusted proxies, a request from one of their networks carries its way in one field: that which the
//! operator names, because a proxy that writes the one may pass the other on as its client sent it. The way is read from its
//! near end, and the first address beyond the trusted networks is the client; what stands before that is the client's own
//! words, and goes no further. From anywhere else nothing is believed, and the socket's end is the client.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;

use super::{trace_context::SpanContext, unique::Unique};
use crate::{limits, proxy_protocol::holds};

/// Proxies before us, and where they say who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedProxies {
    pub networks: Box<[IpNet]>,
    pub field: TrustedField,
}

/// The one field that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustedField {
    /// With `X-Forwarded-Proto` for the scheme.
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// The client of a request and its way to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visitor {
    pub client: IpAddr,
    /// The client's own connection was TLS.
    pub tls: bool,
    /// Proxies from the client's to our neighbour; none: the client is our neighbour.
    pub proxies: Vec<IpAddr>,
    /// Names the request towards the origin, the client and the log: a trusted neighbour's name for it, or ours.
    pub request_id: HeaderValue,
    /// What no other request of this edge's life has.
    pub unique: Unique,
    /// Present: the exchange is recorded, as this span.
    pub span: Option<SpanContext>,
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn name(unique: Unique) -> HeaderValue {
    HeaderValue::try_from(unique.to_string()).expect("digits are a header value")
}

impl Visitor {
    /// Who is our neighbour, at the end of a connection with TLS or without.
    pub fn alone(peer: SocketAddr, tls: bool, unique: Unique) -> Self {
        let client = peer.ip().to_canonical();
        Self { client, tls, proxies: Vec::new(), request_id: name(unique), unique, span: None }
    }

    /// Reads a request that came from `peer`.
    pub fn of(
        headers: &HeaderMap,
        (peer, tls): (SocketAddr, bool),
        trusted: Option<&TrustedProxies>,
        unique: Unique,
    ) -> Self {
        let alone = Self::alone(peer, tls, unique);
        let Some(trusted) = trusted.filter(|trusted| holds(&trusted.networks, alone.client)) else {
            return alone;
        };
        let mut visitor = match trusted.field {
            TrustedField::XForwardedFor => alone.by_x_forwarded_for(headers, trusted),
            TrustedField::Forwarded => alone.by_forwarded(headers, trusted),
        };
        visitor.proxies.reverse();
        if let Some(id) = headers.get(X_REQUEST_ID).filter(|id| is_request_id(id)) {
            visitor.request_id = id.clone();
        }
        visitor
    }

    /// All on the way from the client to our neighbour.
    pub fn way(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.client).chain(self.proxies.iter().copied())
    }

    fn by_x_forwarded_for(mut self, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        for text in members(headers, &X_FORWARDED_FOR).rev() {
            let Some(address) = parse_node(text) else { break };
            if !self.goes_back_to(address, trusted) {
                break;
            }
        }
        // Of several the neighbour's: what is before it may be the client's.
        if let Some(scheme) = members(headers, &X_FORWARDED_PROTO).next_back() {
            self.take_scheme(scheme);
        }
        self
    }

    fn by_forwarded(mut self, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        for element in members(headers, &header::FORWARDED).rev() {
            let parameter = |name: &str| {
                element.split(';').find_map(|pair| {
                    let (key, value) = pair.split_once('=')?;
                    key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
                })
            };
            let Some(address) = parameter("for").and_then(parse_node) else { break };
            let goes_on = self.goes_back_to(address, trusted);
            if let Some(scheme) = parameter("proto") {
                self.take_scheme(scheme);
            }
            if !goes_on {
                break;
            }
        }
        self
    }

    /// One step towards the client, who is there when this is no trusted proxy.
    fn goes_back_to(&mut self, address: IpAddr, trusted: &TrustedProxies) -> bool {
        let before = std::mem::replace(&mut self.client, address);
        self.proxies.push(before);
        holds(&trusted.networks, address) && self.proxies.len() < limits::TRUSTED_PROXIES_DEPTH_MAX
    }

    fn take_scheme(&mut self, scheme: &str) {
        match scheme {
            scheme if scheme.eq_ignore_ascii_case("https") => self.tls = true,
            scheme if scheme.eq_ignore_ascii_case("http") => self.tls = false,
            _ => {}
        }
    }
}

/// The members of a list over all its lines. A comma within quotes would divide; none that is read here has one.
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a str> {
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// An address, with a port perhaps (RFC 7239 section 6). None: a name that hides one, or nothing that we know.
fn parse_node(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches('"');
    let bare = match text.strip_prefix('[') {
        Some(rest) => {
            let (bare, port) = rest.split_once(']')?;
            let plain =
                port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
            Some(bare).filter(|_| plain)?
        }
        None if text.matches(':').count() == 1 => {
            let (bare, port) = text.split_once(':')?;
            port.parse::<u16>().ok()?;
            bare
        }
        None => text,
    };
    bare.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// What can stand in a log, a header and a shell's argument without a thought.
fn is_request_id(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=limits::REQUEST_ID_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~+/=:".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visitor(peer: &str, field: TrustedField, pairs: &[(&str, &str)]) -> Visitor {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let networks = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let trusted = TrustedProxies { networks: networks.into(), field };
        let unique = Unique { high: 1, low: 2 };
        Visitor::of(&headers, (peer.parse().unwrap(), false), Some(&trusted), unique)
    }

    fn way(visitor: &Visitor) -> String {
        visitor.way().map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_client_is_the_first_who_is_not_trusted_seen_from_us() {
        let forwarded_for: &[(&str, &[&str], &str)] = &[
            ("192.0.2.9:1", &["198.51.100.1"], "192.0.2.9"),
            ("10.0.0.1:1", &[], "10.0.0.1"),
            ("10.0.0.1:1", &["198.51.100.1"], "198.51.100.1 10.0.0.1"),
            ("[::ffff:10.0.0.1]:1", &["198.51.100.1"], "198.51.100.1 10.0.0.1"),
            ("10.0.0.1:1", &["1.2.3.4, 198.51.100.1, 10.0.0.2"], "198.51.100.1 10.0.0.2 10.0.0.1"),
            ("10.0.0.1:1", &["1.2.3.4", "198.51.100.1", "10.0.0.2"], "198.51.100.1 10.0.0.2 10.0.0.1"),
            ("10.0.0.1:1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3 10.0.0.2 10.0.0.1"),
            ("10.0.0.1:1", &["198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2 10.0.0.1"),
            ("10.0.0.1:1", &["198.51.100.1:4711"], "198.51.100.1 10.0.0.1"),
            ("10.0.0.1:1", &["[2001:db9::1]:4711"], "2001:db9::1 10.0.0.1"),
            ("10.0.0.1:1", &["2001:db9::1"], "2001:db9::1 10.0.0.1"),
            ("10.0.0.1:1", &["198.51.100.1, "], "10.0.0.1"),
            ("10.0.0.1:1", &["evil\" onload"], "10.0.0.1"),
        ];
        for (peer, values, wanted) in forwarded_for {
            let pairs: Vec<_> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            assert_eq!(way(&visitor(peer, TrustedField::XForwardedFor, &pairs)), *wanted, "{values:?}");
        }
        let forwarded: &[(&str, &str, bool)] = &[
            ("for=198.51.100.1;proto=https", "198.51.100.1 10.0.0.1", true),
            ("for=1.2.3.4, For=\"[2001:db9::7]:4711\";proto=https", "2001:db9::7 10.0.0.1", true),
            ("for=198.51.100.1;proto=https, for=10.0.0.2;proto=http", "198.51.100.1 10.0.0.2 10.0.0.1", true),
            ("for=1.2.3.4;proto=https, for=198.51.100.1", "198.51.100.1 10.0.0.1", false),
            ("for=_hidden, for=10.0.0.2", "10.0.0.2 10.0.0.1", false),
            ("for=\"_hidden\"", "10.0.0.1", false),
        ];
        for (value, wanted, tls) in forwarded {
            let found = visitor("10.0.0.1:1", TrustedField::Forwarded, &[("forwarded", value)]);
            assert_eq!((way(&found).as_str(), found.tls), (*wanted, *tls), "{value}");
        }
    }

    #[test]
    fn the_other_field_is_not_believed() {
        let both = [("x-forwarded-for", "198.51.100.1"), ("forwarded", "for=203.0.113.1")];
        assert_eq!(way(&visitor("10.0.0.1:1", TrustedField::XForwardedFor, &both)), "198.51.100.1 10.0.0.1");
        assert_eq!(way(&visitor("10.0.0.1:1", TrustedField::Forwarded, &both)), "203.0.113.1 10.0.0.1");
    }

    #[test]
    fn scheme_and_name_are_a_trusted_neighbours_to_say() {
        let pairs = |id| [("x-forwarded-proto", "http, https"), ("x-request-id", id)];
        let trusted = visitor("10.0.0.1:1", TrustedField::XForwardedFor, &pairs("a-1"));
        assert!(trusted.tls && trusted.request_id == "a-1");
        let stranger = visitor("192.0.2.1:1", TrustedField::XForwardedFor, &pairs("a-1"));
        assert!(!stranger.tls);
        assert_eq!(stranger.request_id, "00000000000000010000000000000002");
        for odd in ["", "a b", "a\"b", "a;b", &"x".repeat(limits::REQUEST_ID_BYTES_MAX + 1)] {
            let found = visitor("10.0.0.1:1", TrustedField::XForwardedFor, &pairs(odd));
            assert_eq!(found.request_id, stranger.request_id, "{odd}");
        }
    }

    #[test]
    fn a_way_has_an_end() {
        let endless = vec!["10.0.0.9"; 1000].join(", ");
        let found = visitor("10.0.0.1:1", TrustedField::XForwardedFor, &[("x-forwarded-for", &endless)]);
        assert_eq!(found.proxies.len(), limits::TRUSTED_PROXIES_DEPTH_MAX);
    }
}
