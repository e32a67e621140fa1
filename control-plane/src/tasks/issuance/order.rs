//! The order machine: one order from intent to certificate.
//!
//! ```text
//! Planned ─newOrder─▶ Created ─place challenges─▶ Challenged ─CA validates─▶ Ready ─CSR─▶ Finalizing ─chain─▶ Issued
//!    └────────────────────────┴───── any of them ─────┴── names refused, order gone, bad chain ─▶ Failed{retry_at}
//! ```
//!
//! A step reads the row, acts at the CA, records. Everything that a later step needs is durable before the CA is asked,
//! so a crash anywhere resumes the same order by its URL. The one gap that no client can close is a crash between the
//! CA's making of the order and our noting of its URL: then the same newOrder is sent again (counted again in the
//! ledger), and a CA that reuses pending orders, as Boulder does, answers with the same one.
//!
//! Failures are told apart: of the CA or the way to it (the step is tried again, soon and then slower, the row stays),
//! of single names (they are ejected from the group, the others go on at once), of the order as a whole (it ends). Where
//! the CA refuses an order and names no culprit, its names are ordered in two halves, and so on: one bad name among n is
//! found with at most 2 log2 n further orders, each of which the ledger counts, refused or not. A CA that refuses order
//! after order and issues none has a fault of its own: then nothing is halved.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use portico_api::v1::{ConditionKind, ConditionStatus};
use portico_cert_store::{DomainId, NamePattern, OrderId};

use super::challenge::{Placed, Unplaced};
use super::issuer::Issuer;
use super::publish;
use super::{Issuance, fail_point};
use crate::acme::{AcmeError, AcmeErrorKind, AuthorizationStatus, CaOrder, CaOrderStatus};
use crate::plan::ledger::{self, Book, DAY_MS, DAYS_7_MS, HOUR_MS, HOURS_3_MS, NoRoom, Spent};
use crate::plan::timing;
use crate::store::condition::{self, Observation};
use crate::store::order::{self, LedgerEntry, OrderRow, OrderState};
use crate::store::{StoreError, WriteTx, credential, event, group};

/// How long the CA may take to look at all challenges before the order is left for a later try.
const VALIDATION_DEADLINE: Duration = Duration::from_secs(90);
/// How long the CA may take to sign.
const SIGNING_DEADLINE: Duration = Duration::from_secs(90);
/// A CA's wish to be left alone within a step is honoured up to this; a longer one leaves the order for later.
const RETRY_AFTER_IN_STEP_MAX: Duration = Duration::from_secs(10);
/// An account limit without Retry-After holds the issuer for this long.
const ACCOUNT_HOLD_MS: i64 = 10 * 60_000;

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    Over,
    /// Its row says when to go on.
    Waits,
}

/// Why a step did not lead to the next state.
#[derive(Debug)]
enum Stop {
    Store(StoreError),
    Acme(AcmeError),
    /// These names failed, with the CA's or our words.
    Names(Vec<(String, String)>),
    /// Our own limit.
    NoRoom(NoRoom),
    /// Something on our side is not as it must be, for now.
    NotYet(String),
    /// The certificate must not go live.
    Refused(String),
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

/// What a run holds in memory; all of it can be had again from the row and the CA.
#[derive(Debug, Default)]
struct AtCa {
    order: Option<CaOrder>,
    placed: Option<Placed>,
}

/// Carries an order on until it is over or has to wait.
///
/// # Errors
/// The store's; the order goes on from its last recorded state later.
pub(super) async fn run(issuance: &Arc<Issuance>, id: OrderId) -> Result<Ran, StoreError> {
    let mut at_ca = AtCa::default();
    loop {
        let row = order::find(&mut *issuance.parts.store.read().await?, id).await?;
        let Some(row) = row.filter(|row| !row.state.is_over()) else { return Ok(Ran::Over) };
        let Some(issuer) = issuance.issuer(&row.issuer) else {
            let text = format!("issuer \"{}\" is no longer configured", row.issuer);
            return stopped(issuance, None, &row, Stop::NotYet(text)).await;
        };
        let step = Step { issuance, issuer, row: &row };
        if let Err(stop) = step.run(&mut at_ca).await {
            if let Some(placed) = at_ca.placed.take() {
                issuance.clear_challenges(placed);
            }
            return stopped(issuance, Some(issuer), &row, stop).await;
        }
    }
}

/// One step of one order.
struct Step<'a> {
    issuance: &'a Arc<Issuance>,
    issuer: &'a Issuer,
    row: &'a OrderRow,
}

