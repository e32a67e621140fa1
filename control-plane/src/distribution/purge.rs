//! Purges on their way to the edges' caches: told at once, in the order of their numbers, acknowledged by each; an edge that
//! was away is told what it has missed when it is back, before anything else.
//!
//! An edge says in its Hello which purge it did last. If what came after that is no longer known here (it was away for too
//! long, or this database was restored), it is told to forget everything, since nothing else is sure to be enough.

use std::time::Duration;

use portico_api::distribution::{
    ControlMessage, Hello, Purge, PurgeTarget, Urgent, control_message, purge_target::Kind, urgent,
};
use portico_api::v1::PurgeRequest;
use portico_cert_store::TenantId;

use super::context::Context;
use super::fleet::Fleet;
use super::urgent::UrgentOutcome;
use crate::store::StoreError;
use crate::store::purge::{self, Known, PurgeRow, Since};

/// How long a purge waits for its acks.
const PURGE_DEADLINE: Duration = Duration::from_secs(5);
/// Purges that an edge is told one by one when it is back.
const MISSED_MAX: u32 = 1_000;
/// Purges of several control planes may reach an edge in another order than that of their numbers, so that it has done a later
/// one when its stream ends: the last ones are told again.
const TOLD_AGAIN: u64 = 64;
/// By how much the clock of an edge may be ahead of ours.
const CLOCKS_DIFFER_MS: i64 = 600_000;

impl Fleet {
    /// A place in the order of purges: taken before the number is given, let go when the message is on its way.
    pub async fn purge_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.purges.lock().await
    }

    /// Tells all edges; lets the turn go before it waits for them.
    pub async fn purge(
        &self,
        turn: tokio::sync::MutexGuard<'_, ()>,
        number: u64,
        tenant: TenantId,
        request: &PurgeRequest,
    ) -> UrgentOutcome {
        let row = PurgeRow { number, tenant, request: request.clone() };
        self.push_in_order(urgent::Action::Purge(wire_purge(&row)), PURGE_DEADLINE, turn).await
    }
}

/// What an edge that has just connected has missed. To be asked when its stream is known to the fleet, so that what comes
/// later goes there.
pub(super) async fn missed(context: &Context, hello: &Hello) -> Result<Vec<ControlMessage>, StoreError> {
    if hello.cache_since_unix_ms == 0 {
        return Ok(Vec::new()); // it keeps nothing
    }
    let mut read = context.store.read().await?;
    let known = purge::known(&mut read).await?;
    let since = match since(hello, known) {
        None => return Ok(vec![everything(known.last)]),
        Some(Since::Number(done)) if context.store.is_shared() => {
            Since::Number(done.saturating_sub(TOLD_AGAIN))
        }
        Some(since) => since,
    };
    let rows = purge::since(&mut read, since, MISSED_MAX + 1).await?;
    if rows.len() > MISSED_MAX as usize {
        return Ok(vec![everything(known.last)]);
    }
    Ok(rows.iter().map(|row| wrap(wire_purge(row))).collect())
}

/// None: it cannot be known what the edge has missed.
fn since(hello: &Hello, known: Known) -> Option<Since> {
    let oldest = known.oldest;
    match hello.purged {
        0 => {
            let began = i64::try_from(hello.cache_since_unix_ms).unwrap_or(i64::MAX) - CLOCKS_DIFFER_MS;
            // Rows are dropped only when there are later ones.
            let complete = oldest.is_none_or(|oldest| oldest.number == 1 || oldest.at_ms < began);
            complete.then_some(Since::Time(began))
        }
        done => {
            let complete = done <= known.last && oldest.is_some_and(|oldest| oldest.number <= done + 1);
            complete.then_some(Since::Number(done))
        }
    }
}

fn everything(number: u64) -> ControlMessage {
    wrap(Purge {
        number,
        tenant_id: String::new(),
        targets: vec![PurgeTarget { kind: Some(Kind::Everything(true)) }],
        soft: false,
    })
}

fn wire_purge(row: &PurgeRow) -> Purge {
    let targets = PurgeTarget::all_of(row.request.clone());
    Purge { number: row.number, tenant_id: row.tenant.to_string(), targets, soft: row.request.soft }
}

/// Nobody waits for its ack: the sequence is that of no message.
fn wrap(purge: Purge) -> ControlMessage {
    let urgent = Urgent { sequence: 0, expires_unix_ms: 0, action: Some(urgent::Action::Purge(purge)) };
    ControlMessage { kind: Some(control_message::Kind::Urgent(urgent)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::purge::Oldest;

    fn hello(purged: u64, cache_since_unix_ms: u64) -> Hello {
        Hello { purged, cache_since_unix_ms, ..Hello::default() }
    }

    #[test]
    fn an_edge_is_told_what_it_missed_or_to_forget_everything() {
        let known =
            |first: u64, at_ms: i64, last: u64| Known { last, oldest: Some(Oldest { number: first, at_ms }) };
        let numbers = |hello: Hello, known| match since(&hello, known) {
            Some(Since::Number(number)) => Some(number),
            Some(Since::Time(_)) => panic!("by time"),
            None => None,
        };
        assert_eq!(numbers(hello(5, 1), known(1, 0, 9)), Some(5));
        assert_eq!(numbers(hello(9, 1), known(1, 0, 9)), Some(9));
        assert_eq!(numbers(hello(5, 1), known(6, 0, 9)), Some(5));
        assert_eq!(numbers(hello(5, 1), known(7, 0, 9)), None, "6 is forgotten");
        assert_eq!(numbers(hello(10, 1), known(1, 0, 9)), None, "this database was restored");
        assert_eq!(numbers(hello(10, 1), Known::default()), None);
        let started = 10_000_000;
        assert!(since(&hello(0, started), Known::default()).is_some());
        assert!(since(&hello(0, started), known(1, 20_000_000, 3)).is_some());
        assert!(since(&hello(0, started), known(2, 1_000_000, 3)).is_some());
        assert!(
            since(&hello(0, started), known(2, 9_900_000, 3)).is_none(),
            "1 may have come after its start"
        );
    }
}
