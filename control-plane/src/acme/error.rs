//! What went wrong at a CA, in the terms that the order machine decides by.

use std::fmt;
use std::time::Duration;

use instant_acme::{Error, Problem};

use super::http::{CaHttpError, Observed};
use crate::plan::issuers::RestrictionKind;

/// The longest text of a CA that is kept and shown, bytes.
const DETAIL_BYTES_MAX: usize = 600;
/// The most refused names that are read from one answer: one more than any profile's names per order.
const REFUSED_NAMES_MAX: usize = 128;

/// A failed step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct AcmeError {
    pub kind: AcmeErrorKind,
    /// The CA's words, cut; never a key.
    pub detail: String,
    /// When the CA wants to see us again, from now.
    pub retry_after: Option<Duration>,
    /// Names that the CA refuses by themselves (RFC 8555 section 6.7.1), each with the CA's words.
    pub refused_names: Vec<(String, String)>,
    /// Where the order is, when the CA made one although its answer could not be used.
    pub location: Option<String>,
    /// The CA's word that it may not issue for a name at all, by its policy or the name's CAA records: another CA may.
    pub forbids: Option<RestrictionKind>,
    /// The CA refused, or was not reached at all: the request has changed nothing there.
    pub nothing_made: bool,
}

/// What a failure means for the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcmeErrorKind {
    /// A limit of the CA on this account as a whole: nothing more is ordered there until then.
    AccountLimited,
    /// A limit of the CA on these names (or, of others, on their registered domain): these wait, others go on.
    NamesLimited,
    /// No answer, or one of a server in trouble.
    Unavailable,
    /// The nonce was refused more often than one step tries.
    BadNonce,
    /// The CA will not issue for some or all of these names.
    NamesRefused,
    /// The CA finds fault with the request as a whole: something about its names that it does not tell.
    RequestRefused,
    /// The account is unknown, deactivated or must act (new terms).
    Account,
    /// The order, its key or its state is no longer good: a new order is needed.
    OrderGone,
    /// An answer that is no ACME.
    Garbage,
    /// On our side of the wire: configuration or a bug.
    Ours,
}

impl fmt::Display for AcmeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccountLimited => "the CA limits this account",
            Self::NamesLimited => "the CA limits orders for these names",
            Self::Unavailable => "the CA cannot be reached or is in trouble",
            Self::BadNonce => "the CA keeps refusing our nonces",
            Self::NamesRefused => "the CA refuses these names",
            Self::RequestRefused => "the CA refuses this request",
            Self::Account => "the CA does not accept our account",
            Self::OrderGone => "the CA no longer holds this order as we do",
            Self::Garbage => "the CA's answer is not ACME",
            Self::Ours => "the request could not be made",
        })
    }
}

impl AcmeErrorKind {
    /// Stable word for metrics and conditions.
    pub fn reason(self) -> &'static str {
        match self {
            Self::AccountLimited => "CaAccountLimit",
            Self::NamesLimited => "CaNameLimit",
            Self::Unavailable => "CaUnavailable",
            Self::BadNonce => "CaBadNonce",
            Self::NamesRefused => "CaRefusesName",
            Self::RequestRefused => "CaRefusesRequest",
            Self::Account => "CaAccount",
            Self::OrderGone => "CaOrderGone",
            Self::Garbage => "CaAnswerUnusable",
            Self::Ours => "Internal",
        }
    }
}

impl AcmeError {
    /// An error of our own making, with the names of its causes.
    pub fn ours(detail: impl fmt::Display) -> Self {
        Self::plain(AcmeErrorKind::Ours, &detail.to_string())
    }

    /// About our account.
    pub fn account(detail: &str) -> Self {
        Self::plain(AcmeErrorKind::Account, detail)
    }

    pub(super) fn plain(kind: AcmeErrorKind, detail: &str) -> Self {
        Self {
            kind,
            detail: cut(detail),
            retry_after: None,
            refused_names: Vec::new(),
            location: None,
            forbids: None,
            nothing_made: false,
        }
    }

