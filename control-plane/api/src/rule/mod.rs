//! What a route matches and what it changes, read once from its text.
//!
//! The control plane reads a rule to refuse what is wrong, an edge reads it to act by it, and a standalone edge's file is read
//! by it too: one reading, so that no edge refuses what the API took, and a request is matched by what was checked.
//!
//! Deliberately absent: what a route then does. The action's own fields are read where they are used.

mod cache;
mod circle;
mod compression;
mod headers;
mod hsts;
mod path;
mod upstream;

use http::{HeaderMap, Method};

pub use cache::{CacheRule, QueryRule};
pub use circle::{OwnTarget, circular};
pub use compression::CompressionRule;
pub use headers::{
    CHANGES_BYTES_MAX, CHANGES_MAX, Changes, Condition, EQUALS_BYTES_MAX, NAME_BYTES_MAX, Side,
};
pub use hsts::{HstsWish, MAX_AGE_MAX, PRELOAD_MAX_AGE_MIN};
pub use path::{Climbs, PATH_BYTES_MAX, PathMatch, Replacement, RequestPath, climbs};
pub use upstream::{
    ANSWER_MS, BREAKER_IN_FLIGHT, BREAKER_PENDING, CONNECT_MS, HEALTH_INTERVAL_SECONDS,
    HEALTH_PATH_BYTES_MAX, HEALTH_THRESHOLD, REDIRECT_STATUSES, proxy_faults, redirect_status_fault,
    static_status_fault,
};

/// Methods of one rule.
pub const METHODS_MAX: usize = 16;
/// A method, bytes.
pub const METHOD_BYTES_MAX: usize = 32;
/// Headers that one rule asks for.
pub const CONDITIONS_MAX: usize = 8;
/// Rules of one domain; the first match is taken, so a request walks this list.
pub const ROUTES_MAX: usize = 100;

/// What a rule matches and changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    pub path: PathMatch,
    /// Most rules are a path alone, and there may be a million of them.
    more: Option<Box<More>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct More {
    /// Empty: all.
    methods: Box<[Method]>,
    conditions: Box<[Condition]>,
    replacement: Option<Replacement>,
    request_headers: Changes,
    response_headers: Changes,
}

/// A rule as it is written, wherever that is.
#[derive(Clone, Debug, Default)]
pub struct RuleText<'a> {
    pub path: &'a str,
    pub exact: bool,
    pub methods: &'a [String],
    /// Name, and the value that it has to have.
    pub headers: Vec<(&'a str, Option<&'a str>)>,
    pub replace_prefix: Option<&'a str>,
    pub request_headers: ChangesText<'a>,
    pub response_headers: ChangesText<'a>,
}

#[derive(Clone, Debug, Default)]
pub struct ChangesText<'a> {
    /// Name and value.
    pub set: Vec<(&'a str, &'a str)>,
    pub remove: &'a [String],
}

/// What the rule's action is: not every action has something to rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    Proxy,
    Redirect { keep_path: bool },
    Static,
}

/// What is wrong with a rule's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuleFault {
    pub part: Part,
    /// A JSON pointer into the part; empty: the part itself.
    pub below: String,
    /// Stable.
    pub code: &'static str,
    pub message: String,
}

/// What is wrong with a policy of a proxy action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PolicyFault {
    /// A JSON pointer into the policy.
    pub below: String,
    /// Stable.
    pub code: &'static str,
    pub message: String,
}

