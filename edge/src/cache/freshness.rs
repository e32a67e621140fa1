//! Whether an answer is kept, and how long it is good: RFC 9111 sections 3 and 4.2, and what is stricter here.
//!
//! No library decides this: http-cache-semantics 3.0 compares the names of directives byte for byte, so that `No-Store` or
//! `Private` would be kept, and holds a copy of request and answer for each entry.
//!
//! Deliberately absent: heuristic freshness (RFC 9111 section 4.2.2). What says nothing of its lifetime is kept only where the
//! tenant's policy says how long, because a guess about a page that was never meant to be shared is how caches leak.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, StatusCode, header};
use portico_api::rule::CacheRule;

use super::directives::Directives;

/// How long an answer is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    /// When it was received, and how old it was then.
    pub received: Instant,
    pub initial_age: Duration,
    pub lifetime: Duration,
    /// Beyond the lifetime.
    pub while_revalidate: Duration,
    pub if_error: Duration,
    /// Also for requests with `Authorization`.
    pub shared: bool,
}

/// What of a request bears on keeping its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestFacts {
    /// By a field, or by the client's certificate (RFC 9440 section 3.2): answers may be for this client alone.
    pub authorization: bool,
    pub cookie: bool,
}

/// When a request went out and its answer's head came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    pub sent: Instant,
    pub received: Instant,
    pub received_wall: SystemTime,
}

/// Why an answer is not kept, in one word.
pub(super) type Refused = &'static str;

impl RequestFacts {
    pub(super) fn of(headers: &HeaderMap, is_known: bool) -> Self {
        Self {
            authorization: is_known || headers.contains_key(header::AUTHORIZATION),
            cookie: headers.contains_key(header::COOKIE),
        }
    }
}

impl Life {
    /// Of the answer to a GET.
    ///
    /// # Errors
    /// Why it is not to be kept.
    pub(super) fn of(
        request: RequestFacts,
        status: StatusCode,
        headers: &HeaderMap,
        rule: &CacheRule,
        timing: Timing,
    ) -> Result<Self, Refused> {
        let kind = Kind::of(status).ok_or("status")?;
        let directives = Directives::of(headers);
        if directives.no_store || directives.private {
            return Err(if directives.no_store { "no_store" } else { "private" });
        }
        if headers.contains_key(header::SET_COOKIE) {
            return Err("set_cookie");
        }
        if headers.contains_key(header::CONTENT_RANGE) {
            return Err("content_range");
        }
        // RFC 9111 section 3.5.
        let shared = directives.public || directives.s_maxage.is_some() || directives.must_revalidate;
        if request.authorization && !shared {
            return Err("authorization");
        }
        let anonymous = !request.authorization && !request.cookie;
        let explicit = explicit_lifetime(&directives, headers, timing);
        let by_policy = || anonymous.then(|| kind.lifetime(rule)).filter(|lifetime| !lifetime.is_zero());
        let lifetime = match explicit {
            _ if directives.no_cache => Duration::ZERO,
            Some(lifetime) => lifetime,
            None => by_policy().ok_or("no_lifetime")?,
        };
        // `s-maxage` forbids stale use too (RFC 9111 section 5.2.2.10), unless the answer itself allows it.
        let stale = |said: Option<u32>, by_policy: u32| match said {
            _ if directives.must_revalidate || directives.no_cache => Duration::ZERO,
            None if directives.s_maxage.is_some() => Duration::ZERO,
            said => seconds(said.unwrap_or(by_policy)),
        };
        let life = Self {
            received: timing.received,
            initial_age: initial_age(headers, timing),
            lifetime,
            while_revalidate: stale(directives.stale_while_revalidate, rule.stale_while_revalidate_seconds),
            if_error: stale(directives.stale_if_error, rule.stale_if_error_seconds),
            shared,
        };
        let validator = headers.contains_key(header::ETAG) || headers.contains_key(header::LAST_MODIFIED);
        let useful = !life.lifetime.saturating_sub(life.initial_age).is_zero()
            || !life.while_revalidate.is_zero()
            || !life.if_error.is_zero();
        if useful || validator { Ok(life) } else { Err("expired") }
    }

