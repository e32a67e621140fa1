//! How fast one tenant may write. Every write waits for the one writer's turn, and its audit entry stays for years: without
//! a pace a single token fills the disk at the speed of the loopback. Entries of large documents cost more ([`Pace::kept`]).

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
    /// Counts a write of `tenant`.
    ///
    /// # Errors
    /// 429 when it has made too many.
    pub(crate) fn take(&self, tenant: TenantId, now: Instant) -> Answered<()> {
        let mut tenants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= TENANTS_BEFORE_TIDYING {
            tenants.retain(|_, bucket| bucket.at(now).left < BURST);
        }
        let bucket = tenants.entry(tenant).or_insert(Bucket { left: BURST, at: now });
        *bucket = bucket.at(now);
        if bucket.left < 1.0 {
            let detail = format!(
                "the tenant has written {BURST} times in a short while, or large documents, and may write {PER_SECOND} \
                 times a second now; use bulk calls"
            );
            let wait = Duration::from_secs_f64((1.0 - bucket.left) / PER_SECOND);
            let fault = Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_writes", detail);
            return Err(fault.retry_after(wait.as_secs() + 1));
        }
        bucket.left -= 1.0;
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
        let made = (0..10_000).filter(|_| pace.take(one, now).is_ok()).count();
        assert_eq!(made, 600);
        assert!(pace.take(two, now).is_ok());
        let later = now + Duration::from_secs(10);
        assert_eq!((0..1000).filter(|_| pace.take(one, later).is_ok()).count(), 20);
        for _ in 0..2 * TENANTS_BEFORE_TIDYING {
            assert!(pace.take(TenantId::generate(), later + Duration::from_secs(3600)).is_ok());
        }
    }

    #[test]
    fn large_documents_fill_the_disk_no_faster_than_small_ones() {
        let (pace, now, tenant) = (Pace::default(), clock::instant(), TenantId::generate());
        let (mut kept, day) = (0, 24 * 3600);
        for second in 0..day {
            while pace.take(tenant, now + Duration::from_secs(second)).is_ok() {
                let entry = 480 << 10;
                pace.kept(tenant, entry);
                kept += entry;
            }
        }
        assert!(kept < 2 << 30, "{kept} bytes in a day");
        assert!(kept > 1 << 30, "it may go on: {kept}");
        // What it left behind is paid off in time.
        assert!(pace.take(tenant, now + Duration::from_secs(day + 60)).is_ok());
    }
}
