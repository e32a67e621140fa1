//! What one client gets of a whole answer: nothing new (304), a part (206), or all of it.

use http::{HeaderValue, Method, StatusCode, header};

use super::{directives::members, freshness::parse_date, request::Wishes, stored::Head};

/// What of a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    All,
    /// The client has it (RFC 9110 section 13.1.2, 13.1.3).
    NotModified,
    /// First byte and one beyond the last.
    Range {
        from: u64,
        to: u64,
    },
    Unsatisfiable,
}

/// `length`: of the whole, where it is known; without it ranges are not cut.
pub(super) fn part(wishes: &Wishes, method: &Method, head: &Head, length: Option<u64>) -> Part {
    if head.status != StatusCode::OK {
        return Part::All;
    }
    if is_unmodified(wishes, head) {
        return Part::NotModified;
    }
    match (&wishes.range, length) {
        (Some(range), Some(length)) if *method == Method::GET && may_cut(wishes, head) => cut(range, length),
        _ => Part::All,
    }
}

fn is_unmodified(wishes: &Wishes, head: &Head) -> bool {
    if let Some(asked) = &wishes.if_none_match {
        return names(asked, head.etag());
    }
    let (Some(since), Some(modified)) = (&wishes.if_modified_since, head.last_modified()) else {
        return false;
    };
    let date = |value: &HeaderValue| value.to_str().ok().and_then(parse_date);
    date(since).zip(date(modified)).is_some_and(|(since, modified)| modified <= since)
}

/// Weak comparison (RFC 9110 section 8.8.3.2).
fn names(asked: &HeaderValue, etag: Option<&HeaderValue>) -> bool {
    let Ok(asked) = asked.to_str() else { return false };
    if asked.trim() == "*" {
        return true;
    }
    let opaque = |text: &str| text.trim().trim_start_matches("W/").to_owned();
    let Some(etag) = etag.and_then(|etag| etag.to_str().ok()).map(opaque) else { return false };
    members(asked, b',').any(|member| opaque(member) == etag)
}

/// RFC 9110 section 13.1.5: strong comparison, or the very date.
fn may_cut(wishes: &Wishes, head: &Head) -> bool {
    let Some(asked) = &wishes.if_range else { return true };
    match asked.as_bytes() {
        [b'"', ..] => head.etag() == Some(asked),
        [b'W', b'/', ..] => false,
        _ => head.last_modified() == Some(asked),
    }
}

/// One range (RFC 9110 section 14.1.2). Of several, or of another unit, all is sent: a server may ignore the field.
fn cut(range: &HeaderValue, length: u64) -> Part {
    let Some(spec) = range.to_str().ok().and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return Part::All;
    };
    let Some((first, last)) = spec.split_once('-') else { return Part::All };
    let number = |text: &str| {
        text.trim().parse::<u64>().ok().filter(|_| text.trim().bytes().all(|byte| byte.is_ascii_digit()))
    };
    match (first.trim(), last.trim()) {
        ("", _) => match number(last) {
            Some(0) => Part::Unsatisfiable,
            Some(_) if length == 0 => Part::Unsatisfiable,
            Some(count) => Part::Range { from: length.saturating_sub(count), to: length },
            None => Part::All,
        },
        (_, last_text) => match (number(first), number(last)) {
            (Some(from), Some(last)) if last < from => Part::All,
            (Some(from), last) if last.is_some() || last_text.is_empty() => {
                if from >= length {
                    return Part::Unsatisfiable;
                }
                Part::Range { from, to: last.map_or(length, |last| last.saturating_add(1).min(length)) }
            }
            _ => Part::All,
        },
    }
}

/// Fields of a representation that a 304 has not (RFC 9110 section 15.4.5).
pub(super) const OF_A_BODY: [http::HeaderName; 6] = [
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
];

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName};

    use super::*;

    #[test]
    fn ranges_are_cut_within_the_body() {
        let range = |from, to| Part::Range { from, to };
        for (text, wanted) in [
            ("bytes=0-3", range(0, 4)),
            ("bytes=5-", range(5, 10)),
            ("bytes=5-99999999999999999999", Part::All),
            ("bytes=5-18446744073709551615", range(5, 10)),
            ("bytes=-3", range(7, 10)),
            ("bytes=-30", range(0, 10)),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=10-20", Part::Unsatisfiable),
            ("bytes=3-2", Part::All),
            ("bytes=0-1,3-4", Part::All),
            ("bytes=a-b", Part::All),
            ("bytes=+1-2", Part::All),
            ("lines=0-1", Part::All),
        ] {
            assert_eq!(cut(&HeaderValue::from_static(text), 10), wanted, "{text}");
        }
        assert_eq!(cut(&HeaderValue::from_static("bytes=-1"), 0), Part::Unsatisfiable);
    }

    #[test]
    fn conditions_are_those_of_the_client() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("etag", "W/\"a\""), ("last-modified", "Sun, 09 Sep 2001 01:46:40 GMT")] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let head = Head::of(StatusCode::OK, headers);
        let none_match =
            |text| Wishes { if_none_match: Some(HeaderValue::from_static(text)), ..Wishes::default() };
        for (text, unmodified) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
        ] {
            assert_eq!(is_unmodified(&none_match(text), &head), unmodified, "{text}");
        }
        let since =
            |text| Wishes { if_modified_since: Some(HeaderValue::from_static(text)), ..Wishes::default() };
        assert!(is_unmodified(&since("Sun, 09 Sep 2001 01:46:40 GMT"), &head));
        assert!(!is_unmodified(&since("Sun, 09 Sep 2001 01:46:39 GMT"), &head));
        assert!(!is_unmodified(&since("yesterday"), &head));
        let both = Wishes {
            if_modified_since: since("Sun, 09 Sep 2001 01:46:40 GMT").if_modified_since,
            ..none_match("\"b\"")
        };
        assert!(!is_unmodified(&both, &head), "the tag stands before the date");
        let weak = Wishes { if_range: Some(HeaderValue::from_static("W/\"a\"")), ..Wishes::default() };
        assert!(!may_cut(&weak, &head));
    }
}
