//! Headers of a message on its way through: what is ours to remove, to replace and to add.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use portico_api::rule::Side;

use super::{trace_context, visitor::Visitor};
use crate::{
    exchange::{EARLY_DATA, Protocol},
    limits,
    tls::{CLIENT_CERT, CLIENT_CERT_SHA256, CLIENT_CERT_SUBJECT, ClientIdentity},
};

/// What an origin is told about a request.
#[derive(Debug)]
pub struct ForwardedFacts<'a> {
    pub visitor: &'a Visitor,
    pub protocol: Protocol,
    /// The authority as the client may use it again, with a port that is not the scheme's own.
    pub host: &'a HeaderValue,
    /// The client's verified certificate.
    pub client: Option<&'a ClientIdentity>,
}

/// A request has come through a Portico too often (RFC 8586).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looping;

/// An origin's answer says in several ways, or in one that not all read alike, where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AmbiguousLength;

/// Our name in `Via` and `CDN-Loop`.
const PSEUDONYM: &str = "portico";

/// Fields between neighbours only (RFC 9110 section 7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Fields that origins believe and clients forge; we set some of them and drop all others.
const FORGEABLE: [HeaderName; 20] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-scheme"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-request-id"),
    CLIENT_CERT,
    CLIENT_CERT_SUBJECT,
    CLIENT_CERT_SHA256,
    HeaderName::from_static("client-cert-chain"),
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-ssl-client-cert"),
    HeaderName::from_static("x-ssl-client-verify"),
];

/// Fields that direct a request, say who asks, or say how an answer is to be kept and read: behind a body they come too late to
/// be checked (RFC 9110 section 6.5.1). Besides those of [`Side::refuses`].
const NEVER_IN_TRAILERS: [HeaderName; 16] = [
    header::AGE,
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::DATE,
    header::EXPIRES,
    header::LOCATION,
    header::MAX_FORWARDS,
    header::RANGE,
    header::RETRY_AFTER,
    header::SET_COOKIE,
    header::VARY,
    X_REQUEST_ID,
];

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The headers for the origin; `host` is the Host that it is to see.
///
/// # Errors
/// [`Looping`], to be answered 508.
pub fn request_headers(
    from: &HeaderMap,
    facts: &ForwardedFacts<'_>,
    host: &HeaderValue,
) -> Result<HeaderMap, Looping> {
    let mut headers = from.clone();
    let keeps_trailers = te_trailers(&headers);
    remove_hop_by_hop(&mut headers);
    remove_forgeable(&mut headers);
    clean_trailer_names(&mut headers, Side::Request);
    // hyper writes the framing of the body that it is given.
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::EXPECT); // answered by us
    join_cookies(&mut headers);
    check_loop(&headers)?;
    headers.append(CDN_LOOP, HeaderValue::from_static(PSEUDONYM));
    append_via(&mut headers, facts.protocol);
    headers.insert(header::HOST, host.clone());
    if keeps_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // Who has it says that it may come twice, which nobody on the way can take back; whatever it says (RFC 8470 section 5.1).
    if headers.contains_key(EARLY_DATA) {
        headers.insert(EARLY_DATA, HeaderValue::from_static("1"));
    }
    add_forwarded(&mut headers, facts);
    trace_context::hand_on(&mut headers, facts.visitor.unique, facts.visitor.span);
    Ok(headers)
}

/// Makes the head of an origin's answer fit for the client; `spoken` is what the origin spoke.
///
/// # Errors
/// [`AmbiguousLength`], to be answered 502.
pub fn clean_response(head: &mut response::Parts, spoken: Protocol) -> Result<(), AmbiguousLength> {
    frame_response(head)?;
    let headers = &mut head.headers;
    remove_hop_by_hop(headers);
    clean_trailer_names(headers, Side::Response);
    headers.remove(header::ALT_SVC); // the origin's own ports are not ours
    append_via(headers, spoken);
    Ok(())
}

/// Leaves one length in its one spelling, or none. The HTTP library reads lists, repetitions and any coding in front of
/// `chunked` as it likes, and would hand them on as they are.
fn frame_response(head: &mut response::Parts) -> Result<(), AmbiguousLength> {
    let headers = &mut head.headers;
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
        _ => return Err(AmbiguousLength),
    };
    let length = only_length(headers)?;
    // A length beside a coding means nothing (RFC 9112 section 6.1), and some answers have none (RFC 9110 section 8.6).
    if is_chunked || head.status == StatusCode::NO_CONTENT || head.status.is_informational() {
        headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}

