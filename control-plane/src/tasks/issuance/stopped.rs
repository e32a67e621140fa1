//! What follows when a step of an order does not lead to the next state.
//!
//! Failures are told apart: of the CA or the way to it (the step is tried again, soon and then slower, the row stays),
//! of single names (they are ejected from the group, the others go on at once), of the order as a whole (it ends). Where
//! the CA refuses an order and names no culprit, its names are ordered in two halves, and so on: one bad name among n is
//! found with at most 2 log2 n further orders, each of which the ledger counts, refused or not. A CA that refuses order
//! after order and issues none has a fault of its own: then nothing is halved.

use std::sync::Arc;

use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{DomainId, OrderId};

use super::backups::{Unwanted, leave_out};
use super::health::{Forbidden, fresh_ms};
use super::issuer::Issuer;
use super::{Issuance, spending};
use crate::acme::{AcmeError, AcmeErrorKind};
use crate::clock::{self, MINUTE_MS};
use crate::plan::issuers::{RestrictionKind, urgent_at};
use crate::plan::ledger::{LimitName, NoRoom};
use crate::plan::timing;
use crate::store::condition::{self, Observation};
use crate::store::order::{self, OrderRow, OrderState};
use crate::store::{StoreError, WriteTx, credential, domain, event, group, rekey, replacement};

/// An account limit without Retry-After holds an order for this long.
const ACCOUNT_HOLD_MS: i64 = 10 * MINUTE_MS;

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    Over,
    /// Its row says when to go on.
    Waits,
}

/// How often an order with a certificate that is not wanted yet looks whether it is.
const EARLY_LOOK_MS: i64 = clock::HOUR_MS;

