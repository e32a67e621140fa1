//! What a run says: counts first, then rates and latency.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Counts and latency of one run or one connection's share of it.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) attempted: u64,
    pub(crate) answered: u64,
    pub(crate) wrong_bodies: u64,
    pub(crate) wrong_certificates: u64,
    pub(crate) resumed: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    /// Microseconds from when the operation was due to its end.
    pub(crate) latency_us: Histogram<u64>,
}

/// Distinct failure texts that are kept apart; the rest are counted together.
const FAILURE_KINDS_MAX: usize = 20;

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            attempted: 0,
            answered: 0,
            wrong_bodies: 0,
            wrong_certificates: 0,
            resumed: 0,
            failures: BTreeMap::new(),
            latency_us: Histogram::new_with_bounds(1, 600_000_000, 3)
                .expect("bounds and precision are valid"),
        }
    }

    pub(crate) fn failed(&mut self, why: String) {
        let kind = if self.failures.len() < FAILURE_KINDS_MAX || self.failures.contains_key(&why) {
            why
        } else {
            "other".to_owned()
        };
        *self.failures.entry(kind).or_default() += 1;
    }

    pub(crate) fn answered_after(&mut self, latency: Duration) {
        self.answered += 1;
        self.latency_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn failed_count(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// The figures of one run, as text and as JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) what: String,
    pub(crate) seconds: f64,
    pub(crate) attempted: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) wrong_bodies: u64,
    pub(crate) wrong_certificates: u64,
    pub(crate) resumed: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) per_second: f64,
    pub(crate) latency_us: Latency,
    /// Server CPU time per answered operation, microseconds, where the server's process is known.
    pub(crate) server_cpu_us: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

impl Report {
    pub(crate) fn new(what: String, tally: &Tally, elapsed: Duration, server_cpu: Option<Duration>) -> Self {
        let answered = tally.answered.max(1) as f64;
        Self {
            what,
            seconds: elapsed.as_secs_f64(),
            attempted: tally.attempted,
            answered: tally.answered,
            failed: tally.failed_count(),
            wrong_bodies: tally.wrong_bodies,
            wrong_certificates: tally.wrong_certificates,
            resumed: tally.resumed,
            failures: tally.failures.clone(),
            per_second: tally.answered as f64 / elapsed.as_secs_f64(),
            latency_us: Latency {
                p50: tally.latency_us.value_at_quantile(0.5),
                p90: tally.latency_us.value_at_quantile(0.9),
                p99: tally.latency_us.value_at_quantile(0.99),
                p999: tally.latency_us.value_at_quantile(0.999),
                max: tally.latency_us.max(),
            },
            server_cpu_us: server_cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / answered),
        }
    }

    /// Whether all that was attempted came back right; a run that attempted nothing did not.
    pub(crate) fn is_clean(&self) -> bool {
        self.attempted > 0
            && self.answered == self.attempted
            && self.failed == 0
            && self.wrong_bodies == 0
            && self.wrong_certificates == 0
    }

    pub(crate) fn print_text(&self) {
        println!("{}: {:.1} s", self.what, self.seconds);
        println!(
            "  attempted {}  answered {}  failed {}  wrong bodies {}  wrong certificates {}  resumed {}",
            self.attempted,
            self.answered,
            self.failed,
            self.wrong_bodies,
            self.wrong_certificates,
            self.resumed
        );
        for (why, count) in &self.failures {
            println!("  failed {count} x: {why}");
        }
        let latency = &self.latency_us;
        println!(
            "  {:.0}/s  latency us: p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
            self.per_second, latency.p50, latency.p90, latency.p99, latency.p999, latency.max
        );
        if let Some(cpu) = self.server_cpu_us {
            println!("  server CPU {cpu:.1} us each");
        }
    }
}