    pub(super) fn is_bad_nonce(&self) -> bool {
        self.kind == AcmeErrorKind::BadNonce
    }

    /// Reads what instant_acme says together with what the answer itself said.
    pub(super) fn new(error: &Error, observed: Observed) -> Self {
        let refused = matches!(observed.status, Some(400..=599));
        let mut read = match error {
            Error::Api(problem) => Self::from_problem(problem, observed.status),
            Error::Json(_) | Error::Str(_) => Self::from_unusable(&error.to_string(), observed.status),
            Error::Timeout(_) => Self::plain(AcmeErrorKind::Unavailable, "no end of the order in time"),
            Error::Other(source) => match source.downcast_ref::<CaHttpError>() {
                Some(http) => Self::from_http(http),
                None => Self::from_unusable(&error.to_string(), observed.status),
            },
            Error::Crypto
            | Error::KeyRejected
            | Error::Http(_)
            | Error::InvalidUri(_)
            | Error::Unsupported(_)
            | _ => Self::plain(AcmeErrorKind::Ours, &error.to_string()),
        };
        read.retry_after = observed.retry_after;
        read.nothing_made |= refused;
        // Only a created order's Location is of use: errors may carry one too.
        read.location = observed.location.filter(|_| matches!(observed.status, Some(200..=299)));
        read
    }

    fn from_problem(problem: &Problem, status: Option<u16>) -> Self {
        let detail = problem.detail.as_deref().unwrap_or("no detail");
        let kind = problem_kind(problem, problem.status.or(status).unwrap_or(0));
        let mut error = Self::plain(kind, detail);
        error.forbids = forbids(problem);
        for sub in problem.subproblems.iter().take(REFUSED_NAMES_MAX) {
            if let Some(instant_acme::Identifier::Dns(name)) = &sub.identifier {
                let words = sub.detail.as_deref().unwrap_or(detail);
                error.refused_names.push((name.to_ascii_lowercase(), cut(words)));
            }
        }
        if error.is_refusal() && error.refused_names.is_empty() {
            error.refused_names = quoted(detail).map(|name| (name, cut(detail))).collect();
        }
        error
    }

    fn from_unusable(detail: &str, status: Option<u16>) -> Self {
        match status {
            Some(429) => {
                Self::plain(AcmeErrorKind::NamesLimited, "too many requests (no ACME problem in the answer)")
            }
            Some(status @ 500..=599) => {
                Self::plain(AcmeErrorKind::Unavailable, &format!("HTTP {status} without an ACME problem"))
            }
            _ => Self::plain(AcmeErrorKind::Garbage, detail),
        }
    }

    pub(super) fn from_http(error: &CaHttpError) -> Self {
        let kind = match error {
            CaHttpError::Timeout | CaHttpError::Connect(_) | CaHttpError::Gone(_) => {
                AcmeErrorKind::Unavailable
            }
            CaHttpError::OtherHost(_) | CaHttpError::Redirect(_) | CaHttpError::Body(..) => {
                AcmeErrorKind::Garbage
            }
            CaHttpError::DirectoryUrl(_) | CaHttpError::Tls(_) | CaHttpError::TermOver => AcmeErrorKind::Ours,
        };
        let mut read = Self::plain(kind, &with_causes(error));
        read.nothing_made = match error {
            CaHttpError::Connect(source) => source.is_connect(),
            CaHttpError::OtherHost(_)
            | CaHttpError::DirectoryUrl(_)
            | CaHttpError::Tls(_)
            | CaHttpError::TermOver
            | CaHttpError::Gone(_) => true,
            CaHttpError::Timeout | CaHttpError::Redirect(_) | CaHttpError::Body(..) => false,
        };
        read
    }

    /// The order is invalid, and the CA says why in it: names or the request are refused, or else it is gone.
    pub(super) fn order_invalid(problem: &Problem) -> Self {
        let mut error = Self::from_problem(problem, Some(403));
        if !error.is_refusal() {
            error.kind = AcmeErrorKind::OrderGone;
        }
        error
    }

