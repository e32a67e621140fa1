//! Putting challenges where the CA will look, and taking them down.
//!
//! HTTP-01 and TLS-ALPN-01 go to every live edge and count as placed when each has confirmed (CONTRACTS: who waits for
//! whom); DNS-01 goes to our own responder, by the label that the tenant delegated to, or to whoever writes the name's zone
//! for us ([`crate::dns::writer`]), which [`super::removal`] takes down. Several issuers may validate one name at once: every
//! answer is for one exact token or value.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use portico_cert_store::DomainId;

use super::health::methods_at;
use super::issuer::Issuer;
use super::{Issuance, responders};
use crate::acme::{CaAuthorization, CaChallenge, ChallengeMethod};
use crate::distribution::UrgentOutcome;
use crate::dns::lookup::Found;
use crate::dns::writer::Unwritten;
use crate::plan::reconcile::usable;
use crate::store::order::OrderRow;
use crate::store::{StoreError, WriteTx, event, group, responder};

/// An edge forgets a challenge after this, should nobody tell it to: longer than any validation takes.
const CHALLENGE_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// Challenges that stand.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// For each name the method that the CA is to be told to look for.
    pub(super) chosen: Vec<(String, ChallengeMethod)>,
    /// On the edges: host and, for HTTP-01, token.
    urgent: Vec<(String, Option<String>)>,
}

/// Why challenges do not stand.
#[derive(Debug)]
pub(super) enum Unplaced {
    Store(StoreError),
    /// For these names there is no way that we and the CA both know.
    Names(Vec<(String, String)>),
    NotYet(String),
}

impl From<StoreError> for Unplaced {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Where a TXT record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Of our own responder's zone.
    Label(String),
    /// A whole name, which one of the writers writes.
    Name(String),
}

impl Place {
    /// A whole name has a dot at its end, a label has none at all.
    fn stored(&self) -> String {
        match self {
            Self::Label(label) => label.clone(),
            Self::Name(name) => format!("{name}."),
        }
    }
}

/// Where a CA looks for the record of a name, a wildcard's among them (RFC 8555 section 8.4).
pub(super) fn challenge_name(name: &str) -> String {
    format!("_acme-challenge.{}", name.strip_prefix("*.").unwrap_or(name))
}

struct Choice<'a> {
    name: &'a str,
    domain: DomainId,
    challenge: &'a CaChallenge,
}

impl Issuance {
    /// Puts up one challenge for each of these authorizations and waits until they stand.
    pub(super) async fn place_challenges(
        &self,
        issuer: &Issuer,
        row: &OrderRow,
        pending: &[CaAuthorization],
    ) -> Result<Placed, Unplaced> {
        let choices = self.choose(issuer, row, pending).await?;
        self.place_dns(row, &choices).await?;
        let expires =
            self.parts.clock.now_ms() + i64::try_from(CHALLENGE_LIFETIME.as_millis()).unwrap_or(i64::MAX);
        self.parts.store.assert_in_term()?;
        let pushes = choices.iter().filter(|choice| choice.challenge.method != ChallengeMethod::Dns01);
        let outcomes = join_all(pushes.map(|choice| self.push(choice, expires))).await;
        let mut placed = Placed {
            chosen: choices.iter().map(|c| (c.name.to_owned(), c.challenge.method)).collect(),
            urgent: Vec::new(),
        };
        let (live, is_known) = (self.fleet.live_edges(None), self.fleet.knows_who_is_live());
        let mut unconfirmed = None;
        for (host, token, outcome) in outcomes {
            placed.urgent.push((host.clone(), token));
            if outcome.acked.is_empty() {
                unconfirmed = Some(format!("no edge is connected to answer the challenge for {host}"));
            } else if let Some(edge) = outcome.not_acked.iter().find(|edge| live.contains(edge)) {
                unconfirmed = Some(format!("{edge} has not confirmed the challenge for {host}"));
            } else if let Some(edge) = outcome.not_acked.first().filter(|_| !is_known) {
                unconfirmed = Some(format!(
                    "{edge} has not confirmed the challenge for {host}, and whether it is connected is not known: this \
                     control plane was stopped or cut off from its database for a while"
                ));
            }
        }
        match unconfirmed {
            None => Ok(placed),
            // What is up stays: since an earlier run the CA may be looking for it, and the next run puts up the same.
            Some(text) => Err(Unplaced::NotYet(text)),
        }
    }

