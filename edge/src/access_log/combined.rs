//! The line that Apache and nginx call `combined`, and that GoAccess, awstats and fail2ban read; and the same with the
//! site's name and port before it, which Apache's packages call `vhost_combined`.
//!
//! The site is the domain as it is configured, `*.shop.example` for all that a wildcard serves: programs make a file or a page
//! of each, and whoever asks could invent names below it without end.
//!
//! Text of clients is escaped as nginx does it: `"`, `\` and all bytes that are not printable ASCII become `\xHH`. So no
//! client can end a field, begin a line or steer a terminal. The user (the third field) is always `-`, since credentials are
//! not read. Times are UTC.

use std::io::Write as _;

use http::Version;
use time::{format_description::BorrowedFormatItem, macros::format_description};

use super::{AccessRecord, cut};
use crate::{exchange::Protocol, privacy::Privacy};

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[day]/[month repr:short]/[year]:[hour]:[minute]:[second] +0000");

/// Adds a line to `out`; with `site`, the site's name and port stand before it.
pub(super) fn write_line(out: &mut Vec<u8>, record: &AccessRecord, privacy: &Privacy, site: bool) {
    if site {
        let _ = match &record.host {
            Some(host) => write!(out, "{}:{} ", host.name, record.local_port),
            None => write!(out, "-:{} ", record.local_port),
        };
    }
    let time = super::time_of(record).and_then(|time| time.format(TIME).ok()).unwrap_or_default();
    let _ = write!(out, "{} - - [{time}] \"", privacy.address(record.visitor.client));
    escape(out, record.method.as_str().as_bytes());
    out.push(b' ');
    escape(out, &privacy.target(record.path_and_query().as_bytes()));
    let _ = write!(out, " {}\" {} {} ", version(record), record.status.as_u16(), record.response_bytes);
    quoted(out, record.referer.as_ref().map(|referer| privacy.url(referer.as_bytes())).as_deref());
    out.push(b' ');
    quoted(out, record.user_agent.as_ref().map(http::HeaderValue::as_bytes));
    out.push(b'\n');
}

fn version(record: &AccessRecord) -> &'static str {
    match (record.protocol, record.version) {
        (Protocol::Http1, Version::HTTP_10) => "HTTP/1.0",
        (Protocol::Http1, _) => "HTTP/1.1",
        (Protocol::Http2, _) => "HTTP/2.0",
        (Protocol::Http3, _) => "HTTP/3.0",
    }
}

fn quoted(out: &mut Vec<u8>, text: Option<&[u8]>) {
    out.push(b'"');
    match text {
        Some(text) => escape(out, text),
        None => out.push(b'-'),
    }
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for byte in cut(text) {
        match byte {
            b'"' | b'\\' | ..=0x1f | 0x7f.. => {
                let _ = write!(out, "\\x{byte:02X}");
            }
            plain => out.push(*plain),
        }
    }
}
