//! Nothing expires unnoticed: once a minute all certificates are looked at, those of the fleet's own edges included.
//!
//! A certificate is late when a quarter of the time between its renewal and its end has passed. Its tenant has one event
//! for all that became late together and a condition on each domain; the operator has one event when the first is late,
//! and one when a CA wants many replaced at once. Figures are metrics (`portico_certificates`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{EdgeId, TenantId};

use super::Issuance;
use super::issuer::Issuer;
use crate::clock::{MINUTE_MS, is_within, rfc3339};
use crate::plan::ledger::{BucketKey, Level, LimitName};
use crate::store::condition::{self, Observation};
use crate::store::renewals::{self, Late, Standing, Told};
use crate::store::{Connection, StoreError, WriteTx, event, figures, ledger};

const INTERVAL_MS: i64 = MINUTE_MS;
/// Certificates that one turn tells of.
const TOLD_AT_ONCE: u32 = 256;
/// Certificates whose CA's window is over, from which on it is an event for the operator.
const MANY: u64 = 50;
/// Names that one event lists.
const NAMES_LISTED: usize = 5;

/// When the last look was.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked_at_ms: i64,
}

impl Watch {
    /// Looks, if it is time to.
    pub(super) async fn look(&mut self, issuance: &Arc<Issuance>) -> Result<(), StoreError> {
        let now = issuance.parts.clock.now_ms();
        if is_within(INTERVAL_MS, self.looked_at_ms, now) {
            return Ok(());
        }
        self.looked_at_ms = now;
        let mut read = issuance.parts.store.read().await?;
        let standing = renewals::standing(&mut read, now).await?;
        let late = renewals::late_and_untold(&mut read, now, TOLD_AT_ONCE).await?;
        let lifetime = issuance.parts.config.identity_lifetime_ms();
        let ending = renewals::identities_ending(&mut read, now + lifetime / 4).await?;
        let before = renewals::told(&mut read).await?;
        crate::metrics::domains(&figures::domains(&mut read).await?);
        crate::metrics::orders(&figures::open_orders(&mut read).await?);
        for issuer in issuance.issuers.iter() {
            note_limits(&mut read, issuer, now).await?;
        }
        drop(read);
        crate::metrics::certificates(&standing, ending.len());
        let edges: Vec<(EdgeId, i64)> =
            ending.iter().filter(|(edge, _)| !before.edges.contains(edge)).copied().collect();
        let (alarms, mut told) = alarms(&standing, &before);
        told.edges = ending.into_iter().map(|(edge, _)| edge).collect();
        if late.is_empty() && told == before {
            return Ok(());
        }
        let mut tx = issuance.parts.store.begin().await?;
        for (kind, text) in alarms {
            tracing::error!(kind, text, "renewals need attention");
            event::append(&mut tx, kind, None, "renewals", &text, now).await?;
        }
        tell_edges(&mut tx, &edges, now).await?;
        tell_tenants(&mut tx, &late, now).await?;
        renewals::set_operator_told(&mut tx, &told).await?;
        tx.commit().await
    }
}

/// The limits of a CA that hold for all that an issuer orders by its own account.
async fn note_limits(read: &mut Connection, issuer: &Issuer, now: i64) -> Result<(), StoreError> {
    let limits = [LimitName::Orders, LimitName::NewAccounts];
    let keys = limits.map(|limit| BucketKey::new(limit, issuer.at(), ""));
    let levels = ledger::levels(read, &keys.each_ref()).await?;
    for key in &keys {
        let rate = issuer.limits.rate(key.limit, "");
        if rate.is_limited() {
            let Level { bucket, reserved } = levels.of(key);
            let taken = bucket.used(rate, now).saturating_add(reserved);
            let (limit, left) = (key.limit.as_str(), rate.count.saturating_sub(taken));
            crate::metrics::rate_limit_remaining(&issuer.config.name, limit, left);
        }
    }
    Ok(())
}

