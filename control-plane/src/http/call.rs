//! Who calls, and under which conditions: token, scope, `Idempotency-Key`, `If-Match`.
//!
//! A token is `ptk_<id>_<secret>`. The store has the SHA-256 of the secret only, and the comparison takes the same time
//! wherever the first difference is. A token of a tenant sees that tenant; everything else does not exist for it.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::{FromRequestParts, MatchedPath, Path};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use portico_cert_store::TenantId;

use super::fault::{Answered, Fault};
use super::request_id::RequestId;
use super::{domains, tenants};
use crate::app::App;
use crate::store::token;

const TOKEN_PREFIX: &str = "ptk_";
const KEY_BYTES_MAX: usize = 255;

/// Whose token came with the request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) token_id: String,
    /// `None`: an operator.
    pub(crate) tenant: Option<TenantId>,
}

/// A request of an authenticated caller, without its body.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) caller: Caller,
    pub(crate) request_id: Arc<str>,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) idempotency_key: Option<String>,
    if_match: Option<String>,
}

/// A [`Call`] of an operator.
#[derive(Clone, Debug)]
pub(crate) struct OperatorCall(pub(crate) Call);

impl Caller {
    /// Whether the caller may see what belongs to `tenant`.
    pub(crate) fn sees(&self, tenant: TenantId) -> bool {
        self.tenant.is_none_or(|own| own == tenant)
    }
}

impl Call {
    /// As an operator's, for tests of what stands behind HTTP.
    #[cfg(test)]
    pub(crate) fn of_operator() -> Self {
        Self {
            caller: Caller { token_id: "test".to_owned(), tenant: None },
            request_id: "req_test".into(),
            method: Method::POST,
            path: "/".to_owned(),
            idempotency_key: None,
            if_match: None,
        }
    }

    /// Compares `If-Match` with the object's revision.
    ///
    /// # Errors
    /// 428 without the header, 412 when the object has changed since.
    pub(crate) fn check_revision(&self, revision: u64) -> Answered<()> {
        let Some(wanted) = &self.if_match else {
            return Err(Fault::new(
                StatusCode::PRECONDITION_REQUIRED,
                "if_match_required",
                "GET the object and send its ETag as If-Match (its revision in quotes, such as If-Match: \"3\"), so that \
                 nobody's change is overwritten; If-Match: * takes it as it is now",
            ));
        };
        let tags = wanted.split(',').map(str::trim);
        let current = etag(revision);
        if tags.into_iter().any(|tag| tag == "*" || tag == current) {
            return Ok(());
        }
        Err(Fault::new(
            StatusCode::PRECONDITION_FAILED,
            "revision_mismatch",
            format!("the object is at revision {revision} now; read it again, then repeat your change"),
        ))
    }
}

/// The entity tag of a revision.
pub(crate) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// The text of a token, and the hash that the store keeps of its secret.
pub(crate) fn token_text(id: &str, secret: &str) -> String {
    format!("{TOKEN_PREFIX}{id}_{secret}")
}

pub(crate) fn secret_sha256(secret: &str) -> Vec<u8> {
    digest(&SHA256, secret.as_bytes()).as_ref().to_vec()
}

/// Splits `ptk_<id>_<secret>`.
pub(crate) fn split_token(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(TOKEN_PREFIX)?.split_once('_')?;
    (!id.is_empty() && secret.len() >= 32).then_some((id, secret))
}

impl FromRequestParts<App> for Call {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let caller = authenticate(&parts.headers, app).await?;
        let id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
        Ok(Self {
            caller,
            request_id: id.unwrap_or_else(|| "req_none".into()),
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            idempotency_key: idempotency_key(&parts.headers)?,
            if_match: text(&parts.headers, &header::IF_MATCH).map(str::to_owned),
        })
    }
}

impl FromRequestParts<App> for OperatorCall {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let call = Call::from_request_parts(parts, app).await?;
        if call.caller.tenant.is_none() {
            return Ok(Self(call));
        }
        // What is about one object of another's answers as if the object were not there.
        let is_own = is_about_own(parts, app, &call).await?;
        Err(if is_own { operators_only() } else { Fault::not_found("object") })
    }
}

/// Whether what a path is about is the calling tenant's own, or no single object at all.
async fn is_about_own(parts: &mut Parts, app: &App, call: &Call) -> Answered<bool> {
    let Some(path) = parts.extensions.get::<MatchedPath>().cloned() else { return Ok(true) };
    let Ok(Path(values)) = Path::<HashMap<String, String>>::from_request_parts(parts, app).await else {
        return Ok(false);
    };
    let value = |name: &str| values.get(name).map(String::as_str).unwrap_or_default();
    if path.as_str().starts_with("/v1/tenants/{id}") {
        return Ok(tenants::visible(call, value("id")).is_ok());
    }
    if path.as_str().starts_with("/v1/domains/{domain}") {
        let mut read = app.parts.store.read().await?;
        return match domains::find(&mut read, call, value("domain")).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.status.is_server_error() => Err(fault),
            Err(_) => Ok(false),
        };
    }
    Ok(!path.as_str().contains('{'))
}

pub(super) fn operators_only() -> Fault {
    Fault::new(StatusCode::FORBIDDEN, "operator_only", "this call needs an operator's token")
}

async fn authenticate(headers: &HeaderMap, app: &App) -> Answered<Caller> {
    let refused = || {
        Fault::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "send `Authorization: Bearer ptk_...` with a token that is valid; an operator makes one by POST /v1/tokens",
        )
    };
    let given = text(headers, &header::AUTHORIZATION).ok_or_else(refused)?;
    let (scheme, credentials) = given.split_once(' ').ok_or_else(refused)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(refused());
    }
    let (id, secret) = split_token(credentials.trim()).ok_or_else(refused)?;
    let found = token::find(&mut *app.parts.store.read().await?, id).await?;
    // An unknown id costs the same comparison as a known one.
    let stored = found.as_ref().map_or(&[0; 32][..], |row| row.secret_sha256.as_slice());
    let equal = verify_slices_are_equal(&secret_sha256(secret), stored).is_ok();
    let row = found.filter(|_| equal).ok_or_else(refused)?;
    Ok(Caller { token_id: row.id, tenant: row.tenant_id })
}

fn idempotency_key(headers: &HeaderMap) -> Answered<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()));
    key.map(|key| Some(key.to_owned())).ok_or_else(|| {
        Fault::bad_request(
            "idempotency_key_invalid",
            "Idempotency-Key must be 1 to 255 visible ASCII characters",
        )
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_not_whole_are_refused() {
        let secret = "s".repeat(64);
        assert_eq!(split_token(&token_text("ABC", &secret)), Some(("ABC", secret.as_str())));
        for wrong in ["", "ptk_", "ptk_ABC", "ptk_ABC_", "ptk__", "ptk_ABC_short", "pjt_ABC_ssssssss"] {
            assert_eq!(split_token(wrong), None, "{wrong}");
        }
    }
}