impl Step<'_> {
    async fn run(&self, at_ca: &mut AtCa) -> Result<(), Stop> {
        match &self.row.state {
            OrderState::Planned => self.create(at_ca).await,
            OrderState::Created { url } => self.place_challenges(at_ca, url).await,
            OrderState::Challenged { url } => self.validate(at_ca, url).await,
            OrderState::Ready { url } => self.finalize(at_ca, url).await,
            OrderState::Finalizing { url } => self.collect(at_ca, url).await,
            OrderState::Issued | OrderState::Failed { .. } => Ok(()),
        }
    }

    async fn create(&self, at_ca: &mut AtCa) -> Result<(), Stop> {
        let account = self.issuer.account(&self.issuance.parts).await?;
        self.count().await?;
        fail_point::reach("order.counted");
        let url = match CaOrder::create(&account, &self.row.names).await {
            Ok(order) => {
                let url = order.url().to_owned();
                at_ca.order = Some(order);
                url
            }
            Err(error) => match error.location.clone() {
                // The answer was of no use, but the CA made the order and said where.
                Some(url) => url,
                None => {
                    if error.nothing_made && !names_nobody(self.row, &error) {
                        self.uncount().await?;
                    }
                    return Err(error.into());
                }
            },
        };
        fail_point::reach("order.created");
        self.record(OrderState::Created { url }).await?;
        fail_point::reach("order.created_recorded");
        Ok(())
    }

    /// Checks our own limits and counts this request, in the one transaction that no other order's can overlap.
    async fn count(&self) -> Result<(), Stop> {
        let (row, now) = (self.row, self.now());
        let registered_domains = registered_domains(&row.names);
        let mut tx = self.issuance.parts.store.begin().await?;
        let mut book = Book {
            account: spent(order::requests_of_account(&mut tx, &row.issuer, now - HOURS_3_MS).await?),
            ..Book::default()
        };
        // Sent before and its answer lost: the certificate that it may lead to is counted already.
        if !order::was_requested(&mut tx, row.id).await? {
            let since = now - DAYS_7_MS;
            book.exact_set = spent(order::requests_of_set(&mut tx, &row.issuer, &row.name_set, since).await?);
            for domain in &registered_domains {
                let found = order::requests_of_domain(&mut tx, &row.issuer, domain, since).await?;
                book.registered_domains.push(spent(found));
            }
            if let Some(tenant) = row.tenant
                && has_new_name(&mut tx, row).await?
            {
                let (hour, day) = (now - HOUR_MS, now - DAY_MS);
                book.tenant_1h = spent(order::requests_of_tenant(&mut tx, tenant, hour).await?);
                book.tenant_24h = spent(order::requests_of_tenant(&mut tx, tenant, day).await?);
            }
        }
        ledger::check(&self.issuer.config.limits, &book, row.renewal).map_err(Stop::NoRoom)?;
        let entry = LedgerEntry {
            issuer: &row.issuer,
            order: row.id,
            tenant: row.tenant,
            name_set: &row.name_set,
            renewal: row.renewal,
            registered_domains: &registered_domains,
        };
        order::count_request(&mut tx, &entry, now).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn uncount(&self) -> Result<(), Stop> {
        let mut tx = self.issuance.parts.store.begin().await?;
        order::uncount_last_request(&mut tx, self.row.id).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn place_challenges(&self, at_ca: &mut AtCa, url: &str) -> Result<(), Stop> {
        let order = self.order(at_ca, url).await?;
        match order.status() {
            CaOrderStatus::Pending => {}
            CaOrderStatus::Ready => return self.record(OrderState::Ready { url: url.to_owned() }).await,
            CaOrderStatus::Processing | CaOrderStatus::Valid => {
                return self.record(OrderState::Finalizing { url: url.to_owned() }).await;
            }
            CaOrderStatus::Invalid => return Err(invalid(order).await),
        }
        let placed = self.place(order, false).await?;
        at_ca.placed = Some(placed);
        fail_point::reach("order.challenges_placed");
        self.record(OrderState::Challenged { url: url.to_owned() }).await?;
        fail_point::reach("order.challenged_recorded");
        Ok(())
    }

    async fn place(&self, order: &mut CaOrder, fresh: bool) -> Result<Placed, Stop> {
        let authorizations = order.authorizations(fresh).await?;
        if authorizations.iter().any(|authorization| authorization.status == AuthorizationStatus::Failed) {
            return Err(invalid(order).await);
        }
        let pending: Vec<_> =
            authorizations.into_iter().filter(|a| a.status == AuthorizationStatus::Pending).collect();
        match self.issuance.place_challenges(self.issuer, self.row, &pending).await {
            Ok(placed) => Ok(placed),
            Err(Unplaced::Store(error)) => Err(Stop::Store(error)),
            Err(Unplaced::Names(names)) => Err(Stop::Names(names)),
            Err(Unplaced::NotYet(text)) => Err(Stop::NotYet(text)),
        }
    }

    async fn validate(&self, at_ca: &mut AtCa, url: &str) -> Result<(), Stop> {
        self.order(at_ca, url).await?;
        let AtCa { order: Some(order), placed } = at_ca else { return Ok(()) };
        if placed.is_none() && order.status() == CaOrderStatus::Pending {
            // After a crash the edges may have forgotten: they hold challenges in memory only.
            *placed = Some(self.place(order, true).await?);
        }
        if let Some(placed) = placed {
            order.set_ready(&placed.chosen).await?;
        }
        fail_point::reach("order.challenges_ready");
        let mut polls = self.polls(VALIDATION_DEADLINE);
        let next = loop {
            match order.status() {
                CaOrderStatus::Pending => {}
                CaOrderStatus::Ready => break OrderState::Ready { url: url.to_owned() },
                CaOrderStatus::Processing | CaOrderStatus::Valid => {
                    break OrderState::Finalizing { url: url.to_owned() };
                }
                CaOrderStatus::Invalid => return Err(invalid(order).await),
            }
            polls.pause(order.retry_after()).await.ok_or_else(|| not_in_time("looked at all challenges"))?;
            order.refresh().await?;
        };
        fail_point::reach("order.validated");
        if let Some(placed) = placed.take() {
            self.issuance.clear_challenges(placed);
        }
        self.record(next).await?;
        fail_point::reach("order.ready_recorded");
        Ok(())
    }

    async fn finalize(&self, at_ca: &mut AtCa, url: &str) -> Result<(), Stop> {
        let order = self.order(at_ca, url).await?;
        let mut refusal = None;
        if order.status() == CaOrderStatus::Ready
            && let Err(error) = order.finalize(&self.row.csr).await
        {
            // It may have been taken all the same: the order says.
            if order.refresh().await? == CaOrderStatus::Ready {
                return Err(error.into());
            }
            refusal = Some(error).filter(AcmeError::is_refusal);
        }
        fail_point::reach("order.finalized");
        let next = match order.status() {
            CaOrderStatus::Pending => OrderState::Created { url: url.to_owned() },
            CaOrderStatus::Invalid => {
                return Err(match (invalid(order).await, refusal) {
                    (Stop::Acme(ended), Some(refusal)) if !ended.is_refusal() => refusal.into(),
                    (stop, _) => stop,
                });
            }
            CaOrderStatus::Ready | CaOrderStatus::Processing | CaOrderStatus::Valid => {
                OrderState::Finalizing { url: url.to_owned() }
            }
        };
        self.record(next).await?;
        fail_point::reach("order.finalizing_recorded");
        Ok(())
    }

    async fn collect(&self, at_ca: &mut AtCa, url: &str) -> Result<(), Stop> {
        let order = self.order(at_ca, url).await?;
        let mut polls = self.polls(SIGNING_DEADLINE);
        let pem = loop {
            match order.status() {
                CaOrderStatus::Valid => {
                    if let Some(pem) = order.certificate().await? {
                        break pem;
                    }
                }
                CaOrderStatus::Processing => {}
                // The request to sign was lost.
                CaOrderStatus::Ready => return self.record(OrderState::Ready { url: url.to_owned() }).await,
                CaOrderStatus::Pending => {
                    return self.record(OrderState::Created { url: url.to_owned() }).await;
                }
                CaOrderStatus::Invalid => return Err(invalid(order).await),
            }
            polls.pause(order.retry_after()).await.ok_or_else(|| not_in_time("signed"))?;
            order.refresh().await?;
        };
        fail_point::reach("order.certificate_fetched");
        match publish::publish(self.issuance, self.issuer, self.row, &pem).await {
            Ok(()) => {}
            Err(publish::NotPublished::Store(error)) => return Err(Stop::Store(error)),
            Err(publish::NotPublished::Garbled(text)) => return Err(Stop::NotYet(text)),
            Err(publish::NotPublished::Gate(text)) => return Err(Stop::Refused(text)),
        }
        self.issuer.has_issued();
        fail_point::reach("order.published");
        Ok(())
    }

    /// The order at the CA, asked for by its URL unless this run has it already.
    async fn order<'o>(&self, at_ca: &'o mut AtCa, url: &str) -> Result<&'o mut CaOrder, Stop> {
        if at_ca.order.is_none() {
            let account = self.issuer.account(&self.issuance.parts).await?;
            at_ca.order = Some(CaOrder::resume(&account, url).await?);
        }
        Ok(at_ca.order.as_mut().expect("it was put there if it was missing"))
    }

    async fn record(&self, state: OrderState) -> Result<(), Stop> {
        let mut tx = self.issuance.parts.store.begin().await?;
        order::set_state(&mut tx, self.row.id, &state, self.now()).await?;
        tx.commit().await?;
        Ok(())
    }

    fn polls(&self, deadline: Duration) -> Polls {
        let longest = Duration::from_millis(self.issuer.config.poll_ms);
        Polls {
            pause: (longest / 8).max(Duration::from_millis(5)),
            longest,
            until: tokio::time::Instant::now() + deadline,
        }
    }

    fn now(&self) -> i64 {
        self.issuance.parts.clock.now_ms()
    }
}

