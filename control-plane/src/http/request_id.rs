//! Each request has an id, in its answer, in the log and in the audit trail; a problem's body carries it too.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use super::fault::Fault;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ID_BYTES_MAX: usize = 64;

/// The id of a request; stands in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

/// Takes the caller's id when it is a plain word, else makes one; writes the bodies of problems.
pub(crate) async fn assign(mut request: Request, next: Next) -> Response {
    let given =
        request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_plain(id));
    let id: Arc<str> = given.map_or_else(|| format!("req_{}", ulid::Ulid::new()).into(), Into::into);
    request.extensions_mut().insert(RequestId(id.clone()));
    let of_api = request.uri().path().starts_with("/v1/");
    let mut response = next.run(request).await;
    let fault = response.extensions_mut().remove::<Fault>().or_else(|| {
        // Refused before any handler saw it, by the framework and in its own words.
        let refused = response.status().is_client_error() || response.status().is_server_error();
        let status = response.status();
        (of_api && refused).then(|| {
            Fault::new(status, "bad_request", "the path or the request cannot be read; see /v1/openapi.json")
        })
    });
    if let Some(fault) = fault {
        let body = serde_json::to_vec(&fault.problem(&id)).unwrap_or_default();
        *response.body_mut() = Body::from(body);
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn is_plain(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}
