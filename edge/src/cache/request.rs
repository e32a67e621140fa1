//! A request as the cache sees it: what may be asked for under one key is made the same, and what only one visitor wants of
//! it (a range, a condition) is set apart.
//!
//! What an origin may answer by and no key holds is not passed on where its answer could be kept (THREATS G4): such an answer
//! would be one visitor's doing and everybody's page.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts, uri::PathAndQuery};

use super::{
    directives::{contains_token, members},
    spelling,
};
use crate::http::body::RequestBody;
use http_body::Body as _;

/// Fields that frameworks and proxies take a request's address, method or client from, beside those that no request keeps
/// (`http::forwarding`). Seen in published cache-poisoning gadgets. In order.
const UNKEYED: [&str; 112] = [
    "ali-cdn-real-ip",
    "base-url",
    "cdn-real-ip",
    "cdn-src-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "client-ip",
    "clientip",
    "cluster-client-ip",
    "destination",
    "fastly-client-ip",
    "fastly-ssl",
    "forwarded-for",
    "forwarded-for-ip",
    "forwarded-host",
    "forwarded-proto",
    "front-end-https",
    "http-client-ip",
    "http-host",
    "http-url",
    "http-x-forwarded-for",
    "incap-client-ip",
    "method-override",
    "origin-host",
    "original-url",
    "profile",
    "proxy",
    "proxy-client-ip",
    "proxy-host",
    "proxy-url",
    "real-ip",
    "redirect",
    "remote-addr",
    "remote-host",
    "request-uri",
    "rewrite-url",
    "script-name",
    "true-client-ip",
    "uri",
    "url",
    "wap-connection",
    "wl-proxy-client-ip",
    "x-amz-website-redirect-location",
    "x-appengine-user-ip",
    "x-arr-ssl",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-backend-host",
    "x-base-url",
    "x-cdn-src-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-coming-from",
    "x-custom-ip-authorization",
    "x-envoy-external-address",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-forward-for",
    "x-forwarded",
    "x-forwarded-by",
    "x-forwarded-client-ip",
    "x-forwarded-context",
    "x-forwarded-for-original",
    "x-forwarded-hostname",
    "x-forwarded-ip",
    "x-forwarded-method",
    "x-forwarded-path",
    "x-forwarded-protocol",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-forwarded-url",
    "x-forwarder-for",
    "x-host",
    "x-hostname",
    "x-http-destinationurl",
    "x-http-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-path-override",
    "x-https",
    "x-invoke-path",
    "x-invoke-status",
    "x-matched-path",
    "x-method-override",
    "x-middleware-prefetch",
    "x-middleware-subrequest",
    "x-now-route-matches",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-path",
    "x-original-remote-addr",
    "x-original-uri",
    "x-originating-ip",
    "x-override-url",
    "x-proxy-url",
    "x-proxyuser-ip",
    "x-real-host",
    "x-remote-addr",
    "x-remote-ip",
    "x-request-uri",
    "x-rewrite-uri",
    "x-scheme",
    "x-script-name",
    "x-server-name",
    "x-sucuri-clientip",
    "x-true-ip",
    "x-url-scheme",
    "x-virtual-host",
    "x-wap-profile",
    "x-waws-unencoded-url",
];

/// Asked for once, by those who have just put something there.
const PASSING: [&str; 2] = ["/.well-known/acme-challenge/", "/.well-known/portico/"];

/// Codings that clients differ in; others are not asked for.
const CODINGS: [&str; 4] = ["br", "gzip", "zstd", "deflate"];

/// What of a request one visitor wants, and no key holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    pub if_none_match: Option<HeaderValue>,
    pub if_modified_since: Option<HeaderValue>,
    pub range: Option<HeaderValue>,
    pub if_range: Option<HeaderValue>,
    pub only_if_cached: bool,
}

/// Takes out of a request what no key holds and an origin may answer by. Before the route sets fields: those are its own.
pub(crate) fn take_unkeyed(parts: &mut Parts) {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return; // no answer to it is kept
    }
    let unkeyed: Vec<HeaderName> = parts.headers.keys().filter(|name| is_unkeyed(name)).cloned().collect();
    for name in unkeyed {
        parts.headers.remove(name);
    }
}

/// Also each field that some origins take for another one: CGI and what follows it make `_` of `-`, and some of everything that
/// is no letter or digit (RFC 3875 section 4.1.18). nginx drops these by default too.
fn is_unkeyed(name: &HeaderName) -> bool {
    let name = name.as_str();
    UNKEYED.binary_search(&name).is_ok()
        || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Why a request goes past the cache; None: it does not.
pub(super) fn bypass_reason(path: &str, parts: &Parts, body: &RequestBody) -> Option<&'static str> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Some("method");
    }
    // Of an origin's own ACME client, or of a proof: a kept 404 would fail what comes a moment later.
    if PASSING.iter().any(|prefix| path.starts_with(prefix)) {
        return Some("challenge");
    }
    if !spelling::is_usual(path) {
        return Some("spelling");
    }
    let headers = &parts.headers;
    if !body.is_end_stream() || headers.contains_key(header::TRANSFER_ENCODING) {
        return Some("request_body");
    }
    if headers.contains_key(header::UPGRADE) {
        return Some("upgrade");
    }
    // A cache cannot answer them (RFC 9111 section 4.3.2).
    if headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_UNMODIFIED_SINCE) {
        return Some("precondition");
    }
    None
}

