//! Our own answers to gRPC calls: clients look for a status of theirs, not of HTTP's (grpc.io, PROTOCOL-HTTP2.md).

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use crate::http::body::ResponseSource;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// `application/grpc`, of whatever messages.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// Makes an error page an answer of trailers alone. 421 stays what it is: it is about the connection, not the call.
pub(super) fn translate(response: &mut Response<ResponseSource>) {
    let status = response.status();
    if status == StatusCode::MISDIRECTED_REQUEST || !(status.is_client_error() || status.is_server_error()) {
        return;
    }
    *response.status_mut() = StatusCode::OK;
    *response.body_mut() = ResponseSource::Empty;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(code_of(status)));
    if let Some(phrase) = status.canonical_reason() {
        headers.insert(GRPC_MESSAGE, HeaderValue::from_static(phrase));
    }
}

/// grpc.io, http-grpc-status-mapping.md; and 413 for what it is.
fn code_of(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 431 => 13,             // INTERNAL
        401 => 16,                   // UNAUTHENTICATED
        403 => 7,                    // PERMISSION_DENIED
        404 => 12,                   // UNIMPLEMENTED
        413 => 8,                    // RESOURCE_EXHAUSTED
        429 | 502 | 503 | 504 => 14, // UNAVAILABLE
        _ => 2,                      // UNKNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_by_their_content_type() {
        for (text, wanted) in [
            ("application/grpc", true),
            ("Application/gRPC+proto; x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            assert_eq!(is_call(&headers), wanted, "{text}");
        }
        assert!(!is_call(&HeaderMap::new()));
    }
}
