//! How long origins may take, how they are asked whether they are well, and what they are spared: the bounds of a proxy action.

use std::ops::RangeInclusive;

use super::{CacheRule, CompressionRule, PolicyFault};
use crate::v1::{CircuitBreaker, HealthCheck, Proxy, ProxyTimeouts};

/// A health check's path, bytes.
pub const HEALTH_PATH_BYTES_MAX: usize = 1024;
/// Seconds from one health check to the next.
pub const HEALTH_INTERVAL_SECONDS: RangeInclusive<u32> = 1..=3600;
/// Answers in a row that make an origin well or unwell.
pub const HEALTH_THRESHOLD: RangeInclusive<u32> = 1..=10;
/// To a connection.
pub const CONNECT_MS: RangeInclusive<u32> = 10..=60_000;
/// To an answer's first byte, and between two pieces of it.
pub const ANSWER_MS: RangeInclusive<u32> = 10..=600_000;
/// Requests under way to one origin.
pub const BREAKER_IN_FLIGHT: RangeInclusive<u32> = 1..=100_000;
/// Requests that wait for one of those to end.
pub const BREAKER_PENDING: RangeInclusive<u32> = 0..=10_000;

/// Statuses of a redirect.
pub const REDIRECT_STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// What is wrong with all of a proxy action that is read the same wherever it stands; pointers are into the action. Origins and
/// what they are trusted by are read where they are used.
pub fn proxy_faults(proxy: &Proxy) -> Vec<PolicyFault> {
    let mut faults = Vec::new();
    if let Some(check) = &proxy.health_check {
        health_check(check, &mut faults);
    }
    if let Some(given) = &proxy.timeouts {
        timeouts(given, &mut faults);
    }
    if let Some(given) = &proxy.breaker {
        breaker(given, &mut faults);
    }
    let mut policy = |name: &str, found: Vec<PolicyFault>| {
        let below = |fault: &PolicyFault| format!("/{name}{}", fault.below);
        faults.extend(found.into_iter().map(|fault| PolicyFault { below: below(&fault), ..fault }));
    };
    if let Some(Err(found)) = proxy.cache.as_ref().map(CacheRule::parse) {
        policy("cache", found);
    }
    if let Some(Err(found)) = proxy.compression.as_ref().map(CompressionRule::parse) {
        policy("compression", found);
    }
    faults
}

/// What a redirect's status has to be, where it is something else.
pub fn redirect_status_fault(status: u16) -> Option<&'static str> {
    (!REDIRECT_STATUSES.contains(&status)).then_some("must be 301, 302, 303, 307 or 308")
}

/// What a fixed answer's status has to be, where it is something else.
pub fn static_status_fault(status: u16) -> Option<&'static str> {
    let fits = (200..=599).contains(&status) && !matches!(status, 205 | 304);
    (!fits).then_some("must be from 200 to 599, but 205 and 304")
}

fn health_check(check: &HealthCheck, faults: &mut Vec<PolicyFault>) {
    if !is_health_path(&check.path) {
        let message =
            "must begin with `/` and be at most 1,024 visible ASCII characters; percent-encode others"
                .to_owned();
        faults.push(PolicyFault::at("/health_check/path".into(), "invalid_path", message));
    }
    let numbers = [
        ("interval_seconds", check.interval_seconds, HEALTH_INTERVAL_SECONDS),
        ("healthy_after", check.healthy_after, HEALTH_THRESHOLD),
        ("unhealthy_after", check.unhealthy_after, HEALTH_THRESHOLD),
    ];
    within("health_check", numbers, faults);
}

/// A path, with a query perhaps.
fn is_health_path(text: &str) -> bool {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\'));
    path.starts_with('/') && plain(path) && plain(query) && text.len() <= HEALTH_PATH_BYTES_MAX
}

fn timeouts(given: &ProxyTimeouts, faults: &mut Vec<PolicyFault>) {
    let said = [
        ("connect_ms", given.connect_ms, CONNECT_MS),
        ("first_byte_ms", given.first_byte_ms, ANSWER_MS),
        ("idle_ms", given.idle_ms, ANSWER_MS),
    ];
    let said = said.into_iter().filter_map(|(name, value, range)| Some((name, value?, range)));
    within("timeouts", said, faults);
}

fn breaker(given: &CircuitBreaker, faults: &mut Vec<PolicyFault>) {
    let numbers = [
        ("in_flight_max", given.in_flight_max, BREAKER_IN_FLIGHT),
        ("pending_max", given.pending_max, BREAKER_PENDING),
    ];
    within("breaker", numbers, faults);
}

fn within(
    of: &str,
    numbers: impl IntoIterator<Item = (&'static str, u32, RangeInclusive<u32>)>,
    faults: &mut Vec<PolicyFault>,
) {
    for (name, value, range) in numbers {
        if !range.contains(&value) {
            let message = format!("must be from {} to {}", range.start(), range.end());
            faults.push(PolicyFault::at(format!("/{of}/{name}"), "out_of_range", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_taken_and_what_lies_beyond_is_pointed_at() {
        let of = |interval, threshold, connect, answer, in_flight, pending, path: &str| Proxy {
            health_check: Some(HealthCheck {
                path: path.to_owned(),
                interval_seconds: interval,
                healthy_after: threshold,
                unhealthy_after: threshold,
            }),
            timeouts: Some(ProxyTimeouts {
                connect_ms: Some(connect),
                first_byte_ms: Some(answer),
                idle_ms: Some(answer),
            }),
            breaker: Some(CircuitBreaker { in_flight_max: in_flight, pending_max: pending }),
            ..Proxy::default()
        };
        let longest = format!("/{}", "x".repeat(HEALTH_PATH_BYTES_MAX - 1));
        for good in [of(1, 1, 10, 10, 1, 0, "/"), of(3600, 10, 60_000, 600_000, 100_000, 10_000, &longest)] {
            assert_eq!(proxy_faults(&good), []);
        }
        let all = [
            "/health_check/path",
            "/health_check/interval_seconds",
            "/health_check/healthy_after",
            "/health_check/unhealthy_after",
            "/timeouts/connect_ms",
            "/timeouts/first_byte_ms",
            "/timeouts/idle_ms",
            "/breaker/in_flight_max",
            "/breaker/pending_max",
        ];
        let below = of(0, 0, 9, 9, 0, 0, "x");
        let above = of(3601, 11, 60_001, 600_001, 100_001, 10_001, &format!("{longest}x"));
        for (bad, wanted) in [(below, &all[..8]), (above, &all[..])] {
            let faults = proxy_faults(&bad);
            let found: Vec<&str> = faults.iter().map(|fault| fault.below.as_str()).collect();
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn a_health_check_asks_for_a_path_with_a_query_perhaps() {
        for (text, good) in [
            ("/", true),
            ("/a?b=c", true),
            ("", false),
            ("a", false),
            ("?a", false),
            ("/a b", false),
            ("/a#b", false),
            ("/a?b?c", true),
            ("/\u{e4}", false),
        ] {
            assert_eq!(is_health_path(text), good, "{text}");
        }
    }

    #[test]
    fn statuses_are_those_of_their_action() {
        assert!((300..400).filter(|status| redirect_status_fault(*status).is_none()).eq(REDIRECT_STATUSES));
        for (status, good) in
            [(199, false), (200, true), (205, false), (304, false), (599, true), (600, false)]
        {
            assert_eq!(static_status_fault(status).is_none(), good, "{status}");
        }
    }
}
