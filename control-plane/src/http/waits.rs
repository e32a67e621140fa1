//! Calls that wait for long, bounded: each long poll looks at the store ten times a second, each test of a webhook holds a
//! connection for as long as its endpoint likes, each write stands in the one writer's queue before everybody's that come later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use portico_cert_store::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::fault::{Answered, Fault};
use crate::limits::{
    WEBHOOKS_IN_FLIGHT_MAX, WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX, WRITERS_OF_TENANT_MAX,
    WRITERS_OF_TENANT_WAIT_MAX,
};

/// Long polls of one token.
const PER_TOKEN_MAX: usize = 64;
/// Of all tokens together.
const ALL_MAX: usize = 512;
/// RSA keys that are asked for at once; one is made at a time, in a second or more.
const RSA_KEYS_OF_TENANT_MAX: usize = 2;
const RSA_KEYS_MAX: usize = 16;

/// Who waits for how much. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits {
    polls: Places,
    webhook_tests: Places,
    rsa_keys: Places,
    writers: Lines,
}

/// Where each tenant's writes wait for one of its places in the writer's queue. Tenants that do not write are forgotten.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<HashMap<TenantId, Arc<Semaphore>>>>);

/// How many places each has taken.
#[derive(Clone, Debug, Default)]
struct Places(Arc<Mutex<HashMap<String, usize>>>);

/// A call under way; dropped, it is over.
#[derive(Debug)]
pub(crate) struct Wait {
    places: Places,
    of: String,
}

impl Waits {
    /// Takes a place for one long poll.
    ///
    /// # Errors
    /// 429 when this token, or all of them together, have as many as there may be.
    pub(crate) fn begin(&self, token: &str) -> Answered<Wait> {
        self.polls.take(token, PER_TOKEN_MAX, ALL_MAX).map_err(|(own, all)| {
            let detail = format!(
                "{own} calls of this token wait already, {all} of all tokens; ask without `wait`, or for several domains \
                 at once by GET /v1/domains?ids="
            );
            Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_waits", detail).retry_after(1)
        })
    }

    /// Takes a place for a test of a webhook: as many as there are for events, beside those.
    ///
    /// # Errors
    /// 429 when this tenant's endpoints (`None`: the operators'), or all together, are tested as often as they may be.
    pub(crate) fn begin_webhook_test(&self, tenant: Option<TenantId>) -> Answered<Wait> {
        let of = tenant.map_or_else(|| "operators".to_owned(), |tenant| tenant.to_string());
        let taken = self.webhook_tests.take(&of, WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX, WEBHOOKS_IN_FLIGHT_MAX);
        taken.map_err(|(own, all)| {
            let detail = format!(
                "{own} tests of this tenant's webhooks are under way, {all} of all tenants; wait until one is answered"
            );
            Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_tests", detail).retry_after(1)
        })
    }

    /// Takes a place in the queue for an RSA key.
    ///
    /// # Errors
    /// 429 when this tenant, or all together, wait for as many as there may be.
    pub(crate) fn begin_rsa_key(&self, tenant: TenantId) -> Answered<Wait> {
        let taken = self.rsa_keys.take(&tenant.to_string(), RSA_KEYS_OF_TENANT_MAX, RSA_KEYS_MAX);
        taken.map_err(|(own, all)| {
            let detail = format!(
                "{own} RSA keys of this tenant are being made, {all} of all tenants; wait until one is answered, or ask for \
                 ecdsa-p256, which takes no time"
            );
            Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_keys", detail).retry_after(2)
        })
    }

    /// Waits for one of the tenant's places in the writer's queue; it is held until the write is over. Those who wait do so in order,
    /// and nobody else's write behind them.
    ///
    /// # Errors
    /// 429 when none came free in time.
    pub(crate) async fn begin_write(&self, tenant: TenantId) -> Answered<OwnedSemaphorePermit> {
        self.begin_write_within(tenant, WRITERS_OF_TENANT_WAIT_MAX).await
    }

    async fn begin_write_within(
        &self,
        tenant: TenantId,
        patience: Duration,
    ) -> Answered<OwnedSemaphorePermit> {
        let taken = tokio::time::timeout(patience, self.writers.of(tenant).acquire_owned()).await;
        taken.ok().and_then(Result::ok).ok_or_else(|| {
            let detail = format!(
                "{WRITERS_OF_TENANT_MAX} writes of this tenant were under way all the time, and others before this one; send \
                 fewer at once, or use bulk calls"
            );
            Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_writes", detail).retry_after(1)
        })
    }
}

impl Lines {
    fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has a place, or waits for one, holds its line.
        lines.retain(|_, line| Arc::strong_count(line) > 1);
        lines.entry(tenant).or_insert_with(|| Arc::new(Semaphore::new(WRITERS_OF_TENANT_MAX))).clone()
    }
}

impl Places {
    /// A place of at most so many, own and altogether; else how many are taken.
    fn take(&self, of: &str, own_max: usize, all_max: usize) -> Result<Wait, (usize, usize)> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(of).copied().unwrap_or_default();
        if own >= own_max || all >= all_max {
            return Err((own, all));
        }
        *taken.entry(of.to_owned()).or_default() += 1;
        Ok(Wait { places: self.clone(), of: of.to_owned() })
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_cannot_take_every_place_and_places_come_back() {
        let waits = Waits::default();
        let own: Vec<Wait> = (0..PER_TOKEN_MAX).map(|_| waits.begin("one").unwrap()).collect();
        assert_eq!(waits.begin("one").unwrap_err().code, "too_many_waits");
        let others: Vec<Wait> = (PER_TOKEN_MAX..ALL_MAX)
            .map(|number| waits.begin(&format!("token {}", number / PER_TOKEN_MAX)).unwrap())
            .collect();
        assert_eq!(waits.begin("late").unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        drop(own);
        drop(waits.begin("one").unwrap());
        drop(others);
        assert!(waits.polls.0.lock().unwrap().is_empty(), "nothing is kept of those who do not wait");
    }

    #[test]
    fn a_tenant_that_asks_for_many_rsa_keys_leaves_room_for_others() {
        let (waits, greedy) = (Waits::default(), TenantId::generate());
        let own: Vec<Wait> =
            (0..RSA_KEYS_OF_TENANT_MAX).map(|_| waits.begin_rsa_key(greedy).unwrap()).collect();
        assert_eq!(waits.begin_rsa_key(greedy).unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        assert!(waits.begin_rsa_key(TenantId::generate()).is_ok());
        drop(own);
        assert!(waits.begin_rsa_key(greedy).is_ok());
    }

    #[tokio::test]
    async fn writes_of_one_tenant_wait_in_a_line_of_its_own() {
        let (waits, greedy) = (Waits::default(), TenantId::generate());
        let mut own = Vec::new();
        for _ in 0..WRITERS_OF_TENANT_MAX {
            own.push(waits.begin_write(greedy).await.unwrap());
        }
        let mut next = Box::pin(waits.begin_write(greedy));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(waits.begin_write(TenantId::generate()).await.unwrap());
        let late = waits.begin_write_within(greedy, WRITERS_OF_TENANT_WAIT_MAX / 1000).await.unwrap_err();
        assert_eq!((late.status, late.code), (StatusCode::TOO_MANY_REQUESTS, "too_many_writes"));
        drop(own.pop());
        let next = next.await.unwrap();
        drop((own, next));
        drop(waits.begin_write(TenantId::generate()).await.unwrap());
        assert_eq!(waits.writers.0.lock().unwrap().len(), 1, "who does not write is forgotten");
    }
}