    /// What stands in a challenge that has failed.
    pub(super) fn validation(problem: &Problem) -> Self {
        Self::from_problem(problem, Some(403))
    }

    /// The CA's own trouble, not that of what was asked.
    pub fn is_of_ca(&self) -> bool {
        self.kind == AcmeErrorKind::Unavailable
    }

    /// The CA will not issue as asked; asked for fewer names it may.
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind, AcmeErrorKind::NamesRefused | AcmeErrorKind::RequestRefused)
    }

    /// What came from the CA cannot be read.
    pub fn garbage(detail: &str) -> Self {
        Self::plain(AcmeErrorKind::Garbage, detail)
    }

    /// The CA has not done its part in time.
    pub fn unavailable(detail: &str) -> Self {
        Self::plain(AcmeErrorKind::Unavailable, detail)
    }

    /// The order ended by no fault of its names.
    pub fn order_ended(words: &str) -> Self {
        Self::plain(AcmeErrorKind::OrderGone, &format!("the order became invalid: {words}"))
    }
}

/// RFC 8555 section 6.7: what is about the name and this CA, not about how the name is served.
fn forbids(problem: &Problem) -> Option<RestrictionKind> {
    match problem.r#type.as_deref()?.strip_prefix("urn:ietf:params:acme:error:")? {
        "caa" => Some(RestrictionKind::Caa),
        "rejectedIdentifier" => Some(RestrictionKind::Policy),
        _ => None,
    }
}

/// RFC 8555 section 6.7, told apart by what we do next.
fn problem_kind(problem: &Problem, status: u16) -> AcmeErrorKind {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let detail = problem.detail.as_deref().unwrap_or_default();
    match kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or_default() {
        "badNonce" => AcmeErrorKind::BadNonce,
        // Only the limit on new orders is about the whole account.
        "rateLimited" if names_new_orders(detail) => AcmeErrorKind::AccountLimited,
        "rateLimited" => AcmeErrorKind::NamesLimited,
        "rejectedIdentifier"
        | "caa"
        | "unsupportedIdentifier"
        | "dns"
        | "connection"
        | "tls"
        | "incorrectResponse" => AcmeErrorKind::NamesRefused,
        "accountDoesNotExist"
        | "userActionRequired"
        | "externalAccountRequired"
        | "invalidContact"
        | "unsupportedContact" => AcmeErrorKind::Account,
        // Ours to mend, in the configuration: no name is at fault.
        "invalidProfile" => AcmeErrorKind::Ours,
        "orderNotReady" | "alreadyReplaced" => AcmeErrorKind::OrderGone,
        // What Boulder says for a validation that failed, and for an account that may not do this.
        "unauthorized" if status == 403 => AcmeErrorKind::NamesRefused,
        "malformed" if status == 404 => AcmeErrorKind::OrderGone,
        "serverInternal" => AcmeErrorKind::Unavailable,
        _ => match status {
            429 => AcmeErrorKind::NamesLimited,
            404 | 410 => AcmeErrorKind::OrderGone,
            500..=599 => AcmeErrorKind::Unavailable,
            400..=499 => AcmeErrorKind::RequestRefused,
            _ => AcmeErrorKind::Garbage,
        },
    }
}

/// What stands in quotes: a single refused name has no subproblem at Boulder, nor any name at Pebble; both quote it.
/// Whoever reads this keeps only what was ordered.
fn quoted(detail: &str) -> impl Iterator<Item = String> {
    detail.split('"').skip(1).step_by(2).take(REFUSED_NAMES_MAX).map(str::to_ascii_lowercase)
}

