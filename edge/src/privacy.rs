//! What of a visitor may be written down, in the access log and in traces.
//!
//! Values of queries are left out unless the operator asks for them: they hold reset links, signed URLs and people's names,
//! of tenants whose parameters the operator cannot know, so a list of what to hide would always be too short. `Cookie`
//! and `Authorization` never come here at all. Paths are written as they are. Addresses are whole unless the operator
//! shortens them: who defends a site needs them.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

/// The operator's choice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Privacy {
    pub query_values: QueryValues,
    pub client_address: AddressDetail,
}

/// Which values of a query are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum QueryValues {
    /// Names only.
    #[default]
    Redacted,
    Kept,
    /// Those of these parameters; a `*` at the end stands for any rest of a name.
    Of(Box<[String]>),
}

/// How much of a client's address is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressDetail {
    #[default]
    Full,
    /// IPv4 to /24, IPv6 to /48: a provider and a region, no household. Ports are left out.
    Network,
}

/// In the place of a value, as OpenTelemetry's conventions have it.
pub const REDACTED: &[u8] = b"REDACTED";

impl Privacy {
    /// A client's address, as much of it as is written.
    pub fn address(&self, address: IpAddr) -> IpAddr {
        match (self.client_address, address.to_canonical()) {
            (AddressDetail::Full, address) => address,
            (AddressDetail::Network, IpAddr::V4(ip)) => {
                IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & (u32::MAX << 8)))
            }
            (AddressDetail::Network, IpAddr::V6(ip)) => {
                IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 80)))
            }
        }
    }

    /// A client's port; with a shortened address it would tell households behind one address apart.
    pub fn port(&self, port: u16) -> Option<u16> {
        (self.client_address == AddressDetail::Full).then_some(port)
    }

    /// A request's target: path and query.
    pub fn target<'a>(&self, target: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(at) = target.iter().position(|byte| *byte == b'?') else { return Cow::Borrowed(target) };
        let (path, query) = (&target[..=at], &target[at + 1..]);
        match self.query(query) {
            Cow::Borrowed(_) => Cow::Borrowed(target),
            Cow::Owned(query) => Cow::Owned([path, &query].concat()),
        }
    }

    /// A query, without its question mark. A piece that is nothing but a name may be a value as well.
    pub fn query<'a>(&self, query: &'a [u8]) -> Cow<'a, [u8]> {
        if self.query_values == QueryValues::Kept || query.is_empty() {
            return Cow::Borrowed(query);
        }
        let mut written = Vec::with_capacity(query.len());
        // Servers divide at both, and what hides behind the one must not be kept by the name before the other.
        for piece in query.split_inclusive(|byte| matches!(byte, b'&' | b';')) {
            let (pair, end) = match piece {
                [pair @ .., end @ (b'&' | b';')] => (pair, Some(*end)),
                pair => (pair, None),
            };
            self.write_pair(pair, &mut written);
            written.extend(end);
        }
        Cow::Owned(written)
    }

    fn write_pair(&self, pair: &[u8], written: &mut Vec<u8>) {
        let (name, value) = match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        if pair.is_empty() || self.keeps(name) {
            written.extend_from_slice(pair);
            return;
        }
        // Base64 ends in such signs: with nothing but them behind it, a name is a value.
        if value.iter().any(|byte| *byte != b'=') {
            written.extend_from_slice(name);
            written.push(b'=');
        }
        written.extend_from_slice(REDACTED);
    }

    fn keeps(&self, name: &[u8]) -> bool {
        let QueryValues::Of(kept) = &self.query_values else { return false };
        kept.iter().any(|kept| match kept.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning.as_bytes()),
            None => name == kept.as_bytes(),
        })
    }

    /// The URL of another page, whole or relative: its query as any, no fragment, and nobody's password.
    pub fn url<'a>(&self, url: &'a [u8]) -> Cow<'a, [u8]> {
        let url = url.split(|byte| *byte == b'#').next().unwrap_or_default();
        let authority = authority_of(url);
        match url[authority.clone()].iter().rposition(|byte| *byte == b'@') {
            None => self.target(url),
            Some(at) => {
                let rest = self.target(&url[authority.start + at + 1..]);
                Cow::Owned([&url[..authority.start], &rest].concat())
            }
        }
    }
}

/// Where a URL names the server, and who asks it: behind `scheme://` or `//`; at its beginning where it is neither that nor a
/// path. Browsers take a backslash for a slash, and any number of them.
fn authority_of(url: &[u8]) -> Range<usize> {
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    let of_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let scheme = url.iter().take_while(|byte| of_scheme(byte)).count();
    let has_scheme = url[scheme..].starts_with(b":") && url.get(scheme + 1).is_some_and(is_slash);
    let behind = if has_scheme { scheme + 1 } else { 0 };
    let slashes = url[behind..].iter().take_while(|byte| is_slash(byte)).count();
    let start = behind + slashes;
    if !has_scheme && slashes == 1 {
        return 0..0; // a path
    }
    let length = url[start..].iter().position(|byte| is_slash(byte) || *byte == b'?');
    start..length.map_or(url.len(), |length| start + length)
}

/// An authority without a user's name and password.
pub fn without_user(authority: &str) -> &str {
    authority.rsplit('@').next().unwrap_or_default()
}

