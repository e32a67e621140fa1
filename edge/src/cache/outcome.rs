//! What the cache did for a request: for the log and the metrics in one word, for clients as `Cache-Status` (RFC 9211).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// In one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered without the origin, from what is fresh.
    Hit,
    /// Answered from what is stale, as the answer or the policy allows.
    Stale,
    /// The origin said that what is kept is still good.
    Revalidated,
    /// Answered with what another request brought.
    Collapsed,
    /// The origin's answer, kept.
    Miss,
    /// The origin's answer, not to be kept.
    NotKept,
    /// Not looked at.
    Bypass,
}

/// With all that `Cache-Status` says of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub outcome: Outcome,
    /// Of what is kept; the second: by how much it is over.
    pub left: Option<Result<Duration, Duration>>,
    pub detail: Option<&'static str>,
    /// What was kept was stale, and therefore the origin was asked.
    pub for_stale: bool,
}

impl Outcome {
    pub const ALL: [Self; 7] =
        [Self::Hit, Self::Stale, Self::Revalidated, Self::Collapsed, Self::Miss, Self::NotKept, Self::Bypass];

    /// The body was not sent by an origin for this request.
    pub fn is_from_cache(self) -> bool {
        match self {
            Self::Hit | Self::Stale | Self::Revalidated | Self::Collapsed => true,
            Self::Miss | Self::NotKept | Self::Bypass => false,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Collapsed => "collapsed",
            Self::Miss => "miss",
            Self::NotKept => "not_kept",
            Self::Bypass => "bypass",
        }
    }
}

impl Told {
    pub(super) fn of(outcome: Outcome) -> Self {
        Self { outcome, left: None, detail: None, for_stale: false }
    }

    pub(super) fn detailed(outcome: Outcome, detail: &'static str) -> Self {
        Self { detail: Some(detail), ..Self::of(outcome) }
    }

    pub(super) fn for_stale(self, for_stale: bool) -> Self {
        Self { for_stale, ..self }
    }

    /// Adds our line behind those of caches before us.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        let mut text = String::from(match self.outcome {
            Outcome::Hit | Outcome::Stale => "portico; hit",
            Outcome::Revalidated => "portico; fwd=stale; fwd-status=304",
            Outcome::Collapsed => "portico; fwd=uri-miss; collapsed",
            Outcome::Miss if self.for_stale => "portico; fwd=stale; stored",
            Outcome::Miss => "portico; fwd=uri-miss; stored",
            Outcome::NotKept if self.for_stale => "portico; fwd=stale",
            Outcome::NotKept => "portico; fwd=uri-miss",
            Outcome::Bypass if self.detail == Some("method") => "portico; fwd=method",
            Outcome::Bypass => "portico; fwd=bypass",
        });
        match self.left {
            Some(Ok(left)) => text.push_str(&format!("; ttl={}", left.as_secs())),
            Some(Err(over)) => text.push_str(&format!("; ttl=-{}", over.as_secs())),
            None => {}
        }
        if let Some(detail) = self.detail.filter(|detail| *detail != "method") {
            text.push_str("; detail=");
            text.push_str(detail);
        }
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(CACHE_STATUS, value);
        }
    }
}
