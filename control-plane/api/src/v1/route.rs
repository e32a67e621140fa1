//! Routes: what happens to a request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Proxy;

/// One rule of a domain. Rules are asked in their order and the first that matches a request is taken; one that can never be
/// reached is refused (422). A rule matches when its path, its methods and all its headers do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `/` or longer; matches on whole path segments: `/a` holds `/a`, `/a/` and `/a/b`, and not `/ab`.
    #[serde(default = "root_path")]
    pub path_prefix: String,
    /// The path `path_prefix` alone, and nothing below it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
    /// Of these methods only, at most 16; `GET` stands for `HEAD` too. Absent: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// All of them have to hold; at most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderCondition>,
    /// Stands in the place of `path_prefix` in what the origin, or with `keep_path` the Location, gets of the path. For
    /// `proxy`, and for `redirect` with `keep_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix: Option<String>,
    /// Of what the origin gets; for `proxy`.
    #[serde(default, skip_serializing_if = "HeaderChanges::is_empty")]
    pub request_headers: HeaderChanges,
    /// Of what the client gets. Pages of Portico's own, such as a 502, are left as they are.
    #[serde(default, skip_serializing_if = "HeaderChanges::is_empty")]
    pub response_headers: HeaderChanges,
    pub action: Action,
}

/// A header that a request has to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderCondition {
    /// Whatever its case.
    pub name: String,
    /// One of the header's values is this, byte for byte. Absent: the header is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
}

/// Headers that are taken away, then headers that are set in the place of any of their name. At most 32 in all, and 8 KiB.
/// Refused: fields between neighbours (`Connection` and the like), of framing (`Content-Length`), `Host`, what
/// Portico says itself (`Forwarded`, `X-Forwarded-*`, `Via`, `CDN-Loop`, `Alt-Svc`, `Strict-Transport-Security`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderChanges {
    /// Name to value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

impl Route {
    /// An action for all requests below a path.
    pub fn new(path_prefix: impl Into<String>, action: Action) -> Self {
        Self {
            path_prefix: path_prefix.into(),
            exact: false,
            methods: Vec::new(),
            headers: Vec::new(),
            replace_prefix: None,
            request_headers: HeaderChanges::default(),
            response_headers: HeaderChanges::default(),
            action,
        }
    }
}

impl HeaderChanges {
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

fn root_path() -> String {
    "/".to_owned()
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Proxy(Box<Proxy>),
    Redirect {
        /// An absolute http or https URL.
        to: String,
        /// 301, 302, 303, 307 or 308.
        #[serde(default = "redirect_status")]
        status: u16,
        /// Append the request's path to `to`.
        #[serde(default)]
        keep_path: bool,
        /// Append the request's query to `to`. Absent: as `keep_path`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep_query: Option<bool>,
    },
    /// A fixed answer; its further headers are the route's `response_headers`. GET and HEAD get it, and the methods that the
    /// route names; others get 405, unless the status is an error's.
    Static {
        /// 200 to 599 but 205 and 304; with 204 the body is empty.
        #[serde(default = "static_status")]
        status: u16,
        #[serde(default = "static_content_type")]
        content_type: String,
        /// At most 64 KiB.
        body: String,
    },
}

impl Action {
    /// Passes requests on to one origin.
    pub fn proxy(origin: impl Into<String>) -> Self {
        Self::Proxy(Box::new(Proxy::to(origin)))
    }
}

fn redirect_status() -> u16 {
    308
}

fn static_status() -> u16 {
    200
}

fn static_content_type() -> String {
    "text/plain; charset=utf-8".to_owned()
}
