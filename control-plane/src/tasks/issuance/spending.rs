//! What an order spends of the CA's limits: reserved before the CA is asked, charged or given back by what it answers.

use super::Issuance;
use super::issuer::Issuer;
use super::stopped::{Stop, names_nobody};
use super::turns::Turn;
use crate::acme::{AcmeError, AcmeErrorKind, CaAuthorization, CertificateId};
use crate::clock::MINUTE_MS;
use crate::plan::ledger::{self, At, BucketKey, Charged, Exemption, LimitName, refusal};
use crate::store::order::{self, OrderRow, OrderState};
use crate::store::{StoreError, WriteTx, credential, ledger as buckets, renewal_info, tenant};

/// A limit that a CA tells of without Retry-After is full for this long.
const TOLD_WITHOUT_TIME_MS: i64 = 10 * MINUTE_MS;

/// Waits for the order's turn at its domains, sees that all limits have room, reserves what it takes, and notes that the CA
/// is about to be asked: all in the one transaction that no other order's can overlap.
pub(super) async fn take(issuance: &Issuance, issuer: &Issuer, row: &OrderRow) -> Result<Turn, Stop> {
    let domains = if row.renewal { Vec::new() } else { ledger::registered_domains(&row.names) };
    let turn = issuer.turns.take(&domains).await;
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let holder = row.id.to_string();
    // Asked before and the answer lost: the CA may have made an order of it. The certificate is reserved anew.
    buckets::charge_reserved(&mut tx, &holder, Charged::AtOrder, now).await?;
    buckets::release(&mut tx, &holder).await?;
    let covered = covered(&mut tx, issuer, row, now).await?;
    let issued = was_issued(&mut tx, issuer, row).await?;
    let order = ledger::Order {
        names: &row.names,
        name_set: &row.name_set,
        exemption: Exemption::of(&row.names, issued, covered.as_deref()),
        // A backup that is shown is what serves.
        keeps_alive: if row.backup { row.deadline.is_some() } else { !has_new_name(&mut tx, row).await? },
        can_wait: row.backup && row.deadline.is_none(),
        tenant: row.tenant,
    };
    let label = issuer.label(row.account);
    let mut limits = issuer.limits.clone();
    if let Some(tenant) = row.tenant {
        limits.tenants = tenant::order_budgets(&mut tx, Some(tenant)).await?;
    }
    let needs = ledger::needs(&order, at(issuer, &label), &limits);
    let levels = buckets::levels_of(&mut tx, &needs).await?;
    if let Err(no_room) = ledger::check(&needs, &levels, now) {
        buckets::see_clock(&mut tx, &needs, &levels, now).await?;
        tx.commit().await?;
        return Err(Stop::NoRoom(no_room));
    }
    buckets::reserve(&mut tx, &holder, &needs).await?;
    let renewal = row.renewal || order.exemption.is_of_all(&row.names);
    order::log_request(&mut tx, row, renewal, now).await?;
    tx.commit().await?;
    Ok(turn)
}

/// The CA has made the order.
pub(super) async fn made(tx: &mut WriteTx, row: &OrderRow, now: i64) -> Result<(), StoreError> {
    buckets::charge_reserved(tx, &row.id.to_string(), Charged::AtOrder, now).await
}

/// The CA was asked and has made no order, as far as we can tell. What it says of a limit is the truth of that limit.
pub(super) async fn not_made(
    issuance: &Issuance,
    issuer: &Issuer,
    row: &OrderRow,
    error: &AcmeError,
) -> Result<(), StoreError> {
    let mut tx = issuance.parts.store.begin().await?;
    if error.nothing_made && !names_nobody(row, error) {
        buckets::release(&mut tx, &row.id.to_string()).await?;
        order::forget_last_request(&mut tx, row.id).await?;
    }
    let label = issuer.label(row.account);
    let now = issuance.parts.clock.now_ms();
    learn(&mut tx, issuer, at(issuer, &label), error, &row.names, &row.name_set, now).await?;
    tx.commit().await
}

/// Notes when the limits that an answer tells of have room again.
pub(super) async fn learn(
    tx: &mut WriteTx,
    issuer: &Issuer,
    at: At<'_>,
    error: &AcmeError,
    names: &[String],
    name_set: &str,
    now: i64,
) -> Result<(), StoreError> {
    if !matches!(error.kind, AcmeErrorKind::AccountLimited | AcmeErrorKind::NamesLimited) {
        return Ok(());
    }
    let wait = error.retry_after.and_then(|wait| i64::try_from(wait.as_millis()).ok());
    let until = now.saturating_add(wait.unwrap_or(TOLD_WITHOUT_TIME_MS));
    for (limit, subject) in refusal::told(&error.detail, names, name_set) {
        let rate = issuer.limits.rate(limit, &subject);
        buckets::learn(tx, &BucketKey::new(limit, at, &subject), rate, until, now).await?;
        tracing::info!(
            issuer = issuer.config.name,
            limit = limit.as_str(),
            subject,
            "the CA tells of a limit"
        );
    }
    Ok(())
}

