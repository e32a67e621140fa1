//! Routes: what happens to a request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One rule of a domain; the first whose `path_prefix` matches is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `/` or longer; matches on whole path segments.
    #[serde(default = "root_path")]
    pub path_prefix: String,
    pub action: Action,
}

fn root_path() -> String {
    "/".to_owned()
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    Proxy {
        /// `http://host[:port]` or `https://host[:port]`, no path, no credentials.
        origin: String,
        /// Sent to the origin as Host; the request's own authority when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_header: Option<String>,
    },
    Redirect {
        /// An absolute http or https URL.
        to: String,
        /// 301, 302, 303, 307 or 308.
        #[serde(default = "redirect_status")]
        status: u16,
        /// Append the request's path and query to `to`.
        #[serde(default)]
        keep_path: bool,
    },
    Static {
        #[serde(default = "static_status")]
        status: u16,
        #[serde(default = "static_content_type")]
        content_type: String,
        /// At most 64 KiB.
        body: String,
    },
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
