//! ACME HTTP-01 (RFC 8555 section 8.3), on plain listeners only.
//!
//! The order of answers: a key authorization that was pushed for exactly this host and token; else, while an order of a
//! known account is open for the host, `token.thumbprint`; else nothing, and the tenant's own route gets the request. The
//! path is compared exactly and the answer is made of stored text: nothing here touches a file or echoes a URL.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header, request::Parts};

use super::{Answer, ConnectionContext};
use crate::{
    challenge::is_token,
    clock,
    http::authority::Authority,
    live::{Host, Live},
};

const PREFIX: &str = "/.well-known/acme-challenge/";

/// The token that a request asks for, if it can be one.
pub(super) fn token_of<'a>(parts: &'a Parts, context: &ConnectionContext) -> Option<&'a str> {
    if context.shown.is_some() || !matches!(parts.method, Method::GET | Method::HEAD) {
        return None;
    }
    if parts.uri.query().is_some() {
        return None;
    }
    parts.uri.path().strip_prefix(PREFIX).filter(|token| is_token(token))
}

/// Our answer for a token, if it is ours to give. Suspension and missing proofs do not matter here.
pub(super) fn answer(live: &Live, authority: &Authority, host: Option<&Host>, token: &str) -> Option<Answer> {
    let pushed = live.challenges.http01(authority.name.as_str(), token, clock::unix_ms());
    let text = match pushed {
        Some(key_authorization) => Bytes::copy_from_slice(key_authorization.as_bytes()),
        None => {
            let thumbprint = host?.acme_thumbprint.as_deref()?;
            Bytes::from(format!("{token}.{thumbprint}"))
        }
    };
    let content_type = HeaderValue::from_static("application/octet-stream");
    let mut answer = Answer::fixed(StatusCode::OK, content_type, text, Some("challenge")).uncached();
    let nosniff = HeaderValue::from_static("nosniff");
    answer.response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Some(answer)
}
