//! Faults on demand. A fault is set over the management listener, applies to one endpoint or to all, and
//! ends after `count` uses. Several may be set; the first that fits is used, so a test can line them up.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One fault as set over the management listener.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// Where it applies; absent: everywhere that the kind can apply.
    #[serde(default)]
    pub(crate) endpoint: Option<Endpoint>,
    /// Uses left.
    #[serde(default = "one")]
    pub(crate) count: u64,
    /// The share of fitting requests that is hit, 0 to 1.
    #[serde(default = "whole")]
    pub(crate) share: f64,
    /// `Retry-After` of `rate-limited` and the two `unavailable` kinds.
    #[serde(default = "sixty")]
    pub(crate) retry_after_seconds: u64,
    /// Delay of `slow`.
    #[serde(default)]
    pub(crate) delay_ms: u64,
    /// `processing`: polls of the order before it is valid.
    #[serde(default)]
    pub(crate) polls: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultKind {
    /// The request is refused as if its nonce were unknown.
    BadNonce,
    /// 429 `rateLimited` with `Retry-After`.
    RateLimited,
    /// 503 as a problem document with `Retry-After`.
    Unavailable,
    /// 503 as a page of HTML, as a load balancer in front of a CA answers.
    UnavailableHtml,
    /// 200 with a body that is neither JSON nor PEM.
    Garbage,
    /// 200 with ten megabytes.
    Huge,
    /// 302 to another path of the same CA.
    Redirect,
    /// The answer comes late.
    Slow,
    /// The connection is closed with no answer.
    Close,
    /// The same, after all was done that was asked for.
    Lost,
    /// 200 with no body.
    Empty,
    /// The finalized order stays `processing` for some polls.
    Processing,
    /// A validation ends with `serverInternal`: the CA's own trouble, not that of the name.
    ValidationTrouble,
    /// The chain's intermediate is not the one that signed the leaf.
    WrongChain,
    /// The leaf holds another public key than the CSR.
    WrongKey,
    /// The leaf holds other names than the order.
    WrongNames,
    /// The leaf lacks one of the order's names, but for the last.
    MissingName,
    /// The leaf has expired.
    Expired,
    /// The leaf is valid from tomorrow.
    NotYetValid,
    /// The chain is the leaf alone.
    NoIntermediate,
    /// The chain's intermediate has expired.
    ExpiredIntermediate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Endpoint {
    Directory,
    NewNonce,
    NewAccount,
    Account,
    NewOrder,
    Order,
    Authorization,
    Challenge,
    Finalize,
    Certificate,
    RevokeCert,
    KeyChange,
    RenewalInfo,
}

/// The faults set and not yet used up.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    set: Mutex<Vec<Fault>>,
}

/// Faults that may be set at once.
pub(crate) const FAULTS_MAX: usize = 1_000;

/// The longest delay of `slow`.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(600);

impl Faults {
    /// Adds faults, all or none; with `instead` in the place of those that are set.
    ///
    /// # Errors
    /// What is wrong with which fault.
    pub(crate) fn add(&self, faults: Vec<Fault>, instead: bool) -> Result<(), String> {
        for (index, fault) in faults.iter().enumerate() {
            fault.check().map_err(|reason| format!("fault {index}: {reason}"))?;
        }
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = if instead { 0 } else { set.len() };
        if kept + faults.len() > FAULTS_MAX {
            return Err(format!("more than {FAULTS_MAX} faults at once"));
        }
        set.truncate(kept);
        set.extend(faults);
        Ok(())
    }

    /// Removes all faults.
    pub(crate) fn clear(&self) {
        self.set.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The faults still set.
    pub(crate) fn list(&self) -> Vec<Fault> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses up one fault of one of `kinds` that fits `endpoint`.
    pub(crate) fn take(&self, endpoint: Endpoint, kinds: &[FaultKind]) -> Option<Fault> {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let index = set.iter().position(|fault| {
            kinds.contains(&fault.kind) && fault.endpoint.is_none_or(|at| at == endpoint) && fault.hits()
        })?;
        let fault = set[index].clone();
        set[index].count -= 1;
        if set[index].count == 0 {
            set.remove(index);
        }
        Some(fault)
    }
}

impl Fault {
    fn hits(&self) -> bool {
        self.share >= 1.0 || rand::random::<f64>() < self.share
    }

