//! Routes: what happens to a request.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Proxy;
use crate::strict::by_name;

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Proxy(Box<Proxy>),
    Redirect(Redirect),
    Static(StaticAnswer),
}

/// Sends visitors elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// An absolute http or https URL.
    pub to: String,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "redirect_status")]
    pub status: u16,
    /// Append the request's path to `to`.
    #[serde(default)]
    pub keep_path: bool,
    /// Append the request's query to `to`. Absent: as `keep_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_query: Option<bool>,
}

/// A fixed answer; its further headers are the route's `response_headers`. GET and HEAD get it, and the methods that the
/// route names; others get 405, unless the status is an error's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticAnswer {
    /// 200 to 599 but 205 and 304; with 204 the body is empty.
    #[serde(default = "static_status")]
    pub status: u16,
    #[serde(default = "static_content_type")]
    pub content_type: String,
    /// At most 64 KiB.
    pub body: String,
}

/// serde's derive takes arrays for the structs in a tagged enum, whoever reads it ([`crate::strict`]).
impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::<String, Value>::deserialize(deserializer)?;
        let kind = fields.remove("type").ok_or_else(|| D::Error::missing_field("type"))?;
        let rest = by_name(Value::Object(fields));
        let action = match kind.as_str() {
            Some("proxy") => Proxy::deserialize(rest).map(|proxy| Self::Proxy(Box::new(proxy))),
            Some("redirect") => Redirect::deserialize(rest).map(Self::Redirect),
            Some("static") => StaticAnswer::deserialize(rest).map(Self::Static),
            _ => return Err(D::Error::custom("`type` must be proxy, redirect or static")),
        };
        action.map_err(D::Error::custom)
    }
}

impl Action {
    /// Passes requests on to one origin.
    pub fn proxy(origin: impl Into<String>) -> Self {
        Self::Proxy(Box::new(Proxy::to(origin)))
    }

    /// Sends every path, with its query, to the same path at `to`, for good.
    pub fn redirect(to: impl Into<String>) -> Self {
        Self::Redirect(Redirect::keeping_path(to))
    }

    /// Answers with a text.
    pub fn text(body: impl Into<String>) -> Self {
        Self::Static(StaticAnswer {
            status: static_status(),
            content_type: static_content_type(),
            body: body.into(),
        })
    }
}

impl Redirect {
    /// Of every path, with its query, to the same path at `to`, for good.
    pub fn keeping_path(to: impl Into<String>) -> Self {
        Self { to: to.into(), status: redirect_status(), keep_path: true, keep_query: None }
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
