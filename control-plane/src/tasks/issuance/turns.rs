//! One newOrder at a time for a registered domain: others spend of its limit too, and only a refusal tells; with one request
//! under way, it is one refusal.
//!
//! Of this process alone, and so is the pace of requests (`acme/http.rs`): of control planes on one database one issues at a
//! time. When another takes the work over, a newOrder that the one before had on its way may meet another one for the domain at
//! the CA, once, and the pace begins anew. The ledger, which is the database's, has counted both.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// Who has the turn for which domain. Names nobody waits for are forgotten.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// The turn for some domains, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _held: Vec<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn for all of `domains`, which are sorted: two that want the same take it in the same order.
    pub(super) async fn take(&self, domains: &[String]) -> Turn {
        debug_assert!(domains.is_sorted(), "{domains:?}");
        let mut held = Vec::with_capacity(domains.len());
        for domain in domains {
            let turn = self.of(domain);
            held.push(turn.lock_owned().await);
        }
        Turn { _held: held }
    }

    fn of(&self, domain: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(domain.to_owned()).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_domain_has_one_turn_and_another_has_its_own() {
        let turns = Turns::default();
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let first = turns.take(&names(&["a.test", "b.test"])).await;
        let _other = turns.take(&names(&["c.test"])).await;
        let wanted = names(&["b.test"]);
        let mut second = Box::pin(turns.take(&wanted));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let second = second.await;
        drop(second);
        turns.take(&names(&["d.test"])).await;
        assert_eq!(turns.0.lock().unwrap().len(), 2, "c.test is taken, d.test was; the others are forgotten");
    }
}
