//! A tenant's error pages, as options and as text.

use std::path::PathBuf;

use portico_api::v1::{ErrorPage, ErrorPageType, ErrorPages};
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};

/// Pages in the place of the edge's own.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ErrorPageArgs {
    /// What visitors see in the place of the edge's own page of that status (404, 413, 429, 502, 503, 504); an .html, .txt or
    /// .json file of at most 64 KiB; repeatable
    #[arg(long = "error-page", value_name = "STATUS=FILE", value_parser = parse)]
    error_pages: Vec<(u16, PathBuf)>,
    /// The edge's own page of that status again; repeatable
    #[arg(long = "no-error-page", value_name = "STATUS")]
    withdrawn_pages: Vec<u16>,
}

impl ErrorPageArgs {
    /// As a merge patch (RFC 7396) of the pages; `None`: nothing is said.
    ///
    /// # Errors
    /// A file that cannot be read, or whose name does not say what it is.
    pub(crate) fn patch(&self) -> Outcome<Option<Value>> {
        let mut patch: Map<String, Value> =
            self.withdrawn_pages.iter().map(|status| (status.to_string(), Value::Null)).collect();
        for (status, path) in &self.error_pages {
            let shown = path.display();
            let content_type = ErrorPageType::of_file(path).ok_or_else(|| {
                Failure::usage(format!("{shown}: what a page is, its name says: .html, .txt or .json"))
            })?;
            let body = std::fs::read(path).map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
            let body = String::from_utf8(body)
                .map_err(|_| Failure::usage(format!("{shown}: is not UTF-8; convert it first")))?;
            patch.insert(status.to_string(), json!(ErrorPage { content_type, body }));
        }
        Ok((!patch.is_empty()).then_some(Value::Object(patch)))
    }
}

fn parse(text: &str) -> Result<(u16, PathBuf), String> {
    let fault = || format!("{text:?} is no page; write 503=busy.html");
    let (status, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or_else(fault)?;
    Ok((status.parse().map_err(|_| fault())?, path.into()))
}

/// One line; `None`: the tenant has no pages of its own.
pub(crate) fn text(pages: &ErrorPages) -> Option<String> {
    let parts: Vec<String> = pages
        .iter()
        .map(|(status, page)| {
            let essence = page.content_type.as_str().split(';').next().unwrap_or_default();
            format!("{status} ({essence}, {} bytes)", page.body.len())
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(pages: &[(u16, &std::path::Path)], withdrawn: &[u16]) -> ErrorPageArgs {
        let error_pages = pages.iter().map(|(status, path)| (*status, path.to_path_buf())).collect();
        ErrorPageArgs { error_pages, withdrawn_pages: withdrawn.to_vec() }
    }

    #[test]
    fn files_become_pages_and_others_are_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        assert_eq!(args(&[], &[]).patch().unwrap(), None);
        let busy = file("busy.html", "<h1>Gleich zurück</h1>".as_bytes());
        let patch = args(&[(503, &busy)], &[504]).patch().unwrap().unwrap();
        let page = json!({ "content_type": "text/html; charset=utf-8", "body": "<h1>Gleich zurück</h1>" });
        assert_eq!(patch, json!({ "503": page, "504": null }));
        let pages: ErrorPages = serde_json::from_value(json!({ "503": page })).unwrap();
        assert_eq!(text(&pages).as_deref(), Some("503 (text/html, 23 bytes)"));
        assert_eq!(text(&ErrorPages::default()), None);

        let (odd, latin) = (file("busy", b"x"), file("busy.txt", b"zur\xfcck"));
        let missing = folder.path().join("none.html");
        for (wrong, hint) in [(&odd, "its name says"), (&latin, "not UTF-8"), (&missing, "none.html")] {
            let failure = args(&[(503, wrong)], &[]).patch().unwrap_err();
            assert!(format!("{failure:?}").contains(hint), "{failure:?}");
        }
        assert_eq!(parse("503=a=b.html"), Ok((503, "a=b.html".into())));
        for wrong in ["503", "503=", "busy=x.html", "=x.html"] {
            parse(wrong).unwrap_err();
        }
    }
}
