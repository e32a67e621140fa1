//! The order machine: one order from intent to certificate.
//!
//! ```text
//! Planned ─newOrder─▶ Created ─place challenges─▶ Challenged ─CA validates─▶ Ready ─CSR─▶ Finalizing ─chain─▶ Issued
//!    └────────────────────────┴───── any of them ─────┴── names refused, order gone, bad chain ─▶ Failed{retry_at}
//! ```
//!
//! Where the edge of a cell keeps its keys, an order gets its request from there before all ([`edge_key`]).
//!
//! A step reads the row, acts at the CA, records. Everything that a later step needs is durable before the CA is asked,
//! so a crash anywhere resumes the same order by its URL. The one gap that no client can close is a crash between the
//! CA's making of the order and our noting of its URL: then the same newOrder is sent again (counted again in the
//! ledger), and a CA that reuses pending orders, as Boulder does, answers with the same one.
//!
//! What follows when a step does not lead to the next state is in [`super::stopped`].

use std::sync::Arc;
use std::time::Duration;

use portico_cert_store::OrderId;

use super::challenge::{Placed, Unplaced};
use super::health::Forbidden;
use super::issuer::Issuer;
use super::stopped::{Ran, Stop, stopped};
use super::{Issuance, edge_key, fail_point, fan_out, preflight, publish, spending};
use crate::acme::order::Wanted;
use crate::acme::{
    Account, AcmeError, AcmeErrorKind, AuthorizationStatus, CaAuthorization, CaOrder, CaOrderStatus,
    CertificateId,
};
use crate::store::order::{self, OrderRow, OrderState};
use crate::store::replacement;
use crate::store::{self, StoreError};