/// Why a step did not lead to the next state.
#[derive(Debug)]
pub(super) enum Stop {
    Store(StoreError),
    Acme(AcmeError),
    /// These names failed, with the CA's or our words.
    Names(Vec<(String, String)>),
    /// These would fail: the CA was not asked.
    Dead(Vec<(String, String)>),
    /// The issuer may not issue for these.
    Forbidden(Vec<Forbidden>),
    /// Our own limit.
    NoRoom(NoRoom),
    /// Something on our side is not as it must be, for now.
    NotYet(String),
    /// The certificate must not go live.
    Refused(String),
    /// ... and not before the one in use is due, Unix milliseconds.
    Early(i64, String),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AcmeError> for Stop {
    fn from(error: AcmeError) -> Self {
        Self::Acme(error)
    }
}

/// Records why an order does not go on now.
pub(super) async fn stopped(
    issuance: &Arc<Issuance>,
    issuer: Option<&Issuer>,
    row: &OrderRow,
    stop: Stop,
) -> Result<Ran, StoreError> {
    let transient = issuance.parts.clock.now_ms() + timing::after_transient(row.attempts + 1, seed(row));
    if let Some(issuer) = issuer {
        issuance.note_failure(issuer, &stop).await?;
    }
    match stop {
        Stop::Store(error) => Err(error),
        Stop::Forbidden(names) if row.backup => {
            let unwanted = names.into_iter().map(|Forbidden { name, kind, why }| Unwanted {
                name,
                why,
                kind: Some(kind),
            });
            leave_out(issuance, row, unwanted.collect()).await
        }
        Stop::Names(names) if row.backup => leave_out(issuance, row, unwanted(names, None)).await,
        Stop::Forbidden(names) => forbid(issuance, issuer, row, names).await,
        Stop::Names(names) => eject(issuance, issuer, row, "the CA could not validate", &names).await,
        Stop::Dead(names) => eject(issuance, issuer, row, "no CA could validate", &names).await,
        Stop::Refused(text) => {
            let is_told = issuance.is_away(&row.issuer).await?;
            end(issuance, row, "CertificateRefused", &text, is_told).await
        }
        Stop::NotYet(text) => wait(issuance, row, transient, "NotYet", &text).await,
        // Its CA may want it replaced sooner than it said.
        Stop::Early(until, text) => {
            let next = until.min(issuance.parts.clock.now_ms() + EARLY_LOOK_MS);
            wait(issuance, row, next, "NotDue", &text).await
        }
        Stop::NoRoom(no_room) => {
            let next = clock::rfc3339(no_room.next_ms);
            let limit = no_room_text(&no_room);
            let (reason, text) = if no_room.limit.is_of_tenant() {
                let text = format!(
                    "the tenant has used up its budget of {limit}; the next order can go at {next}; an operator can \
                     raise tenant_1h and tenant_24h of [issuer.limits]"
                );
                ("TenantBudget", text)
            } else {
                let text =
                    format!("our ledger is at the CA's limit on {limit}; the next order can go at {next}");
                ("CaLimit", text)
            };
            if !no_room.limit.is_of_tenant() {
                outlasted(issuance, row, no_room.next_ms, &text).await?;
            }
            wait(issuance, row, no_room.next_ms, reason, &text).await
        }
        Stop::Acme(error) => held_up(issuance, issuer, row, error).await,
    }
}

fn unwanted(names: Vec<(String, String)>, kind: Option<RestrictionKind>) -> Vec<Unwanted> {
    names.into_iter().map(|(name, why)| Unwanted { name, why, kind }).collect()
}

/// The domains of whose certificate an order tells: a backup is none that serves.
fn told_of(row: &OrderRow) -> &[DomainId] {
    if row.backup { &[] } else { &row.domains }
}

/// Spreads the next tries of orders that failed together.
fn seed(row: &OrderRow) -> u64 {
    timing::seed_of(row.lineage) ^ u64::from(row.attempts)
}

/// What follows from an answer of the CA, or from none.
async fn held_up(
    issuance: &Arc<Issuance>,
    issuer: Option<&Issuer>,
    row: &OrderRow,
    error: AcmeError,
) -> Result<Ran, StoreError> {
    tracing::info!(order = %row.id, names = ?row.names, state = row.state.as_str(), %error, "order held up");
    let now = issuance.parts.clock.now_ms();
    let asked = error.retry_after.map(|wait| now + i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    let at = |otherwise: i64| asked.map_or(otherwise, |asked| asked.max(now + 1000));
    let transient = at(now + timing::after_transient(row.attempts + 1, seed(row)));
    let (text, reason) = (error.to_string(), error.kind.reason());
    let until = match error.kind {
        // The ledger knows: orders that are exempt go on.
        AcmeErrorKind::AccountLimited => {
            let until = at(now + ACCOUNT_HOLD_MS);
            outlasted(issuance, row, until, &text).await?;
            until
        }
        AcmeErrorKind::NamesLimited => {
            let until = at(now + timing::after_failures(row.attempts + 1, seed(row)));
            outlasted(issuance, row, until, &text).await?;
            until
        }
        AcmeErrorKind::Unavailable => {
            if let (Some(issuer), Some(until)) = (issuer, asked) {
                issuer.hold(now, until);
            }
            transient
        }
        AcmeErrorKind::BadNonce | AcmeErrorKind::Garbage | AcmeErrorKind::Ours => transient,
        AcmeErrorKind::Account => {
            if let Some(issuer) = issuer {
                issuer.forget_account(&issuance.parts, row.account).await?;
            }
            if row.account.is_some() {
                return forsake(issuance, row, &text).await;
            }
            transient
        }
        AcmeErrorKind::OrderGone => return end(issuance, row, reason, &text, false).await,
        AcmeErrorKind::NamesRefused | AcmeErrorKind::RequestRefused => {
            return if row.backup {
                match refused_names(row, &error) {
                    names if names.is_empty() => end(issuance, row, reason, &text, false).await,
                    names => leave_out(issuance, row, unwanted(names, error.forbids)).await,
                }
            } else if let Some(kind) = error.forbids.filter(|_| !names_nobody(row, &error)) {
                let names = refused_names(row, &error).into_iter();
                forbid(
                    issuance,
                    issuer,
                    row,
                    names.map(|(name, why)| Forbidden { name, kind, why }).collect(),
                )
                .await
            } else if !names_nobody(row, &error) {
                eject(issuance, issuer, row, "the CA could not validate", &refused_names(row, &error)).await
            } else if is_about_names(row, &error) && issuer.is_some_and(Issuer::may_halve) {
                split(issuance, row, reason, &text).await
            } else {
                end(issuance, row, reason, &text, false).await
            };
        }
    };
    wait(issuance, row, until, reason, &text).await
}

/// The limit with what it is about, where people know that by name.
fn no_room_text(no_room: &NoRoom) -> String {
    let text = no_room.limit.text();
    match no_room.limit {
        LimitName::RegisteredDomain | LimitName::FailedAuthorizations | LimitName::ConsecutiveFailures => {
            format!("{text} ({})", no_room.subject)
        }
        LimitName::Orders
        | LimitName::ExactSet
        | LimitName::NewAccounts
        | LimitName::TenantHour
        | LimitName::TenantDay => text.to_owned(),
    }
}

/// The names that the CA named, or the only one there is.
fn refused_names(row: &OrderRow, error: &AcmeError) -> Vec<(String, String)> {
    match row.names.as_slice() {
        [only] if is_about_names(row, error) => vec![(only.clone(), error.detail.clone())],
        names => error.refused_names.iter().filter(|(name, _)| names.contains(name)).cloned().collect(),
    }
}

/// Whether the CA refuses without saying whom.
pub(super) fn names_nobody(row: &OrderRow, error: &AcmeError) -> bool {
    error.is_refusal() && refused_names(row, error).is_empty()
}

/// A request with names in it is refused: at other steps it is the order or a challenge that the CA finds fault with.
fn is_about_names(row: &OrderRow, error: &AcmeError) -> bool {
    error.kind == AcmeErrorKind::NamesRefused
        || matches!(row.state, OrderState::Planned | OrderState::Ready { .. } | OrderState::Finalizing { .. })
}

/// The adopted account of an order is lost: one that the CA has not made goes on, on the issuer's own.
async fn forsake(issuance: &Arc<Issuance>, row: &OrderRow, text: &str) -> Result<Ran, StoreError> {
    if row.state != OrderState::Planned {
        return end(issuance, row, AcmeErrorKind::Account.reason(), text, false).await;
    }
    let mut tx = issuance.parts.store.begin().await?;
    spending::refused(&mut tx, row).await?;
    replacement::drop_replaces(&mut tx, row.id, None, text, issuance.parts.clock.now_ms()).await?;
    tx.commit().await?;
    Ok(Ran::Waits)
}

/// The row stays as it is until `at`.
async fn wait(
    issuance: &Issuance,
    row: &OrderRow,
    at: i64,
    reason: &'static str,
    text: &str,
) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    order::postpone(&mut tx, row.id, at, text, now).await?;
    // A first failure that is over within seconds is no news.
    if row.attempts > 0 || at > now + 30_000 {
        for domain in told_of(row) {
            observe_certificate(&mut tx, *domain, reason, text, Some(at), now).await?;
        }
    }
    tx.commit().await?;
    crate::metrics::order_postponed(reason);
    Ok(Ran::Waits)
}

/// The order is over without fault of a single name; another may follow after the back-off. `is_told`: what is wrong is known of
/// its issuer, so that no further event says it.
async fn end(
    issuance: &Arc<Issuance>,
    row: &OrderRow,
    reason: &'static str,
    text: &str,
    is_told: bool,
) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let failed = order::failed_in_a_row(&mut tx, row.lineage).await?;
    let retry_at = now + timing::after_failures(failed + 1, timing::seed_of(row.lineage));
    order::fail(&mut tx, row.id, retry_at, text, now).await?;
    for domain in told_of(row) {
        observe_certificate(&mut tx, *domain, reason, text, Some(retry_at), now).await?;
    }
    let kind = match (row.backup, row.renewal) {
        (true, _) => "backup.failed",
        (false, true) => "certificate.renewal_failed",
        (false, false) => "certificate.order_failed",
    };
    let text = format!("{}: {text}", row.names.join(", "));
    if is_told {
        tracing::info!(order = %row.id, names = ?row.names, reason, text, "order failed, as others of its issuer");
    } else {
        event::append(&mut tx, kind, row.tenant, &row.id.to_string(), &text, now).await?;
        tracing::warn!(order = %row.id, names = ?row.names, reason, text, "order failed");
    }
    over(issuance, tx, row, reason).await
}

