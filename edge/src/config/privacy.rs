//! `[privacy]`: what of a visitor the access log and traces may hold.

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::privacy::{AddressDetail, Privacy, QueryValues};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPrivacy {
    query_values: Option<Spanned<RawQueryValues>>,
    #[serde(default)]
    client_address: AddressDetail,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected \"redacted\", \"kept\", or the names whose values are kept")]
enum RawQueryValues {
    Word(String),
    Names(Vec<String>),
}

pub(super) fn check(source: Source<'_>, raw: Option<&RawPrivacy>) -> Result<Privacy, ConfigError> {
    let Some(raw) = raw else { return Ok(Privacy::default()) };
    let query_values = raw.query_values.as_ref().map(|raw| query_values(source, raw)).transpose()?;
    Ok(Privacy { query_values: query_values.unwrap_or_default(), client_address: raw.client_address })
}

fn query_values(source: Source<'_>, raw: &Spanned<RawQueryValues>) -> Result<QueryValues, ConfigError> {
    let wrong = |problem: String| source.error(Some(raw.span()), problem);
    match raw.get_ref() {
        RawQueryValues::Word(word) => match word.as_str() {
            "redacted" => Ok(QueryValues::Redacted),
            "kept" => Ok(QueryValues::Kept),
            other => Err(wrong(format!(
                "{other:?} is none of \"redacted\", \"kept\" and a list of names whose values are kept, such as \
                 [\"page\", \"utm_*\"]"
            ))),
        },
        RawQueryValues::Names(names) => {
            let is_name = |name: &&String| {
                let bare = name.strip_suffix('*').unwrap_or(name);
                !name.is_empty() && !bare.contains(['=', '&', ';', '?', '#', '*', ' '])
            };
            match names.iter().find(|name| !is_name(name)) {
                Some(odd) => Err(wrong(format!(
                    "{odd:?} is no name of a parameter as it stands in a URL; a * may end it and stands for any rest"
                ))),
                None => Ok(QueryValues::Of(names.as_slice().into())),
            }
        }
    }
}
