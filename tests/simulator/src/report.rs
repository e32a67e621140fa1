//! What came of a scenario, and whether it is as promised.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;

use serde::Serialize;

use crate::ca::{CertificateNo, Counts};
use crate::simulation::{Scenario, Start};
use crate::time::{DAY_MS, HOUR_MS};

/// A promise that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Violation {
    /// A live name was shown with a certificate that had ended.
    Expired,
    /// A live name was shown with a certificate that had been revoked.
    Revoked,
    /// The CA answered 429 for a limit that only we spend.
    LimitHit,
    /// The CA has counted more than the ledger.
    LedgerBehind,
    /// A certificate was ordered that the activation gate would not have let in the place of the one before.
    HeldBack,
    /// Orders of one day were more than twice those of another.
    NotFlat,
    /// Names of a cold start did not have their certificates when the plan said.
    LateFirstIssue,
}

/// Fewer orders in a day than this differ by chance, and more than twice as many may be no heap.
const FLAT_FROM: u32 = 200;
/// That chance, in roots of the larger number: of all the days of a run, none is off by so much.
const CHANCE: f64 = 6.0;
/// Examples of each that are kept.
const EXAMPLES: usize = 5;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Hour {
    pub at_ms: i64,
    /// Names that point here.
    pub alive: usize,
    /// Of them, those that no edge serves.
    pub without: usize,
    pub orders: u32,
    pub replacing: u32,
    pub issued: u32,
    pub failed: u32,
}

/// When names of a cold start were to have their certificates, and when they had them, from the plan on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Eta {
    pub percent: u8,
    pub planned_ms: i64,
    pub actual_ms: Option<i64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Revocation {
    pub at_ms: i64,
    pub certificates: usize,
    /// To the hour.
    pub replaced_in_ms: Option<i64>,
}

/// Buckets of the ledger beside the CA's.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LedgerAgainstCa {
    pub compared: u64,
    pub equal: u64,
    /// The ledger has more: what is under way, or a rounded part of a unit.
    pub ahead: u64,
    pub ahead_most: u32,
    pub behind: u64,
}

#[derive(Debug, Serialize)]
pub struct Outcome {
    pub scenario: Scenario,
    pub names: usize,
    pub counts: Counts,
    pub regroupings: u64,
    pub eta: Vec<Eta>,
    pub revocation: Option<Revocation>,
    pub ledger: LedgerAgainstCa,
    /// Fewest and most orders of any 24 hours outside of the start, the outage and the revocation with what follows them.
    pub flat: Option<(u32, u32)>,
    pub names_by_edge: Vec<usize>,
    pub violations: BTreeMap<Violation, (u64, Vec<String>)>,
    pub hours: Vec<Hour>,
    #[serde(skip)]
    pub(crate) announced: HashSet<CertificateNo>,
}

