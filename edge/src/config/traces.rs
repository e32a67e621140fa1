//! `[traces]`: where spans go, and how many.

use http::{Uri, uri::Scheme};
use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::limits;

/// Spans are exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracesConfig {
    /// `http://host:port` of an OTLP receiver that speaks gRPC.
    pub collector: String,
    /// Of 2^32 requests that bring no trace of their own, so many are recorded.
    pub share: u64,
    pub spans_per_second: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTraces {
    otlp: Spanned<String>,
    ratio: Option<Spanned<f64>>,
    spans_per_second: Option<Spanned<u64>>,
}

pub(super) fn check(
    source: Source<'_>,
    raw: Option<&RawTraces>,
) -> Result<Option<TracesConfig>, ConfigError> {
    let Some(raw) = raw else { return Ok(None) };
    if !cfg!(feature = "otlp") {
        let problem =
            "this edge was built without OTLP; build it with the feature `otlp`, or remove [traces]";
        return Err(source.error(Some(raw.otlp.span()), problem.into()));
    }
    let spans_per_second = raw.spans_per_second.as_ref();
    if let Some(zero) = spans_per_second.filter(|spans| *spans.get_ref() == 0) {
        let problem = "no span at all: remove [traces] instead";
        return Err(source.error(Some(zero.span()), problem.into()));
    }
    Ok(Some(TracesConfig {
        collector: collector(source, &raw.otlp)?,
        share: raw.ratio.as_ref().map_or(Ok(0), |ratio| share(source, ratio))?,
        spans_per_second: spans_per_second.map_or(limits::SPANS_PER_SECOND, |spans| *spans.get_ref()),
    }))
}

fn collector(source: Source<'_>, raw: &Spanned<String>) -> Result<String, ConfigError> {
    let text = raw.get_ref();
    let wrong = |problem: String| source.error(Some(raw.span()), problem);
    let uri: Option<Uri> = text.parse().ok().filter(|uri: &Uri| uri.authority().is_some());
    let scheme = uri.as_ref().and_then(Uri::scheme);
    if scheme == Some(&Scheme::HTTP) {
        return Ok(text.clone());
    }
    if scheme == Some(&Scheme::HTTPS) {
        let problem = "spans are sent without TLS: run a collector on this machine or in its network, and let that \
                       one send them on";
        return Err(wrong(problem.into()));
    }
    Err(wrong(format!(
        "{text:?} is not the URL of an OTLP receiver for gRPC, such as \"http://127.0.0.1:4317\""
    )))
}

fn share(source: Source<'_>, raw: &Spanned<f64>) -> Result<u64, ConfigError> {
    let ratio = *raw.get_ref();
    if !(0.0..=1.0).contains(&ratio) {
        let problem = format!("{ratio} is no share; use 0 (none) to 1 (all)");
        return Err(source.error(Some(raw.span()), problem));
    }
    #[expect(clippy::cast_possible_truncation, reason = "0 to 2^32")]
    let share = (ratio * 4_294_967_296.0) as i64;
    Ok(share.unsigned_abs())
}
