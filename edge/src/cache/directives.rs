//! What an answer says about being kept: `Cache-Control` (RFC 9111 section 5.2.2), `CDN-Cache-Control` in its place (RFC
//! 9213), the stale-* directives (RFC 5861).
//!
//! What cannot be read is taken for what keeps less: a lifetime that is no number is none, the shorter of two holds, and a
//! directive that is limited to some fields (`private="x"`) holds for all.

use http::{HeaderMap, HeaderName, HeaderValue, header};

const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// The directives that concern a shared cache. Lifetimes in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub no_store: bool,
    pub private: bool,
    pub no_cache: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub max_age: Option<u32>,
    pub s_maxage: Option<u32>,
    pub stale_while_revalidate: Option<u32>,
    pub stale_if_error: Option<u32>,
    /// There is a field for CDNs: neither `Cache-Control` nor `Expires` count.
    pub targeted: bool,
}

impl Directives {
    /// Of an answer.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if let Some(targeted) = targeted(headers) {
            return targeted;
        }
        let mut directives = Self::default();
        for value in headers.get_all(header::CACHE_CONTROL) {
            // A value that is not even text hides what it says.
            match value.to_str() {
                Ok(text) => directives.read(text),
                Err(_) => directives.no_store = true,
            }
        }
        let pragma = headers.get_all(header::PRAGMA).iter().any(|value| contains_token(value, "no-cache"));
        if pragma && !headers.contains_key(header::CACHE_CONTROL) {
            directives.no_cache = true;
        }
        directives
    }

    fn read(&mut self, text: &str) {
        for member in members(text, b',') {
            let (name, value) = match member.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (member, None),
            };
            self.take(&name.to_ascii_lowercase(), value);
        }
    }

    fn take(&mut self, name: &str, value: Option<&str>) {
        let shorter = |held: &mut Option<u32>| {
            let read = value.and_then(seconds).unwrap_or(0);
            *held = Some(held.map_or(read, |held| held.min(read)));
        };
        match name {
            "no-store" => self.no_store = true,
            "private" => self.private = true,
            "no-cache" => self.no_cache = true,
            "public" => self.public = true,
            "must-revalidate" | "proxy-revalidate" => self.must_revalidate = true,
            "max-age" => shorter(&mut self.max_age),
            "s-maxage" => shorter(&mut self.s_maxage),
            "stale-while-revalidate" => shorter(&mut self.stale_while_revalidate),
            "stale-if-error" => shorter(&mut self.stale_if_error),
            _ => {}
        }
    }
}

/// A structured dictionary (RFC 8941 section 3.2); empty or not one, it is as if it were not there (RFC 9213 section 2.2).
fn targeted(headers: &HeaderMap) -> Option<Directives> {
    let mut directives = Directives { targeted: true, ..Directives::default() };
    let mut any = false;
    for value in headers.get_all(&CDN_CACHE_CONTROL) {
        for member in members(value.to_str().ok()?, b',') {
            // Parameters of a member say nothing here.
            let member = members(member, b';').next()?;
            let (name, value) = match member.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (member, None),
            };
            let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '*');
            let is_key = name
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*'));
            if !begins || !is_key || value.is_some_and(|value| !is_item(value)) {
                return None;
            }
            if COUNTS.contains(&name) && !value.is_some_and(is_integer) {
                return None;
            }
            any = true;
            match value {
                Some("?0") => {}
                Some("?1") => directives.take(name, None),
                value => directives.take(name, value),
            }
        }
    }
    any.then_some(directives)
}

/// Directives whose value is a number of seconds.
const COUNTS: [&str; 4] = ["max-age", "s-maxage", "stale-while-revalidate", "stale-if-error"];

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// An item as far as it occurs: a boolean, a number, a token or a string.
fn is_item(text: &str) -> bool {
    match text.as_bytes() {
        [b'?', b'0' | b'1'] => true,
        [b'"', .., b'"'] => text.len() >= 2,
        [first, rest @ ..] if first.is_ascii_digit() || *first == b'-' => {
            rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
        }
        [first, rest @ ..] if first.is_ascii_alphabetic() || *first == b'*' => {
            rest.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b';' | b'"'))
        }
        _ => false,
    }
}

/// Delta-seconds, quoted or not; what is beyond 2^31 is 2^31 (RFC 9111 section 1.2.2).
fn seconds(text: &str) -> Option<u32> {
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().map_or(1 << 31, |seconds: u32| seconds.min(1 << 31)))
}

/// Members of a list, trimmed and not empty; what stands in quotation marks separates nothing.
pub(super) fn members(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let (mut quoted, mut escaped) = (false, false);
        let end = text.bytes().position(|byte| {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ => return byte == separator && !quoted,
            }
            false
        });
        rest = end.map(|end| &text[end + 1..]);
        Some(text[..end.unwrap_or(text.len())].trim())
    })
    .filter(|member| !member.is_empty())
}

/// Whether a list of directives has one, whatever its case.
pub(crate) fn contains_token(value: &HeaderValue, token: &str) -> bool {
    value.to_str().is_ok_and(|text| members(text, b',').any(|member| member.eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> Directives {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Directives::of(&headers)
    }

    fn cc(text: &'static str) -> Directives {
        of(&[("cache-control", text)])
    }

    #[test]
    fn what_forbids_is_seen_in_any_spelling() {
        for text in ["no-store", "No-Store", "max-age=9,NO-STORE", "a=\"b, c\", no-store", "no-store=1"] {
            assert!(cc(text).no_store, "{text}");
        }
        for text in ["private", "PRIVATE", "private=\"x-a\"", "max-age=1 , Private"] {
            assert!(cc(text).private, "{text}");
        }
        assert!(!cc("x=\"no-store, private\"").no_store);
        assert!(of(&[("cache-control", "max-age=1"), ("cache-control", "no-store")]).no_store);
    }

    #[test]
    fn an_unreadable_lifetime_is_none() {
        for (text, wanted) in [
            ("max-age=10", 10),
            ("Max-Age=10", 10),
            ("max-age=\"10\"", 10),
            ("max-age = 10", 10),
            ("max-age=10, max-age=5", 5),
            ("max-age=1e3", 0),
            ("max-age=-1", 0),
            ("max-age=1.5", 0),
            ("max-age='10'", 0),
            ("max-age", 0),
            ("max-age=", 0),
            ("max-age=99999999999999999999", 1 << 31),
        ] {
            assert_eq!(cc(text).max_age, Some(wanted), "{text}");
        }
        assert_eq!(cc("xmax-age=10").max_age, None);
    }

    #[test]
    fn the_field_for_cdns_stands_alone_if_it_can_be_read() {
        let both = |text| of(&[("cache-control", "no-store"), ("cdn-cache-control", text)]);
        let read = both("max-age=60;ext, stale-while-revalidate=5");
        assert!(!read.no_store && read.targeted);
        assert_eq!((read.max_age, read.stale_while_revalidate), (Some(60), Some(5)));
        for broken in
            ["", "max-age=60,&", "Max-Age=60", "max-age=@", "max-age = 60", "max-age=\"60\"", "max-age"]
        {
            assert!(both(broken).no_store, "{broken}");
        }
        assert!(of(&[("cache-control", "max-age=60"), ("cdn-cache-control", "private")]).private);
        assert!(!both("no-store=?0").no_store);
    }
}
