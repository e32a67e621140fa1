//! The border: turns an HTTP request into one whose signature, nonce and URL are right (RFC 8555
//! section 6.2 to 6.5).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, StatusCode, Uri};
use serde::de::DeserializeOwned;

use crate::ca::Ca;
use crate::faults::{Endpoint, FaultKind};
use crate::jws::{Jws, KeyReference, PublicKey};
use crate::problem::{Kind, Problem};

/// An authenticated request.
#[derive(Debug)]
pub(crate) struct Signed {
    /// `https://host:port` as the client wrote it: the prefix of all URLs in the answer.
    pub(crate) base: String,
    pub(crate) remote: IpAddr,
    pub(crate) signer: Signer,
    pub(crate) payload: Vec<u8>,
    /// The request's own URL.
    pub(crate) url: String,
}

/// Who signed.
#[derive(Clone, Debug)]
pub(crate) enum Signer {
    Account { id: String, key: PublicKey },
    Key(PublicKey),
}

/// Body bound: far above any honest request (a CSR of 100 names is some 4 kB).
pub(crate) const BODY_MAX: usize = 64 * 1024;

impl Signed {
    /// The account that signed with `kid`.
    ///
    /// # Errors
    /// `malformed` when the request was signed by `jwk`.
    pub(crate) fn account(&self) -> Result<(&str, &PublicKey), Problem> {
        match &self.signer {
            Signer::Account { id, key } => Ok((id, key)),
            Signer::Key(_) => Err(Problem::malformed("this request must be signed by an account: use kid")),
        }
    }

    /// The payload as JSON.
    ///
    /// # Errors
    /// `malformed`.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.payload).map_err(|error| {
            Problem::malformed(format!("the payload is not what this resource takes: {error}"))
        })
    }

    /// Insists on POST-as-GET: an empty payload (RFC 8555 section 6.3).
    ///
    /// # Errors
    /// `malformed`.
    pub(crate) fn post_as_get(&self) -> Result<(), Problem> {
        if self.payload.is_empty() {
            Ok(())
        } else {
            Err(Problem::malformed("this resource takes POST-as-GET only: the payload must be empty"))
        }
    }
}

impl FromRequest<Arc<Ca>> for Signed {
    type Rejection = Problem;

    async fn from_request(request: Request, ca: &Arc<Ca>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        check_content_type(&parts.headers)?;
        let base = base_url(ca, &parts.headers, &parts.uri)?;
        let remote = parts.extensions.get::<SocketAddr>().map(SocketAddr::ip);
        let remote = remote.ok_or_else(|| Problem::new(Kind::ServerInternal, "no peer address"))?;
        let body = to_bytes(body, BODY_MAX).await.map_err(|_| {
            Problem::malformed(format!("the body is longer than {BODY_MAX} bytes or was cut off"))
                .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        })?;
        let jws = Jws::parse(&body)?;
        let signer = identify(ca, &base, &jws)?;
        let url = format!("{base}{}", parts.uri.path());
        check_url(&jws.header.url, &url)?;
        spend_nonce(ca, &jws, Endpoint::of_path(parts.uri.path()))?;
        Ok(Self { base, remote, signer, payload: jws.payload, url })
    }
}

/// The base of all URLs: the authority that the client used, if it is one that this CA answers to.
///
/// # Errors
/// `malformed` with status 421.
pub(crate) fn base_url(ca: &Ca, headers: &HeaderMap, uri: &Uri) -> Result<String, Problem> {
    let from_header = headers.get(HOST).and_then(|host| host.to_str().ok());
    let authority = uri.authority().map(http::uri::Authority::as_str).or(from_header).unwrap_or_default();
    if ca.authorities.iter().any(|known| known == authority) {
        return Ok(format!("https://{authority}{}", ca.prefix()));
    }
    let detail = format!("this CA answers for {}, not for {authority:?}", ca.authorities.join(", "));
    Err(Problem::malformed(detail).with_status(StatusCode::MISDIRECTED_REQUEST))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if given == "application/jose+json" {
        return Ok(());
    }
    Err(Problem::malformed(format!("Content-Type must be application/jose+json, not {given:?}"))
        .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

/// Finds the signing key and checks the signature.
fn identify(ca: &Ca, base: &str, jws: &Jws) -> Result<Signer, Problem> {
    let signer = match &jws.header.key {
        KeyReference::Embedded(key) => Signer::Key(key.clone()),
        KeyReference::Account(kid) => {
            let missing = || Problem::new(Kind::AccountDoesNotExist, format!("no account {kid:?} here"));
            let id = kid.strip_prefix(&format!("{base}/acme/account/")).ok_or_else(missing)?;
            let account = ca.book().accounts.get(id).cloned().ok_or_else(missing)?;
            if account.deactivated {
                return Err(Problem::unauthorized("the account is deactivated"));
            }
            Signer::Account { id: id.to_owned(), key: account.key }
        }
    };
    let (Signer::Account { key, .. } | Signer::Key(key)) = &signer;
    jws.verify(key)?;
    Ok(signer)
}

/// RFC 8555 section 6.4: a request whose protected URL is another one is unauthorized.
fn check_url(signed: &str, requested: &str) -> Result<(), Problem> {
    if signed == requested {
        return Ok(());
    }
    Err(Problem::unauthorized(format!("signed for {signed:?} but sent to {requested:?}")))
}

fn spend_nonce(ca: &Ca, jws: &Jws, endpoint: Option<Endpoint>) -> Result<(), Problem> {
    let bad = |detail: &str| Err(Problem::new(Kind::BadNonce, detail));
    let Some(nonce) = &jws.header.nonce else { return bad("the protected header has no nonce") };
    if !ca.nonces.spend(nonce) {
        return bad("the nonce was never issued, was used before, or is too old");
    }
    if endpoint.is_some_and(|endpoint| ca.take_fault(endpoint, &[FaultKind::BadNonce]).is_some()) {
        return bad("the nonce is refused because a fault was asked for");
    }
    Ok(())
}
