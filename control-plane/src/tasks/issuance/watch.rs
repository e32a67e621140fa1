//! Nothing expires unnoticed: once a minute all certificates are looked at, those of the fleet's own edges included.
//!
//! A certificate is late when a quarter of the time between its renewal and its end has passed. Its tenant has one event
//! for all that became late together and a condition on each domain; the operator has one event when the first is late,
//! and one when a CA wants many replaced at once. Figures are metrics (`portico_certificates`).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{EdgeId, TenantId};

use super::Issuance;
use crate::clock::rfc3339;
use crate::store::condition::{self, Observation};
use crate::store::renewals::{self, Late, Standing};
use crate::store::{StoreError, WriteTx, event};

const INTERVAL_MS: i64 = 60_000;
/// Certificates that one turn tells of.
const TOLD_AT_ONCE: u32 = 256;
/// Certificates whose CA's window is over, from which on it is an event for the operator.
const MANY: u64 = 50;
/// Names that one event lists.
const NAMES_LISTED: usize = 5;

/// What was told before.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked_at_ms: i64,
    late_told: bool,
    many_told: bool,
    edges_told: HashSet<EdgeId>,
}

impl Watch {
    /// Looks, if it is time to.
    pub(super) async fn look(&mut self, issuance: &Arc<Issuance>) -> Result<(), StoreError> {
        let now = issuance.parts.clock.now_ms();
        if now - self.looked_at_ms < INTERVAL_MS {
            return Ok(());
        }
        self.looked_at_ms = now;
        let mut read = issuance.parts.store.read().await?;
        let standing = renewals::standing(&mut read, now).await?;
        let late = renewals::late_and_untold(&mut read, now, TOLD_AT_ONCE).await?;
        let lifetime = issuance.parts.config.identity_lifetime_ms();
        let ending = renewals::identities_ending(&mut read, now + lifetime / 4).await?;
        drop(read);
        crate::metrics::certificates(&standing, ending.len());
        let edges: Vec<(EdgeId, i64)> =
            ending.iter().filter(|(edge, _)| !self.edges_told.contains(edge)).copied().collect();
        self.edges_told = ending.into_iter().map(|(edge, _)| edge).collect();
        let alarms = self.alarms(&standing);
        if late.is_empty() && edges.is_empty() && alarms.is_empty() {
            return Ok(());
        }
        let mut tx = issuance.parts.store.begin().await?;
        for (kind, text) in alarms {
            tracing::error!(kind, text, "renewals need attention");
            event::append(&mut tx, kind, None, "renewals", &text, now).await?;
        }
        tell_edges(&mut tx, &edges, now).await?;
        tell_tenants(&mut tx, &late, now).await?;
        tx.commit().await
    }

    /// What the operator is told: each once, and again when it was over in between.
    fn alarms(&mut self, standing: &Standing) -> Vec<(&'static str, String)> {
        let mut alarms = Vec::new();
        let late = standing.late > 0;
        if late && !self.late_told {
            let text = format!(
                "{} of {} certificates are renewed late, {} have expired; see `portico renewals`",
                standing.late, standing.live, standing.expired
            );
            alarms.push(("renewals.late", text));
        }
        self.late_told = late;
        let many = standing.overdue >= MANY;
        if many && !self.many_told {
            let text = format!(
                "the CA wants {} certificates replaced at once, as before a revocation; `portico renewals` shows how far it is",
                standing.overdue
            );
            alarms.push(("renewals.many", text));
        }
        // Until nearly all are replaced it is the same event.
        self.many_told = many || (self.many_told && standing.overdue > 0);
        alarms
    }
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
