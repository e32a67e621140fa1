//! Paths that two readers could see differently are refused, so that the route chosen here is the one that an origin
//! sees, whatever it does with dot segments.

use http::Uri;

/// Refuses dot segments, plain or percent-encoded; clients remove them before they ask (RFC 3986 section 5.2.4).
pub(super) fn check(uri: &Uri) -> Result<(), &'static str> {
    let path = uri.path();
    // Nearly every path leaves here.
    if !path.contains("/.") && !path.contains("/%2") {
        return Ok(());
    }
    if path.split('/').any(is_dot_segment) { Err("dot_segment") } else { Ok(()) }
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
        for path in ["/..", "/a/../b", "/./a", "/a/.", "/%2e%2e/b", "/a/.%2E/b", "/%2e", "/a/%2e./"] {
            assert!(check(&path.parse().unwrap()).is_err(), "{path}");
        }
        for path in ["/", "/.well-known/x", "/a..b", "/...", "/a/%2ex", "/%2f..x", "/a?../.."] {
            assert!(check(&path.parse().unwrap()).is_ok(), "{path}");
        }
    }
}