/// A field of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Path,
    Methods,
    Headers,
    ReplacePrefix,
    RequestHeaders,
    ResponseHeaders,
}

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// Everything that is wrong with it; at least one fault.
    pub fn parse(text: &RuleText<'_>, action: ActionKind) -> Result<Self, Vec<RuleFault>> {
        let mut faults = Vec::new();
        let path = PathMatch::parse(text.path, text.exact)
            .map_err(|message| faults.push(Part::Path.fault("invalid_path", message)))
            .ok();
        let methods = parse_methods(text.methods, &mut faults);
        let conditions = parse_conditions(&text.headers, &mut faults);
        let replacement = parse_replacement(text.replace_prefix, action, &mut faults);
        let request = &text.request_headers;
        if action != ActionKind::Proxy && !(request.set.is_empty() && request.remove.is_empty()) {
            let message = "nothing is sent on by this action; only a proxy's request has headers to change";
            faults.push(Part::RequestHeaders.fault("not_for_this_action", message));
        }
        let request_headers = Changes::parse(request, Side::Request, &mut faults);
        let response_headers = Changes::parse(&text.response_headers, Side::Response, &mut faults);
        if matches!(action, ActionKind::Redirect { .. }) && response_headers.touch(&http::header::LOCATION) {
            let message = "a redirect's Location is its `to`";
            faults.push(Part::ResponseHeaders.fault("header_refused", message));
        }
        let (Some(path), true) = (path, faults.is_empty()) else { return Err(faults) };
        let more = More { methods, conditions, replacement, request_headers, response_headers };
        Ok(Self { path, more: (!more.is_empty()).then(|| Box::new(more)) })
    }

    /// What of `path` lies below the rule's own, if the rule matches.
    pub fn matches<'p>(
        &self,
        method: &Method,
        path: &RequestPath<'p>,
        headers: &HeaderMap,
    ) -> Option<&'p str> {
        let rest = self.path.rest(path)?;
        let Some(more) = &self.more else { return Some(rest) };
        let holds = more.takes(method) && more.conditions.iter().all(|condition| condition.holds(headers));
        holds.then_some(rest)
    }

    /// The methods that the rule names; empty: all match.
    pub fn methods(&self) -> &[Method] {
        self.more.as_ref().map_or(&[], |more| &more.methods)
    }

    pub fn replacement(&self) -> Option<&Replacement> {
        self.more.as_ref()?.replacement.as_ref()
    }

    /// None: nothing is changed.
    pub fn request_headers(&self) -> Option<&Changes> {
        self.more.as_ref().map(|more| &more.request_headers).filter(|changes| !changes.is_empty())
    }

    /// None: nothing is changed.
    pub fn response_headers(&self) -> Option<&Changes> {
        self.more.as_ref().map(|more| &more.response_headers).filter(|changes| !changes.is_empty())
    }

    /// Whether all requests of `method` (None: of any) that match `other` match this rule.
    fn covers(&self, other: &Self, method: Option<&Method>) -> bool {
        let takes = match (method, self.methods()) {
            (_, []) => true,
            (None, _) => false,
            (Some(method), _) => self.more.as_ref().is_some_and(|more| more.takes(method)),
        };
        let implied = |condition: &Condition| other.conditions().iter().any(|has| has.implies(condition));
        takes && self.path.covers(&other.path) && self.conditions().iter().all(implied)
    }

    fn conditions(&self) -> &[Condition] {
        self.more.as_ref().map_or(&[], |more| &more.conditions)
    }
}

/// The rules that no request reaches, each with an earlier one that takes its requests. Several earlier rules may share the
/// work by their methods; what several paths or headers take together is not seen.
pub fn unreachable<'r>(rules: impl IntoIterator<Item = &'r Rule>) -> Vec<(usize, usize)> {
    let rules: Vec<&Rule> = rules.into_iter().collect();
    let mut found = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let taker =
            |method: Option<&Method>| rules[..index].iter().position(|earlier| earlier.covers(rule, method));
        // GET stands for HEAD too: whoever takes the one takes the other.
        let takers: Option<Vec<usize>> = match rule.methods() {
            [] => taker(None).map(|earlier| vec![earlier]),
            methods => methods.iter().map(|method| taker(Some(method))).collect(),
        };
        found.extend(takers.and_then(|takers| takers.first().copied()).map(|earlier| (index, earlier)));
    }
    found
}

impl More {
    fn is_empty(&self) -> bool {
        self.methods.is_empty()
            && self.conditions.is_empty()
            && self.replacement.is_none()
            && self.request_headers.is_empty()
            && self.response_headers.is_empty()
    }

    fn takes(&self, method: &Method) -> bool {
        self.methods.is_empty()
            || self.methods.contains(method)
            || (*method == Method::HEAD && self.methods.contains(&Method::GET))
    }
}

impl Part {
    /// The field's name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Path => "path_prefix",
            Self::Methods => "methods",
            Self::Headers => "headers",
            Self::ReplacePrefix => "replace_prefix",
            Self::RequestHeaders => "request_headers",
            Self::ResponseHeaders => "response_headers",
        }
    }

    fn fault(self, code: &'static str, message: impl Into<String>) -> RuleFault {
        self.fault_below(String::new(), code, message)
    }

    fn fault_below(self, below: String, code: &'static str, message: impl Into<String>) -> RuleFault {
        RuleFault { part: self, below, code, message: message.into() }
    }
}