/// Counts the validations among these that failed.
pub(super) async fn failed(
    issuance: &Issuance,
    issuer: &Issuer,
    row: &OrderRow,
    authorizations: &[CaAuthorization],
) -> Result<(), StoreError> {
    let failed = authorizations.iter().filter(|authorization| authorization.error.is_some());
    let failed: Vec<&str> = failed.map(|authorization| authorization.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let label = issuer.label(row.account);
    for name in failed {
        for limit in [LimitName::FailedAuthorizations, LimitName::ConsecutiveFailures] {
            let rate = issuer.limits.rate(limit, name);
            if rate.is_limited() {
                let key = BucketKey::new(limit, at(issuer, &label), name);
                buckets::charge(&mut tx, &key, rate.interval_ms(), now).await?;
            }
        }
    }
    tx.commit().await
}

/// The order has its certificate.
pub(super) async fn issued(
    tx: &mut WriteTx,
    issuer: &Issuer,
    row: &OrderRow,
    now: i64,
) -> Result<(), StoreError> {
    made(tx, row, now).await?;
    buckets::charge_reserved(tx, &row.id.to_string(), Charged::AtCertificate, now).await?;
    let label = issuer.label(row.account);
    for name in &row.names {
        let key = BucketKey::new(LimitName::ConsecutiveFailures, at(issuer, &label), name);
        buckets::clear(tx, &key).await?;
    }
    Ok(())
}

/// The order is over without a certificate of ours; from `Finalizing` on the CA may have signed one all the same.
pub(super) async fn ended(tx: &mut WriteTx, row: &OrderRow, now: i64) -> Result<(), StoreError> {
    made(tx, row, now).await?;
    let holder = row.id.to_string();
    if matches!(row.state, OrderState::Finalizing { .. }) {
        buckets::charge_reserved(tx, &holder, Charged::AtCertificate, now).await?;
    }
    buckets::release(tx, &holder).await
}

/// The CA was asked and refuses for a reason that is no name's: what was reserved is free again.
pub(super) async fn refused(tx: &mut WriteTx, row: &OrderRow) -> Result<(), StoreError> {
    buckets::release(tx, &row.id.to_string()).await?;
    order::forget_last_request(tx, row.id).await
}

/// The certificate to say that an order replaces, at a CA that has such orders.
pub(super) fn replaces(issuer: &Issuer, row: &OrderRow) -> Option<CertificateId> {
    issuer.http().renewal_info_url()?;
    CertificateId::parse(&row.replaces.as_ref()?.certificate)
}

/// The names of the certificate that this order replaces; `None`: the CA exempts nothing for it.
async fn covered(
    tx: &mut WriteTx,
    issuer: &Issuer,
    row: &OrderRow,
    now: i64,
) -> Result<Option<Vec<String>>, StoreError> {
    let Some(replaced) = row.replaces.as_ref().filter(|_| replaces(issuer, row).is_some()) else {
        return Ok(None);
    };
    let predecessor = renewal_info::predecessor(tx, replaced.credential).await?;
    Ok(predecessor.filter(|predecessor| predecessor.window.is_open(now)).map(|predecessor| predecessor.names))
}

/// Whether this CA has issued these names to us before.
async fn was_issued(tx: &mut WriteTx, issuer: &Issuer, row: &OrderRow) -> Result<bool, StoreError> {
    let set = BucketKey::new(LimitName::ExactSet, issuer.at(), &row.name_set);
    Ok(buckets::was_charged(tx, &set).await?
        || (row.renewal && credential::is_live_of_issuer(tx, row.lineage, &row.issuer).await?))
}

/// Whether some name of an order has no certificate yet in the order's cell. Where all have one the order keeps them alive.
async fn has_new_name(tx: &mut WriteTx, row: &OrderRow) -> Result<bool, StoreError> {
    for domain in &row.domains {
        if !credential::is_live_beside(tx, *domain, row.lineage).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whose buckets the limits of an account with this label are.
fn at<'a>(issuer: &'a Issuer, label: &'a str) -> At<'a> {
    At { account: label, ..issuer.at() }
}
