//! What a route's cache keeps, and which queries are one to it.

use std::borrow::Cow;

use super::PolicyFault;
use crate::v1;

const TTL_SECONDS_MAX: u32 = 31_536_000;
const ERROR_TTL_SECONDS_MAX: u32 = 3600;
const OBJECT_BYTES_MIN: u64 = 1024;
const OBJECT_BYTES_DEFAULT: u64 = 8 * 1024 * 1024;
const OBJECT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Names of parameters that do not count.
const IGNORED_MAX: usize = 64;
const IGNORED_BYTES_MAX: usize = 64;

/// A cache policy that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRule {
    pub default_ttl_seconds: u32,
    pub error_ttl_seconds: u32,
    pub stale_while_revalidate_seconds: u32,
    pub stale_if_error_seconds: u32,
    pub max_object_bytes: u64,
    pub query: QueryRule,
}

/// Which queries are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryRule {
    sort: bool,
    ignored: Box<[Box<str>]>,
}

impl CacheRule {
    /// Reads a policy.
    ///
    /// # Errors
    /// Everything that is wrong with it; at least one fault.
    pub fn parse(from: &v1::CachePolicy) -> Result<Self, Vec<PolicyFault>> {
        let mut faults = Vec::new();
        let seconds = [
            ("default_ttl_seconds", from.default_ttl_seconds, TTL_SECONDS_MAX),
            ("error_ttl_seconds", from.error_ttl_seconds, ERROR_TTL_SECONDS_MAX),
            ("stale_while_revalidate_seconds", from.stale_while_revalidate_seconds, TTL_SECONDS_MAX),
            ("stale_if_error_seconds", from.stale_if_error_seconds, TTL_SECONDS_MAX),
        ];
        for (name, value, max) in seconds {
            if value > max {
                faults.push(PolicyFault::at(format!("/{name}"), "out_of_range", format!("at most {max}")));
            }
        }
        let max_object_bytes = from.max_object_bytes.unwrap_or(OBJECT_BYTES_DEFAULT);
        if !(OBJECT_BYTES_MIN..=OBJECT_BYTES_MAX).contains(&max_object_bytes) {
            let message = format!("must be from {OBJECT_BYTES_MIN} to {OBJECT_BYTES_MAX}");
            faults.push(PolicyFault::at("/max_object_bytes".into(), "out_of_range", message));
        }
        let query = QueryRule::parse(&from.query, &mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self {
            default_ttl_seconds: from.default_ttl_seconds,
            error_ttl_seconds: from.error_ttl_seconds,
            stale_while_revalidate_seconds: from.stale_while_revalidate_seconds,
            stale_if_error_seconds: from.stale_if_error_seconds,
            max_object_bytes,
            query,
        })
    }
}

impl QueryRule {
    fn parse(from: &v1::QueryKey, faults: &mut Vec<PolicyFault>) -> Self {
        if from.ignore.len() > IGNORED_MAX {
            let message = format!("at most {IGNORED_MAX} names");
            faults.push(PolicyFault::at("/query/ignore".into(), "too_many", message));
        }
        for (index, name) in from.ignore.iter().enumerate().take(IGNORED_MAX) {
            let stem = name.strip_suffix('*').unwrap_or(name);
            let plain = stem.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=#+%*?".contains(&byte));
            if name.is_empty() || !plain || name.len() > IGNORED_BYTES_MAX {
                let message = format!(
                    "must be a parameter's name of at most {IGNORED_BYTES_MAX} visible characters without & = # + % ?, \
                     or its beginning and `*`"
                );
                faults.push(PolicyFault::at(format!("/query/ignore/{index}"), "invalid_name", message));
            }
        }
        Self { sort: from.sort, ignored: from.ignore.iter().map(|name| name.as_str().into()).collect() }
    }

    /// The query that stands for all that are one with `query`. None: there is none, which is another than an empty one.
    pub fn normalised<'q>(&self, query: Option<&'q str>) -> Option<Cow<'q, str>> {
        let query = query?;
        if !self.sort && self.ignored.is_empty() {
            return Some(Cow::Borrowed(query));
        }
        let mut kept: Vec<&str> =
            query.split('&').filter(|parameter| !self.ignores(name_of(parameter))).collect();
        if self.sort {
            kept.retain(|parameter| !parameter.is_empty());
            kept.sort_by_key(name_of);
        }
        (!kept.is_empty()).then(|| Cow::Owned(kept.join("&")))
    }

    fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|ignored| match ignored.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == &**ignored,
        })
    }
}

/// As it is written: one that is spelt otherwise (`%75tm`) counts, which costs an entry and never mixes two.
fn name_of<'q>(parameter: &&'q str) -> &'q str {
    parameter.split_once('=').map_or(*parameter, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(sort: bool, ignore: &[&str]) -> QueryRule {
        let ignore = ignore.iter().map(|&name| name.to_owned()).collect();
        let policy = v1::CachePolicy { query: v1::QueryKey { sort, ignore }, ..v1::CachePolicy::default() };
        CacheRule::parse(&policy).unwrap().query
    }

    /// Sorted, left out, a query, what it becomes.
    type Normalised<'a> = (bool, &'a [&'a str], Option<&'a str>, Option<&'a str>);

    #[test]
    fn queries_that_are_one_become_one() {
        let table: &[Normalised<'_>] = &[
            (false, &[], None, None),
            (false, &[], Some(""), Some("")),
            (false, &[], Some("b=1&a=2"), Some("b=1&a=2")),
            (true, &[], Some("b=1&a=2&&b=0"), Some("a=2&b=1&b=0")),
            (true, &[], Some("a-b=1&a=2"), Some("a=2&a-b=1")),
            (false, &["utm_*", "gclid"], Some("utm_source=x&a=1&gclid=2&utm=3"), Some("a=1&utm=3")),
            (false, &["utm_*"], Some("utm_source=x"), None),
            (false, &["*"], Some("a=1"), None),
            (true, &["a"], Some("a"), None),
            (true, &["a"], Some("%61=1"), Some("%61=1")),
        ];
        for (sort, ignore, query, wanted) in table {
            let found = rule(*sort, ignore).normalised(*query);
            assert_eq!(found.as_deref(), *wanted, "{sort} {ignore:?} {query:?}");
        }
    }

    #[test]
    fn each_wrong_field_is_pointed_at() {
        let policy = v1::CachePolicy {
            default_ttl_seconds: TTL_SECONDS_MAX + 1,
            error_ttl_seconds: ERROR_TTL_SECONDS_MAX + 1,
            max_object_bytes: Some(1),
            query: v1::QueryKey { sort: false, ignore: vec!["ok".into(), "a=b".into(), String::new()] },
            ..v1::CachePolicy::default()
        };
        let faults = CacheRule::parse(&policy).unwrap_err();
        let pointers: Vec<&str> = faults.iter().map(|fault| fault.below.as_str()).collect();
        let wanted = [
            "/default_ttl_seconds",
            "/error_ttl_seconds",
            "/max_object_bytes",
            "/query/ignore/1",
            "/query/ignore/2",
        ];
        assert_eq!(pointers, wanted);
    }
}
