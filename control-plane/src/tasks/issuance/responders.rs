//! DNS responders of several control planes on one database: each answers what any of them has put up.
//!
//! A CA asks whichever of the zone's name servers it likes, so an order goes on when every control plane that lives has said
//! that its responder answers the records ([`until_all_answer`]). One that cannot follow for a while, because it was stopped
//! or does not reach the database, is not waited for any more; it answers SERVFAIL from then on, not that there is no record.

use std::collections::HashSet;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use super::Issuance;
use super::challenge::Unplaced;
use crate::clock;
use crate::dns::responder::ChallengeZone;
use crate::limits::RESPONDERS_DEADLINE;
use crate::store::{StoreError, group, responder};

/// A responder that has not been told of for so long is not waited for, and answers nothing.
const LIVES: Duration = Duration::from_secs(10);
/// It is told of this often although nothing has changed.
const TOLD_EVERY: Duration = Duration::from_secs(3);

/// Waits until the responders of all control planes that live answer what was committed under this number.
pub(super) async fn until_all_answer(issuance: &Issuance, number: i64) -> Result<(), Unplaced> {
    let (store, replica) = (&issuance.parts.store, &issuance.parts.replica);
    let mut woken = store.woken();
    let deadline = tokio::time::Instant::now() + RESPONDERS_DEADLINE;
    let within_ms = i64::try_from(LIVES.as_millis()).unwrap_or(i64::MAX);
    loop {
        woken.mark_unchanged();
        let behind = responder::behind(&mut *store.read().await?, replica, number, within_ms).await?;
        let Some(first) = behind.first() else { return Ok(()) };
        // It wakes each second at least; its sender lives as long as the store.
        if timeout_at(deadline, woken.changed()).await.is_err() {
            return Err(Unplaced::NotYet(format!(
                "the control plane at {} ({}) has not said within {} s that its DNS responder answers the challenge; \
                 see in its log whether it reaches the database",
                first.address,
                first.replica,
                RESPONDERS_DEADLINE.as_secs()
            )));
        }
    }
}

/// Keeps our responder at what any control plane puts up, and tells the others how far it is.
pub(super) async fn follow(issuance: &Issuance) -> Infallible {
    let Some(zone) = &issuance.zone else { return std::future::pending().await };
    let mut woken = issuance.parts.store.woken();
    let mut follower = Follower { issuance, zone, last: HashSet::new(), number: 0, told_at: None };
    loop {
        if let Err(error) = follower.turn().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the DNS responder cannot follow the challenge records; it answers SERVFAIL from {} s on",
                LIVES.as_secs()
            );
        }
        // The sender lives as long as the store.
        let _alive = woken.changed().await;
    }
}

/// Nobody is to wait for our responder any more.
pub(super) async fn leave(issuance: &Issuance) {
    if issuance.zone.is_none() {
        return;
    }
    let left = async {
        let mut tx = issuance.parts.store.begin().await?;
        responder::leave(&mut tx, &issuance.parts.replica).await?;
        tx.commit().await
    };
    if let Err(error) = left.await {
        tracing::info!(%error, "orders of other control planes wait for our DNS responder until it counts as gone");
    }
}

struct Follower<'a> {
    issuance: &'a Issuance,
    zone: &'a ChallengeZone,
    /// At the last look.
    last: HashSet<(String, String)>,
    number: i64,
    /// By our own clock, from before it was written: the others wait for us at least until [`LIVES`] later.
    told_at: Option<Instant>,
}

impl Follower<'_> {
    /// First the others begin, or go on, to wait for us; then we look, and only what was seen since is answered.
    async fn turn(&mut self) -> Result<(), StoreError> {
        let is_due = |at: Instant| clock::instant().duration_since(at) > TOLD_EVERY;
        if self.told_at.is_none_or(is_due) {
            self.tell().await?;
        }
        let number = self.look().await?;
        self.answer();
        if number != self.number {
            self.number = number;
            self.tell().await?;
            self.answer();
        }
        Ok(())
    }

    async fn tell(&mut self) -> Result<(), StoreError> {
        let parts = &self.issuance.parts;
        let config = &parts.config;
        let address =
            config.distribution_advertised.clone().unwrap_or_else(|| config.distribution.to_string());
        let at = clock::instant();
        let mut tx = parts.store.begin().await?;
        responder::put(&mut tx, &parts.replica, &address, self.number).await?;
        tx.commit().await?;
        self.told_at = Some(at);
        Ok(())
    }

    /// What is new is added, and what has gone between two looks is taken away: what this control plane itself has just put up
    /// is in no look yet.
    async fn look(&mut self) -> Result<i64, StoreError> {
        let mut read = self.issuance.parts.store.read().await?;
        let number = responder::number(&mut read).await?;
        let records = group::challenge_records(&mut read).await?;
        drop(read);
        let records: HashSet<(String, String)> = records.into_iter().collect();
        for (label, value) in records.difference(&self.last) {
            self.zone.add(label, value);
        }
        for (label, value) in self.last.difference(&records) {
            self.zone.remove(label, value);
        }
        self.last = records;
        Ok(number)
    }

    fn answer(&self) {
        if let Some(at) = self.told_at {
            self.zone.is_known_until(at + LIVES);
        }
    }
}
