//! Pages of a tenant's own, shown where an edge has an error to tell.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What visitors see in the place of the edge's own page, by its status. An origin's own errors pass as they are, and so do
/// the pages of a suspension and of maintenance that has a text. No page is told why: that is in the access log and the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorPages {
    /// No route takes the request.
    #[serde(default, rename = "404", skip_serializing_if = "Option::is_none")]
    pub not_found: Option<ErrorPage>,
    /// The request's body is larger than the tenant may send.
    #[serde(default, rename = "413", skip_serializing_if = "Option::is_none")]
    pub too_large: Option<ErrorPage>,
    /// More requests than a limit allows.
    #[serde(default, rename = "429", skip_serializing_if = "Option::is_none")]
    pub too_many: Option<ErrorPage>,
    /// The origin cannot be reached, or gives no sound answer.
    #[serde(default, rename = "502", skip_serializing_if = "Option::is_none")]
    pub bad_gateway: Option<ErrorPage>,
    /// Something is full: the origin's circuit breaker, a limit of the tenant. Maintenance without a text, too.
    #[serde(default, rename = "503", skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<ErrorPage>,
    /// The origin takes too long.
    #[serde(default, rename = "504", skip_serializing_if = "Option::is_none")]
    pub timed_out: Option<ErrorPage>,
}

/// One page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorPage {
    /// `text/html; charset=utf-8` when absent.
    #[serde(default)]
    pub content_type: ErrorPageType,
    /// 1 to 65,536 bytes of UTF-8; all pages of a tenant together at most 131,072. JSON is checked to be some.
    pub body: String,
}

/// What a page may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ErrorPageType {
    #[default]
    #[serde(rename = "text/html; charset=utf-8")]
    Html,
    #[serde(rename = "text/plain; charset=utf-8")]
    Text,
    #[serde(rename = "application/json")]
    Json,
}

/// One page, bytes: it lives in memory on each edge.
pub const ERROR_PAGE_BYTES_MAX: usize = 64 * 1024;
/// All pages of one tenant, bytes.
pub const ERROR_PAGES_BYTES_MAX: usize = 2 * ERROR_PAGE_BYTES_MAX;

impl ErrorPages {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Each page that there is, with its status.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &ErrorPage)> {
        let all = [
            (404, &self.not_found),
            (413, &self.too_large),
            (429, &self.too_many),
            (502, &self.bad_gateway),
            (503, &self.unavailable),
            (504, &self.timed_out),
        ];
        all.into_iter().filter_map(|(status, page)| Some((status, page.as_ref()?)))
    }

    /// What is wrong: where below the field, by a JSON pointer, the code, and why.
    pub fn faults(&self) -> Vec<(String, &'static str, String)> {
        let fault = |(status, page): (u16, &ErrorPage)| {
            page.fault().map(|(code, why)| (format!("/{status}/body"), code, why))
        };
        let mut faults: Vec<_> = self.iter().filter_map(fault).collect();
        let bytes: usize = self.iter().map(|(_, page)| page.body.len()).sum();
        if faults.is_empty() && bytes > ERROR_PAGES_BYTES_MAX {
            let why = format!("the pages have {bytes} bytes together, at most {ERROR_PAGES_BYTES_MAX}");
            faults.push((String::new(), "too_large", why));
        }
        faults
    }
}

impl ErrorPage {
    /// What is wrong with the body: a code, and why.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let bytes = self.body.len();
        if bytes == 0 {
            return Some((
                "invalid_value",
                "is empty; leave the page out, and visitors see the edge's own".to_owned(),
            ));
        }
        if bytes > ERROR_PAGE_BYTES_MAX {
            return Some(("too_large", format!("has {bytes} bytes, at most {ERROR_PAGE_BYTES_MAX}")));
        }
        if self.content_type == ErrorPageType::Json
            && let Err(error) = serde_json::from_str::<IgnoredAny>(&self.body)
        {
            return Some(("invalid_value", format!("is no JSON: {error}")));
        }
        None
    }
}

impl ErrorPageType {
    /// As the field of an answer has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Html => "text/html; charset=utf-8",
            Self::Text => "text/plain; charset=utf-8",
            Self::Json => "application/json",
        }
    }

    /// By the end of a file's name: `.html`, `.htm`, `.txt`, `.json`.
    pub fn of_file(path: &std::path::Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "html" | "htm" => Some(Self::Html),
            "txt" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(content_type: ErrorPageType, body: impl Into<String>) -> Option<ErrorPage> {
        Some(ErrorPage { content_type, body: body.into() })
    }

    fn faults(pages: &ErrorPages) -> Vec<(String, &'static str)> {
        pages.faults().into_iter().map(|(at, code, _)| (at, code)).collect()
    }

    #[test]
    fn pages_are_called_by_their_status() {
        let text = json!({ "503": { "body": "<h1>Soon</h1>" }, "504": { "content_type": "application/json", "body": "{}" } });
        let pages: ErrorPages = serde_json::from_value(text).unwrap();
        let found: Vec<_> = pages.iter().map(|(status, page)| (status, page.content_type.as_str())).collect();
        assert_eq!(found, [(503, "text/html; charset=utf-8"), (504, "application/json")]);
        let shown = serde_json::to_value(&pages).unwrap();
        assert_eq!(
            shown["503"],
            json!({ "content_type": "text/html; charset=utf-8", "body": "<h1>Soon</h1>" })
        );
        assert_eq!(shown.as_object().unwrap().len(), 2);
        for wrong in
            [json!({ "200": { "body": "x" } }), json!({ "503": { "body": "x", "content_type": "text/css" } })]
        {
            serde_json::from_value::<ErrorPages>(wrong).unwrap_err();
        }
        for kind in [ErrorPageType::Html, ErrorPageType::Text, ErrorPageType::Json] {
            assert_eq!(json!(kind), kind.as_str());
        }
    }

    #[test]
    fn bodies_have_bounds() {
        let largest = "x".repeat(ERROR_PAGE_BYTES_MAX);
        let html = |body: &str| page(ErrorPageType::Html, body);
        let pages =
            ErrorPages { bad_gateway: html(&largest), unavailable: html(&largest), ..ErrorPages::default() };
        assert_eq!(faults(&pages), []);
        let more = ErrorPages { timed_out: html("x"), ..pages.clone() };
        assert_eq!(faults(&more), [(String::new(), "too_large")]);
        let longer = ErrorPages { bad_gateway: html(&(largest + "x")), ..pages };
        assert_eq!(faults(&longer), [("/502/body".to_owned(), "too_large")]);
        let empty = ErrorPages { not_found: html(""), ..ErrorPages::default() };
        assert_eq!(faults(&empty), [("/404/body".to_owned(), "invalid_value")]);
        let json =
            |body: &str| ErrorPages { too_many: page(ErrorPageType::Json, body), ..ErrorPages::default() };
        assert_eq!(faults(&json("{\"error\": \"busy\"}")), []);
        assert_eq!(faults(&json("{")), [("/429/body".to_owned(), "invalid_value")]);
    }
}