    /// RFC 9111 section 4.2.3.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.initial_age + now.saturating_duration_since(self.received)
    }

    /// What is left of its lifetime; None: it is stale.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.lifetime.checked_sub(self.age(now)).filter(|left| !left.is_zero())
    }

    /// How long it has been stale; zero while it is fresh.
    pub(super) fn stale_for(&self, now: Instant) -> Duration {
        self.age(now).saturating_sub(self.lifetime)
    }
}

/// Whether an answer of this status tells of the page, and not perhaps of what is odd in the one request for it.
pub(super) fn is_of_page(status: StatusCode) -> bool {
    Kind::of(status).is_some()
}

/// Statuses whose answers may be kept. Others either say nothing of the resource or can be brought about by one visitor's
/// odd request (400, 413, 414, 431 and the like), which must not become everybody's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Page,
    /// Kept only if it says so itself.
    Temporary,
    Error,
}

impl Kind {
    fn of(status: StatusCode) -> Option<Self> {
        match status.as_u16() {
            200 | 203 | 204 | 300 | 301 | 308 => Some(Self::Page),
            302 | 303 | 307 => Some(Self::Temporary),
            404 | 410 | 500 | 502 | 503 | 504 => Some(Self::Error),
            _ => None,
        }
    }

    fn lifetime(self, rule: &CacheRule) -> Duration {
        match self {
            Self::Page => seconds(rule.default_ttl_seconds),
            Self::Temporary => Duration::ZERO,
            Self::Error => seconds(rule.error_ttl_seconds),
        }
    }
}

/// RFC 9111 section 4.2.1; an `Expires` that is no date is in the past.
fn explicit_lifetime(directives: &Directives, headers: &HeaderMap, timing: Timing) -> Option<Duration> {
    if let Some(lifetime) = directives.s_maxage.or(directives.max_age) {
        return Some(seconds(lifetime));
    }
    if directives.targeted {
        return None;
    }
    let mut fields = headers.get_all(header::EXPIRES).iter();
    let expires = fields.next()?;
    if fields.next().is_some_and(|other| other != expires) {
        return Some(Duration::ZERO);
    }
    let date = |name| headers.get(name).and_then(|value| value.to_str().ok()).and_then(parse_date);
    let Some(expires) = date(&header::EXPIRES) else { return Some(Duration::ZERO) };
    // A `Date` that is none: when it was received (RFC 9110 section 6.6.1).
    let date = date(&header::DATE).unwrap_or(timing.received_wall);
    Some(expires.duration_since(date).unwrap_or_default())
}

/// RFC 9111 section 4.2.3: the greater of what `Date` and `Age` say. An `Age` that is no number is left out of it.
fn initial_age(headers: &HeaderMap, timing: Timing) -> Duration {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let apparent = text(&header::DATE)
        .and_then(parse_date)
        .and_then(|date| timing.received_wall.duration_since(date).ok())
        .unwrap_or_default();
    // `Date` has no fractions: less than a second is none.
    let apparent = seconds(u32::try_from(apparent.as_secs()).unwrap_or(u32::MAX));
    // Of several, the first (RFC 9111 section 5.1).
    let first = text(&header::AGE).and_then(|text| text.split(',').next());
    let said = first.and_then(|text| text.trim().parse::<u32>().ok());
    let delay = timing.received.saturating_duration_since(timing.sent);
    apparent.max(said.map_or(Duration::ZERO, |said| seconds(said) + delay))
}

