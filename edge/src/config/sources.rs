//! `[client_limits]`: what one client address may take.

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Source};
use crate::{limits, rate::Rate, sources::SourceLimits};

/// 0: no bound. What is absent is as in [`SourceLimits::default`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClientLimits {
    handshakes_per_second: Option<Spanned<u64>>,
    handshakes_burst: Option<Spanned<u64>>,
    requests_per_second: Option<Spanned<u64>>,
    requests_burst: Option<Spanned<u64>>,
    connections: Option<u32>,
    exempt: Option<Vec<Spanned<String>>>,
}

pub(super) fn check(source: Source<'_>, raw: Option<&RawClientLimits>) -> Result<SourceLimits, ConfigError> {
    let mut found = SourceLimits::default();
    let Some(raw) = raw else { return Ok(found) };
    let handshakes = (limits::SOURCE_HANDSHAKES_PER_SECOND, limits::SOURCE_HANDSHAKES_BURST);
    found.handshakes =
        rate(source, (raw.handshakes_per_second.as_ref(), raw.handshakes_burst.as_ref()), handshakes)?;
    let requests = (limits::SOURCE_REQUESTS_PER_SECOND, limits::SOURCE_REQUESTS_BURST);
    found.requests = rate(source, (raw.requests_per_second.as_ref(), raw.requests_burst.as_ref()), requests)?;
    if let Some(connections) = raw.connections {
        found.connections = Some(connections).filter(|most| *most > 0);
    }
    if let Some(exempt) = &raw.exempt {
        found.exempt = exempt.iter().map(|text| source.network(text)).collect::<Result<_, _>>()?;
    }
    Ok(found)
}

/// The burst is ten times the rate where only the rate is given.
fn rate(
    source: Source<'_>,
    (per_second, burst): (Option<&Spanned<u64>>, Option<&Spanned<u64>>),
    (default_per_second, default_burst): (u64, u64),
) -> Result<Option<Rate>, ConfigError> {
    for given in [per_second, burst].into_iter().flatten() {
        if *given.get_ref() > limits::SOURCE_RATE_MAX {
            let problem = format!(
                "{} is too much; 0 is no limit, else 1 to {}",
                given.get_ref(),
                limits::SOURCE_RATE_MAX
            );
            return Err(source.error(Some(given.span()), problem));
        }
    }
    let per_second = per_second.map(|given| *given.get_ref());
    if per_second == Some(0) {
        return Ok(None);
    }
    if let Some(zero) = burst.filter(|burst| *burst.get_ref() == 0) {
        let problem = "a burst of 0 lets nothing pass; 0 a second is how to have no limit".to_owned();
        return Err(source.error(Some(zero.span()), problem));
    }
    let burst = match (burst, per_second) {
        (Some(burst), _) => *burst.get_ref(),
        (None, Some(per_second)) => per_second.saturating_mul(10),
        (None, None) => default_burst,
    };
    Ok(Some(Rate::new(per_second.unwrap_or(default_per_second), burst)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Config;
    use super::*;

    fn parse(section: &str) -> Result<SourceLimits, String> {
        let text = format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n[standalone]\n[client_limits]\n{section}"
        );
        let config = Config::parse(Path::new("/srv/edge.toml"), &text);
        config.map(|config| config.sources).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_absent_is_the_default_and_0_is_no_limit() {
        assert_eq!(parse(""), Ok(SourceLimits::default()));
        let none =
            parse("handshakes_per_second = 0\nrequests_per_second = 0\nconnections = 0\nexempt = []\n");
        assert_eq!(none, Ok(SourceLimits::none()));
        let some = parse(
            "handshakes_per_second = 5\nrequests_burst = 7\nconnections = 9\nexempt = [\"10.0.0.0/8\", \"::1\"]\n",
        );
        let wanted = SourceLimits {
            handshakes: Some(Rate::new(5, 50)),
            requests: Some(Rate::new(limits::SOURCE_REQUESTS_PER_SECOND, 7)),
            connections: Some(9),
            exempt: ["10.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a network")).into(),
        };
        assert_eq!(some, Ok(wanted));
    }

    #[test]
    fn each_wrong_limit_is_pointed_at() {
        let too_much = format!("connections = 1\nrequests_per_second = {}\n", limits::SOURCE_RATE_MAX + 1);
        let table = [
            (too_much.as_str(), "7:23", "0 is no limit"),
            ("handshakes_burst = 0\n", "6:20", "lets nothing pass"),
            ("exempt = [\"ten\"]\n", "6:11", "10.0.0.0/8"),
            ("connections = -1\n", "6:15", ""),
            ("handshakes = 1\n", "6:1", "unknown field"),
        ];
        for (section, place, hint) in table {
            let error = parse(section).expect_err("the section is wrong");
            assert!(error.starts_with(&format!("/srv/edge.toml:{place}: ")), "{section:?} gave {error:?}");
            assert!(error.contains(hint), "{section:?} gave {error:?}");
        }
    }
}
