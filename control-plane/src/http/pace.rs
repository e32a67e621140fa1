//! How fast one tenant may write. Every write waits for the one writer's turn, and its audit entry stays for years: without
//! a pace a single token fills the disk at the speed of the loopback. Entries of large documents cost more ([`Pace::kept`]), and so do
//! bulk calls, before the turn and whatever becomes of them: items that are refused leave no entry, but they have been looked at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use portico_cert_store::TenantId;

use super::fault::{Answered, Fault};

/// Writes that a tenant that was quiet may make at once; each of them may be a bulk call.
const BURST: f64 = 600.0;
const PER_SECOND: f64 = 2.0;
/// Bytes of an audit entry that a write pays for; each further such piece costs another write. So a tenant that never rests
/// adds 1.4 GB a day at most, and 83 GB without this.
const BYTES_PER_WRITE: usize = 8 << 10;
/// Items of a bulk call that one write pays for. Each takes the writer some 0.1 ms, so a tenant that sends refused items without
/// rest has it for 4 ms of a second, and for 1 s at once after a pause.
const ITEMS_PER_WRITE: usize = 16;
/// Tenants that are remembered before those are forgotten that have been quiet long enough.
const TENANTS_BEFORE_TIDYING: usize = 4096;

/// The tenants that wrote lately. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace(Arc<Mutex<HashMap<TenantId, Bucket>>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn at(self, now: Instant) -> Self {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        Self { left: (self.left + earned).min(BURST), at: now }
    }
}

impl Pace {
    /// Counts a write of `tenant`; a bulk call has `items`. One that is refused here costs nothing, so that small writes go on.
    ///
    /// # Errors
    /// 429 when it has made too many.
    pub(crate) fn take(&self, tenant: TenantId, items: usize, now: Instant) -> Answered<()> {
        let further = u32::try_from(items / ITEMS_PER_WRITE).unwrap_or(u32::MAX);
        let cost = (1.0 + f64::from(further)).min(BURST);
        let mut tenants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= TENANTS_BEFORE_TIDYING {
            tenants.retain(|_, bucket| bucket.at(now).left < BURST);
        }
        let bucket = tenants.entry(tenant).or_insert(Bucket { left: BURST, at: now });
        *bucket = bucket.at(now);
        if bucket.left < cost {
            let detail = format!(
                "the tenant has written {BURST} times in a short while, or large documents, and may write {PER_SECOND} \
                 times a second now; use bulk calls, of which {ITEMS_PER_WRITE} items count as one write"
            );
            let wait = Duration::from_secs_f64((cost - bucket.left) / PER_SECOND);
            let fault = Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_writes", detail);
            return Err(fault.retry_after(wait.as_secs() + 1));
        }
        bucket.left -= cost;
        Ok(())
    }

    /// Counts what a write of `tenant` leaves in the audit trail for good; later writes wait for it.
    pub(crate) fn kept(&self, tenant: TenantId, bytes: usize) {
        let further = u32::try_from(bytes / BYTES_PER_WRITE).unwrap_or(u32::MAX);
        let mut tenants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = tenants.get_mut(&tenant) {
            bucket.left -= f64::from(further);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_tenant_that_floods_is_slowed_and_no_other_is() {
        let (pace, now) = (Pace::default(), clock::instant());
        let (one, two) = (TenantId::generate(), TenantId::generate());
        let made = (0..10_000).filter(|_| pace.take(one, 0, now).is_ok()).count();
        assert_eq!(made, 600);
        assert!(pace.take(two, 0, now).is_ok());
        let later = now + Duration::from_secs(10);
        assert_eq!((0..1000).filter(|_| pace.take(one, 0, later).is_ok()).count(), 20);
        for _ in 0..2 * TENANTS_BEFORE_TIDYING {
            assert!(pace.take(TenantId::generate(), 0, later + Duration::from_secs(3600)).is_ok());
        }
    }

    #[test]
    fn large_documents_fill_the_disk_no_faster_than_small_ones() {
        let (pace, now, tenant) = (Pace::default(), clock::instant(), TenantId::generate());
        let (mut kept, day) = (0, 24 * 3600);
        for second in 0..day {
            while pace.take(tenant, 0, now + Duration::from_secs(second)).is_ok() {
                let entry = 480 << 10;
                pace.kept(tenant, entry);
                kept += entry;
            }
        }
        assert!(kept < 2 << 30, "{kept} bytes in a day");
        assert!(kept > 1 << 30, "it may go on: {kept}");
        // What it left behind is paid off in time.
        assert!(pace.take(tenant, 0, now + Duration::from_secs(day + 60)).is_ok());
    }

    #[test]
    fn bulk_calls_pay_for_their_items_and_stop_no_small_write() {
        let (pace, now, tenant) = (Pace::default(), clock::instant(), TenantId::generate());
        let (mut looked_at, hours) = (0_u64, 3_u64);
        for second in 0..hours * 3600 {
            while pace.take(tenant, 5_000, now + Duration::from_secs(second)).is_ok() {
                looked_at += 5_000;
            }
        }
        let a_second = looked_at / (hours * 3600);
        assert!((25..=40).contains(&a_second), "{a_second} items a second");
        let refused = pace.take(tenant, 5_000, now + Duration::from_secs(hours * 3600)).unwrap_err();
        assert!(refused.retry_after.unwrap() <= 160, "{refused:?}");
        assert!(pace.take(tenant, 0, now + Duration::from_secs(hours * 3600 + 1)).is_ok());
        // None is so large that it could never be sent.
        assert!(pace.take(TenantId::generate(), usize::MAX, now).is_ok());
    }
}
