//! Headers: what a rule may ask for, and what a tenant may change.
//!
//! What frames a message, what holds between neighbours, and what Portico itself says of a request or a name is not a
//! tenant's to change; everything else is.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{ChangesText, Part, RuleFault};

/// A header that a request has to have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    name: HeaderName,
    /// One of the header's values; None: it is there.
    equals: Option<HeaderValue>,
}

/// Headers to take away and to set, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Changes {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
}

/// Which message is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

/// Fields that one rule sets or removes on one side, and their bytes.
pub const CHANGES_MAX: usize = 32;
pub const CHANGES_BYTES_MAX: usize = 8 * 1024;
/// A header's name, and the value that a rule asks for, bytes.
pub const NAME_BYTES_MAX: usize = 64;
pub const EQUALS_BYTES_MAX: usize = 256;

/// Between neighbours (RFC 9110 section 7.6.1), of framing, or ours to say.
const OURS: [&str; 19] = [
    "alt-svc",
    "cache-status",
    "cdn-loop",
    "connection",
    "content-length",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-real-ip",
];
const OURS_PREFIXES: [&str; 2] = ["x-forwarded-", "sec-websocket-"];
/// What origins believe of a request and clients forge; and what is answered before a request goes on.
const OURS_IN_REQUESTS: [&str; 12] = [
    "client-cert",
    "client-cert-chain",
    "early-data",
    "expect",
    "x-client-cert-sha256",
    "x-client-cert-subject",
    "x-http-method-override",
    "x-original-url",
    "x-request-id",
    "x-rewrite-url",
    "x-ssl-client-cert",
    "x-ssl-client-verify",
];
/// What says how the body's bytes are to be read.
const OURS_IN_RESPONSES: [&str; 2] = ["content-encoding", "content-range"];

/// What an edge says of its answer itself. Rules of earlier releases may hold these, and edges go on reading them: they are
/// refused where a rule is written, not where it is read.
const SETTLED_IN_RESPONSES: [&str; 3] = ["age", "date", "x-request-id"];

/// What a rule that is written now may not set in responses.
pub(super) fn settled(text: &ChangesText<'_>) -> Vec<RuleFault> {
    let fault = |name: &str| {
        let message = format!("{name} cannot be set: edges say it themselves of each answer; leave it out");
        Part::ResponseHeaders.fault_below(format!("/set/{}", escape(name)), "header_refused", message)
    };
    let is_settled = |name: &str| SETTLED_IN_RESPONSES.iter().any(|ours| ours.eq_ignore_ascii_case(name));
    text.set.iter().map(|(name, _)| *name).filter(|name| is_settled(name)).map(fault).collect()
}

impl Side {
    /// Whether a field is not a tenant's to change.
    pub fn refuses(self, name: &HeaderName) -> bool {
        let name = name.as_str();
        let more: &[&str] = match self {
            Self::Request => &OURS_IN_REQUESTS,
            Self::Response => &OURS_IN_RESPONSES,
        };
        OURS.contains(&name)
            || more.contains(&name)
            || OURS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    }

    fn part(self) -> Part {
        match self {
            Self::Request => Part::RequestHeaders,
            Self::Response => Part::ResponseHeaders,
        }
    }
}

impl Condition {
    /// An error names its field, with a code and a message.
    pub(super) fn parse(
        name: &str,
        equals: Option<&str>,
    ) -> Result<Self, (&'static str, &'static str, String)> {
        let name = parse_name(name).map_err(|message| ("name", "invalid_header", message))?;
        if Side::Request.refuses(&name) {
            let message = format!("{name} says nothing that a client may choose a route by");
            return Err(("name", "header_refused", message));
        }
        let Some(equals) = equals else { return Ok(Self { name, equals: None }) };
        if name == header::COOKIE {
            // HTTP/2 and 3 send a cookie in pieces (RFC 9113 section 8.2.3).
            let message = "a cookie can only be asked to be there; its value may come in pieces";
            return Err(("equals", "header_refused", message.to_owned()));
        }
        let value = parse_value(equals).map_err(|message| ("equals", "invalid_header", message))?;
        if value.len() > EQUALS_BYTES_MAX {
            let message = format!("has {} bytes, at most {EQUALS_BYTES_MAX}", value.len());
            return Err(("equals", "too_large", message));
        }
        Ok(Self { name, equals: Some(value) })
    }

    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    pub fn holds(&self, headers: &HeaderMap) -> bool {
        match &self.equals {
            None => headers.contains_key(&self.name),
            Some(value) => headers.get_all(&self.name).iter().any(|found| found == value),
        }
    }

