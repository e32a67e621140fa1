//! How many cells one name may have certificates in: each is a key of its own, and a certificate of exactly the same names.
//!
//! CAs count those (Let's Encrypt: 5 in 7 days, with no exception to be had), so one key for each edge is impossible beyond a
//! handful of them, and a few cells are what the limits bear. The answer comes from the ledger's own rules ([`needs`]), not
//! from a table beside them.

use std::collections::HashMap;

use super::ledger::{At, BucketKey, Charged, Exemption, LimitName, Limits, Order, Rate, needs};
use crate::clock::{DAY_MS, HOUR_MS};
use crate::config::IssuerConfig;
use crate::limits::CELLS_OF_NAME_MAX;

/// In place of a name that is not known: a limit is the same for all whose registered domain has none of its own.
pub const ANY_NAME: &str = "name.example";

/// What a CA's limits bear at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Borne {
    /// Cells, at most [`CELLS_OF_NAME_MAX`].
    pub cells: usize,
    /// The limit that lets no more through; `None`: our own bound.
    pub held_by: Option<(LimitName, Rate)>,
}

impl Borne {
    /// Why there are no more.
    pub fn why(&self) -> String {
        match &self.held_by {
            Some((limit, rate)) => {
                format!("the CA's limit on {} is {} in {}", limit.text(), rate.count, period(rate.period_ms))
            }
            None => format!("a name is served by at most {CELLS_OF_NAME_MAX} cells"),
        }
    }
}

/// What the limits bear for certificates of these names, one for each cell, as if nothing had been spent before.
pub fn borne(limits: &Limits, names: &[String]) -> Borne {
    let at = At { ca: "", account: "" };
    let mut taken: HashMap<BucketKey, u32> = HashMap::new();
    for cells in 0..CELLS_OF_NAME_MAX {
        let exemption = Exemption::of(names, cells > 0, None);
        let order =
            Order { names, name_set: "one", exemption, keeps_alive: true, can_wait: false, tenant: None };
        for need in needs(&order, at, limits) {
            if need.charged != Charged::AtCertificate || !need.rate.is_limited() {
                continue;
            }
            let (limit, rate) = (need.key.limit, need.rate);
            let taken = taken.entry(need.key).or_default();
            *taken += 1;
            if *taken > rate.count {
                return Borne { cells, held_by: Some((limit, rate)) };
            }
        }
    }
    Borne { cells: CELLS_OF_NAME_MAX, held_by: None }
}

/// Of these issuers the one that bears least: a name may go to each of them.
pub fn least<'a>(
    issuers: impl IntoIterator<Item = &'a IssuerConfig>,
    names: &[String],
) -> Option<(&'a IssuerConfig, Borne)> {
    let all = issuers.into_iter().map(|issuer| (issuer, borne(&issuer.limits(), names)));
    all.min_by_key(|(_, borne)| borne.cells)
}

fn period(ms: i64) -> String {
    match ms {
        _ if ms % DAY_MS == 0 => format!("{} days", ms / DAY_MS),
        _ if ms % HOUR_MS == 0 => format!("{} hours", ms / HOUR_MS),
        _ => format!("{} s", ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["shop.test".to_owned(), "www.shop.test".to_owned()]
    }

    #[test]
    fn five_of_a_set_in_a_week_bear_five_cells_and_the_limit_is_named() {
        let found = borne(&Limits::default(), &names());
        assert_eq!((found.cells, found.held_by.as_ref().map(|by| by.0)), (5, Some(LimitName::ExactSet)));
        assert!(found.why().contains("5 in 7 days"), "{}", found.why());
        let tight = Limits { exact_set: Rate::per(2, DAY_MS), ..Limits::default() };
        assert_eq!(borne(&tight, &names()).cells, 2);
    }

    /// The second certificate of a set is none of a registered domain's, as Let's Encrypt counts.
    #[test]
    fn further_cells_cost_a_registered_domain_nothing() {
        let tight = Limits { registered_domain: Rate::per(1, 7 * DAY_MS), ..Limits::default() };
        assert_eq!(borne(&tight, &names()).held_by.map(|by| by.0), Some(LimitName::ExactSet));
    }

    #[test]
    fn without_limits_our_own_bound_holds() {
        let none = Limits { exact_set: Rate::NONE, ..Limits::default() };
        assert_eq!(borne(&none, &names()), Borne { cells: CELLS_OF_NAME_MAX, held_by: None });
    }
}