/// One or more of the names are bad, and nobody says which: the order is over, each half of them is ordered at once.
async fn split(
    issuance: &Arc<Issuance>,
    row: &OrderRow,
    reason: &'static str,
    text: &str,
) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let text =
        format!("{text}; the CA does not say which of {} names, so each half is ordered", row.names.len());
    order::fail(&mut tx, row.id, now, &text, now).await?;
    for (index, domain) in row.domains.iter().enumerate() {
        let mut state = group::name_state(&mut tx, *domain).await?.unwrap_or_default();
        state.part = part_of(row.id, index >= row.domains.len() / 2);
        group::put_name_state(&mut tx, *domain, &state, now).await?;
        observe_certificate(&mut tx, *domain, reason, &text, Some(now), now).await?;
    }
    tracing::info!(order = %row.id, names = ?row.names, reason, text, "order refused as a whole; each half is ordered");
    over(issuance, tx, row, reason).await
}

/// A number for one half of an order's names that no other part has; never 0, within an SQLite integer.
fn part_of(order: OrderId, second: bool) -> u64 {
    let low = u64::try_from(order.ulid().0 & u128::from(u64::MAX >> 2)).unwrap_or(0);
    (low << 1 | u64::from(second)).max(2)
}

/// The issuer may not issue for these names: where another may, it gets them. No name has failed by that.
async fn forbid(
    issuance: &Arc<Issuance>,
    issuer: Option<&Issuer>,
    row: &OrderRow,
    forbidden: Vec<Forbidden>,
) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let fresh = forbidden.iter().map(|one| fresh_ms(one.kind)).max().unwrap_or(0);
    let text: Vec<String> = forbidden.iter().map(|one| one.why.clone()).collect();
    let text = format!("{} may not issue: {}", row.issuer, text.join("; "));
    let mut tx = issuance.parts.store.begin().await?;
    let left = issuance.restrict(&mut tx, row, forbidden, now + fresh).await?;
    if !left.is_empty() {
        // Of the others what was noted stands.
        tx.commit().await?;
        return eject(issuance, issuer, row, "the CA could not validate", &left).await;
    }
    order::fail(&mut tx, row.id, now, &text, now).await?;
    for domain in &row.domains {
        observe_certificate(&mut tx, *domain, "OtherIssuer", &text, Some(now), now).await?;
    }
    tracing::info!(order = %row.id, names = ?row.names, text, "names go to another issuer");
    over(issuance, tx, row, "OtherIssuer").await
}