    /// Whether `other` holds wherever this one does.
    pub(super) fn implies(&self, other: &Self) -> bool {
        self.name == other.name && (other.equals.is_none() || self.equals == other.equals)
    }
}

impl Changes {
    /// What is wrong is pushed to `faults`.
    pub(super) fn parse(text: &ChangesText<'_>, side: Side, faults: &mut Vec<RuleFault>) -> Self {
        let count = text.set.len() + text.remove.len();
        if count > CHANGES_MAX {
            let message = format!("{count} headers, at most {CHANGES_MAX}");
            faults.push(side.part().fault("too_many", message));
            return Self::default();
        }
        let mut seen: Vec<HeaderName> = Vec::with_capacity(count);
        let mut name = |below: String, text: &str, faults: &mut Vec<RuleFault>| {
            let name = match parse_name(text) {
                Ok(name) => name,
                Err(message) => {
                    faults.push(side.part().fault_below(below, "invalid_header", message));
                    return None;
                }
            };
            if side.refuses(&name) {
                let message = format!("{name} cannot be changed: it is Portico's, or between neighbours");
                faults.push(side.part().fault_below(below, "header_refused", message));
            } else if seen.contains(&name) {
                let message = format!("{name} is there twice; what is set replaces all of its name");
                faults.push(side.part().fault_below(below, "duplicate", message));
            } else {
                seen.push(name.clone());
            }
            Some(name)
        };
        let mut set = Vec::with_capacity(text.set.len());
        for &(key, value) in &text.set {
            let below = format!("/set/{}", escape(key));
            let named = name(below.clone(), key, faults);
            match parse_value(value) {
                Ok(value) => set.extend(named.map(|name| (name, value))),
                Err(message) => faults.push(side.part().fault_below(below, "invalid_header", message)),
            }
        }
        let removed = text.remove.iter().enumerate();
        let remove = removed.filter_map(|(index, text)| name(format!("/remove/{index}"), text, faults));
        let changes = Self { remove: remove.collect(), set: set.into() };
        let bytes = changes.bytes();
        if bytes > CHANGES_BYTES_MAX {
            let message = format!("{bytes} bytes of names and values, at most {CHANGES_BYTES_MAX}");
            faults.push(side.part().fault("too_large", message));
        }
        changes
    }

    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty()
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// What is set or removed, from where nothing is to be set: a message's trailers.
    pub fn remove_all(&self, fields: &mut HeaderMap) {
        for name in self.remove.iter().chain(self.set.iter().map(|(name, _)| name)) {
            fields.remove(name);
        }
    }

    pub(super) fn touch(&self, name: &HeaderName) -> bool {
        self.remove.contains(name) || self.set.iter().any(|(set, _)| set == name)
    }

    fn bytes(&self) -> usize {
        let removed: usize = self.remove.iter().map(|name| name.as_str().len()).sum();
        let set: usize = self.set.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        removed + set
    }
}

fn parse_name(text: &str) -> Result<HeaderName, String> {
    let fits = text.len() <= NAME_BYTES_MAX;
    HeaderName::from_bytes(text.as_bytes())
        .ok()
        .filter(|_| fits)
        .ok_or_else(|| format!("is no header's name: letters, digits and `-`, at most {NAME_BYTES_MAX}"))
}

fn parse_value(text: &str) -> Result<HeaderValue, String> {
    let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.trim() == text;
    HeaderValue::from_str(text).ok().filter(|_| plain).ok_or_else(|| {
        "is no header's value: visible ASCII, without spaces at its ends and without line ends".to_owned()
    })
}

/// RFC 6901 section 3.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
