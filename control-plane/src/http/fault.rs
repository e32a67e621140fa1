//! What a caller gets when something is wrong: RFC 9457 problem details with a stable code.
//!
//! Internals (database texts, paths, addresses of ours) go to the log under the request's id, never to the caller.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use portico_api::v1::{FieldError, Problem};

use crate::app::origin_identity::IdentityError;
use crate::store::StoreError;

/// An error on its way to the caller.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    pub(crate) errors: Vec<FieldError>,
    /// Seconds; for `Retry-After`.
    pub(crate) retry_after: Option<u64>,
}

pub(crate) type Answered<T> = Result<T, Fault>;

impl Fault {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), errors: Vec::new(), retry_after: None }
    }

    /// When the same call may do better, seconds from now.
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// What is wrong is in the log.
    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the control plane failed; its log has the cause under this request id",
        )
    }

    /// The object is unknown, or another tenant's: the caller cannot tell which.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}, or it is not yours"))
    }

    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 422 with the faulty fields.
    pub(crate) fn fields(errors: Vec<FieldError>) -> Self {
        let code = match errors.as_slice() {
            [one] => stable(&one.code),
            _ => "invalid_fields",
        };
        let detail = match errors.as_slice() {
            [one] if one.pointer.is_empty() => format!("the body: {}", one.message),
            [one] => format!("{}: {}", one.pointer, one.message),
            _ => format!("{} fields are wrong", errors.len()),
        };
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail) }
    }

    /// Says what to do, where one of these fields is wrong in this way.
    pub(crate) fn with_hint(mut self, code: &str, hint: &str) -> Self {
        if !self.errors.iter().any(|error| error.code == code) {
            return self;
        }
        for error in self.errors.iter_mut().filter(|error| error.code == code) {
            error.message = format!("{}. {hint}", error.message);
        }
        Self::fields(self.errors)
    }

    pub(crate) fn problem(&self, request_id: &str) -> Problem {
        Problem {
            type_uri: format!("/errors/{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code.to_owned(),
            request_id: request_id.to_owned(),
            errors: self.errors.clone(),
        }
    }
}

/// The codes of single fields that also stand as the code of the whole problem.
fn stable(code: &str) -> &'static str {
    const CODES: &[&str] = &[
        "domain_name_invalid",
        "name_reserved",
        "unknown_field",
        "missing_field",
        "duplicate_field",
        "origin_denied",
        "origin_own",
        "unknown_host",
    ];
    CODES.iter().find(|&&known| known == code).copied().unwrap_or("invalid_fields")
}

/// One faulty field; `pointer` is an RFC 6901 JSON pointer into the body.
pub(crate) fn field(pointer: impl Into<String>, code: &str, message: impl Into<String>) -> FieldError {
    FieldError { pointer: pointer.into(), code: code.to_owned(), message: message.into() }
}

impl From<IdentityError> for Fault {
    fn from(error: IdentityError) -> Self {
        if let IdentityError::Store(error) = error {
            return error.into();
        }
        tracing::error!(error = &error as &dyn std::error::Error, "an origin identity could not be made");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the control plane failed; its log has the cause under this request id",
        )
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        if error.is_busy() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the store is busy or away");
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "the control plane is busy; send the same request again, with the same Idempotency-Key",
            );
        }
        tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
        Self::internal()
    }
}

/// The body is written by [`super::request_id::assign`], which knows the request's id.
impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let unavailable = (self.status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        if let Some(seconds) = self.retry_after.or(unavailable) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self);
        response
    }
}