/// What all lengths say, however often they say it (RFC 9110 section 8.6).
fn only_length(headers: &HeaderMap) -> Result<Option<HeaderValue>, AmbiguousLength> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let length = number(first.as_bytes());
    let is_canonical = length.is_some() && (first.len() == 1 || !first.as_bytes().starts_with(b"0"));
    if is_canonical && values.next().is_none() {
        return Ok(Some(first.clone()));
    }
    let lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut said = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii);
    let length = said.next().and_then(number).ok_or(AmbiguousLength)?;
    if said.all(|other| number(other) == Some(length)) {
        Ok(Some(length.into()))
    } else {
        Err(AmbiguousLength)
    }
}

/// Digits alone: `parse` would take a sign.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok()?.parse().ok().filter(|_| digits)
}

/// Removes what a message may say in its head alone, and what is not its sender's to say at all.
pub fn clean_trailers(trailers: &mut HeaderMap, side: Side) {
    let unfit: Vec<HeaderName> =
        trailers.keys().filter(|name| !is_fit_for_trailers(name, side)).cloned().collect();
    for name in unfit {
        trailers.remove(name);
    }
}

/// Of what a head announces behind the body, what will come.
fn clean_trailer_names(headers: &mut HeaderMap, side: Side) {
    let announced = headers.get_all(header::TRAILER).iter();
    let names = announced.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    let names = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    let (fit, unfit): (Vec<_>, Vec<_>) = names.partition(|name| is_fit_for_trailers(name, side));
    if unfit.is_empty() {
        return;
    }
    headers.remove(header::TRAILER);
    let fit: Vec<&str> = fit.iter().map(HeaderName::as_str).collect();
    if let Some(fit) = HeaderValue::try_from(fit.join(", ")).ok().filter(|_| !fit.is_empty()) {
        headers.insert(header::TRAILER, fit);
    }
}

fn is_fit_for_trailers(name: &HeaderName, side: Side) -> bool {
    let fits = |name: &HeaderName| !side.refuses(name) && !NEVER_IN_TRAILERS.contains(name);
    if !name.as_str().contains('_') {
        return fits(name);
    }
    let spelt = HeaderName::from_bytes(name.as_str().replace('_', "-").as_bytes());
    spelt.is_ok_and(|spelt| fits(&spelt))
}

/// Removes what a client's `Connection` names, and of `Connection` all that is not about the connection itself.
pub fn remove_named(headers: &mut HeaderMap) {
    let tokens = || {
        let values = headers.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes);
        values.flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    };
    // Nearly every request leaves here.
    if tokens().all(is_connections_own) {
        return;
    }
    let (own, named): (Vec<&[u8]>, Vec<&[u8]>) = tokens().partition(|token| is_connections_own(token));
    let own = HeaderValue::from_bytes(&own.join(&b", "[..]));
    let named: Vec<HeaderName> = named.iter().filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    for name in named.iter().filter(|name| !is_indispensable(name) && !HOP_BY_HOP.contains(name)) {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
    if let Some(own) = own.ok().filter(|own| !own.is_empty()) {
        headers.insert(header::CONNECTION, own);
    }
}

fn is_connections_own(token: &[u8]) -> bool {
    ["close", "keep-alive", "upgrade", "te"].iter().any(|own| token.eq_ignore_ascii_case(own.as_bytes()))
}

