//! Routes: parsed once at the border, so that a request only compares and clones.
//!
//! Everything that later goes into a header or a connect is refused here if it could not go there: a route that is in
//! force cannot fail for its own text.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use portico_api::distribution as wire;
use portico_api::rule::{
    ActionKind, CacheRule, ChangesText, CompressionRule, Part, Rule, RuleFault, RuleText,
};
use url::Url;

use super::origin::Upstream;
use super::{Fault, limits};

/// One rule of a host, and what it leads to.
#[derive(Clone, Debug)]
pub struct Route {
    pub rule: Rule,
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
    pub keep_query: bool,
    /// Absolute; where path or query is kept, it has neither query nor fragment.
    location: Url,
}

impl Route {
    pub(super) fn parse(from: &wire::Route) -> Result<Self, Fault> {
        let action = match &from.action {
            Some(wire::route::Action::Proxy(proxy)) => Action::Proxy(Arc::new(Upstream::parse(proxy)?)),
            Some(wire::route::Action::Redirect(wire::Redirect {
                location,
                status,
                keep_path,
                keep_query,
            })) => {
                let keep_query = keep_query.unwrap_or(*keep_path);
                Action::Redirect(Redirect::parse(location, *status, *keep_path, keep_query)?)
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
        match &from.rule {
            None => Self::new(&RuleText::prefix(&from.path_prefix), action),
            Some(rule) => Self::new(&rule_text(rule)?, action),
        }
    }

    /// Tells the answers that come by this route from those of any other in the cache.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.rule.hash(&mut hasher);
        if let Action::Proxy(upstream) = &self.action {
            upstream.fingerprint.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// None: nothing of it is kept.
    pub fn cache_rule(&self) -> Option<&CacheRule> {
        match &self.action {
            Action::Proxy(upstream) => upstream.cache.as_ref(),
            Action::Redirect(_) | Action::Static { .. } => None,
        }
    }

    /// None: nothing of it is compressed.
    pub fn compression(&self) -> Option<&CompressionRule> {
        match &self.action {
            Action::Proxy(upstream) => upstream.compression.as_ref(),
            Action::Redirect(_) | Action::Static { .. } => None,
        }
    }

    /// # Errors
    /// A [`Fault`] if the rule is wrong, or not one for this action.
    pub fn new(rule: &RuleText<'_>, action: Action) -> Result<Self, Fault> {
        let rule = Rule::parse(rule, action.kind()).map_err(|faults| first_fault(&faults))?;
        Ok(Self { rule, action })
    }
}

/// What is there of a rule. What of it an edge of this release would leave out makes it unknown.
fn rule_text(from: &wire::Rule) -> Result<RuleText<'_>, Fault> {
    let unknown = |text: &str| Fault::new("UnknownRule", text);
    if from.level > wire::RULE_LEVEL {
        return Err(unknown("a rule of a newer release than this edge's"));
    }
    let (path, exact) = match &from.path {
        Some(wire::rule::Path::Prefix(path)) => (path, false),
        Some(wire::rule::Path::Exact(path)) => (path, true),
        None => return Err(unknown("a rule without a path that this edge knows")),
    };
    Ok(RuleText {
        path,
        exact,
        methods: &from.methods,
        headers: from.headers.iter().map(|header| (header.name.as_str(), header.equals.as_deref())).collect(),
        replace_prefix: from.replace_prefix.as_deref(),
        request_headers: changes_text(from.request_headers.as_ref()),
        response_headers: changes_text(from.response_headers.as_ref()),
    })
}

fn changes_text(from: Option<&wire::HeaderChanges>) -> ChangesText<'_> {
    let Some(from) = from else { return ChangesText::default() };
    let set = from.set.iter().map(|field| (field.name.as_str(), field.value.as_str()));
    ChangesText { set: set.collect(), remove: &from.remove }
}

fn first_fault(faults: &[RuleFault]) -> Fault {
    let Some(fault) = faults.first() else { return Fault::new("BadRule", "the rule cannot be read") };
    let code = match fault.part {
        Part::Path => "BadPathPrefix",
        Part::Methods => "BadMethods",
        Part::Headers => "BadHeaderCondition",
        Part::ReplacePrefix => "BadReplacePrefix",
        Part::RequestHeaders => "BadRequestHeaders",
        Part::ResponseHeaders => "BadResponseHeaders",
    };
    let text = format!("{}{}: {}", fault.part.name(), fault.below.escape_debug(), fault.message);
    Fault::new(code, text)
}

impl Action {
    /// Of what its rule may change something.
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Proxy(_) => ActionKind::Proxy,
            Self::Redirect(redirect) => ActionKind::Redirect { keep_path: redirect.keep_path },
            Self::Static { .. } => ActionKind::Static,
        }
    }

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
    pub fn parse(location: &str, status: u32, keep_path: bool, keep_query: bool) -> Result<Self, Fault> {
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
        let keeps = keep_path || keep_query;
        if keeps && (location.query().is_some() || location.fragment().is_some()) {
            return Err(bad("with keep_path or keep_query there is neither query nor fragment"));
        }
        HeaderValue::from_str(location.as_str()).map_err(|_| bad("not a header value"))?;
        Ok(Self { status, keep_path, keep_query, location })
    }

    /// Where it leads to.
    pub fn location(&self) -> &Url {
        &self.location
    }

    /// The Location for a request to `path` (which begins with `/`) and `query`, of which it keeps what it is to keep.
    ///
    /// None if the request's own words cannot stand in a header.
    pub fn location_for(&self, path: &str, query: Option<&str>) -> Option<HeaderValue> {
        let query = query.filter(|_| self.keep_query);
        if !self.keep_path && query.is_none() {
            return HeaderValue::from_str(self.location.as_str()).ok();
        }
        let mut text = self.location.to_string();
        if self.keep_path {
            text.truncate(text.trim_end_matches('/').len());
            text.push_str(path);
        }
        if let Some(query) = query {
            text.push('?');
            text.push_str(query);
        }
        HeaderValue::try_from(text).ok()
    }
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
