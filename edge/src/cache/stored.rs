//! One kept answer: for which requests it stands, and what a client gets of it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{coded::Forms, directives::members, freshness::Life, key::CacheKey, store::Held};
use crate::limits;

/// Bytes of one entry beyond its text: tables, references, maps.
const OVERHEAD_BYTES: usize = 1024;

const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");

/// An answer as it is kept.
pub(super) struct Stored {
    pub key: Arc<CacheKey>,
    pub variant: Variant,
    pub head: Head,
    pub life: Life,
    pub body: Arc<StoredBody>,
    /// What it counts for while it is in the store, in bytes, forms of the body included; the store's to change.
    pub weight: AtomicU64,
    /// Asked for since the eviction looked at it last.
    touched: AtomicBool,
    /// Since when it is to be taken for stale, whatever its life says.
    stale_since: ArcSwapOption<Instant>,
    /// The origin has failed: until then it is not asked again while this one may stand in.
    retry_at: ArcSwapOption<Instant>,
    held: Held,
}

/// Which requests for a key an answer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variant {
    /// Rule and upstream that it came by.
    pub route: u64,
    /// The fields that the origin named in `Vary`, and what the request had there.
    fields: Box<[(HeaderName, Box<[u8]>)]>,
}

/// What is sent before the body.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub tags: Arc<[Box<str>]>,
}

/// A body in the pieces that it came in.
#[derive(Debug)]
pub(super) struct StoredBody {
    pub pieces: Box<[Bytes]>,
    pub length: u64,
    pub forms: Arc<Forms>,
    /// Whoever read it while it came holds it too.
    _held: Arc<Held>,
}

impl Stored {
    pub(super) fn new(
        key: Arc<CacheKey>,
        variant: Variant,
        head: Head,
        life: Life,
        body: Arc<StoredBody>,
        held: Held,
    ) -> Self {
        Self {
            key,
            variant,
            head,
            life,
            body,
            weight: AtomicU64::new(0),
            touched: AtomicBool::new(false),
            stale_since: ArcSwapOption::empty(),
            retry_at: ArcSwapOption::empty(),
            held,
        }
    }

    pub(super) fn head_bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// Bytes that all of it but the body takes.
    pub(super) fn head_weight(key: &CacheKey, variant: &Variant, head: &Head) -> u64 {
        let headers = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64);
        let tags = head.tags.iter().map(|tag| tag.len() + 16);
        let fields = variant.fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 64);
        let bytes = OVERHEAD_BYTES + key.weight() + headers.chain(tags).chain(fields).sum::<usize>();
        bytes as u64
    }

    /// A later answer for the same requests.
    pub(super) fn supersedes(&self, old: &Self) -> bool {
        self.variant == old.variant
    }

    pub(super) fn touch(&self) {
        // Written only when it changes: many workers may read one popular entry.
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was touched, until now.
    pub(super) fn untouch(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    pub(super) fn make_stale(&self, now: Instant) {
        self.stale_since.compare_and_swap(&None::<Arc<Instant>>, Some(Arc::new(now)));
    }

    /// None: it is stale.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.life.left(now).filter(|_| self.stale_since.load().is_none())
    }

    /// Stale, but good enough while a new one is fetched.
    pub(super) fn serves_while_revalidating(&self, now: Instant) -> bool {
        self.stale_for(now) < self.life.while_revalidate
    }

    /// Stale, but better than an error.
    pub(super) fn serves_for_error(&self, now: Instant) -> bool {
        self.stale_for(now) < self.life.if_error
    }

    /// An origin that has just failed is left alone for a moment.
    pub(super) fn is_spared(&self, now: Instant) -> bool {
        self.retry_at.load().as_deref().is_some_and(|until| now < *until) && self.serves_for_error(now)
    }

    pub(super) fn spare(&self, until: Instant) {
        self.retry_at.store(Some(Arc::new(until)));
    }

    fn stale_for(&self, now: Instant) -> Duration {
        let marked = self.stale_since.load();
        let marked = marked.as_deref().map_or(Duration::ZERO, |since| now.saturating_duration_since(*since));
        self.life.stale_for(now).max(marked)
    }
}