    /// Takes challenges down; nobody waits for it. Within the term only: the order may go on at another replica, where the CA
    /// is just about to look for the same ones.
    pub(super) fn clear_challenges(&self, placed: Placed) {
        let (fleet, store) = (self.fleet.clone(), self.parts.store.clone());
        tokio::spawn(async move {
            if store.assert_in_term().is_err() {
                return;
            }
            let term = store.term();
            let clear = placed
                .urgent
                .iter()
                .map(|(host, token)| fleet.clear_challenge(host, token.as_deref(), None, term));
            join_all(clear).await;
        });
    }

    /// Takes these TXT values out of the responder.
    pub(super) fn forget_records(&self, records: &[(String, String)]) {
        if let Some(zone) = &self.zone {
            for (label, value) in records {
                zone.remove(label, value);
            }
        }
        // Of an order that is over, whatever it has at whole names.
        self.left.notify_one();
    }

    async fn choose<'a>(
        &self,
        issuer: &Issuer,
        row: &OrderRow,
        pending: &'a [CaAuthorization],
    ) -> Result<Vec<Choice<'a>>, Unplaced> {
        let mut read = self.parts.store.read().await?;
        let mut choices = Vec::with_capacity(pending.len());
        let mut without = Vec::new();
        for authorization in pending {
            let name = authorization.name.as_str();
            let domain = row.names.iter().position(|n| n == name).and_then(|index| row.domains.get(index));
            let Some(&domain) = domain else {
                return Err(Unplaced::NotYet(format!("the CA asks about {name}, which was not ordered")));
            };
            let state = group::name_state(&mut read, domain).await?.unwrap_or_default();
            let at_issuer = methods_at(&state, issuer);
            let possible: Vec<&CaChallenge> = issuer
                .config
                .challenges
                .iter()
                .filter(|method| usable(name, **method) && at_issuer.contains(method))
                .filter_map(|method| authorization.challenges.iter().find(|c| c.method == *method))
                .collect();
            // After a failure the next method is tried.
            let index = usize::try_from(state.attempts).unwrap_or(0) % possible.len().max(1);
            match possible.get(index) {
                Some(challenge) => choices.push(Choice { name, domain, challenge }),
                None => without.push((name.to_owned(), no_way(at_issuer, authorization))),
            }
        }
        if without.is_empty() { Ok(choices) } else { Err(Unplaced::Names(without)) }
    }

    async fn place_dns(&self, row: &OrderRow, choices: &[Choice<'_>]) -> Result<(), Unplaced> {
        let by_dns: Vec<_> =
            choices.iter().filter(|c| c.challenge.method == ChallengeMethod::Dns01).collect();
        if by_dns.is_empty() {
            return Ok(());
        }
        let mut records: Vec<(Place, String)> = Vec::new();
        for choice in by_dns {
            for place in self.places(choice).await? {
                records.push((place, choice.challenge.dns_value.clone()));
            }
        }
        let mut tx: WriteTx = self.parts.store.begin().await?;
        for (place, value) in &records {
            let now = self.parts.clock.now_ms();
            group::add_challenge_record(&mut tx, &place.stored(), value, row.id, now).await?;
        }
        let is_answered =
            self.zone.is_some() && records.iter().any(|(place, _)| matches!(place, Place::Label(_)));
        let shared = is_answered && self.parts.store.is_shared();
        let number = if shared { Some(responder::records_change(&mut tx).await?) } else { None };
        tx.commit().await?;
        let mut names: Vec<(&str, &str)> = Vec::new();
        for (place, value) in &records {
            match (place, &self.zone) {
                (Place::Label(label), Some(zone)) => zone.add(label, value),
                (Place::Label(_), None) => {}
                (Place::Name(name), _) => names.push((name, value)),
            }
        }
        match self.writers.add_all(&names).await {
            Ok(()) => match number {
                Some(number) => responders::until_all_answer(self, number).await,
                None => Ok(()),
            },
            Err(unwritten) => {
                self.tell_unwritten(row, &unwritten).await?;
                let Unwritten { name, zone, .. } = unwritten;
                let text = format!(
                    "the DNS record at {name} is not written yet: zone {zone} does not take it at present; its operator is \
                     told why"
                );
                Err(Unplaced::NotYet(text))
            }
        }
    }

    /// Tells the operator, in words that are not for tenants: they are those of a program, a service or a server of the
    /// operator's.
    async fn tell_unwritten(&self, row: &OrderRow, unwritten: &Unwritten) -> Result<(), StoreError> {
        let Unwritten { name, zone, why } = unwritten;
        tracing::warn!(order = %row.id, name, zone, why, "a DNS record is not written; the order is tried again");
        let now = self.parts.clock.now_ms();
        if !self.writers.of(name).is_some_and(|writer| writer.may_tell(now)) {
            return Ok(());
        }
        let text = format!("the record at {name} is not written: {why}; orders that need it are tried again");
        let mut tx = self.parts.store.begin().await?;
        event::append(&mut tx, "dns.unwritten", None, zone, &text, now).await?;
        tx.commit().await
    }

    /// Where the TXT record of a name is to stand: at the labels that its tenant may have delegated to, or at its own place if
    /// somebody writes that for us.
    async fn places(&self, choice: &Choice<'_>) -> Result<Vec<Place>, Unplaced> {
        let own = challenge_name(choice.name);
        if self.writers.of(&own).is_some() {
            // In a zone that is written for all there is no delegation to be missed: the proof alone says whose the name is.
            if !group::is_orderable(&mut *self.parts.store.read().await?, choice.domain).await? {
                let why = "it is not served any more, or its proof of ownership does not stand";
                return Err(Unplaced::Names(vec![(choice.name.to_owned(), why.to_owned())]));
            }
            match self.lookup.cname(&own).await {
                Found::Nothing => return Ok(vec![Place::Name(own)]),
                Found::Records(_) => {}
                Found::Unknown(why) => return Err(Unplaced::NotYet(why)),
            }
        }
        let labels = group::challenge_labels(&mut *self.parts.store.read().await?, choice.domain).await?;
        let zone = self.parts.config.dns.challenge_zone.as_ref();
        match (&self.zone, zone.filter(|zone| self.writers.of(zone).is_some())) {
            (Some(_), _) => Ok(labels.into_iter().map(Place::Label).collect()),
            (None, Some(zone)) => {
                Ok(labels.into_iter().map(|label| Place::Name(format!("{label}.{zone}"))).collect())
            }
            (None, None) => Err(Unplaced::NotYet(format!("nobody writes the record at {own}"))),
        }
    }

    async fn push(&self, choice: &Choice<'_>, expires_ms: i64) -> (String, Option<String>, UrgentOutcome) {
        let (name, challenge) = (choice.name, choice.challenge);
        if challenge.method == ChallengeMethod::TlsAlpn01 {
            let outcome = self.fleet.set_tls_alpn01(name, challenge.digest, expires_ms, None).await;
            return (name.to_owned(), None, outcome);
        }
        let (token, answer) = (&challenge.token, &challenge.key_authorization);
        let outcome = self.fleet.set_http01(name, token, answer, expires_ms, None).await;
        (name.to_owned(), Some(token.clone()), outcome)
    }
}

fn no_way(possible: &[ChallengeMethod], authorization: &CaAuthorization) -> String {
    let list = |methods: &mut dyn Iterator<Item = ChallengeMethod>| {
        methods.map(ChallengeMethod::as_str).collect::<Vec<_>>().join(", ")
    };
    let offered = list(&mut authorization.challenges.iter().map(|challenge| challenge.method));
    let ours = list(&mut possible.iter().copied());
    format!(
        "the CA offers {offered}; for this name we can show {}",
        if ours.is_empty() { "none" } else { &ours }
    )
}

/// Starts the responder's table from the database: challenges of orders that a crash left open.
pub(super) async fn load_zone(issuance: &Arc<Issuance>) -> Result<(), StoreError> {
    if let Some(zone) = &issuance.zone {
        let mut read = issuance.parts.store.read().await?;
        zone.replace_all(group::challenge_records(&mut read).await?);
    }
    Ok(())
}
