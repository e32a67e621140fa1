//! What a route changes of a request before it goes on, and of an answer before it goes back.

use http::{StatusCode, Uri, request::Parts, uri::PathAndQuery};
use portico_api::rule::Rule;

use super::path;
use crate::limits;

/// The target with the route's prefix replaced; None where the route replaces nothing. `rest` is what of the request's path
/// lies below the route's own.
///
/// # Errors
/// The status and the reason to answer with: the result is checked as a client's own target is.
pub(super) fn target(
    rule: &Rule,
    uri: &Uri,
    rest: &str,
) -> Result<Option<PathAndQuery>, (StatusCode, &'static str)> {
    let Some(replacement) = rule.replacement() else { return Ok(None) };
    let climbs = (StatusCode::BAD_REQUEST, "rewritten_path");
    let mut text = replacement.with(rest).map_err(|_| climbs)?;
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
    }
    if text.len() > limits::TARGET_BYTES_MAX {
        return Err((StatusCode::URI_TOO_LONG, "target_too_long"));
    }
    let target = PathAndQuery::try_from(text).map_err(|_| climbs)?;
    path::check(&Uri::from(target.clone())).map_err(|_| climbs)?;
    Ok(Some(target))
}

/// The request as the route wants its origin to see it.
pub(super) fn request(parts: &mut Parts, rule: &Rule, target: Option<PathAndQuery>) {
    if let Some(target) = target {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(target);
        parts.uri = Uri::from_parts(uri).expect("a path in the place of a path makes a URI");
    }
    if let Some(changes) = rule.request_headers() {
        changes.apply(&mut parts.headers);
    }
}