    fn check(&self) -> Result<(), String> {
        if self.count == 0 {
            return Err("count must be at least 1".to_owned());
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err("share must be above 0 and at most 1".to_owned());
        }
        if Duration::from_millis(self.delay_ms) > DELAY_MAX {
            return Err(format!("delay_ms above {}", DELAY_MAX.as_millis()));
        }
        if self.kind == FaultKind::Slow && self.delay_ms == 0 {
            return Err("slow needs delay_ms".to_owned());
        }
        if self.kind == FaultKind::Processing && self.polls == 0 {
            return Err("processing needs polls".to_owned());
        }
        if self.kind == FaultKind::BadNonce && !self.endpoint.is_none_or(Endpoint::is_signed) {
            return Err("bad-nonce applies to signed requests only".to_owned());
        }
        Ok(())
    }
}

impl FaultKind {
    /// The key in `GET /stats`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BadNonce => "bad-nonce",
            Self::RateLimited => "rate-limited",
            Self::Unavailable => "unavailable",
            Self::UnavailableHtml => "unavailable-html",
            Self::Garbage => "garbage",
            Self::Huge => "huge",
            Self::Redirect => "redirect",
            Self::Slow => "slow",
            Self::Close => "close",
            Self::Lost => "lost",
            Self::Empty => "empty",
            Self::Processing => "processing",
            Self::ValidationTrouble => "validation-trouble",
            Self::WrongChain => "wrong-chain",
            Self::WrongKey => "wrong-key",
            Self::WrongNames => "wrong-names",
            Self::MissingName => "missing-name",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::NoIntermediate => "no-intermediate",
            Self::ExpiredIntermediate => "expired-intermediate",
        }
    }
}

impl Endpoint {
    /// The endpoint that a path belongs to.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        Some(match path.strip_prefix("/acme/") {
            None if path == "/directory" => Self::Directory,
            None => return None,
            Some("new-nonce") => Self::NewNonce,
            Some("new-account") => Self::NewAccount,
            Some("new-order") => Self::NewOrder,
            Some("revoke-cert") => Self::RevokeCert,
            Some("key-change") => Self::KeyChange,
            Some(rest) => match rest.split_once('/')?.0 {
                "account" => Self::Account,
                "order" => Self::Order,
                "authorization" => Self::Authorization,
                "challenge" => Self::Challenge,
                "finalize" => Self::Finalize,
                "certificate" => Self::Certificate,
                "renewal-info" => Self::RenewalInfo,
                _ => return None,
            },
        })
    }

    /// The key in `GET /stats`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::NewNonce => "newNonce",
            Self::NewAccount => "newAccount",
            Self::Account => "account",
            Self::NewOrder => "newOrder",
            Self::Order => "order",
            Self::Authorization => "authorization",
            Self::Challenge => "challenge",
            Self::Finalize => "finalize",
            Self::Certificate => "certificate",
            Self::RevokeCert => "revokeCert",
            Self::KeyChange => "keyChange",
            Self::RenewalInfo => "renewalInfo",
        }
    }

    fn is_signed(self) -> bool {
        !matches!(self, Self::Directory | Self::NewNonce | Self::RenewalInfo)
    }
}

fn one() -> u64 {
    1
}

fn whole() -> f64 {
    1.0
}

fn sixty() -> u64 {
    60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_ends_after_its_count_and_fits_its_endpoint_only() {
        let faults = Faults::default();
        let set: Vec<Fault> = serde_json::from_str(
            r#"[{"kind":"unavailable","endpoint":"newOrder","count":2},{"kind":"garbage"}]"#,
        )
        .unwrap();
        faults.add(set, false).unwrap();
        let kinds = [FaultKind::Unavailable, FaultKind::Garbage];
        assert_eq!(faults.take(Endpoint::Order, &kinds).unwrap().kind, FaultKind::Garbage);
        assert!(faults.take(Endpoint::Order, &kinds).is_none());
        assert!(faults.take(Endpoint::NewOrder, &kinds).is_some());
        assert!(faults.take(Endpoint::NewOrder, &kinds).is_some());
        assert!(faults.take(Endpoint::NewOrder, &kinds).is_none());
        assert!(faults.list().is_empty());
        let one = || vec![serde_json::from_str(r#"{"kind":"garbage"}"#).unwrap()];
        for (instead, left) in [(false, 1), (false, 2), (true, 1)] {
            faults.add(one(), instead).unwrap();
            assert_eq!(faults.list().len(), left);
        }
    }

    #[test]
    fn wrong_faults_are_refused() {
        let faults = Faults::default();
        for wrong in [
            r#"{"kind":"slow"}"#,
            r#"{"kind":"garbage","count":0}"#,
            r#"{"kind":"garbage","share":1.5}"#,
            r#"{"kind":"processing"}"#,
            r#"{"kind":"bad-nonce","endpoint":"directory"}"#,
        ] {
            assert!(faults.add(vec![serde_json::from_str(wrong).unwrap()], false).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"typo"}"#).is_err());
    }
}