impl Variant {
    /// By what the origin says of the request that it got; `route` tells routes apart.
    ///
    /// # Errors
    /// Why no later request can be known to be like this one.
    pub(super) fn of(route: u64, request: &HeaderMap, answer: &HeaderMap) -> Result<Self, &'static str> {
        let mut fields: Vec<(HeaderName, Box<[u8]>)> = Vec::new();
        for value in answer.get_all(header::VARY) {
            for name in members(value.to_str().map_err(|_| "vary")?, b',') {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "vary")?;
                if is_keyed(&name) || fields.iter().any(|(other, _)| *other == name) {
                    continue;
                }
                if name == "*" || is_ours(&name) {
                    return Err("vary");
                }
                let value = joined(request, &name);
                fields.push((name, value));
            }
        }
        let bytes: usize = fields.iter().map(|(_, value)| value.len()).sum();
        if bytes > limits::CACHE_VARY_BYTES_MAX || fields.len() > limits::CACHE_VARY_FIELDS_MAX {
            return Err("vary");
        }
        fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
        Ok(Self { route, fields: fields.into() })
    }

    pub(super) fn fits(&self, route: u64, request: &HeaderMap) -> bool {
        self.route == route && self.fields.iter().all(|(name, value)| joined(request, name) == *value)
    }
}

/// Part of the key, or the same for all who share it.
fn is_keyed(name: &HeaderName) -> bool {
    matches!(name.as_str(), "host" | "x-forwarded-host" | "x-forwarded-proto")
}

/// What the origin gets of it is another for each request.
fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "x-forwarded-for"
            | "forwarded"
            | "x-request-id"
            | "x-real-ip"
            | "via"
            | "cdn-loop"
            | "connection"
            | "traceparent"
            | "tracestate"
            | "client-cert"
            | "x-client-cert-subject"
            | "x-client-cert-sha256"
    )
}

/// All lines of a field as one. An absent field is not an empty one, and `a` and `b` on two lines are not `a,b` on one: RFC 9111
/// section 4.1 lets them be the same, but there are origins that read the first line alone.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Box<[u8]> {
    let mut out = Vec::new();
    for value in headers.get_all(name) {
        out.push(b'\n'); // in no value
        out.extend(value.as_bytes().trim_ascii());
    }
    out.into()
}

impl Head {
    /// Of an answer that is fit for clients; what only this cache is to know or to say is taken out of it.
    pub(super) fn of(status: StatusCode, mut headers: HeaderMap) -> Self {
        let tags = take_tags(&mut headers);
        headers.remove(header::AGE);
        Self { status, headers, tags }
    }

    /// As a 304 says it is now (RFC 9111 section 3.2).
    pub(super) fn freshened(&self, by: &HeaderMap) -> Self {
        let mut headers = self.headers.clone();
        let kept = [
            header::CONTENT_LENGTH,
            header::CONTENT_ENCODING,
            header::CONTENT_TYPE,
            header::CONTENT_RANGE,
            header::TRANSFER_ENCODING,
            header::VIA,
        ];
        for name in by.keys().filter(|name| !kept.contains(name)) {
            headers.remove(name);
            for value in by.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        // Gone if the origin says nothing of them now: they go with one date.
        if by.contains_key(header::DATE)
            && by.contains_key(header::CACHE_CONTROL)
            && !by.contains_key(header::EXPIRES)
        {
            headers.remove(header::EXPIRES);
        }
        let said = by.contains_key(CACHE_TAG) || by.contains_key(SURROGATE_KEY);
        let mut head = Self::of(self.status, headers);
        if !said {
            head.tags = Arc::clone(&self.tags);
        }
        head
    }

    pub(super) fn etag(&self) -> Option<&HeaderValue> {
        self.headers.get(header::ETAG)
    }

    pub(super) fn last_modified(&self) -> Option<&HeaderValue> {
        self.headers.get(header::LAST_MODIFIED)
    }

    pub(super) fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|other| **other == *tag)
    }
}

/// Tags of both fields; clients do not see them.
pub(super) fn take_tags(headers: &mut HeaderMap) -> Arc<[Box<str>]> {
    let mut tags: Vec<Box<str>> = Vec::new();
    for (name, separators) in [(CACHE_TAG, &[','][..]), (SURROGATE_KEY, &[' ', '\t'])] {
        for value in headers.get_all(&name) {
            let Ok(text) = value.to_str() else { continue };
            let found = text
                .split(separators)
                .map(str::trim)
                .filter(|tag| (1..=limits::CACHE_TAG_BYTES_MAX).contains(&tag.len()));
            tags.extend(found.map(Into::into));
        }
        headers.remove(&name);
    }
    tags.truncate(limits::CACHE_TAGS_MAX);
    tags.into()
}