/// How long the CA may take to look at all challenges before the order is left for a later try.
const VALIDATION_DEADLINE: Duration = Duration::from_secs(90);
/// How long the CA may take to sign.
const SIGNING_DEADLINE: Duration = Duration::from_secs(90);
/// A CA's wish to be left alone within a step is honoured up to this; a longer one leaves the order for later.
const RETRY_AFTER_IN_STEP_MAX: Duration = Duration::from_secs(10);

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
            let ran = stopped(issuance, Some(issuer), &row, stop).await;
            // The CA may be looking: an order that goes on leaves what it looks for, to its next run or to their own time. So
            // does one of which nobody knows, as the store could not be asked.
            if let Some(placed) = at_ca.placed.take().filter(|_| matches!(ran, Ok(Ran::Over))) {
                issuance.clear_challenges(placed);
            }
            return ran;
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
            // Also of one that the CA knows, where the edge that had made its key has gone since.
            OrderState::Planned
            | OrderState::Created { .. }
            | OrderState::Challenged { .. }
            | OrderState::Ready { .. }
                if self.row.lacks_key() =>
            {
                edge_key::ask(self.issuance, self.row).await
            }
            OrderState::Planned => self.create(at_ca).await,
            OrderState::Created { url } => self.place_challenges(at_ca, url).await,
            OrderState::Challenged { url } => self.validate(at_ca, url).await,
            OrderState::Ready { url } => self.finalize(at_ca, url).await,
            OrderState::Finalizing { url } => self.collect(at_ca, url).await,
            OrderState::Issued | OrderState::Failed { .. } => Ok(()),
        }
    }

    async fn create(&self, at_ca: &mut AtCa) -> Result<(), Stop> {
        if store::edge_key::has_other(&mut *self.issuance.parts.store.read().await?, self.row).await? {
            let text = "the order of another cell for the same names is under way; this one follows it";
            return Err(Stop::NotYet(text.to_owned()));
        }
        self.issuance.check_caa(self.issuer, self.row).await?;
        if self.row.attempts == 0 {
            let dead = preflight::dead_names(self.issuance, self.issuer, self.row).await?;
            if !dead.is_empty() {
                return Err(Stop::Dead(dead));
            }
        }
        let account = self.account().await?;
        let turn = spending::take(self.issuance, self.issuer, self.row).await?;
        fail_point::reach("order.counted");
        let replaces = self.replaces();
        let wanted = Wanted {
            names: &self.row.names,
            replaces: replaces.as_ref(),
            profile: self.issuer.config.profile.as_deref(),
        };
        let (url, replaced) = match CaOrder::create(&account, &wanted).await {
            Ok(order) => {
                let url = order.url().to_owned();
                at_ca.order = Some(order);
                (url, replaces.is_some())
            }
            Err(error) => match error.location.clone() {
                // The answer was of no use, but the CA made the order and said where.
                Some(url) => (url, false),
                None if replaces.is_some() && refuses_replacement(self.row, &error) => {
                    return self.go_on_without_replacing(&error).await;
                }
                None => {
                    spending::not_made(self.issuance, self.issuer, self.row, &error).await?;
                    return Err(error.into());
                }
            },
        };
        drop(turn);
        fail_point::reach("order.created");
        let mut tx = self.issuance.parts.store.begin().await?;
        replacement::set_created(&mut tx, self.row.id, url, replaced, self.now()).await?;
        spending::made(&mut tx, self.row, self.now()).await?;
        tx.commit().await?;
        fail_point::reach("order.created_recorded");
        Ok(())
    }

    /// The certificate to say that this order replaces, at a CA that has such orders.
    fn replaces(&self) -> Option<CertificateId> {
        spending::replaces(self.issuer, self.row)
    }

    /// The CA will not have it that this order replaces that certificate: the same order, once more, replaces none.
    async fn go_on_without_replacing(&self, error: &AcmeError) -> Result<(), Stop> {
        let row = self.row;
        tracing::info!(order = %row.id, names = ?row.names, %error, "the CA refuses the replacement; ordered without");
        let mut tx = self.issuance.parts.store.begin().await?;
        spending::refused(&mut tx, row).await?;
        // What has replaced it may be this order, whose making we did not hear of: its account gives it again.
        let account = if error.kind == AcmeErrorKind::OrderGone { row.account } else { None };
        replacement::drop_replaces(&mut tx, row.id, account, &error.to_string(), self.now()).await?;
        tx.commit().await?;
        crate::metrics::replacement_refused();
        Ok(())
    }

    async fn place_challenges(&self, at_ca: &mut AtCa, url: &str) -> Result<(), Stop> {
        let order = self.order(at_ca, url).await?;
        match order.status() {
            CaOrderStatus::Pending => {}
            CaOrderStatus::Ready => {
                fan_out::note(self.issuance, self.row, order).await?;
                return self.record(OrderState::Ready { url: url.to_owned() }).await;
            }
            CaOrderStatus::Processing | CaOrderStatus::Valid => {
                return self.record(OrderState::Finalizing { url: url.to_owned() }).await;
            }
            CaOrderStatus::Invalid => return Err(self.invalid(order).await),
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
            return Err(self.invalid(order).await);
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
                CaOrderStatus::Invalid => return Err(self.invalid(order).await),
            }
            polls.pause(order.retry_after()).await.ok_or_else(|| not_in_time("looked at all challenges"))?;
            order.refresh().await?;
        };
        fail_point::reach("order.validated");
        if let Some(placed) = placed.take() {
            self.issuance.clear_challenges(placed);
        }
        fan_out::note(self.issuance, self.row, order).await?;
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
                return Err(match (self.invalid(order).await, refusal) {
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
                CaOrderStatus::Invalid => return Err(self.invalid(order).await),
            }
            polls.pause(order.retry_after()).await.ok_or_else(|| not_in_time("signed"))?;
            order.refresh().await?;
        };
        fail_point::reach("order.certificate_fetched");
        match publish::publish(self.issuance, self.issuer, self.row, &pem).await {
            Ok(()) => {}
            Err(publish::NotPublished::Store(error)) => return Err(Stop::Store(error)),
            Err(publish::NotPublished::Garbled(text)) => return Err(AcmeError::garbage(&text).into()),
            Err(publish::NotPublished::Gate(text)) => return Err(Stop::Refused(text)),
            Err(publish::NotPublished::Early(until, text)) => return Err(Stop::Early(until, text)),
            Err(publish::NotPublished::KeyCompromised) => {
                return Err(AcmeError::order_ended("its key was reported compromised").into());
            }
        }
        self.issuer.has_issued();
        fail_point::reach("order.published");
        Ok(())
    }

    /// The order at the CA, asked for by its URL unless this run has it already.
    async fn order<'o>(&self, at_ca: &'o mut AtCa, url: &str) -> Result<&'o mut CaOrder, Stop> {
        if at_ca.order.is_none() {
            let account = self.account().await?;
            at_ca.order = Some(CaOrder::resume(&account, url).await?);
        }
        Ok(at_ca.order.as_mut().expect("it was put there if it was missing"))
    }

    async fn account(&self) -> Result<Account, Stop> {
        Ok(self.issuer.account(&self.issuance.parts, self.row.account).await?)
    }

    async fn record(&self, state: OrderState) -> Result<(), Stop> {
        let mut tx = self.issuance.parts.store.begin().await?;
        order::set_state(&mut tx, self.row.id, &state, self.now()).await?;
        if matches!(state, OrderState::Created { .. }) {
            spending::made(&mut tx, self.row, self.now()).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Why the CA ended the order. Validations that failed are counted.
    async fn invalid(&self, order: &mut CaOrder) -> Stop {
        let error = order.error();
        let authorizations = match order.authorizations(true).await {
            Err(error) => return error.into(),
            Ok(authorizations) => authorizations,
        };
        match spending::failed(self.issuance, self.issuer, self.row, &authorizations).await {
            Err(error) => error.into(),
            Ok(()) => culprits(authorizations, error),
        }
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

/// Whether a newOrder was refused for what it replaces, as far as can be told: no name of ours is named.
fn refuses_replacement(row: &OrderRow, error: &AcmeError) -> bool {
    let names_one = error.refused_names.iter().any(|(name, _)| row.names.contains(name));
    error.nothing_made && !names_one && (error.is_refusal() || error.kind == AcmeErrorKind::OrderGone)
}

fn not_in_time(what: &str) -> Stop {
    Stop::Acme(AcmeError::unavailable(&format!("it has not {what} in time")))
}

/// Which names made the order invalid: not those whose validation the CA itself could not carry out.
fn culprits(authorizations: Vec<CaAuthorization>, error: Option<AcmeError>) -> Stop {
    let mut names = Vec::new();
    let mut forbidden = Vec::new();
    let mut of_ca = None;
    for failed in authorizations.into_iter().filter(|a| a.status == AuthorizationStatus::Failed) {
        match failed.error {
            Some(error) if error.is_of_ca() => of_ca = Some(error.detail),
            Some(AcmeError { forbids: Some(kind), detail, .. }) => {
                forbidden.push(Forbidden { name: failed.name, kind, why: detail });
            }
            Some(error) => names.push((failed.name, error.detail)),
            None => names.push((failed.name, "the CA could not validate it".to_owned())),
        }
    }
    if names.is_empty() && !forbidden.is_empty() {
        return Stop::Forbidden(forbidden);
    }
    names.extend(forbidden.into_iter().map(|one| (one.name, one.why)));
    match (names.is_empty(), of_ca) {
        (false, _) => Stop::Names(names),
        (true, Some(words)) => Stop::Acme(AcmeError::order_ended(&words)),
        (true, None) => {
            Stop::Acme(error.unwrap_or_else(|| AcmeError::order_ended("without a word about a name")))
        }
    }
}
