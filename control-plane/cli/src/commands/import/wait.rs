//! Waits until every imported domain is served or has failed.
//!
//! Only the imported ones are asked for, by id, and only while they are on the way; how many others there are does not
//! matter. A round looks at a bounded number of them, the others have the next turn.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use portico_api::v1::client::Client;
use portico_api::v1::{DomainStatus, IDS_MAX};
use portico_cert_store::DomainId;
use serde::Serialize;

use crate::clock;
use crate::failure::Outcome;
use crate::output;
use crate::progress;

/// Between two rounds.
const POLL: Duration = Duration::from_secs(1);
/// Calls of one round: 5,000 domains.
const CALLS_PER_ROUND: usize = 25;

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
    let mut on_the_way: VecDeque<DomainId> = ids.iter().copied().collect();
    let mut stand: HashMap<DomainId, DomainStatus> = HashMap::new();
    let mut active: HashMap<DomainId, f64> = HashMap::new();
    loop {
        for _ in 0..CALLS_PER_ROUND.min(on_the_way.len().div_ceil(IDS_MAX)) {
            let asked: Vec<DomainId> = on_the_way.drain(..on_the_way.len().min(IDS_MAX)).collect();
            let domains = client.domains_of(&asked).await?;
            let seconds = start.elapsed().as_secs_f64();
            for domain in domains {
                stand.insert(domain.id, domain.status);
                if domain.status == DomainStatus::Active {
                    active.insert(domain.id, seconds);
                } else if domain.status != DomainStatus::Failed {
                    on_the_way.push_back(domain.id);
                }
            }
        }
        let others = others(&stand, ids.len());
        bar.set_position(active.len() as u64);
        bar.set_message(others_text(&others));
        if on_the_way.is_empty() || clock::now() >= end {
            bar.finish_and_clear();
            let active_seconds = percentiles(active.values().copied().collect());
            return Ok(WaitReport {
                domains: ids.len(),
                active: active.len(),
                others,
                active_seconds,
                seconds: start.elapsed().as_secs_f64(),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The states other than active with their counts; a domain that was asked for and is not there was removed meanwhile.
fn others(stand: &HashMap<DomainId, DomainStatus>, domains: usize) -> HashMap<String, usize> {
    let mut others: HashMap<String, usize> = HashMap::new();
    for status in stand.values().filter(|status| **status != DomainStatus::Active) {
        *others.entry(output::word(status)).or_default() += 1;
    }
    let unseen = domains.saturating_sub(stand.len());
    if unseen > 0 {
        others.insert("not seen".to_owned(), unseen);
    }
    others
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
