//! What each issuer's orders tell of it, and the orders that leave it.

use std::sync::Arc;

use portico_cert_store::{NamePattern, TenantId};

use super::Issuance;
use super::issuer::Issuer;
use super::preflight::{self, Permission};
use super::slots::Slots;
use super::stopped::{Stop, leave};
use crate::acme::{AcmeErrorKind, ChallengeMethod};
use crate::clock::rfc3339;
use crate::plan::issuers::{self, CAA_FRESH_MS, Health, Restriction, RestrictionKind};
use crate::plan::reconcile::Facts;
use crate::store::order::{self, OrderRow};
use crate::store::{Connection, StoreError, WriteTx, credential, event, group, issuer as states};

impl Issuance {
    /// The issuers that a tenant's orders may go to, the best first.
    pub(super) async fn preferred(
        &self,
        connection: &mut Connection,
        tenant: Option<TenantId>,
    ) -> Result<Vec<&Issuer>, StoreError> {
        let named = match tenant {
            Some(tenant) => states::preference(connection, tenant).await?,
            None => Vec::new(),
        };
        let named: Vec<&Issuer> = named.iter().filter_map(|name| self.issuer(name)).collect();
        let by_default = self.issuers.iter().filter(|issuer| issuer.config.by_default);
        Ok(if named.is_empty() { by_default.collect() } else { named })
    }

    /// Notes a failure of an order that is no name's fault.
    pub(super) async fn note_failure(&self, issuer: &Issuer, stop: &Stop) -> Result<(), StoreError> {
        let Some(why) = fault_of_issuer(stop) else { return Ok(()) };
        let (name, now) = (&issuer.config.name, self.parts.clock.now_ms());
        let mut tx = self.parts.store.begin().await?;
        let before = states::health(&mut tx, name).await?;
        let wait = if let Stop::Acme(error) = stop { error.retry_after } else { None };
        let asked = wait.map_or(0, |wait| wait.as_millis());
        let asked = i64::try_from(asked).unwrap_or(i64::MAX / 2);
        let after = before.clone().failed(&why, asked, self.parts.config.failover.patience(), now);
        if after == before {
            return Ok(());
        }
        states::put_health(&mut tx, name, &after, now).await?;
        if let Health::Away { since, until, pauses: 0, .. } = &after {
            let text = format!(
                "issuer {name} has issued nothing since {}, last: {why}; new names, and certificates that end soon, go to the \
                 next issuer, where there is one; it is tried again from {}",
                rfc3339(*since),
                rfc3339(*until)
            );
            tracing::error!(issuer = name, text, "an issuer is away");
            event::append(&mut tx, "issuer.away", None, name, &text, now).await?;
        }
        tx.commit().await
    }

    pub(super) async fn is_away(&self, issuer: &str) -> Result<bool, StoreError> {
        let mut read = self.parts.store.read().await?;
        Ok(matches!(states::health(&mut read, issuer).await?, Health::Away { .. }))
    }

    /// For each of an order's names whether its CAA records let this issuer have it; asked where another issuer had the lineage
    /// before, whose look at them says nothing of this one.
    pub(super) async fn check_caa(&self, issuer: &Issuer, row: &OrderRow) -> Result<(), Stop> {
        if !self.parts.config.preflight.enabled || !self.is_newcomer(issuer, row).await? {
            return Ok(());
        }
        let mut forbidden = Vec::new();
        for (name, domain) in row.names.iter().zip(&row.domains) {
            let Ok(pattern) = NamePattern::parse(name) else { continue };
            let state = async { group::name_state(&mut *self.parts.store.read().await?, *domain).await };
            let methods = state.await?.unwrap_or_default().methods;
            match preflight::permission(self, issuer, &pattern, &methods).await {
                Permission::Methods(_) => {}
                Permission::Forbidden(why) => {
                    forbidden.push(Forbidden { name: name.clone(), kind: RestrictionKind::Caa, why });
                }
                Permission::Unknown(why) => return Err(Stop::NotYet(why)),
            }
        }
        if forbidden.is_empty() { Ok(()) } else { Err(Stop::Forbidden(forbidden)) }
    }

    /// It has issued nothing of what serves there, as far as the pre-flight knew.
    async fn is_newcomer(&self, issuer: &Issuer, row: &OrderRow) -> Result<bool, StoreError> {
        if row.backup {
            return Ok(true);
        }
        let mut tx = self.parts.store.read().await?;
        let live = credential::live_of_lineage(&mut tx, row.lineage).await?;
        Ok(live.is_some_and(|live| live.issuer != issuer.config.name))
    }