/// Any of the three forms of RFC 9110 section 5.6.7.
pub(super) fn parse_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use portico_api::v1;

    use super::*;
    use crate::clock;

    const ANYBODY: RequestFacts = RequestFacts { authorization: false, cookie: false };
    const SOMEBODY: RequestFacts = RequestFacts { authorization: true, cookie: false };
    const COOKIE: RequestFacts = RequestFacts { authorization: false, cookie: true };

    fn rule(default_ttl_seconds: u32, error_ttl_seconds: u32) -> CacheRule {
        let policy = v1::CachePolicy { default_ttl_seconds, error_ttl_seconds, ..v1::CachePolicy::default() };
        CacheRule::parse(&policy).unwrap()
    }

    fn life(
        request: RequestFacts,
        status: u16,
        pairs: &[(&'static str, &str)],
        rule: &CacheRule,
    ) -> Result<u64, Refused> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        let now = clock::now();
        let received_wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let timing = Timing { sent: now, received: now, received_wall };
        let life = Life::of(request, StatusCode::from_u16(status).unwrap(), &headers, rule, timing)?;
        Ok(life.left(now).unwrap_or_default().as_secs())
    }

    const NOW: &str = "Sun, 09 Sep 2001 01:46:40 GMT";

    #[test]
    fn what_is_never_kept_is_not_kept_whatever_it_says() {
        let generous = rule(60, 60);
        let max_age = ("cache-control", "max-age=60");
        for (request, status, pairs, why) in [
            (ANYBODY, 200, &[max_age, ("cache-control", "no-store")][..], "no_store"),
            (ANYBODY, 200, &[("cache-control", "max-age=60, Private")], "private"),
            (ANYBODY, 200, &[max_age, ("set-cookie", "a=b")], "set_cookie"),
            (ANYBODY, 200, &[max_age, ("content-range", "bytes 0-1/2")], "content_range"),
            (SOMEBODY, 200, &[max_age], "authorization"),
            (SOMEBODY, 200, &[], "authorization"),
            (COOKIE, 200, &[], "no_lifetime"),
            (ANYBODY, 302, &[], "no_lifetime"),
            (ANYBODY, 200, &[("cache-control", "max-age=0")], "expired"),
            (ANYBODY, 200, &[("cache-control", "no-cache")], "expired"),
            (ANYBODY, 200, &[("expires", "0")], "expired"),
            (ANYBODY, 200, &[max_age, ("age", "60")], "expired"),
        ] {
            assert_eq!(life(request, status, pairs, &generous), Err(why), "{pairs:?}");
        }
        for status in [
            201, 206, 304, 400, 401, 403, 405, 406, 408, 411, 412, 413, 414, 415, 416, 421, 425, 429, 431,
            501,
        ] {
            assert_eq!(life(ANYBODY, status, &[max_age], &generous), Err("status"), "{status}");
        }
    }

    #[test]
    fn lifetimes_are_those_of_the_rfc() {
        let strict = rule(0, 0);
        for (pairs, left) in [
            (&[("cache-control", "max-age=60")][..], 60),
            (&[("cache-control", "max-age=60, s-maxage=30")], 30),
            (&[("cache-control", "max-age=60"), ("age", "20")], 40),
            (&[("cache-control", "max-age=60"), ("age", "20, 0")], 40),
            (&[("cache-control", "max-age=60"), ("age", "x")], 60),
            (&[("cache-control", "max-age=60"), ("date", "Sun, 09 Sep 2001 01:46:30 GMT")], 50),
            (&[("date", NOW), ("expires", "Sun, 09 Sep 2001 01:47:40 GMT")], 60),
            (&[("date", "today"), ("expires", "Sun, 09 Sep 2001 01:47:40 GMT")], 60),
            (&[("date", NOW), ("expires", "Sunday, 09-Sep-01 01:47:40 GMT")], 60),
            (
                &[
                    ("date", NOW),
                    ("expires", "Sun, 09 Sep 2001 01:47:40 GMT"),
                    ("cache-control", "max-age=5"),
                ],
                5,
            ),
            (&[("cache-control", "max-age=5"), ("cdn-cache-control", "max-age=60")], 60),
            (&[("cache-control", "no-cache"), ("etag", "\"a\"")], 0),
        ] {
            assert_eq!(life(ANYBODY, 200, pairs, &strict), Ok(left), "{pairs:?}");
        }
        assert_eq!(life(ANYBODY, 200, &[("etag", "\"a\"")], &strict), Err("no_lifetime"));
        assert_eq!(life(SOMEBODY, 200, &[("cache-control", "public, max-age=60")], &strict), Ok(60));
        assert_eq!(life(COOKIE, 200, &[("cache-control", "max-age=60")], &strict), Ok(60));
    }

    #[test]
    fn the_policy_speaks_where_the_answer_does_not() {
        assert_eq!(life(ANYBODY, 200, &[], &rule(60, 0)), Ok(60));
        assert_eq!(life(ANYBODY, 200, &[("cache-control", "max-age=5")], &rule(60, 0)), Ok(5));
        assert_eq!(life(ANYBODY, 404, &[], &rule(60, 0)), Err("no_lifetime"));
        assert_eq!(life(ANYBODY, 404, &[], &rule(0, 7)), Ok(7));
        assert_eq!(life(ANYBODY, 503, &[], &rule(0, 7)), Ok(7));
        assert_eq!(life(ANYBODY, 200, &[("cdn-cache-control", "public")], &rule(60, 0)), Ok(60));
    }
}