/// What a message cannot do without is not a neighbour's to remove.
fn is_indispensable(name: &HeaderName) -> bool {
    matches!(*name, header::HOST | header::CONTENT_LENGTH | header::COOKIE | header::AUTHORIZATION)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // The names are borrowed from what is being changed; few requests name any but these two.
    let mut named: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let names = value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        for name in names {
            let common = name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close");
            if !common && let Ok(name) = HeaderName::from_bytes(name) {
                named.push(name);
            }
        }
    }
    for name in named {
        if !is_indispensable(&name) {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// In every spelling that servers know: CGI and what follows it make one of `-` and `_` (RFC 3875 section 4.1.18).
fn remove_forgeable(headers: &mut HeaderMap) {
    for name in &FORGEABLE {
        headers.remove(name);
    }
    let is_forged = |name: &&HeaderName| {
        name.as_str().contains('_') && {
            let spelt = name.as_str().replace('_', "-");
            FORGEABLE.iter().any(|forgeable| forgeable.as_str() == spelt)
        }
    };
    let forged: Vec<HeaderName> = headers.keys().filter(is_forged).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

fn te_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// HTTP/2 and 3 may send a cookie in pieces (RFC 9113 section 8.2.3); HTTP/1.1 has one field.
fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(header::COOKIE).iter();
    let (Some(_), Some(_)) = (values.next(), values.next()) else { return };
    let pieces: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

fn check_loop(headers: &HeaderMap) -> Result<(), Looping> {
    if times_through_us(headers) >= limits::CDN_LOOP_DEPTH_MAX { Err(Looping) } else { Ok(()) }
}

/// How often a request says that it has passed through a Portico (RFC 8586).
pub fn times_through_us(headers: &HeaderMap) -> usize {
    headers
        .get_all(CDN_LOOP)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter(|entry| {
            let name = entry.split(|&byte| byte == b';').next().unwrap_or_default();
            name.trim_ascii().eq_ignore_ascii_case(PSEUDONYM.as_bytes())
        })
        .count()
}

fn append_via(headers: &mut HeaderMap, protocol: Protocol) {
    let value = match protocol {
        Protocol::Http1 => "1.1 portico",
        Protocol::Http2 => "2 portico",
        Protocol::Http3 => "3 portico",
    };
    headers.append(header::VIA, HeaderValue::from_static(value));
}

fn add_forwarded(headers: &mut HeaderMap, facts: &ForwardedFacts<'_>) {
    let visitor = facts.visitor;
    let proto = if visitor.tls { "https" } else { "http" };
    let text = |text: String| HeaderValue::try_from(text).ok();
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    headers.insert(X_FORWARDED_HOST, facts.host.clone());
    headers.insert(X_REQUEST_ID, visitor.request_id.clone());
    headers.extend(facts.client.into_iter().flat_map(|client| client.headers.iter().cloned()));
    let mut plain = visitor.client.to_string();
    let Ok(host) = facts.host.to_str() else { return };
    let mut forwarded = format!("for={};host=\"{host}\";proto={proto}", node(visitor.client));
    for proxy in &visitor.proxies {
        plain.push_str(&format!(", {proxy}"));
        forwarded.push_str(&format!(", for={}", node(*proxy)));
    }
    headers.extend(text(plain).map(|value| (X_FORWARDED_FOR, value)));
    headers.extend(text(forwarded).map(|value| (header::FORWARDED, value)));
}

/// RFC 7239 section 6: an IPv6 address is bracketed and quoted, and so is a host with a port.
fn node(address: IpAddr) -> String {
    match address {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::unique::Unique;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn forwarded(pairs: &[(&str, &str)]) -> Result<HeaderMap, Looping> {
        let host = HeaderValue::from_static("shop.example");
        let unique = Unique { high: 1, low: 2 };
        let visitor = Visitor::alone("[2001:db8::7]:5000".parse().unwrap(), true, unique);
        let facts =
            ForwardedFacts { visitor: &visitor, protocol: Protocol::Http2, host: &host, client: None };
        request_headers(&headers(pairs), &facts, &host)
    }

    #[test]
    fn neighbours_fields_do_not_travel() {
        let out = forwarded(&[
            ("connection", "close, X-Secret ,te"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-authorization", "x"),
            ("x-kept", "1"),
        ])
        .unwrap();
        for gone in [
            "connection",
            "x-secret",
            "keep-alive",
            "transfer-encoding",
            "content-length",
            "upgrade",
            "http2-settings",
            "proxy-authorization",
        ] {
            assert!(!out.contains_key(gone), "{gone}");
        }
        assert_eq!(out["te"], "trailers");
        assert_eq!(out["x-kept"], "1");
    }

    #[test]
    fn connection_cannot_strip_what_identifies_the_request() {
        let out = forwarded(&[
            ("connection", "host, cookie, authorization"),
            ("cookie", "a=b"),
            ("authorization", "x"),
        ])
        .unwrap();
        assert!(out.contains_key("cookie") && out.contains_key("authorization") && out.contains_key("host"));
    }

    #[test]
    fn forged_forwarding_is_replaced() {
        let out = forwarded(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=1.2.3.4"),
            ("x-original-url", "/admin"),
            ("x-http-method-override", "DELETE"),
            ("x-request-id", "mine"),
            ("client-cert", ":AAAA:"),
            ("client_cert", ":AAAA:"),
            ("x_client-cert_subject", "CN=admin"),
            ("x_real_ip", "1.2.3.4"),
            ("x_kept", "1"),
        ])
        .unwrap();
        assert_eq!(out.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["2001:db8::7"]);
        assert_eq!(out["x-forwarded-host"], "shop.example");
        assert_eq!(out["forwarded"], "for=\"[2001:db8::7]\";host=\"shop.example\";proto=https");
        assert_eq!(out["x-request-id"], "00000000000000010000000000000002");
        for gone in ["client-cert", "client_cert", "x_client-cert_subject", "x_real_ip"] {
            assert!(!out.contains_key(gone), "{gone}");
        }
        assert_eq!(out["x_kept"], "1");
        assert!(!out.contains_key("x-original-url") && !out.contains_key("x-http-method-override"));
        assert_eq!(out["via"], "2 portico");
    }

    #[test]
    fn the_way_from_the_client_is_told_from_its_far_end() {
        let host = HeaderValue::from_static("shop.example:8443");
        let unique = Unique { high: 1, low: 2 };
        let mut visitor = Visitor::alone("198.51.100.1:1".parse().unwrap(), true, unique);
        visitor.proxies = vec!["2001:db8::2".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        let facts =
            ForwardedFacts { visitor: &visitor, protocol: Protocol::Http1, host: &host, client: None };
        let of_client =
            headers(&[("x-forwarded-for", "1.2.3.4, 198.51.100.1"), ("forwarded", "for=1.2.3.4")]);
        let out = request_headers(&of_client, &facts, &host).unwrap();
        assert_eq!(out["x-forwarded-for"], "198.51.100.1, 2001:db8::2, 10.0.0.1");
        let forwarded =
            "for=198.51.100.1;host=\"shop.example:8443\";proto=https, for=\"[2001:db8::2]\", for=10.0.0.1";
        assert_eq!(out["forwarded"], forwarded);
    }

    #[test]
    fn a_trace_is_kept_or_begun() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let own = "00-00000000000000010000000000000002-0000000000000002-00";
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
        for kept in [good, later] {
            let out = forwarded(&[("traceparent", kept), ("tracestate", "a=b")]).unwrap();
            assert_eq!(
                (&out["traceparent"], &out["tracestate"]),
                (&kept.parse().unwrap(), &"a=b".parse().unwrap())
            );
        }
        for wrong in [
            "",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            let out = forwarded(&[("traceparent", wrong), ("tracestate", "a=b")]).unwrap();
            assert_eq!(out["traceparent"], own, "{wrong}");
            assert!(!out.contains_key("tracestate"));
        }
        assert_eq!(forwarded(&[]).unwrap()["traceparent"], own);
        let twice = forwarded(&[("traceparent", good), ("traceparent", good)]).unwrap();
        assert_eq!(twice.get_all("traceparent").iter().collect::<Vec<_>>(), [own]);
    }

    #[test]
    fn what_we_set_or_drop_is_not_a_tenants_to_change() {
        use portico_api::rule::Side;
        let ours = [CDN_LOOP, header::VIA, header::HOST, header::CONTENT_LENGTH, header::EXPECT];
        for name in HOP_BY_HOP.iter().chain(&FORGEABLE).chain(&ours) {
            assert!(Side::Request.refuses(name), "{name}");
        }
        let ours = [header::ALT_SVC, header::VIA, header::CONTENT_LENGTH, header::STRICT_TRANSPORT_SECURITY];
        for name in HOP_BY_HOP.iter().chain(&ours) {
            assert!(Side::Response.refuses(name), "{name}");
        }
        let theirs = [header::AUTHORIZATION, header::COOKIE, header::CACHE_CONTROL, header::SERVER];
        for name in &theirs {
            assert!(!Side::Request.refuses(name) && !Side::Response.refuses(name), "{name}");
        }
    }

    #[test]
    fn what_is_removed_from_a_head_is_removed_from_trailers() {
        let ours = [CDN_LOOP, header::VIA, header::HOST, header::CONTENT_LENGTH, header::TRAILER];
        for name in HOP_BY_HOP.iter().chain(&FORGEABLE).chain(&ours) {
            assert!(!is_fit_for_trailers(name, Side::Request), "{name}");
        }
        let spelt = [("x_real-ip", "1"), ("client_cert", "1"), ("grpc-status", "0"), ("x_sum", "1")];
        let mut trailers = headers(&spelt);
        clean_trailers(&mut trailers, Side::Request);
        assert_eq!(trailers, headers(&spelt[2..]));
        let out = forwarded(&[("trailer", "Client-Cert, digest"), ("trailer", "x_real_ip,x-sum")]).unwrap();
        assert_eq!(out.get_all("trailer").iter().collect::<Vec<_>>(), ["digest, x-sum"]);
        assert!(!forwarded(&[("trailer", "host")]).unwrap().contains_key("trailer"));
    }

    #[test]
    fn connection_keeps_what_is_about_the_connection() {
        let mut of_client = headers(&[
            ("connection", "Upgrade, x-a"),
            ("connection", "close"),
            ("x-a", "1"),
            ("upgrade", "websocket"),
        ]);
        remove_named(&mut of_client);
        assert_eq!(of_client.get_all("connection").iter().collect::<Vec<_>>(), ["Upgrade, close"]);
        assert!(!of_client.contains_key("x-a") && of_client.contains_key("upgrade"));
    }

    #[test]
    fn a_loop_ends() {
        assert!(forwarded(&[("cdn-loop", "portico, other;v=1, portico")]).is_ok());
        assert_eq!(
            forwarded(&[("cdn-loop", "portico, PORTICO; x=y"), ("cdn-loop", "portico")]).err(),
            Some(Looping)
        );
    }

    #[test]
    fn cookie_crumbs_become_one_field() {
        let out = forwarded(&[("cookie", "a=1"), ("cookie", "b=2")]).unwrap();
        assert_eq!(out.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    fn cleaned(status: u16, pairs: &[(&str, &str)]) -> Result<HeaderMap, AmbiguousLength> {
        let (mut head, ()) = http::Response::builder().status(status).body(()).unwrap().into_parts();
        head.headers = headers(pairs);
        clean_response(&mut head, Protocol::Http1).map(|()| head.headers)
    }

    #[test]
    fn an_origins_length_beside_a_coding_is_dropped() {
        let answer =
            [("transfer-encoding", "Chunked"), ("content-length", "3"), ("connection", "x-a"), ("x-a", "1")];
        let answer = cleaned(200, &answer).unwrap();
        assert!(!answer.contains_key("content-length") && !answer.contains_key("x-a"));
    }

    #[test]
    fn an_origins_lengths_become_one_or_the_answer_is_no_good() {
        let lengths = |status, values: &[&str]| {
            let pairs: Vec<_> = values.iter().map(|value| ("content-length", *value)).collect();
            let answer = cleaned(status, &pairs)?;
            Ok(answer.get_all("content-length").iter().cloned().collect::<Vec<_>>())
        };
        for (values, one) in
            [(&["2"][..], "2"), (&["0"], "0"), (&["2, 2"], "2"), (&["2", "02"], "2"), (&["00"], "0")]
        {
            assert_eq!(lengths(200, values).unwrap(), [one], "{values:?}");
        }
        for status in [204, 101] {
            assert!(lengths(status, &["2"]).unwrap().is_empty(), "{status}");
        }
        for values in [&["2", "3"][..], &["2, 3"], &["-1"], &["+2"], &[""], &["2,"], &["2 2"], &["0x2"]] {
            assert_eq!(lengths(200, values), Err(AmbiguousLength), "{values:?}");
        }
        assert_eq!(lengths(200, &["99999999999999999999"]), Err(AmbiguousLength));
        for coding in ["gzip, chunked", "chunked, chunked", "identity", "xchunked", ""] {
            assert_eq!(cleaned(200, &[("transfer-encoding", coding)]), Err(AmbiguousLength), "{coding}");
        }
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(cleaned(200, &twice), Err(AmbiguousLength));
    }
}
