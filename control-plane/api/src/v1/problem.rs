//! Errors as RFC 9457 problem details.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error, `application/problem+json` (RFC 9457), with a stable `code` for programs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `/errors/<code>`
    #[serde(rename = "type")]
    pub type_uri: String,
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// What is wrong here, and what to do next.
    pub detail: String,
    /// Stable, snake_case: `domain_name_invalid`, `domain_conflict`, `unknown_field`, `rate_limited`, ...
    pub code: String,
    pub request_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// One faulty field of a request body.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) into the request body.
    pub pointer: String,
    pub code: String,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)?;
        // The detail often quotes the first of them.
        for error in self.errors.iter().filter(|error| !self.detail.contains(&error.message)) {
            write!(f, "; {}: {}", error.pointer, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
