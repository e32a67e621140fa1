//! Paths that two readers could see differently are refused, so that the route chosen here is the one that an origin
//! sees, whatever it does with dot segments.

use http::Uri;
use portico_api::rule;

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