/// Makes requests for one thing one request, in place. A client's `Cache-Control` is advice (RFC 9111 section 5.2.1): it
/// could make any visitor's request one to the origin, so it is not taken.
pub(super) fn normalise(parts: &mut Parts, query: Option<&str>) -> Wishes {
    let control = parts.headers.get_all(header::CACHE_CONTROL);
    let only_if_cached = control.iter().any(|value| contains_token(value, "only-if-cached"));
    parts.headers.remove(header::CACHE_CONTROL);
    parts.headers.remove(header::PRAGMA);
    normalise_codings(&mut parts.headers);
    if parts.uri.query() != query {
        set_query(parts, query);
    }
    let of = |name: HeaderName| parts.headers.get(name).cloned();
    Wishes {
        if_none_match: joined(&parts.headers, &header::IF_NONE_MATCH),
        if_modified_since: of(header::IF_MODIFIED_SINCE),
        range: of(header::RANGE),
        if_range: of(header::IF_RANGE),
        only_if_cached,
    }
}

/// The request for the whole, whatever its client wants of it.
pub(super) fn whole(parts: &Parts) -> Parts {
    let mut whole = parts.clone();
    whole.method = Method::GET;
    for name in [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE, header::IF_RANGE] {
        whole.headers.remove(name);
    }
    whole
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    match values[..] {
        [] => None,
        _ => HeaderValue::from_bytes(&values.join(&b", "[..])).ok(),
    }
}

/// To the codings that there are, in one order: without it each browser's spelling would be a variant of its own.
fn normalise_codings(headers: &mut HeaderMap) {
    if !headers.contains_key(header::ACCEPT_ENCODING) {
        return;
    }
    let asked: Vec<&HeaderValue> = headers.get_all(header::ACCEPT_ENCODING).iter().collect();
    let wanted = |coding: &str| {
        let texts = asked.iter().filter_map(|value| value.to_str().ok());
        texts.flat_map(|text| members(text, b',')).any(|member| {
            let mut pieces = member.split(';').map(str::trim);
            let named = pieces.next().is_some_and(|name| name.eq_ignore_ascii_case(coding));
            named && !pieces.any(is_zero)
        })
    };
    let found: Vec<&str> = CODINGS.into_iter().filter(|coding| wanted(coding)).collect();
    headers.remove(header::ACCEPT_ENCODING);
    if let Some(value) = HeaderValue::try_from(found.join(", ")).ok().filter(|value| !value.is_empty()) {
        headers.insert(header::ACCEPT_ENCODING, value);
    }
}

fn is_zero(parameter: &str) -> bool {
    let quality = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
    quality.is_some_and(|quality| quality.trim().parse().is_ok_and(|quality: f32| quality == 0.0))
}

fn set_query(parts: &mut Parts, query: Option<&str>) {
    let path = parts.uri.path();
    let text = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    // A part of what was a target is one.
    if let Ok(target) = PathAndQuery::try_from(text) {
        let mut uri = parts.uri.clone().into_parts();
        uri.path_and_query = Some(target);
        if let Ok(uri) = http::Uri::from_parts(uri) {
            parts.uri = uri;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(pairs: &[(&'static str, &'static str)]) -> Parts {
        let mut request = http::Request::get("/a?b=1&utm_x=2");
        for (name, value) in pairs {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn codings_are_spelt_in_one_way() {
        for (asked, wanted) in [
            ("gzip, deflate, br, zstd", Some("br, gzip, zstd, deflate")),
            ("BR;q=0.5,gzip;q=1.0", Some("br, gzip")),
            ("gzip;q=0, br", Some("br")),
            ("gzip;q=0.000", None),
            ("identity, x-odd, *", None),
        ] {
            let mut parts = parts(&[("accept-encoding", asked)]);
            let query = parts.uri.query().map(ToOwned::to_owned);
            normalise(&mut parts, query.as_deref());
            let found = parts.headers.get("accept-encoding").map(|value| value.to_str().unwrap());
            assert_eq!(found, wanted, "{asked}");
        }
    }

    #[test]
    fn what_no_key_holds_goes_no_further() {
        let mut parts = parts(&[
            ("x-host", "evil.example"),
            ("x-http-method", "DELETE"),
            ("x-forwarded-ssl", "off"),
            ("x_forwarded-ssl", "off"),
            ("accept.language", "de"),
            ("pragma", "no-cache"),
            ("cache-control", "no-cache, only-if-cached"),
            ("if-none-match", "\"a\""),
            ("if-none-match", "\"b\""),
            ("range", "bytes=0-1"),
            ("cookie", "a=b"),
        ]);
        assert!(UNKEYED.is_sorted());
        take_unkeyed(&mut parts);
        let wishes = normalise(&mut parts, Some("b=1"));
        let mut left: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "if-none-match", "range"]);
        assert_eq!(parts.uri, "/a?b=1");
        assert!(wishes.only_if_cached && wishes.range.is_some());
        assert_eq!(wishes.if_none_match.unwrap(), "\"a\", \"b\"");
        let whole = whole(&parts);
        assert_eq!(whole.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["cookie"]);
    }
}