/// What the operator is told: each once, also over a restart, and again when it was over in between.
fn alarms(standing: &Standing, before: &Told) -> (Vec<(&'static str, String)>, Told) {
    let mut alarms = Vec::new();
    let late = standing.late > 0;
    if late && !before.late {
        let text = format!(
            "{} of {} certificates are renewed late, {} have expired; see `portico renewals`",
            standing.late, standing.live, standing.expired
        );
        alarms.push(("renewals.late", text));
    }
    let many = standing.overdue >= MANY;
    if many && !before.many {
        let text = format!(
            "the CA wants {} certificates replaced at once, as before a revocation; `portico renewals` shows how far it is",
            standing.overdue
        );
        alarms.push(("renewals.many", text));
    }
    // Until nearly all are replaced it is the same event.
    let many = many || (before.many && standing.overdue > 0);
    (alarms, Told { late, many, edges: BTreeSet::new() })
}

async fn tell_edges(tx: &mut WriteTx, edges: &[(EdgeId, i64)], now: i64) -> Result<(), StoreError> {
    for (edge, not_after) in edges {
        let text = format!(
            "the identity of edge {edge} ends at {} and was not renewed in its time; is the edge connected?",
            rfc3339(*not_after)
        );
        tracing::error!(%edge, text, "an edge's identity is late");
        event::append(tx, "edge.identity_late", None, &edge.to_string(), &text, now).await?;
    }
    Ok(())
}

async fn tell_tenants(tx: &mut WriteTx, late: &[Late], now: i64) -> Result<(), StoreError> {
    let mut by_tenant: BTreeMap<Option<TenantId>, Vec<&Late>> = BTreeMap::new();
    for one in late {
        by_tenant.entry(one.tenant).or_default().push(one);
        let observed = Observation {
            kind: ConditionKind::CertificateReady,
            status: if one.not_after > now { ConditionStatus::True } else { ConditionStatus::False },
            reason: "RenewalLate".to_owned(),
            message: format!(
                "renewal was due at {} and has not come about; the certificate ends at {}",
                rfc3339(one.renew_at),
                rfc3339(one.not_after)
            ),
            next_check_at: None,
        };
        for domain in renewals::served_by(tx, one.lineage).await? {
            condition::set(tx, domain, &observed, now).await?;
        }
        renewals::set_told(tx, one.id, now).await?;
    }
    for (tenant, late) in by_tenant {
        let subject = late[0].id.to_string();
        event::append(tx, "certificate.renewal_late", tenant, &subject, &words(&late), now).await?;
    }
    Ok(())
}

fn words(late: &[&Late]) -> String {
    let names: Vec<&str> = late.iter().flat_map(|one| &one.names).map(String::as_str).collect();
    let shown = names[..names.len().min(NAMES_LISTED)].join(", ");
    let more = names.len().saturating_sub(NAMES_LISTED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let first_end = late.iter().map(|one| one.not_after).min().unwrap_or_default();
    format!(
        "{shown}{more}: renewal is late; the first of {} certificates ends at {}",
        late.len(),
        rfc3339(first_end)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_given_once_until_it_was_over() {
        let kinds = |late, overdue, before: &Told| {
            let standing = Standing { live: 100, late, overdue, ..Standing::default() };
            let (alarms, told) = alarms(&standing, before);
            (alarms.into_iter().map(|(kind, _)| kind).collect::<Vec<_>>(), told)
        };
        let (first, told) = kinds(1, MANY, &Told::default());
        assert_eq!(first, ["renewals.late", "renewals.many"]);
        let (again, told) = kinds(2, MANY, &told);
        assert!(again.is_empty());
        let (fewer, told) = kinds(0, 1, &told);
        assert!(fewer.is_empty() && told.many && !told.late);
        assert!(kinds(0, MANY, &told).0.is_empty(), "the same event goes on");
        let (_, over) = kinds(0, 0, &told);
        assert_eq!(over, Told::default());
    }
}
