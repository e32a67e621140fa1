//! Paths that two readers could see differently are refused, so that the route chosen here is the one that an origin
//! sees, whatever it does with dot segments.

use http::{Method, Uri, uri::PathAndQuery};
use portico_api::rule;

/// Gives a target without a path the one that it means, `/` (RFC 9112 section 3.2.1), so that whoever reads it after this, the
/// log, the router, the cache and the origin, reads the same.
pub(super) fn complete(uri: &mut Uri) {
    let Some(target) = uri.path_and_query() else { return };
    // `http` says `/` of an empty one, but not where it stands alone.
    let is_empty = uri.scheme().is_some() && Uri::from(target.clone()).path().is_empty();
    if !is_empty && !target.as_str().starts_with('?') {
        return;
    }
    let text = target.query().map_or_else(|| "/".to_owned(), |query| format!("/?{query}"));
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(text).expect("a query behind a path makes a target"));
    *uri = Uri::from_parts(parts).expect("a path in the place of none makes a URI");
}

/// Whether it names something of a host: by a path, or with OPTIONS by `*` the host as a whole (RFC 9110 section 9.3.7). An
/// authority alone is for CONNECT. All else than visible ASCII is percent-encoded (RFC 3986 section 2); HTTP/1 ends at such a
/// byte, and the other versions' libraries let it through.
pub(super) fn is_target(method: &Method, uri: &Uri) -> bool {
    let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
    let is_visible = target.bytes().all(|byte| byte.is_ascii_graphic());
    is_visible && (target.starts_with('/') || (target == "*" && *method == Method::OPTIONS))
}

/// Refuses dot segments, plain or percent-encoded, which clients remove before they ask (RFC 3986 section 5.2.4); what some
/// reader could take for `..` behind an encoded slash, a backslash or a parameter; and an encoded NUL, which ends the path
/// for some.
pub(super) fn check(uri: &Uri) -> Result<(), &'static str> {
    let path = uri.path();
    // Nearly every path leaves here.
    if !path.contains('%') && !path.contains("/.") && !path.contains("..") {
        return Ok(());
    }
    if path.split('/').any(is_dot_segment) || rule::climbs(path) {
        return Err("dot_segment");
    }
    if path.contains("%00") { Err("encoded_nul") } else { Ok(()) }
}

fn is_dot_segment(segment: &str) -> bool {
    if segment.len() > 6 {
        return false;
    }
    let decoded = segment.replace("%2e", ".").replace("%2E", ".");
    matches!(decoded.as_str(), "." | "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_a_path_gets_one() {
        for (given, wanted) in [
            ("https://shop.example", "https://shop.example/"),
            ("https://shop.example?q=1", "https://shop.example/?q=1"),
            ("https://shop.example?", "https://shop.example/?"),
            ("https://shop.example#f", "https://shop.example/"),
            ("https://shop.example/a?q=1", "https://shop.example/a?q=1"),
            ("/a", "/a"),
            ("*", "*"),
            ("shop.example", "shop.example"),
        ] {
            let mut uri: Uri = given.parse().unwrap();
            complete(&mut uri);
            assert_eq!(uri.to_string(), wanted, "{given}");
            let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
            assert_eq!(is_target(&Method::GET, &uri), target.starts_with('/'), "{given}");
        }
        assert!(is_target(&Method::OPTIONS, &"*".parse().unwrap()));
    }

    #[test]
    fn bytes_beyond_visible_ascii_make_no_target() {
        for odd in ["/caf\u{e9}", "/a?b=\u{e9}", "/\u{2215}etc"] {
            let uri: Uri = odd.parse().expect("the library takes it");
            assert!(!is_target(&Method::GET, &uri), "{odd:?}");
        }
        assert!(is_target(&Method::GET, &"/caf%C3%A9?b={x}|y".parse().unwrap()));
    }

    #[test]
    fn dot_segments_in_any_spelling_are_refused() {
        for path in [
            "/..",
            "/a/../b",
            "/./a",
            "/a/.",
            "/%2e%2e/b",
            "/a/.%2E/b",
            "/%2e",
            "/a/%2e./",
            "/a/..%2fb",
            "/a%2F..",
            "/a/..%5cb",
            "/a/..;x/b",
            "/a%00",
        ] {
            assert!(check(&path.parse().unwrap()).is_err(), "{path}");
        }
        for path in
            ["/", "/.well-known/x", "/a..b", "/...", "/a/%2ex", "/%2f..x", "/a?../..", "/a%2fb", "/a%2f.b"]
        {
            assert!(check(&path.parse().unwrap()).is_ok(), "{path}");
        }
    }
}