impl PolicyFault {
    fn at(below: String, code: &'static str, message: String) -> Self {
        Self { below, code, message }
    }
}

impl<'a> RuleText<'a> {
    /// A path and everything below it.
    pub fn prefix(path: &'a str) -> Self {
        Self { path, ..Self::default() }
    }

    /// What it may not set in responses, where it is written. [`Rule::parse`] takes it, as earlier releases did.
    pub fn settled_by_edges(&self) -> Vec<RuleFault> {
        headers::settled(&self.response_headers)
    }
}

impl<'a> From<&'a crate::v1::Route> for RuleText<'a> {
    fn from(from: &'a crate::v1::Route) -> Self {
        let header =
            |header: &'a crate::v1::HeaderCondition| (header.name.as_str(), header.equals.as_deref());
        Self {
            path: &from.path_prefix,
            exact: from.exact,
            methods: &from.methods,
            headers: from.headers.iter().map(header).collect(),
            replace_prefix: from.replace_prefix.as_deref(),
            request_headers: (&from.request_headers).into(),
            response_headers: (&from.response_headers).into(),
        }
    }
}

impl<'a> From<&'a crate::v1::HeaderChanges> for ChangesText<'a> {
    fn from(from: &'a crate::v1::HeaderChanges) -> Self {
        let set = from.set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Self { set: set.collect(), remove: &from.remove }
    }
}

fn parse_methods(texts: &[String], faults: &mut Vec<RuleFault>) -> Box<[Method]> {
    if texts.len() > METHODS_MAX {
        faults.push(Part::Methods.fault("too_many", format!("at most {METHODS_MAX} methods")));
        return Box::default();
    }
    let mut methods: Vec<Method> = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let mut wrong = |code, message: String| {
            faults.push(Part::Methods.fault_below(format!("/{index}"), code, message));
        };
        let fits = (1..=METHOD_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        match Method::from_bytes(text.as_bytes()) {
            Ok(Method::CONNECT | Method::TRACE) => {
                wrong("invalid_method", format!("{text} is never served"));
            }
            Ok(method) if fits && methods.contains(&method) => {
                wrong("duplicate", format!("{text} is there twice"));
            }
            Ok(method) if fits => methods.push(method),
            _ => {
                let message =
                    format!("must be a method such as POST: upper case, at most {METHOD_BYTES_MAX}");
                wrong("invalid_method", message);
            }
        }
    }
    methods.into()
}

fn parse_conditions(texts: &[(&str, Option<&str>)], faults: &mut Vec<RuleFault>) -> Box<[Condition]> {
    if texts.len() > CONDITIONS_MAX {
        faults.push(Part::Headers.fault("too_many", format!("at most {CONDITIONS_MAX} headers")));
        return Box::default();
    }
    let mut conditions: Vec<Condition> = Vec::with_capacity(texts.len());
    for (index, &(name, equals)) in texts.iter().enumerate() {
        match Condition::parse(name, equals) {
            Ok(condition) if conditions.iter().any(|other| other.name() == condition.name()) => {
                let message = "a header stands in a rule once";
                faults.push(Part::Headers.fault_below(format!("/{index}/name"), "duplicate", message));
            }
            Ok(condition) => conditions.push(condition),
            Err((field, code, message)) => {
                faults.push(Part::Headers.fault_below(format!("/{index}/{field}"), code, message));
            }
        }
    }
    conditions.into()
}

fn parse_replacement(
    text: Option<&str>,
    action: ActionKind,
    faults: &mut Vec<RuleFault>,
) -> Option<Replacement> {
    let text = text?;
    if !matches!(action, ActionKind::Proxy | ActionKind::Redirect { keep_path: true }) {
        let message = "this action sends no path on; it is for `proxy`, and for `redirect` with `keep_path`";
        faults.push(Part::ReplacePrefix.fault("not_for_this_action", message));
    }
    Replacement::parse(text)
        .map_err(|message| faults.push(Part::ReplacePrefix.fault("invalid_path", message)))
        .ok()
}

#[cfg(test)]
mod tests;
