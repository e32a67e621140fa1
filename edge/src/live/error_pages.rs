//! What a tenant's visitors see in the place of our own error pages.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use portico_api::{distribution as wire, v1};

use super::{Fault, limits};

/// A tenant's own pages, each for one status.
#[derive(Debug, Clone, Default)]
pub struct ErrorPages(Box<[ErrorPage]>);

#[derive(Debug, Clone)]
struct ErrorPage {
    status: StatusCode,
    content_type: HeaderValue,
    body: Bytes,
}

impl ErrorPages {
    /// Which statuses and types there are is the control plane's to say: a later release may have more.
    pub(super) fn parse(from: &[wire::ErrorPage]) -> Result<Self, Fault> {
        let bad = |why: String| Fault::new("BadErrorPages", why);
        if from.len() > limits::ERROR_PAGES_MAX {
            return Err(bad(format!("{} pages; at most {}", from.len(), limits::ERROR_PAGES_MAX)));
        }
        let bytes: usize = from.iter().map(|page| page.body.len()).sum();
        if bytes > limits::ERROR_PAGES_BYTES_MAX {
            return Err(bad(format!("{bytes} bytes of pages; at most {}", limits::ERROR_PAGES_BYTES_MAX)));
        }
        from.iter().map(ErrorPage::parse).collect::<Result<_, _>>().map(Self)
    }

    /// From an edge's own file.
    ///
    /// # Errors
    /// A [`Fault`] that says which page is wrong.
    pub fn new(pages: &v1::ErrorPages) -> Result<Self, Fault> {
        if let Some((at, _, message)) = pages.faults().into_iter().next() {
            return Err(Fault::new("BadErrorPages", format!("{at} {message}").trim_start().to_owned()));
        }
        Self::parse(&wire::ErrorPage::all_of(pages))
    }

    /// The page for a status: its content type and its body.
    pub(crate) fn of(&self, status: StatusCode) -> Option<(HeaderValue, Bytes)> {
        let page = self.0.iter().find(|page| page.status == status)?;
        Some((page.content_type.clone(), page.body.clone()))
    }
}

impl ErrorPage {
    fn parse(from: &wire::ErrorPage) -> Result<Self, Fault> {
        let bad = |why: &str| Fault::new("BadErrorPages", format!("the page for {}: {why}", from.status));
        let status = u16::try_from(from.status).ok().and_then(|status| StatusCode::from_u16(status).ok());
        let status = status.filter(|status| status.is_client_error() || status.is_server_error());
        let content_type = HeaderValue::from_str(&from.content_type).ok();
        let content_type = content_type
            .filter(|content_type| (1..=limits::CONTENT_TYPE_BYTES_MAX).contains(&content_type.len()));
        Ok(Self {
            status: status.ok_or_else(|| bad("not a status of an error"))?,
            content_type: content_type.ok_or_else(|| bad("its content type is not that of a header"))?,
            // A copy: what it came in holds all of the tenant.
            body: Bytes::copy_from_slice(from.body.as_bytes()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(status: u32, content_type: &str, bytes: usize) -> wire::ErrorPage {
        wire::ErrorPage { status, content_type: content_type.to_owned(), body: "x".repeat(bytes) }
    }

    #[test]
    fn pages_beyond_their_bounds_are_faults() {
        let half = limits::ERROR_PAGES_BYTES_MAX / 2;
        let two = [page(502, "text/html", half), page(503, "a/b", half)];
        let pages = ErrorPages::parse(&two).expect("within the bounds");
        assert_eq!(pages.of(StatusCode::BAD_GATEWAY).expect("a page").1.len(), half);
        assert!(pages.of(StatusCode::GATEWAY_TIMEOUT).is_none());
        let many = vec![page(502, "text/html", 1); limits::ERROR_PAGES_MAX + 1];
        for (wrong, hint) in [
            ([&two[..], &[page(504, "a/b", 1)]].concat(), "bytes of pages"),
            (many, "pages; at most"),
            (vec![page(302, "a/b", 1)], "the page for 302: not a status"),
            (vec![page(70_000, "a/b", 1)], "not a status"),
            (vec![page(502, "", 1)], "content type"),
            (vec![page(502, "a/b\r\nx: y", 1)], "content type"),
            (vec![page(502, &"x".repeat(limits::CONTENT_TYPE_BYTES_MAX + 1), 1)], "content type"),
        ] {
            let fault = ErrorPages::parse(&wrong).expect_err("out of bounds");
            assert!(fault.text.contains(hint), "{}", fault.text);
        }
    }
}