/// Whether a limit's text is about an account's new orders. The type is the same for all limits, so the words decide:
/// Boulder's, or the limit's name.
fn names_new_orders(detail: &str) -> bool {
    detail.contains("too many new orders") || detail.contains("new-orders")
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Text of a CA goes to conditions, events and the log: one line, bounded.
pub(super) fn cut(text: &str) -> String {
    let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if out.len() > DETAIL_BYTES_MAX {
        let end = (0..=DETAIL_BYTES_MAX).rev().find(|&i| out.is_char_boundary(i)).unwrap_or(0);
        out.truncate(end);
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> Error {
        Error::Api(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_limit_on_new_orders_stops_the_account_and_any_other_only_its_names() {
        let observed =
            Observed { status: Some(429), retry_after: Some(Duration::from_secs(36)), ..Observed::default() };
        let all = problem(
            r#"{"type":"urn:ietf:params:acme:error:rateLimited","status":429,
                "detail":"too many new orders (300) from this account in the last 3h0m0s"}"#,
        );
        let read = AcmeError::new(&all, observed.clone());
        assert_eq!(read.kind, AcmeErrorKind::AccountLimited);
        assert_eq!(read.retry_after, Some(Duration::from_secs(36)));
        let one = problem(
            r#"{"type":"urn:ietf:params:acme:error:rateLimited","status":429,
                "detail":"too many certificates (50) already issued for \"example.org\""}"#,
        );
        assert_eq!(AcmeError::new(&one, observed).kind, AcmeErrorKind::NamesLimited);
    }

    #[test]
    fn refused_names_are_read_from_the_subproblems() {
        let error = problem(
            r#"{"type":"urn:ietf:params:acme:error:rejectedIdentifier","status":400,"detail":"2 names","subproblems":[
                {"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"policy",
                 "identifier":{"type":"dns","value":"Bad.example"}},
                {"identifier":{"type":"dns","value":"worse.example"}}, {"detail":"of nobody"}]}"#,
        );
        let read = AcmeError::new(&error, Observed { status: Some(400), ..Observed::default() });
        assert_eq!(read.kind, AcmeErrorKind::NamesRefused);
        assert_eq!(
            read.refused_names,
            [
                ("bad.example".to_owned(), "policy".to_owned()),
                ("worse.example".to_owned(), "2 names".to_owned())
            ]
        );
    }

    #[test]
    fn a_single_refused_name_is_read_from_the_quotes() {
        let error = problem(
            r#"{"type":"urn:ietf:params:acme:error:rejectedIdentifier","status":400,
                "detail":"Cannot issue for \"Bad.example\": forbidden by policy"}"#,
        );
        let read = AcmeError::new(&error, Observed { status: Some(400), ..Observed::default() });
        let words = "Cannot issue for \"Bad.example\": forbidden by policy".to_owned();
        assert_eq!(read.refused_names, [("bad.example".to_owned(), words)]);
    }

    #[test]
    fn a_page_instead_of_a_problem_is_judged_by_its_status() {
        let json = Error::Json(serde_json::from_str::<u8>("<html>").unwrap_err());
        let kind = |status| AcmeError::new(&json, Observed { status, ..Observed::default() }).kind;
        assert_eq!(kind(Some(503)), AcmeErrorKind::Unavailable);
        assert_eq!(kind(Some(429)), AcmeErrorKind::NamesLimited);
        assert_eq!(kind(Some(200)), AcmeErrorKind::Garbage);
    }

    #[test]
    fn an_order_behind_a_garbled_answer_is_not_lost() {
        let json = Error::Json(serde_json::from_str::<u8>("<html>").unwrap_err());
        let location = Some("https://ca.example/order/1".to_owned());
        let created = Observed { status: Some(201), location: location.clone(), ..Observed::default() };
        assert_eq!(AcmeError::new(&json, created).location, location);
        let refused = Observed { status: Some(500), location, ..Observed::default() };
        assert_eq!(AcmeError::new(&json, refused).location, None);
    }

    #[test]
    fn texts_of_a_ca_are_one_bounded_line() {
        let text = cut(&"ä\n".repeat(1000));
        assert!(text.len() <= DETAIL_BYTES_MAX + 3 && !text.contains('\n'));
    }
}
