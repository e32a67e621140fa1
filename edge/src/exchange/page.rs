//! Our own pages: a status, its phrase, and at most one sentence; or the tenant's own in their place. Nothing of a request is
//! ever echoed, and no page says why.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::{http::body::ResponseSource, live::Host};

/// Reasons of pages that have words of their own: the operator's of a suspension, the tenant's of maintenance.
pub(super) const SUSPENDED: &str = "suspended";
pub(super) const MAINTENANCE: &str = "maintenance";

pub(super) const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// The page for `status`; `note` is an operator's text.
pub(super) fn of(status: StatusCode, note: &str) -> Bytes {
    let phrase = status.canonical_reason().unwrap_or("Error");
    let note = match note {
        "" => String::new(),
        note => format!("<p>{}</p>", escaped(note)),
    };
    let code = status.as_u16();
    format!("<!doctype html><title>{code} {phrase}</title><h1>{phrase}</h1>{note}\n").into()
}

/// Puts the tenant's own page in the place of a neutral one, where it has one for the status; what else the head says stays.
pub(super) fn put_own(response: &mut Response<ResponseSource>, reason: &str, host: &Host) {
    let has_words = match reason {
        SUSPENDED => true,
        MAINTENANCE => host.maintenance.as_ref().is_some_and(|maintenance| !maintenance.text.is_empty()),
        _ => false,
    };
    if has_words {
        return;
    }
    if let Some((content_type, body)) = host.tenant.error_page(response.status()) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        *response.body_mut() = ResponseSource::Full(body);
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_cannot_become_markup() {
        let page = of(StatusCode::SERVICE_UNAVAILABLE, "unpaid <script>alert('x')</script>");
        let page = std::str::from_utf8(&page).unwrap();
        assert!(page.contains("503 Service Unavailable"));
        assert!(!page.contains("<script"), "{page}");
    }
}
