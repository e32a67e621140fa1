//! What a tenant may take of each edge, as options and as text.

use portico_api::v1::TenantLimits;
use serde_json::{Map, Value, json};

/// Bounds on each edge; `default` takes one back, so that it is as the fleet has it.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TenantLimitArgs {
    /// Requests a second on each edge; more are answered 429
    #[arg(long, value_name = "N|default", value_parser = parse)]
    requests_per_second: Option<Limit>,
    /// Requests under way at once on each edge; more are answered 503
    #[arg(long, value_name = "N|default", value_parser = parse)]
    exchanges: Option<Limit>,
    /// Bytes a second of answers on each edge; they come more slowly then
    #[arg(long, value_name = "N|default", value_parser = parse)]
    bytes_per_second: Option<Limit>,
    /// Bytes of one request's body; a longer one is answered 413
    #[arg(long, value_name = "N|default", value_parser = parse)]
    request_body_bytes: Option<Limit>,
    /// TLS and QUIC connections open at once on each edge to the tenant's names; more are refused in the handshake
    #[arg(long, value_name = "N|default", value_parser = parse)]
    connections: Option<Limit>,
    /// Bytes of each edge's response cache; beyond, the tenant's own oldest answers go
    #[arg(long, value_name = "N|default", value_parser = parse)]
    cache_bytes: Option<Limit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Default,
    At(u64),
}

impl TenantLimitArgs {
    /// As a merge patch (RFC 7396) of the limits; `None`: nothing is said.
    pub(crate) fn patch(&self) -> Option<Value> {
        let fields = [
            ("requests_per_second", self.requests_per_second),
            ("exchanges", self.exchanges),
            ("bytes_per_second", self.bytes_per_second),
            ("request_body_bytes", self.request_body_bytes),
            ("connections", self.connections),
            ("cache_bytes", self.cache_bytes),
        ];
        let said = fields.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), limit?)));
        let patch: Map<String, Value> = said
            .map(|(name, limit)| match limit {
                Limit::Default => (name, Value::Null),
                Limit::At(number) => (name, json!(number)),
            })
            .collect();
        (!patch.is_empty()).then_some(Value::Object(patch))
    }

    /// For a tenant that is new.
    pub(crate) fn limits(&self) -> TenantLimits {
        let small = |limit| at(limit).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        TenantLimits {
            requests_per_second: small(self.requests_per_second),
            exchanges: small(self.exchanges),
            bytes_per_second: at(self.bytes_per_second),
            request_body_bytes: at(self.request_body_bytes),
            connections: small(self.connections),
            cache_bytes: at(self.cache_bytes),
        }
    }
}

pub(super) fn at(limit: Option<Limit>) -> Option<u64> {
    match limit {
        Some(Limit::At(number)) => Some(number),
        Some(Limit::Default) | None => None,
    }
}

pub(super) fn parse(text: &str) -> Result<Limit, String> {
    match text {
        "default" => Ok(Limit::Default),
        _ => text.parse().map(Limit::At).map_err(|_| format!("{text:?} is neither a number nor `default`")),
    }
}

/// One line; `None`: the tenant has no limits of its own.
pub(crate) fn text(limits: &TenantLimits) -> Option<String> {
    let parts = [
        limits.requests_per_second.map(|number| format!("{number} requests/s")),
        limits.exchanges.map(|number| format!("{number} exchanges at once")),
        limits.bytes_per_second.map(|number| format!("{number} bytes/s")),
        limits.request_body_bytes.map(|number| format!("{number} bytes a request")),
        limits.connections.map(|number| format!("{number} connections at once")),
        limits.cache_bytes.map(|number| format!("{number} bytes of the cache")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_patched_and_default_takes_back() {
        assert_eq!(TenantLimitArgs::default().patch(), None);
        let args = TenantLimitArgs {
            requests_per_second: parse("50").ok(),
            exchanges: parse("default").ok(),
            ..TenantLimitArgs::default()
        };
        assert_eq!(args.patch(), Some(json!({ "requests_per_second": 50, "exchanges": null })));
        let limits = args.limits();
        assert_eq!((limits.requests_per_second, limits.exchanges), (Some(50), None));
        assert_eq!(text(&limits).as_deref(), Some("50 requests/s"));
        assert_eq!(text(&TenantLimits::default()), None);
        parse("many").unwrap_err();
        parse("-1").unwrap_err();
    }
}
