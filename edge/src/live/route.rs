//! Routes: parsed once at the border, so that a request only compares and clones.
//!
//! Everything that later goes into a header or a connect is refused here if it could not go there: a route that is in
//! force cannot fail for its own text.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use portico_api::distribution as wire;
use url::Url;

use super::origin::Upstream;
use super::{Fault, limits};

/// One rule of a host.
#[derive(Clone, Debug)]
pub struct Route {
    /// `/` or longer; a trailing `/` makes no difference, since whole segments are compared.
    pub path_prefix: Box<str>,
    pub action: Action,
}

/// What a route does.
#[derive(Clone, Debug)]
pub enum Action {
    Proxy(Arc<Upstream>),
    Redirect(Redirect),
    Static { status: StatusCode, content_type: HeaderValue, body: Bytes },
}

/// An answer with a Location.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub status: StatusCode,
    pub keep_path: bool,
    /// Absolute; with `keep_path` it has neither query nor fragment.
    location: Url,
}

impl Route {
    pub(super) fn parse(from: &wire::Route) -> Result<Self, Fault> {
        if from.rule.is_some() {
            return Err(Fault::new("UnknownRule", "a rule that this edge does not know"));
        }
        let path_prefix = parse_prefix(&from.path_prefix)?;
        let action = match &from.action {
            Some(wire::route::Action::Proxy(proxy)) => Action::Proxy(Arc::new(Upstream::parse(proxy)?)),
            Some(wire::route::Action::Redirect(redirect)) => {
                Action::Redirect(Redirect::parse(&redirect.location, redirect.status, redirect.keep_path)?)
            }
            Some(wire::route::Action::StaticAnswer(answer)) => {
                // A copy: the message's bytes are a part of the whole snapshot, which would stay in memory for it.
                let body = Bytes::copy_from_slice(&answer.body);
                Action::fixed(answer.status, &answer.content_type, body)?
            }
            // Also an action of a newer release: it has to be nacked, not turned into an empty answer.
            None => {
                return Err(Fault::new("UnknownAction", "a route without an action that this edge knows"));
            }
        };
        Ok(Self { path_prefix, action })
    }

    /// # Errors
    /// A [`Fault`] if the prefix is not a path.
    pub fn new(path_prefix: &str, action: Action) -> Result<Self, Fault> {
        Ok(Self { path_prefix: parse_prefix(path_prefix)?, action })
    }

    /// Whether `path` (without its query) is the prefix or lies below it.
    pub fn matches(&self, path: &str) -> bool {
        match path.strip_prefix(&*self.path_prefix) {
            Some(rest) => rest.is_empty() || rest.starts_with('/') || self.path_prefix.len() == 1,
            None => false,
        }
    }
}

impl Action {
    /// A fixed answer; an empty content type stands for plain text.
    ///
    /// # Errors
    /// A [`Fault`] if the status cannot be a final answer, the type is no header value or the body is too large.
    pub fn fixed(status: u32, content_type: &str, body: Bytes) -> Result<Self, Fault> {
        let bad = |why: String| Fault::new("BadStaticAnswer", why);
        let status = parse_status(status)
            .filter(|status| !status.is_informational())
            .ok_or_else(|| bad(format!("status {status} is not a final status from 200 to 599")))?;
        let bodiless = matches!(status.as_u16(), 204 | 205 | 304);
        if bodiless && !body.is_empty() {
            return Err(bad(format!("an answer with status {status} has no body (RFC 9110 section 15)")));
        }
        if body.len() > limits::STATIC_BODY_BYTES_MAX {
            return Err(bad(format!("the body has {} bytes; at most 64 KiB", body.len())));
        }
        let content_type = if content_type.is_empty() { "text/plain; charset=utf-8" } else { content_type };
        if content_type.len() > limits::CONTENT_TYPE_BYTES_MAX || !content_type.bytes().all(is_header_text) {
            return Err(bad("the content type is not a header value".into()));
        }
        let content_type = HeaderValue::from_str(content_type)
            .map_err(|_| bad("the content type is not a header value".into()))?;
        Ok(Self::Static { status, content_type, body })
    }
}

impl Redirect {
    /// # Errors
    /// A [`Fault`] if the location is not an absolute http or https URL without credentials, or the status is not one of
    /// 301, 302, 303, 307 and 308.
    pub fn parse(location: &str, status: u32, keep_path: bool) -> Result<Self, Fault> {
        let shown = location.escape_debug();
        let bad = |why: &str| Fault::new("BadRedirect", format!("redirect to `{shown:.200}`: {why}"));
        let status = parse_status(status)
            .filter(|status| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308))
            .ok_or_else(|| bad("the status is not one of 301, 302, 303, 307 and 308"))?;
        let location = parse_url(location)
            .filter(|url| url.as_str().len() <= limits::LOCATION_BYTES_MAX)
            .ok_or_else(|| bad("not an absolute URL of at most 2048 bytes"))?;
        if !matches!(location.scheme(), "http" | "https") || !location.has_host() {
            return Err(bad("not an http or https URL"));
        }
        if !location.username().is_empty() || location.password().is_some() {
            return Err(bad("credentials do not belong in a redirect"));
        }
        if keep_path && (location.query().is_some() || location.fragment().is_some()) {
            return Err(bad("with keep_path there is neither query nor fragment"));
        }
        HeaderValue::from_str(location.as_str()).map_err(|_| bad("not a header value"))?;
        Ok(Self { status, keep_path, location })
    }

    /// The Location for a request; `path_and_query` is the request's own and is appended where the path is kept.
    ///
    /// None if the request's path cannot stand in a header.
    pub fn location_for(&self, path_and_query: &str) -> Option<HeaderValue> {
        if !self.keep_path {
            return HeaderValue::from_str(self.location.as_str()).ok();
        }
        let prefix = self.location.as_str().trim_end_matches('/');
        let separator = if path_and_query.starts_with('/') { "" } else { "/" };
        HeaderValue::from_str(&format!("{prefix}{separator}{path_and_query}")).ok()
    }
}

fn parse_prefix(text: &str) -> Result<Box<str>, Fault> {
    let fits = text.starts_with('/')
        && text.len() <= limits::PATH_PREFIX_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
    if !fits {
        let text = format!(
            "path prefix `{:.100}`: begin with `/` and percent-encode all but visible ASCII; no `?` or `#`",
            text.escape_debug()
        );
        return Err(Fault::new("BadPathPrefix", text));
    }
    let trimmed = text.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/".into() } else { trimmed.into() })
}

/// `Url::parse` drops tabs and line ends silently and trims spaces: what holds any is not the URL that it seems to be.
pub(super) fn parse_url(text: &str) -> Option<Url> {
    let clean = text.len() <= limits::LOCATION_BYTES_MAX
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    // A backslash is read as a slash by browsers and by `Url`, and as part of the host by others.
    if clean && !text.contains('\\') { Url::parse(text).ok() } else { None }
}

fn parse_status(status: u32) -> Option<StatusCode> {
    let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok())?;
    (status.as_u16() < 600).then_some(status)
}

fn is_header_text(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}