/// An order whose issuer does not serve it ends; the next plan has it at the other.
pub(super) async fn leave(issuance: &Arc<Issuance>, row: &OrderRow, to: &str) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let last = row.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    let text = format!("{} does not issue now; ordered at {to} instead{last}", row.issuer);
    order::fail(&mut tx, row.id, now, &text, now).await?;
    for domain in told_of(row) {
        observe_certificate(&mut tx, *domain, "OtherIssuer", &text, Some(now), now).await?;
    }
    tracing::info!(order = %row.id, names = ?row.names, text, "an order goes to another issuer");
    over(issuance, tx, row, "OtherIssuer").await
}

/// Where a limit has room again only when the certificate in use is about to end, another issuer gets its names.
async fn outlasted(
    issuance: &Arc<Issuance>,
    row: &OrderRow,
    until: i64,
    why: &str,
) -> Result<(), StoreError> {
    if row.backup {
        return Ok(());
    }
    let mut tx = issuance.parts.store.begin().await?;
    let live = credential::live_of_lineage(&mut tx, row.lineage).await?;
    let Some(live) = live else { return Ok(()) };
    let compromised = rekey::revoked_by(&mut tx, live.id).await?.unwrap_or(i64::MAX);
    if until < urgent_at(live.not_before, live.not_after).min(compromised) {
        return Ok(());
    }
    let kind = RestrictionKind::Limit;
    let names = row.names.iter().map(|name| Forbidden { name: name.clone(), kind, why: why.to_owned() });
    issuance.restrict(&mut tx, row, names.collect(), until).await?;
    tx.commit().await
}