    /// Notes against an issuer what forbids it to issue for these names, where another may; answers the others.
    pub(super) async fn restrict(
        &self,
        tx: &mut WriteTx,
        row: &OrderRow,
        forbidden: Vec<Forbidden>,
        until: i64,
    ) -> Result<Vec<(String, String)>, StoreError> {
        let now = self.parts.clock.now_ms();
        let preferred: Vec<String> =
            self.preferred(tx, row.tenant).await?.iter().map(|one| one.config.name.clone()).collect();
        let mut left = Vec::new();
        for Forbidden { name, kind, why } in forbidden {
            let domain = row.names.iter().position(|n| *n == name).map(|index| row.domains[index]);
            let Some(domain) = domain else { continue };
            let mut state = group::name_state(tx, domain).await?.unwrap_or_default();
            let may = |other: &&String| {
                **other != row.issuer && state.issuers.get(*other).is_none_or(|known| !known.forbids(now))
            };
            if !preferred.iter().any(|other| may(&other)) {
                left.push((name, why));
                continue;
            }
            let restriction = Restriction { kind, methods: Vec::new(), why, until };
            state.issuers.insert(row.issuer.clone(), restriction);
            group::put_name_state(tx, domain, &state, now).await?;
        }
        Ok(left)
    }

    /// Lets open orders go that another issuer would serve and theirs does not.
    pub(super) async fn move_orders(
        self: &Arc<Self>,
        facts: &Facts,
        slots: &Slots,
    ) -> Result<bool, StoreError> {
        let mut moved = false;
        for change in issuers::moves(facts) {
            if slots.runs(change.order) {
                continue;
            }
            let row = async { order::find(&mut *self.parts.store.read().await?, change.order).await };
            let Some(row) = row.await?.filter(|row| !row.state.is_over()) else { continue };
            leave(self, &row, &change.to).await?;
            moved = true;
        }
        Ok(moved)
    }
}

/// A name that an issuer may not issue for.
#[derive(Clone, Debug)]
pub(super) struct Forbidden {
    pub(super) name: String,
    pub(super) kind: RestrictionKind,
    pub(super) why: String,
}

/// The issuer has issued: it is there.
pub(super) async fn note_success(tx: &mut WriteTx, issuer: &str, now: i64) -> Result<(), StoreError> {
    let before = states::health(tx, issuer).await?;
    if before == Health::Well {
        return Ok(());
    }
    states::put_health(tx, issuer, &Health::Well, now).await?;
    if let Health::Away { since, .. } = before {
        let text = format!("issuer {issuer} issues again; it was away from {}", rfc3339(since));
        tracing::info!(issuer, text, "an issuer is back");
        event::append(tx, "issuer.back", None, issuer, &text, now).await?;
    }
    Ok(())
}

/// What a stop says against the issuer as such. Not a limit: waiting for one is as it must be, and no name's failure.
fn fault_of_issuer(stop: &Stop) -> Option<String> {
    match stop {
        Stop::Acme(error) => match error.kind {
            AcmeErrorKind::Unavailable
            | AcmeErrorKind::BadNonce
            | AcmeErrorKind::Garbage
            | AcmeErrorKind::Account
            | AcmeErrorKind::Ours => Some(error.to_string()),
            AcmeErrorKind::AccountLimited
            | AcmeErrorKind::NamesLimited
            | AcmeErrorKind::NamesRefused
            | AcmeErrorKind::RequestRefused
            | AcmeErrorKind::OrderGone => None,
        },
        Stop::Refused(text) => Some(format!("it issued what must not be served: {text}")),
        Stop::Store(_)
        | Stop::Names(_)
        | Stop::Dead(_)
        | Stop::Forbidden(_)
        | Stop::NoRoom(_)
        | Stop::NotYet(_)
        | Stop::Early(..) => None,
    }
}

/// How long what forbids an issuer stands.
pub(super) fn fresh_ms(kind: RestrictionKind) -> i64 {
    match kind {
        RestrictionKind::Caa | RestrictionKind::Methods | RestrictionKind::Limit => CAA_FRESH_MS,
        RestrictionKind::Policy => issuers::POLICY_FRESH_MS,
    }
}

/// The methods by which an issuer may validate a name, as far as is known; also where that was long ago: fewer never harm.
pub(super) fn methods_at<'a>(state: &'a group::NameState, issuer: &Issuer) -> &'a [ChallengeMethod] {
    match state.issuers.get(&issuer.config.name) {
        Some(known) if !known.methods.is_empty() => &known.methods,
        _ => &state.methods,
    }
}