/// Pauses between looks at an order: short ones first.
struct Polls {
    pause: Duration,
    longest: Duration,
    until: tokio::time::Instant,
}

impl Polls {
    /// `None`: the deadline has passed.
    async fn pause(&mut self, retry_after: Option<Duration>) -> Option<()> {
        let pause = match retry_after {
            Some(wish) => wish.clamp(self.pause, RETRY_AFTER_IN_STEP_MAX),
            None => self.pause,
        };
        let next = tokio::time::Instant::now() + pause;
        if next > self.until {
            return None;
        }
        tokio::time::sleep_until(next).await;
        self.pause = (self.pause * 2).min(self.longest.max(self.pause));
        Some(())
    }
}

fn not_in_time(what: &str) -> Stop {
    Stop::NotYet(format!("the CA has not {what} in time"))
}

/// Which names made the order invalid.
async fn invalid(order: &mut CaOrder) -> Stop {
    let error = order.error();
    match order.authorizations(true).await {
        Err(error) => error.into(),
        Ok(authorizations) => {
            let failed: Vec<_> = authorizations
                .into_iter()
                .filter(|authorization| authorization.status == AuthorizationStatus::Failed)
                .map(|a| (a.name, a.error.unwrap_or_else(|| "the CA could not validate it".to_owned())))
                .collect();
            if failed.is_empty() {
                Stop::Acme(error.unwrap_or_else(AcmeError::order_ended))
            } else {
                Stop::Names(failed)
            }
        }
    }
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

fn spent((count, oldest_ms): (u32, Option<i64>)) -> Spent {
    Spent { count, oldest_ms }
}

fn registered_domains(names: &[String]) -> Vec<String> {
    let registered = |name: &String| {
        let pattern = NamePattern::parse(name).ok()?;
        Some(pattern.registered_domain().unwrap_or_else(|| pattern.base().as_str()).to_owned())
    };
    let found: BTreeSet<String> = names.iter().filter_map(registered).collect();
    found.into_iter().collect()
}

/// Records why an order does not go on now.
async fn stopped(
    issuance: &Arc<Issuance>,
    issuer: Option<&Issuer>,
    row: &OrderRow,
    stop: Stop,
) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let seed = timing::seed_of(row.lineage) ^ u64::from(row.attempts);
    let transient = now + timing::after_transient(row.attempts + 1, seed);
    match stop {
        Stop::Store(error) => Err(error),
        Stop::Names(names) => eject(issuance, row, &names).await,
        Stop::Refused(text) => end(issuance, row, "CertificateRefused", &text).await,
        Stop::NotYet(text) => wait(issuance, row, transient, "NotYet", &text).await,
        Stop::NoRoom(no_room) => {
            let (limit, next) = (no_room.limit.text(), crate::clock::rfc3339(no_room.next_ms));
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
            wait(issuance, row, no_room.next_ms, reason, &text).await
        }
        Stop::Acme(error) => held_up(issuance, issuer, row, error).await,
    }
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
    let seed = timing::seed_of(row.lineage) ^ u64::from(row.attempts);
    let asked = error.retry_after.map(|wait| now + i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    let at = |otherwise: i64| asked.map_or(otherwise, |asked| asked.max(now + 1000));
    let transient = at(now + timing::after_transient(row.attempts + 1, seed));
    let (text, reason) = (error.to_string(), error.kind.reason());
    let until = match error.kind {
        AcmeErrorKind::AccountLimited => {
            let until = at(now + ACCOUNT_HOLD_MS);
            hold(issuer, until);
            until
        }
        AcmeErrorKind::NamesLimited => at(now + timing::after_failures(row.attempts + 1, seed)),
        AcmeErrorKind::Unavailable => {
            if let Some(until) = asked {
                hold(issuer, until);
            }
            transient
        }
        AcmeErrorKind::BadNonce | AcmeErrorKind::Garbage | AcmeErrorKind::Ours => transient,
        AcmeErrorKind::Account => {
            if let Some(issuer) = issuer
                && let Err(error) = issuer.forget_account(&issuance.parts).await
            {
                tracing::warn!(%error, "the account's row could not be written");
            }
            transient
        }
        AcmeErrorKind::OrderGone => return end(issuance, row, reason, &text).await,
        AcmeErrorKind::NamesRefused | AcmeErrorKind::RequestRefused => {
            return if !names_nobody(row, &error) {
                eject(issuance, row, &refused_names(row, &error)).await
            } else if is_about_names(row, &error) && issuer.is_some_and(Issuer::may_halve) {
                split(issuance, row, reason, &text).await
            } else {
                end(issuance, row, reason, &text).await
            };
        }
    };
    wait(issuance, row, until, reason, &text).await
}

fn hold(issuer: Option<&Issuer>, until_ms: i64) {
    if let Some(issuer) = issuer {
        issuer.hold(until_ms);
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
fn names_nobody(row: &OrderRow, error: &AcmeError) -> bool {
    error.is_refusal() && refused_names(row, error).is_empty()
}

/// A request with names in it is refused: at other steps it is the order or a challenge that the CA finds fault with.
fn is_about_names(row: &OrderRow, error: &AcmeError) -> bool {
    error.kind == AcmeErrorKind::NamesRefused
        || matches!(row.state, OrderState::Planned | OrderState::Ready { .. } | OrderState::Finalizing { .. })
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
        for domain in &row.domains {
            observe_certificate(&mut tx, *domain, reason, text, Some(at), now).await?;
        }
    }
    tx.commit().await?;
    crate::metrics::order_postponed(reason);
    Ok(Ran::Waits)
}

/// The order is over without fault of a single name; another may follow after the back-off.
async fn end(
    issuance: &Arc<Issuance>,
    row: &OrderRow,
    reason: &'static str,
    text: &str,
) -> Result<Ran, StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let failed = order::failed_in_a_row(&mut tx, row.lineage).await?;
    let retry_at = now + timing::after_failures(failed + 1, timing::seed_of(row.lineage));
    order::fail(&mut tx, row.id, retry_at, text, now).await?;
    for domain in &row.domains {
        observe_certificate(&mut tx, *domain, reason, text, Some(retry_at), now).await?;
    }
    let kind = if row.renewal { "certificate.renewal_failed" } else { "certificate.order_failed" };
    let text = format!("{}: {text}", row.names.join(", "));
    event::append(&mut tx, kind, row.tenant, &row.id.to_string(), &text, now).await?;
    tracing::warn!(order = %row.id, names = ?row.names, reason, text, "order failed");
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

/// Takes failed names out: the order is over, each of them is ordered alone after its back-off, the rest at once.
async fn eject(
    issuance: &Arc<Issuance>,
    row: &OrderRow,
    failed: &[(String, String)],
) -> Result<Ran, StoreError> {
    if !failed.iter().any(|(name, _)| row.names.contains(name)) {
        // With a back-off: nobody is ejected, so the same order would be refused again at once.
        let text = format!("the CA finds fault with a name that was not ordered: {failed:?}");
        return end(issuance, row, AcmeErrorKind::Garbage.reason(), &text).await;
    }
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    let mut last_retry = now;
    let mut ejected = 0;
    for (name, domain) in row.names.iter().zip(&row.domains) {
        let Some((_, words)) = failed.iter().find(|(failed, _)| failed == name) else { continue };
        ejected += 1;
        let mut state = group::name_state(&mut tx, *domain).await?.unwrap_or_default();
        state.failed_before = true;
        state.part = 0;
        state.attempts += 1;
        // Pre-flight looks again before the next order.
        state.methods.clear();
        let seed = timing::seed_of(row.lineage) ^ u64::from(state.attempts);
        state.next_at = now + timing::after_failures(state.attempts, seed);
        state.error = Some(words.clone());
        last_retry = last_retry.max(state.next_at);
        group::put_name_state(&mut tx, *domain, &state, now).await?;
        let text = format!("the CA could not validate {name}: {words}");
        observe_certificate(&mut tx, *domain, "ValidationFailed", &text, Some(state.next_at), now).await?;
        let kind = if row.renewal { "certificate.renewal_failed" } else { "domain.failed" };
        let text = format!(
            "{text}; mend it and run `portico domain retry {name}` for a new try at once, else it is tried again at {}",
            crate::clock::rfc3339(state.next_at)
        );
        event::append(&mut tx, kind, row.tenant, &domain.to_string(), &text, now).await?;
    }
    let retry_at = if ejected < row.names.len() { now } else { last_retry };
    let names: Vec<_> = failed.iter().map(|(name, _)| name.as_str()).collect();
    order::fail(&mut tx, row.id, retry_at, &format!("failed: {}", names.join(", ")), now).await?;
    tracing::info!(order = %row.id, ?failed, "names ejected");
    over(issuance, tx, row, "ValidationFailed").await
}

/// Commits the end of an order that has failed: what it had put up is taken down, and it is counted.
async fn over(
    issuance: &Arc<Issuance>,
    mut tx: WriteTx,
    row: &OrderRow,
    reason: &'static str,
) -> Result<Ran, StoreError> {
    let records = close(&mut tx, row).await?;
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