/// Takes failed names out: the order is over, each of them is ordered alone after its back-off, the rest at once. `who` says, for
/// people, who has failed them.
async fn eject(
    issuance: &Arc<Issuance>,
    issuer: Option<&Issuer>,
    row: &OrderRow,
    who: &str,
    failed: &[(String, String)],
) -> Result<Ran, StoreError> {
    if !failed.iter().any(|(name, _)| row.names.contains(name)) {
        // With a back-off: nobody is ejected, so the same order would be refused again at once.
        let text = format!("the CA finds fault with a name that was not ordered: {failed:?}");
        return end(issuance, row, AcmeErrorKind::Garbage.reason(), &text, false).await;
    }
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let mut last_retry = now;
    let mut ejected = 0;
    for (name, id) in row.names.iter().zip(&row.domains) {
        let Some((_, words)) = failed.iter().find(|(failed, _)| failed == name) else { continue };
        ejected += 1;
        let mut state = group::name_state(&mut tx, *id).await?.unwrap_or_default();
        state.failed_before = true;
        state.part = 0;
        state.attempts += 1;
        // Pre-flight looks again before the next order.
        state.methods.clear();
        let seed = timing::seed_of(row.lineage) ^ u64::from(state.attempts);
        let pause_after = issuer.map_or(0, |issuer| issuer.limits.pause_after);
        let paused = pause_after > 0 && state.attempts >= pause_after;
        state.next_at =
            if paused { clock::NEVER_MS } else { now + timing::after_failures(state.attempts, seed) };
        state.error = Some(words.clone());
        last_retry = last_retry.max(state.next_at);
        group::put_name_state(&mut tx, *id, &state, now).await?;
        let text = format!("{who} {name}: {words}");
        let mend = format!("mend it and run `portico domain retry {name}` for a new try");
        let next = if paused {
            format!(
                "it has failed {} times in a row and is not tried again by itself: {mend}",
                state.attempts
            )
        } else {
            let next = clock::rfc3339(state.next_at);
            format!("{mend} at once, else it is tried again at {next}")
        };
        let (shown, next_check) =
            if paused { (format!("{text}; {next}"), None) } else { (text.clone(), Some(state.next_at)) };
        observe_certificate(&mut tx, *id, "ValidationFailed", &shown, next_check, now).await?;
        let kind = if row.renewal { "certificate.renewal_failed" } else { "domain.failed" };
        let text = format!("{text}; {next}");
        // The order may be the operator's, with names of several tenants; the name is one's.
        let of = domain::find(&mut tx, *id).await?.map(|found| found.tenant_id).or(row.tenant);
        event::append(&mut tx, kind, of, &id.to_string(), &text, now).await?;
    }
    let retry_at = if ejected < row.names.len() { now } else { last_retry };
    let names: Vec<_> = failed.iter().map(|(name, _)| name.as_str()).collect();
    order::fail(&mut tx, row.id, retry_at, &format!("failed: {}", names.join(", ")), now).await?;
    tracing::info!(order = %row.id, ?failed, "names ejected");
    over(issuance, tx, row, "ValidationFailed").await
}

/// Commits the end of an order that has failed: what it had put up is taken down, and it is counted.
pub(super) async fn over(
    issuance: &Arc<Issuance>,
    mut tx: WriteTx,
    row: &OrderRow,
    reason: &'static str,
) -> Result<Ran, StoreError> {
    let records = close(&mut tx, row).await?;
    spending::ended(&mut tx, row, issuance.parts.clock.now_ms()).await?;
    tx.commit().await?;
    issuance.forget_records(&records);
    crate::metrics::order_failed(reason);
    Ok(Ran::Over)
}

/// Takes down what an open order has put up. Answers the TXT records that the responder is to forget.
pub(super) async fn close(tx: &mut WriteTx, row: &OrderRow) -> Result<Vec<(String, String)>, StoreError> {
    // Our answers are exact tokens; a thumbprint of an earlier release would answer those of the origin's own client.
    let changed = group::set_thumbprint(tx, &row.domains, None).await?;
    credential::record_domains(tx, &changed).await?;
    group::take_challenge_records(tx, row.id).await
}

async fn observe_certificate(
    tx: &mut WriteTx,
    domain: DomainId,
    reason: &str,
    text: &str,
    next_check_at: Option<i64>,
    now: i64,
) -> Result<(), StoreError> {
    let covered = !credential::of_domain(tx, domain).await?.is_empty();
    let observed = Observation {
        kind: ConditionKind::CertificateReady,
        // A certificate that still serves is ready, whatever its renewal does.
        status: if covered { ConditionStatus::True } else { ConditionStatus::False },
        reason: reason.to_owned(),
        message: text.to_owned(),
        next_check_at,
    };
    condition::set(tx, domain, &observed, now).await?;
    Ok(())
}