/// The host of an authority alone.
pub fn host_of(authority: &str) -> &str {
    let authority = without_user(authority);
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn privacy(query_values: QueryValues) -> Privacy {
        Privacy { query_values, ..Privacy::default() }
    }

    fn target(privacy: &Privacy, text: &str) -> String {
        String::from_utf8(privacy.target(text.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn values_are_left_out_by_default_and_names_stay() {
        let table = [
            ("/a", "/a"),
            ("/a?", "/a?"),
            ("/a?b=c", "/a?b=REDACTED"),
            ("/a?b=c&d=e=f;g=h", "/a?b=REDACTED&d=REDACTED;g=REDACTED"),
            ("/a?b=&c2VjcmV0==", "/a?REDACTED&REDACTED"),
            ("/a?secret", "/a?REDACTED"),
            ("/a?&&b=c&", "/a?&&b=REDACTED&"),
            ("/a?b=c?d=e", "/a?b=REDACTED"),
        ];
        for (text, wanted) in table {
            assert_eq!(target(&Privacy::default(), text), wanted, "{text}");
            assert_eq!(target(&privacy(QueryValues::Kept), text), text);
        }
    }

    #[test]
    fn listed_values_are_kept_and_nothing_hides_behind_them() {
        let kept =
            privacy(QueryValues::Of(["page".to_owned(), "utm_*".to_owned(), "wsdl".to_owned()].into()));
        let table = [
            ("/?page=2&utm_source=x&wsdl&token=t", "/?page=2&utm_source=x&wsdl&token=REDACTED"),
            ("/?page=2;token=t", "/?page=2;token=REDACTED"),
            ("/?pages=2&%70age=2", "/?pages=REDACTED&%70age=REDACTED"),
        ];
        for (text, wanted) in table {
            assert_eq!(target(&kept, text), wanted);
        }
    }

    #[test]
    fn the_page_before_tells_no_secret_either() {
        let table = [
            ("https://shop.example/a?token=t#frag", "https://shop.example/a?token=REDACTED"),
            ("https://user:pw@shop.example/a", "https://shop.example/a"),
            ("https://user:p@w@shop.example?a=b@c", "https://shop.example?a=REDACTED"),
            ("https://shop.example/@a", "https://shop.example/@a"),
            ("about:blank", "about:blank"),
            ("", ""),
        ];
        for (text, wanted) in table {
            assert_eq!(Privacy::default().url(text.as_bytes()), wanted.as_bytes(), "{text}");
        }
        assert_eq!(without_user("user:pw@shop.example:8443"), "shop.example:8443");
        for authority in ["user:pw@shop.example:8443", "shop.example:", "shop.example"] {
            assert_eq!(host_of(authority), "shop.example");
        }
    }

    #[test]
    fn a_page_without_a_scheme_tells_no_secret() {
        let table = [
            ("/a?token=t", "/a?token=REDACTED"),
            ("/@a?token=t", "/@a?token=REDACTED"),
            ("?token=t", "?token=REDACTED"),
            ("//shop.example/a?token=t#frag", "//shop.example/a?token=REDACTED"),
            ("//user:pw@shop.example/a?token=t", "//shop.example/a?token=REDACTED"),
            ("user:pw@shop.example/a?token=t", "shop.example/a?token=REDACTED"),
            ("https:/user:pw@shop.example/a", "https:/shop.example/a"),
            ("https:\\\\user:pw@shop.example\\a", "https:\\\\shop.example\\a"),
            // The scheme and the name of another URL are in this one's query.
            ("/a?token=t&next=https://b@shop.example/", "/a?token=REDACTED&next=REDACTED"),
            ("a?token=t&next=//b@shop.example/", "a?token=REDACTED&next=REDACTED"),
            (
                "https://shop.example?token=t&next=https://b@c/",
                "https://shop.example?token=REDACTED&next=REDACTED",
            ),
        ];
        for (text, wanted) in table {
            let written = Privacy::default().url(text.as_bytes()).into_owned();
            assert_eq!(String::from_utf8(written).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn addresses_are_shortened_where_the_operator_says_so() {
        let network = Privacy { client_address: AddressDetail::Network, ..Privacy::default() };
        let table = [
            ("192.0.2.77", "192.0.2.0"),
            ("::ffff:192.0.2.77", "192.0.2.0"),
            ("2001:db8:1234:5678::9", "2001:db8:1234::"),
        ];
        for (address, wanted) in table {
            assert_eq!(network.address(address.parse().unwrap()).to_string(), wanted);
        }
        assert_eq!((network.port(5), Privacy::default().port(5)), (None, Some(5)));
        assert_eq!(Privacy::default().address("192.0.2.77".parse().unwrap()).to_string(), "192.0.2.77");
    }

    proptest! {
        #[test]
        fn no_value_of_another_page_is_ever_written(
            before in "(https?://|//|/|)(user:pw@)?[a-z.]{0,9}(/[a-z@:]{0,5}){0,2}",
            value in "[A-Z]{9,20}",
            after in "[a-z:/@?;]{0,20}",
        ) {
            let url = format!("{before}?token={value}&next={after}");
            let written = Privacy::default().url(url.as_bytes()).into_owned();
            prop_assert!(!String::from_utf8(written).unwrap().contains(&value), "{url}");
        }

        #[test]
        fn no_value_is_ever_written(pairs in proptest::collection::vec(("[a-z]{1,8}", "[A-Z]{9,20}", "[&;]"), 1..8)) {
            let query: String = pairs.iter().map(|(name, value, end)| format!("{name}={value}{end}")).collect();
            let written = target(&Privacy::default(), &format!("/?{query}"));
            for (_, value, _) in &pairs {
                prop_assert!(!written.contains(value.as_str()));
            }
        }
    }
}
