//! Waits until every imported domain is served or has failed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use portico_api::v1::DomainStatus;
use portico_api::v1::client::{Client, DomainQuery};
use portico_cert_store::DomainId;
use serde::Serialize;

use crate::clock;
use crate::commands::domain::page_through;
use crate::failure::Outcome;
use crate::output;
use crate::progress;

/// Between two looks at the list.
const POLL: Duration = Duration::from_secs(1);

/// How the domains stand when the wait ends.
#[derive(Debug, Serialize)]
pub(crate) struct WaitReport {
    pub(crate) domains: usize,
    pub(crate) active: usize,
    /// The other states with their counts.
    pub(crate) others: HashMap<String, usize>,
    /// Seconds from the start of the import to the look that first saw a domain active: median, 99th percentile, last.
    pub(crate) active_seconds: Option<[f64; 3]>,
    pub(crate) seconds: f64,
}

pub(super) async fn until_settled(
    client: &Client,
    ids: &HashSet<DomainId>,
    start: Instant,
    timeout: Duration,
) -> Outcome<WaitReport> {
    let bar = progress::bar("active", ids.len() as u64);
    let end = clock::now() + timeout;
    let mut active: HashMap<DomainId, f64> = HashMap::new();
    loop {
        let (domains, _) = page_through(client, DomainQuery::default(), 0).await?;
        let seconds = start.elapsed().as_secs_f64();
        let mut others: HashMap<String, usize> = HashMap::new();
        let mut failed = 0;
        for domain in domains.iter().filter(|domain| ids.contains(&domain.id)) {
            if domain.status == DomainStatus::Active {
                active.entry(domain.id).or_insert(seconds);
            } else {
                active.remove(&domain.id);
                failed += usize::from(domain.status == DomainStatus::Failed);
                *others.entry(output::word(&domain.status)).or_default() += 1;
            }
        }
        bar.set_position(active.len() as u64);
        bar.set_message(others_text(&others));
        if active.len() + failed >= ids.len() || clock::now() >= end {
            bar.finish_and_clear();
            let active_seconds = percentiles(active.values().copied().collect());
            return Ok(WaitReport {
                domains: ids.len(),
                active: active.len(),
                others,
                active_seconds,
                seconds,
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

fn percentiles(mut seconds: Vec<f64>) -> Option<[f64; 3]> {
    seconds.sort_by(f64::total_cmp);
    let last = *seconds.last()?;
    let at = |percent: usize| seconds[(seconds.len() * percent / 100).min(seconds.len() - 1)];
    Some([at(50), at(99), last])
}

fn others_text(others: &HashMap<String, usize>) -> String {
    let mut parts: Vec<String> = others.iter().map(|(word, count)| format!("{count} {word}")).collect();
    parts.sort();
    parts.join(", ")
}

impl fmt::Display for WaitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} active after {:.1} s", self.active, self.domains, self.seconds)?;
        if let Some([median, high, last]) = self.active_seconds {
            write!(f, " (median {median:.1} s, 99 % {high:.1} s, last {last:.1} s)")?;
        }
        if !self.others.is_empty() {
            write!(f, "; {}", others_text(&self.others))?;
        }
        Ok(())
    }
}