impl StoredBody {
    pub(super) fn new(pieces: Vec<Bytes>, forms: Arc<Forms>, held: Arc<Held>) -> Self {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces: pieces.into(), length, forms, _held: held }
    }

    /// Its forms included.
    pub(super) fn weight(&self) -> u64 {
        self.length + self.forms.bytes()
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Stored")
            .field("key", &self.key)
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_variant_stands_for_requests_that_look_the_same_to_its_origin() {
        let german = headers(&[("accept-language", "de"), ("x-a", "1")]);
        let variant = Variant::of(7, &german, &headers(&[("vary", "Accept-Language, host")])).unwrap();
        assert!(variant.fits(7, &headers(&[("accept-language", " de ")])));
        assert!(!variant.fits(8, &german), "another route");
        assert!(!variant.fits(7, &headers(&[("accept-language", "fr")])));
        assert!(!variant.fits(7, &headers(&[])));
        let absent = Variant::of(7, &headers(&[]), &headers(&[("vary", "accept-language")])).unwrap();
        assert!(!absent.fits(7, &headers(&[("accept-language", "")])), "an empty field is not an absent one");
        let list = Variant::of(7, &headers(&[("a", "1"), ("a", "2")]), &headers(&[("vary", "a")])).unwrap();
        assert!(!list.fits(7, &headers(&[("a", "1")])));
        assert!(
            !list.fits(7, &headers(&[("a", "1,2")])) && !list.fits(7, &headers(&[("a", "2"), ("a", "1")]))
        );
        for vary in ["*", "accept, *", "X-Forwarded-For", "forwarded", "Client-Cert", "not a name"] {
            assert!(Variant::of(7, &german, &headers(&[("vary", vary)])).is_err(), "{vary}");
        }
    }

    #[test]
    fn tags_of_both_fields_are_taken_and_not_shown() {
        let mut of = headers(&[("cache-tag", "a, b,,c d"), ("surrogate-key", "e f"), ("age", "3")]);
        let tags = take_tags(&mut of);
        assert_eq!(tags.iter().map(|tag| &**tag).collect::<Vec<_>>(), ["a", "b", "c d", "e", "f"]);
        assert!(!of.contains_key("cache-tag") && !of.contains_key("surrogate-key"));
    }

    #[test]
    fn what_may_tell_variants_apart_is_bounded() {
        let of = |fields: usize, bytes: usize| {
            let mut request = HeaderMap::new();
            let vary: Vec<_> = (0..fields).map(|field| format!("x-{field}")).collect();
            // With the byte before a field's value.
            let value = HeaderValue::try_from("x".repeat(bytes - fields)).unwrap();
            request.insert(HeaderName::from_static("x-0"), value);
            let mut answer = HeaderMap::new();
            answer.insert(header::VARY, HeaderValue::try_from(vary.join(",")).unwrap());
            for field in 1..fields {
                request.insert(
                    HeaderName::try_from(format!("x-{field}")).unwrap(),
                    HeaderValue::from_static(""),
                );
            }
            Variant::of(1, &request, &answer)
        };
        assert!(of(limits::CACHE_VARY_FIELDS_MAX, limits::CACHE_VARY_BYTES_MAX).is_ok());
        assert_eq!(of(limits::CACHE_VARY_FIELDS_MAX + 1, 100), Err("vary"));
        assert_eq!(of(1, limits::CACHE_VARY_BYTES_MAX + 1), Err("vary"));
    }

    #[test]
    fn tags_are_bounded_in_number_and_in_length() {
        let long = "x".repeat(limits::CACHE_TAG_BYTES_MAX);
        let mut of = HeaderMap::new();
        of.append(CACHE_TAG, HeaderValue::try_from(format!("{long},{long}y")).unwrap());
        for number in 0..=limits::CACHE_TAGS_MAX {
            of.append(CACHE_TAG, HeaderValue::try_from(number.to_string()).unwrap());
        }
        let tags = take_tags(&mut of);
        assert_eq!((tags.len(), &*tags[0]), (limits::CACHE_TAGS_MAX, long.as_str()));
        assert!(!of.contains_key(CACHE_TAG));
    }

    #[test]
    fn a_304_changes_what_it_names_and_never_the_body() {
        let old = Head::of(
            StatusCode::OK,
            headers(&[
                ("etag", "\"a\""),
                ("content-length", "3"),
                ("cache-control", "max-age=1"),
                ("x", "1"),
                ("cache-tag", "t"),
            ]),
        );
        let new = old.freshened(&headers(&[("cache-control", "max-age=9"), ("content-length", "0")]));
        assert_eq!(new.headers["cache-control"], "max-age=9");
        assert_eq!(new.headers["content-length"], "3");
        assert_eq!(new.headers["x"], "1");
        assert!(new.has_tag("t"));
    }
}
