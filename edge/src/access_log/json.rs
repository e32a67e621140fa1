//! One JSON object a line. Fields are only ever added.

use std::{borrow::Cow, time::Duration};

use portico_cert_store::DomainName;
use serde::Serialize;
use time::{format_description::BorrowedFormatItem, macros::format_description};

use super::{AccessRecord, cut};
use crate::{
    cache::Outcome,
    privacy::{Privacy, without_user},
};

/// RFC 3339, milliseconds always: so lines sort as they are.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    peer: std::net::IpAddr,
    peer_port: Option<u16>,
    client: std::net::IpAddr,
    protocol: &'static str,
    tls: bool,
    tls_version: Option<&'static str>,
    tls_resumed: Option<bool>,
    sni: Option<&'a str>,
    method: Text<'a>,
    authority: Option<Text<'a>>,
    target: Text<'a>,
    tenant: Option<String>,
    domain: Option<String>,
    status: u16,
    request_bytes: u64,
    response_bytes: u64,
    duration_us: u64,
    first_byte_us: Option<u64>,
    request_id: Text<'a>,
    referer: Option<Text<'a>>,
    user_agent: Option<Text<'a>>,
    origin: Option<String>,
    origin_connect_us: Option<u64>,
    origin_first_byte_us: Option<u64>,
    cache: Option<&'static str>,
    reason: Option<&'static str>,
    complete: bool,
}

/// Adds a line to `out`.
pub(super) fn write_line(out: &mut Vec<u8>, record: &AccessRecord, privacy: &Privacy) {
    let text = |bytes| Text(Cow::Borrowed(bytes));
    let line = Line {
        time: super::time_of(record).and_then(|time| time.format(TIME).ok()).unwrap_or_default(),
        peer: privacy.address(record.peer.ip()),
        peer_port: privacy.port(record.peer.port()),
        client: privacy.address(record.visitor.client),
        protocol: record.protocol.as_str(),
        tls: record.handshake.is_some(),
        tls_version: record.handshake.as_ref().map(|handshake| handshake.version),
        tls_resumed: record.handshake.as_ref().map(|handshake| handshake.resumed),
        sni: record.handshake.as_ref().and_then(|handshake| handshake.sni.as_ref()).map(DomainName::as_str),
        method: text(record.method.as_str().as_bytes()),
        authority: record.authority.as_deref().map(|authority| text(without_user(authority).as_bytes())),
        target: Text(privacy.target(record.path_and_query().as_bytes())),
        tenant: record.host.as_ref().map(|host| host.tenant.id.to_string()),
        domain: record.host.as_ref().map(|host| host.domain.to_string()),
        status: record.status.as_u16(),
        request_bytes: record.request_bytes,
        response_bytes: record.response_bytes,
        duration_us: record.duration_us,
        first_byte_us: record.first_byte.map(micros),
        request_id: text(record.visitor.request_id.as_bytes()),
        referer: record.referer.as_ref().map(|referer| Text(privacy.url(referer.as_bytes()))),
        user_agent: record.user_agent.as_ref().map(|value| text(value.as_bytes())),
        origin: record.origin.as_ref().map(|origin| origin.place.to_string()),
        origin_connect_us: record.origin.as_ref().and_then(|origin| origin.connect).map(micros),
        origin_first_byte_us: record.origin.as_ref().and_then(|origin| origin.first_byte).map(micros),
        cache: record.cache.map(Outcome::as_str),
        reason: record.reason,
        complete: record.complete,
    };
    let begun = out.len();
    match serde_json::to_writer(&mut *out, &line) {
        Ok(()) => out.push(b'\n'),
        Err(error) => {
            out.truncate(begun);
            tracing::error!(%error, "access log: a line could not be made");
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Bytes from a client: cut, made valid UTF-8, and with control characters (C0 by JSON itself; DEL and C1, which a
/// terminal obeys too, here) escaped.
struct Text<'a>(Cow<'a, [u8]>);

impl Serialize for Text<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = String::from_utf8_lossy(cut(&self.0));
        if !text.chars().any(char::is_control) {
            return serializer.serialize_str(&text);
        }
        let mut escaped = String::with_capacity(text.len() + 16);
        for character in text.chars() {
            if character.is_control() {
                escaped.extend(character.escape_default());
            } else {
                escaped.push(character);
            }
        }
        serializer.serialize_str(&escaped)
    }
}
