//! Our own pages: a status, its phrase, and at most one sentence. Nothing of a request is ever echoed.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

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
