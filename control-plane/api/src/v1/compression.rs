//! What edges compress of a route's answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answers that their origin has sent plain are compressed for clients that take it (RFC 9110, 12.5.3). Never compressed,
/// whatever is said here: answers with `Set-Cookie` or `no-transform`, parts, and answers to requests with `Cookie` or
/// `Authorization` unless they are `public`: the length of a compressed secret tells of it (BREACH).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompressionPolicy {
    /// In order of preference among what a client likes equally, each once. Absent: `zstd`, `br`, `gzip`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codings: Vec<ContentCoding>,
    /// Answers known to be shorter are sent as they are; 1 to 1,048,576 bytes. Absent: 1,024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<u32>,
    /// Media types, at most 64: `text/html`, `text/*` or `application/*+json`. Absent: text, JSON, JavaScript, XML, SVG,
    /// WebAssembly and fonts that are not compressed yet. `text/event-stream` only where it is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content_types: Vec<String>,
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContentCoding {
    /// RFC 7932.
    Br,
    /// RFC 8878, in windows of 128 KiB.
    Zstd,
    /// RFC 1952.
    Gzip,
}
