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
    pub forwarded: Forwarded,
}

/// Why nothing that is kept would do (RFC 9211 section 2.2), where an origin was asked for what the cache may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// Nothing is kept for that URL.
    UriMiss,
    /// What is kept is for requests with other fields.
    VaryMiss,
    Stale,
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

/// Adds our line to an answer for which no origin may be asked, and nothing is kept.
pub(super) fn tell_only_if_cached(headers: &mut HeaderMap) {
    headers.append(CACHE_STATUS, HeaderValue::from_static("portico; detail=only-if-cached"));
}

impl Told {
    pub(super) fn of(outcome: Outcome) -> Self {
        Self { outcome, left: None, detail: None, forwarded: Forwarded::UriMiss }
    }

    pub(super) fn detailed(outcome: Outcome, detail: &'static str) -> Self {
        Self { detail: Some(detail), ..Self::of(outcome) }
    }

    pub(super) fn forwarded(self, forwarded: Forwarded) -> Self {
        Self { forwarded, ..self }
    }

    /// Adds our line behind those of caches before us.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        let mut text = String::from(match self.outcome {
            Outcome::Hit | Outcome::Stale => "portico; hit",
            Outcome::Bypass if self.detail == Some("method") => "portico; fwd=method",
            Outcome::Bypass => "portico; fwd=bypass",
            Outcome::Revalidated | Outcome::Collapsed | Outcome::Miss | Outcome::NotKept => {
                match self.forwarded {
                    Forwarded::UriMiss => "portico; fwd=uri-miss",
                    Forwarded::VaryMiss => "portico; fwd=vary-miss",
                    Forwarded::Stale => "portico; fwd=stale",
                }
            }
        });
        text.push_str(match self.outcome {
            Outcome::Revalidated => "; fwd-status=304",
            Outcome::Collapsed => "; collapsed",
            Outcome::Miss => "; stored",
            Outcome::Hit | Outcome::Stale | Outcome::NotKept | Outcome::Bypass => "",
        });
        match self.left {
            Some(Ok(left)) => text.push_str(&format!("; ttl={}", left.as_secs())),
            Some(Err(over)) if over.as_secs() > 0 => text.push_str(&format!("; ttl=-{}", over.as_secs())),
            Some(Err(_)) => text.push_str("; ttl=0"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_less_than_none() {
        for (over_ms, expected) in
            [(0, "portico; hit; ttl=0"), (999, "portico; hit; ttl=0"), (2500, "portico; hit; ttl=-2")]
        {
            let mut headers = HeaderMap::new();
            let over = Duration::from_millis(over_ms);
            Told { left: Some(Err(over)), ..Told::of(Outcome::Stale) }.tell(&mut headers);
            assert_eq!(headers[CACHE_STATUS], expected);
        }
    }
}