impl LedgerAgainstCa {
    pub(crate) fn note(&mut self, at_ca: u32, ours: u32) {
        self.compared += 1;
        match ours.checked_sub(at_ca) {
            Some(0) => self.equal += 1,
            Some(ahead) => {
                self.ahead += 1;
                self.ahead_most = self.ahead_most.max(ahead);
            }
            None => self.behind += 1,
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.compared += other.compared;
        self.equal += other.equal;
        self.ahead += other.ahead;
        self.ahead_most = self.ahead_most.max(other.ahead_most);
        self.behind += other.behind;
    }
}

impl Outcome {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            scenario: scenario.clone(),
            names: 0,
            counts: Counts::default(),
            regroupings: 0,
            eta: Vec::new(),
            revocation: None,
            ledger: LedgerAgainstCa::default(),
            flat: None,
            names_by_edge: Vec::new(),
            violations: BTreeMap::new(),
            hours: Vec::new(),
            announced: HashSet::new(),
        }
    }

    /// The hour that runs.
    pub(crate) fn hour(&mut self) -> &mut Hour {
        if self.hours.is_empty() {
            self.hours.push(Hour::default());
        }
        self.hours.last_mut().expect("one was put there")
    }

    pub(crate) fn violation(&mut self, violation: Violation, text: String) {
        let (count, examples) = self.violations.entry(violation).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(text);
        }
    }

    /// Days from the start, for people.
    pub(crate) fn day(&self, at_ms: i64) -> String {
        let start = self.hours.first().map_or(at_ms, |hour| hour.at_ms);
        #[expect(clippy::cast_precision_loss, reason = "some hundred days")]
        let days = (at_ms - start) as f64 / DAY_MS as f64;
        format!("day {days:.2}")
    }

    pub(crate) fn judge(&mut self) {
        self.flat = self.flatness();
        if let Some((fewest, most)) = self.flat.filter(|(fewest, most)| !are_alike(*fewest, *most)) {
            self.violation(Violation::NotFlat, format!("from {fewest} to {most} orders in 24 hours"));
        }
        let late =
            |eta: &&Eta| eta.actual_ms.is_none_or(|actual| actual > eta.planned_ms * 11 / 10 + DAY_MS / 4);
        let texts: Vec<String> = self
            .eta
            .iter()
            .filter(late)
            .map(|eta| format!("{} %: {}", eta.percent, eta.in_words()))
            .collect();
        for text in texts {
            self.violation(Violation::LateFirstIssue, text);
        }
    }

    /// Orders of each 24 hours that are like others: the fewest and the most.
    fn flatness(&self) -> Option<(u32, u32)> {
        const DAY: usize = 24;
        if self.scenario.start == Start::Cold {
            return None;
        }
        let start = self.hours.first()?.at_ms;
        let day = |day: i64| start + day * DAY_MS;
        let mut special: Vec<(i64, i64)> = vec![(start, day(1))];
        if let Some((first, length)) = self.scenario.outage {
            special.push((day(first), day(first + length + 2)));
        }
        if let Some((first, _)) = self.scenario.revocation {
            special.push((day(first), day(first + 2)));
        }
        let is_plain = |hours: &&[Hour]| {
            let (from, to) = (hours[0].at_ms, hours[DAY - 1].at_ms + HOUR_MS);
            special.iter().all(|(begin, end)| to <= *begin || from >= *end)
        };
        let sums = || {
            let windows = self.hours.windows(DAY).filter(is_plain);
            windows.map(|hours| hours.iter().map(|hour| hour.orders).sum::<u32>())
        };
        Some((sums().min()?, sums().max()?))
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let counts = &self.counts;
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<28} {value}");
        };
        line("names at the start", self.names.to_string());
        line("days", self.scenario.days.to_string());
        line("orders", format!("{}, of them replacing {}", counts.orders, counts.orders_replacing));
        line("certificates", counts.certificates.to_string());
        line("validations failed", counts.validations_failed.to_string());
        line("authorizations reused", counts.authorizations_reused.to_string());
        line("changes of groups", self.regroupings.to_string());
        let limited = format!(
            "{} of the account, {} of limits that others spend",
            counts.limited_account, counts.limited_global
        );
        line("answers of 429", limited);
        let ledger = &self.ledger;
        line(
            "ledger against CA",
            format!(
                "{} buckets compared, {} equal, {} ahead by {} at most, {} behind",
                ledger.compared, ledger.equal, ledger.ahead, ledger.ahead_most, ledger.behind
            ),
        );
        for eta in &self.eta {
            line(&format!("first certificates, {} %", eta.percent), eta.in_words());
        }
        if let Some(revocation) = &self.revocation {
            let took = revocation
                .replaced_in_ms
                .map_or_else(|| "not all".to_owned(), |ms| format!("within {}", span(ms)));
            line("revocation", format!("{} certificates, replaced {took}", revocation.certificates));
        }
        if let Some((fewest, most)) = self.flat {
            line("orders in 24 hours", format!("{fewest} to {most}"));
        }
        if self.violations.is_empty() {
            line("promises", "all held".to_owned());
        }
        for (violation, (count, examples)) in &self.violations {
            line(&format!("BROKEN {violation:?}"), format!("{count} times, such as {}", examples.join("; ")));
        }
        text
    }
}

fn are_alike(fewest: u32, most: u32) -> bool {
    let chance = if most < FLAT_FROM { CHANCE * f64::from(most).sqrt() } else { 0.0 };
    f64::from(most) < 2.0 * f64::from(fewest) + chance
}

impl Eta {
    fn in_words(&self) -> String {
        let actual = self.actual_ms.map_or_else(|| "never".to_owned(), span);
        format!("planned {}, was {actual}", span(self.planned_ms))
    }
}

fn span(ms: i64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "some hundred days")]
    let hours = ms as f64 / HOUR_MS as f64;
    if hours < 48.0 { format!("{hours:.1} h") } else { format!("{:.1} d", hours / 24.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heap_is_told_from_chance() {
        for (fewest, most) in [(10, 40), (100, 199), (3000, 5999)] {
            assert!(are_alike(fewest, most), "{fewest} to {most}");
        }
        for (fewest, most) in [(10, 80), (100, 300), (3000, 6000)] {
            assert!(!are_alike(fewest, most), "{fewest} to {most}");
        }
    }
}
