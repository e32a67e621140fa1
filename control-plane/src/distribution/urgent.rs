//! Urgent messages: challenges and suspensions, pushed to all edges at once and acknowledged within a deadline.
//!
//! They are no part of the generations and live in memory only. A challenge stands until it is cleared or expires, and is
//! told again to each edge that connects meanwhile. Who is waited for: every live edge, and one that left less than 10 s
//! ago; any other is named as not acked.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use portico_api::distribution::{
    ClearChallenge, ControlMessage, DRILL_NAMES_MAX, Drill, DrillFault, DrillTarget, KeyRequest, SetHttp01,
    SetTlsAlpn01, Suspend, Urgent, UrgentAck, control_message, urgent,
};
use portico_api::v1;
use portico_cert_store::{CellId, DomainId, EdgeId, TenantId};
use prost::Message as _;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;

use super::fleet::Fleet;
use super::relay::Told;
use super::{metrics, projection};
use crate::clock::{self, MINUTE_MS};
use crate::limits::PASSED_ON_MAX;
use crate::store::lease::Term;
use crate::store::relay::RelayedAnswer;

/// How long a challenge's push waits for its acks.
pub const CHALLENGE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a suspension waits for its acks.
pub const SUSPEND_DEADLINE: Duration = Duration::from_secs(1);
/// How long a part of a drill waits for its answers.
pub(super) const DRILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long an edge may take to make a key: it writes two files.
const KEY_DEADLINE: Duration = Duration::from_secs(10);
/// Challenges that stand at the same time; further ones push the earliest to expire out.
const STANDING_MAX: usize = 10_000;
/// An edge forgets an urgent message that names no end after this long.
const LIFETIME_MS: i64 = MINUTE_MS;

/// Who confirmed an urgent message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrgentOutcome {
    pub acked: Vec<EdgeId>,
    /// No stream, no answer within the deadline, or an answer that says no.
    pub not_acked: Vec<EdgeId>,
    /// What a purge has met, by those of `acked` that kept any of it.
    pub met: BTreeMap<EdgeId, u64>,
    /// Why, of those that said no.
    pub refusals: Vec<(EdgeId, String)>,
    /// What edges have found at a drill.
    pub faults: Vec<(EdgeId, DrillFault)>,
    /// Certificate requests (PKCS#10, DER) for keys that edges have made.
    pub requests: Vec<(EdgeId, Vec<u8>)>,
}

impl UrgentOutcome {
    /// Every edge that was to hear of it, with what it has against it.
    pub fn words(&self) -> Vec<(EdgeId, Option<String>)> {
        let refusal =
            |edge: &EdgeId| self.refusals.iter().find(|(of, _)| of == edge).map(|(_, text)| text.clone());
        let silent = || "away, or it has not answered in time".to_owned();
        let acked = self.acked.iter().map(|edge| (*edge, None));
        let not = self.not_acked.iter().map(|edge| (*edge, Some(refusal(edge).unwrap_or_else(silent))));
        acked.chain(not).collect()
    }
}

/// What is under way and what stands.
#[derive(Debug, Default)]
pub(super) struct Urgents {
    sequence: u64,
    standing: BTreeMap<Slot, Standing>,
    waiting: HashMap<u64, Waiting>,
    /// Messages of other control planes: ours by theirs.
    passed_on: BTreeMap<u64, i64>,
}

/// What a later push replaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Slot {
    Http01 { host: String, token: String },
    TlsAlpn01 { host: String },
}

#[derive(Debug)]
struct Standing {
    message: Urgent,
    cells: Option<Vec<CellId>>,
}

#[derive(Debug)]
struct Waiting {
    expected: HashSet<EdgeId>,
    acked: Vec<EdgeId>,
    refused: Vec<EdgeId>,
    met: BTreeMap<EdgeId, u64>,
    refusals: Vec<(EdgeId, String)>,
    faults: Vec<(EdgeId, DrillFault)>,
    requests: Vec<(EdgeId, Vec<u8>)>,
    /// Taken when nobody is expected any more.
    done: Option<oneshot::Sender<()>>,
}

impl Fleet {
    /// Lets the edges answer an HTTP-01 challenge (RFC 8555 section 8.3) until `expires_ms` (Unix milliseconds).
    pub async fn set_http01(
        &self,
        host: &str,
        token: &str,
        key_authorization: &str,
        expires_ms: i64,
        cells: Option<&[CellId]>,
    ) -> UrgentOutcome {
        let action = urgent::Action::SetHttp01(SetHttp01 {
            host: host.to_owned(),
            token: token.to_owned(),
            key_authorization: key_authorization.to_owned(),
        });
        self.push(action, expires_ms, cells, CHALLENGE_DEADLINE).await
    }

    /// Lets the edges answer a TLS-ALPN-01 challenge (RFC 8737); `digest` is the SHA-256 of the key authorization.
    pub async fn set_tls_alpn01(
        &self,
        host: &str,
        digest: [u8; 32],
        expires_ms: i64,
        cells: Option<&[CellId]>,
    ) -> UrgentOutcome {
        let action = urgent::Action::SetTlsAlpn01(SetTlsAlpn01 {
            host: host.to_owned(),
            digest: digest.to_vec().into(),
        });
        self.push(action, expires_ms, cells, CHALLENGE_DEADLINE).await
    }

    /// Ends a challenge: the HTTP-01 one of `token`, or with `None` the host's TLS-ALPN-01 challenge. Other control planes are
    /// told within `term` only: an order may go on at one of them.
    pub async fn clear_challenge(
        &self,
        host: &str,
        token: Option<&str>,
        cells: Option<&[CellId]>,
        term: Option<&Term>,
    ) -> UrgentOutcome {
        let action = urgent::Action::ClearChallenge(ClearChallenge {
            host: host.to_owned(),
            token: token.unwrap_or_default().to_owned(),
        });
        let expires = self.0.clock.now_ms() + LIFETIME_MS;
        let sent = self.send_urgent(action, expires, cells, term);
        self.outcome(sent, CHALLENGE_DEADLINE).await
    }

    /// Suspends (or with `None` resumes) a tenant, or one domain of it, on all edges. `version`: of the resource that
    /// carries the same change durably.
    pub async fn suspend(
        &self,
        tenant: TenantId,
        domain: Option<DomainId>,
        suspension: Option<&v1::Suspension>,
        version: u64,
    ) -> UrgentOutcome {
        let action = urgent::Action::Suspend(Suspend {
            tenant_id: tenant.to_string(),
            domain_id: domain.map(|domain| domain.to_string()).unwrap_or_default(),
            suspension: suspension.map(projection::wire_suspension),
            version,
        });
        let expires = self.0.clock.now_ms() + LIFETIME_MS;
        self.push(action, expires, None, SUSPEND_DEADLINE).await
    }

    /// Has each edge of a cell try whether it would serve names by these lineages, were they switched to it.
    pub async fn drill(&self, cell: &CellId, targets: Vec<DrillTarget>) -> UrgentOutcome {
        let expires = self.0.clock.now_ms() + LIFETIME_MS;
        let action = urgent::Action::Drill(Drill { targets });
        self.push(action, expires, Some(std::slice::from_ref(cell)), DRILL_DEADLINE).await
    }

    /// Has the one edge of a cell make the key of an order, or give the request for the one that it has made.
    pub async fn request_key(&self, cell: &CellId, wanted: KeyRequest) -> UrgentOutcome {
        let expires = self.0.clock.now_ms() + LIFETIME_MS;
        let action = urgent::Action::KeyRequest(wanted);
        self.push(action, expires, Some(std::slice::from_ref(cell)), KEY_DEADLINE).await
    }

    /// Lets `turn` go when the message is in every stream's queue. A stream that has lost it is ended: its edge is told when
    /// it is back.
    pub(super) async fn push_in_order(
        &self,
        action: urgent::Action,
        deadline: Duration,
        turn: tokio::sync::MutexGuard<'_, ()>,
    ) -> UrgentOutcome {
        let expires = self.0.clock.now_ms() + LIFETIME_MS;
        let sent = self.send_urgent(action, expires, None, None);
        for edge in &sent.2 {
            if let Some(stream) = self.table().edges.get(edge).and_then(|member| member.stream.as_ref()) {
                stream.closed.cancel();
            }
        }
        drop(turn);
        self.outcome(sent, deadline).await
    }

    async fn push(
        &self,
        action: urgent::Action,
        expires_ms: i64,
        cells: Option<&[CellId]>,
        deadline: Duration,
    ) -> UrgentOutcome {
        let sent = self.send_urgent(action, expires_ms, cells, None);
        self.outcome(sent, deadline).await
    }

    async fn outcome(
        &self,
        (sequence, done, absent): (u64, oneshot::Receiver<()>, Vec<EdgeId>),
        deadline: Duration,
    ) -> UrgentOutcome {
        let wait = Wait { fleet: self, sequence };
        // Both ends of the wait are outcomes: all have answered, or the time is over.
        drop(tokio::time::timeout(deadline, done).await);
        let mut outcome = wait.finish();
        outcome.not_acked.extend(absent);
        outcome.acked.sort();
        outcome.not_acked.sort();
        metrics::urgent_not_acked(outcome.not_acked.len());
        outcome
    }

    /// Hands the message to every stream; answers its sequence, what ends the wait, and who is not waited for.
    fn send_urgent(
        &self,
        action: urgent::Action,
        expires_ms: i64,
        cells: Option<&[CellId]>,
        term: Option<&Term>,
    ) -> (u64, oneshot::Receiver<()>, Vec<EdgeId>) {
        let now = clock::instant();
        let mut table = self.table();
        table.urgents.sequence += 1;
        let sequence = table.urgents.sequence;
        let expires_unix_ms = expires_ms.try_into().unwrap_or(0);
        let message = Urgent { sequence, expires_unix_ms, action: Some(action) };
        let (mut expected, mut absent) = (HashSet::new(), Vec::new());
        for (&edge, member) in &table.edges {
            if cells.is_some_and(|cells| !cells.contains(&member.cell)) {
                continue;
            }
            // Also to an edge that is silent: it may only be slow. A stream that is just ending takes nothing more, but
            // its edge may be back in a moment and is told then; only a full queue has lost the message.
            let sent = member.stream.as_ref().map(|stream| stream.urgents.try_send(wrap(message.clone())));
            let lost = matches!(sent, Some(Err(TrySendError::Full(_))));
            if !lost && member.waited_for(now) {
                expected.insert(edge);
            } else {
                absent.push(edge);
            }
        }
        table.urgents.keep(&message, cells, self.0.clock.now_ms());
        let done = table.urgents.wait_for(sequence, expected);
        drop(table);
        // If it finds no place, edges that hang elsewhere do not answer in time and are named.
        let (cells, term) = (cells.map(<[CellId]>::to_vec), term.cloned());
        self.tell_others(Told::Message { sequence, urgent: message, cells, term });
        (sequence, done, absent)
    }

    /// Hands another control plane's message to the streams that end here.
    pub(super) fn pass_on(&self, number: i64, message: Urgent, cells: Option<&[CellId]>) {
        let mut table = self.table();
        table.urgents.sequence += 1;
        let sequence = table.urgents.sequence;
        let message = Urgent { sequence, ..message };
        for member in table.edges.values() {
            if cells.is_none_or(|cells| cells.contains(&member.cell))
                && let Some(stream) = &member.stream
            {
                // A full queue loses it: the sender sees that the edge does not answer.
                let _lost = stream.urgents.try_send(wrap(message.clone()));
            }
        }
        table.urgents.keep(&message, cells, self.0.clock.now_ms());
        table.urgents.passed_on.insert(sequence, number);
        if table.urgents.passed_on.len() > PASSED_ON_MAX {
            table.urgents.passed_on.pop_first();
        }
    }

    pub(super) fn urgent_acked(&self, edge: EdgeId, ack: &UrgentAck) {
        if !ack.error_code.is_empty() {
            tracing::warn!(%edge, code = ack.error_code, text = ack.error_text, "an edge refused an urgent message");
        }
        let mut table = self.table();
        match table.urgents.passed_on.get(&ack.sequence).copied() {
            Some(number) => {
                drop(table);
                self.tell_others(Told::Answer(RelayedAnswer { number, edge, ack: ack.encode_to_vec() }));
            }
            None => table.urgents.acked(edge, ack),
        }
    }

    /// An edge that hangs on another control plane has answered; `sequence` is ours.
    pub(super) fn answered_elsewhere(&self, sequence: u64, edge: EdgeId, ack: UrgentAck) {
        self.table().urgents.acked(edge, &UrgentAck { sequence, ..ack });
    }

    /// Whether somebody waits for answers to this message.
    pub(super) fn awaits(&self, sequence: u64) -> bool {
        self.table().urgents.waiting.contains_key(&sequence)
    }
}

/// Forgets the wait when its caller goes away before the end of it.
struct Wait<'a> {
    fleet: &'a Fleet,
    sequence: u64,
}

impl Wait<'_> {
    fn finish(self) -> UrgentOutcome {
        self.fleet.table().urgents.finish(self.sequence)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.fleet.table().urgents.finish(self.sequence);
    }
}

impl Urgents {
    /// Sequences of a process begin above those of an earlier one, so that no edge takes a new message for an old one.
    pub(super) fn starting_at(now_ms: i64) -> Self {
        Self { sequence: now_ms.unsigned_abs() << 16, ..Self::default() }
    }

    /// What an edge of `cell` that connects now has to be told.
    pub(super) fn standing(&mut self, cell: &CellId, now_ms: i64) -> Vec<ControlMessage> {
        self.drop_expired(now_ms);
        let of = |standing: &&Standing| standing.cells.as_ref().is_none_or(|cells| cells.contains(cell));
        self.standing.values().filter(of).map(|standing| wrap(standing.message.clone())).collect()
    }

    fn keep(&mut self, message: &Urgent, cells: Option<&[CellId]>, now_ms: i64) {
        let slot = match &message.action {
            Some(urgent::Action::SetHttp01(set)) => {
                Slot::Http01 { host: set.host.clone(), token: set.token.clone() }
            }
            Some(urgent::Action::SetTlsAlpn01(set)) => Slot::TlsAlpn01 { host: set.host.clone() },
            Some(urgent::Action::ClearChallenge(clear)) => {
                self.standing.remove(&Slot::of_clear(clear));
                return;
            }
            // Carried by a resource as well, so an edge that connects learns it anyway.
            // A purge stands in the store, until every edge is beyond it.
            // A drill is over with its answers, and an order asks for its key again.
            Some(
                urgent::Action::Suspend(_)
                | urgent::Action::Purge(_)
                | urgent::Action::Drill(_)
                | urgent::Action::KeyRequest(_),
            )
            | None => return,
        };
        if self.standing.len() >= STANDING_MAX {
            self.drop_expired(now_ms);
        }
        if self.standing.len() >= STANDING_MAX {
            let first = self.standing.iter().min_by_key(|(_, standing)| standing.message.expires_unix_ms);
            if let Some(slot) = first.map(|(slot, _)| slot.clone()) {
                self.standing.remove(&slot);
            }
        }
        let standing = Standing { message: message.clone(), cells: cells.map(<[CellId]>::to_vec) };
        self.standing.insert(slot, standing);
    }

    fn drop_expired(&mut self, now_ms: i64) {
        let now = now_ms.unsigned_abs();
        self.standing.retain(|_, standing| standing.message.expires_unix_ms > now);
    }

    fn wait_for(&mut self, sequence: u64, expected: HashSet<EdgeId>) -> oneshot::Receiver<()> {
        let (done, receiver) = oneshot::channel();
        // With nobody to wait for, the sender is dropped at once, which ends the wait.
        let done = (!expected.is_empty()).then_some(done);
        let waiting = Waiting {
            expected,
            acked: Vec::new(),
            refused: Vec::new(),
            met: BTreeMap::new(),
            refusals: Vec::new(),
            faults: Vec::new(),
            requests: Vec::new(),
            done,
        };
        self.waiting.insert(sequence, waiting);
        receiver
    }

    fn acked(&mut self, edge: EdgeId, ack: &UrgentAck) {
        let Some(waiting) = self.waiting.get_mut(&ack.sequence) else { return };
        if !waiting.expected.remove(&edge) {
            return;
        }
        if ack.error_code.is_empty() {
            waiting.acked.push(edge);
            waiting.met.extend((ack.met > 0).then_some((edge, ack.met)));
            let faults = ack.drill_faults.iter().take(DRILL_NAMES_MAX);
            waiting.faults.extend(faults.map(|fault| (edge, fault.clone())));
            let request = Some(&ack.certificate_request).filter(|request| !request.is_empty());
            waiting.requests.extend(request.map(|request| (edge, request.to_vec())));
        } else {
            waiting.refused.push(edge);
            waiting.refusals.push((edge, format!("{}: {}", ack.error_code, ack.error_text)));
        }
        if waiting.expected.is_empty() {
            waiting.done = None;
        }
    }

    fn finish(&mut self, sequence: u64) -> UrgentOutcome {
        let Some(waiting) = self.waiting.remove(&sequence) else { return UrgentOutcome::default() };
        let Waiting { expected, acked, refused, met, refusals, faults, requests, done: _ } = waiting;
        let not_acked = refused.into_iter().chain(expected).collect();
        UrgentOutcome { acked, not_acked, met, refusals, faults, requests }
    }
}

impl Slot {
    fn of_clear(clear: &ClearChallenge) -> Self {
        let ClearChallenge { host, token } = clear.clone();
        if token.is_empty() { Self::TlsAlpn01 { host } } else { Self::Http01 { host, token } }
    }
}

fn wrap(message: Urgent) -> ControlMessage {
    ControlMessage { kind: Some(control_message::Kind::Urgent(message)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::limits::UNTOLD_MAX;

    fn http01(sequence: u64, token: &str, expires_unix_ms: u64) -> Urgent {
        let set = SetHttp01 { host: "a.example".into(), token: token.into(), key_authorization: "k".into() };
        Urgent { sequence, expires_unix_ms, action: Some(urgent::Action::SetHttp01(set)) }
    }

    fn cell(name: &str) -> CellId {
        CellId::parse(name).unwrap()
    }

    #[test]
    fn challenge_stands_until_it_is_cleared_or_expires() {
        let mut urgents = Urgents::default();
        urgents.keep(&http01(1, "one", 100), None, 0);
        urgents.keep(&http01(2, "two", 200), Some(&[cell("a")]), 0);
        assert_eq!(urgents.standing(&cell("a"), 50).len(), 2);
        assert_eq!(urgents.standing(&cell("b"), 50).len(), 1);
        assert_eq!(urgents.standing(&cell("a"), 100).len(), 1);
        let clear = ClearChallenge { host: "a.example".into(), token: "two".into() };
        let clear =
            Urgent { sequence: 3, expires_unix_ms: 0, action: Some(urgent::Action::ClearChallenge(clear)) };
        urgents.keep(&clear, None, 100);
        assert!(urgents.standing(&cell("a"), 100).is_empty());
    }

    #[test]
    fn standing_challenges_are_bounded() {
        let mut urgents = Urgents::default();
        for at in 0..=STANDING_MAX as u64 {
            urgents.keep(&http01(at, &at.to_string(), 1_000 + at), None, 0);
        }
        assert_eq!(urgents.standing.len(), STANDING_MAX);
        assert!(urgents.standing.values().all(|standing| standing.message.expires_unix_ms > 1_000));
    }

    #[test]
    fn messages_of_other_control_planes_are_bounded_and_the_oldest_is_answered_to_nobody() {
        let (fleet, told) = Fleet::new(Clock::default(), Vec::new(), true);
        let (mut told, edge) = (told.unwrap(), EdgeId::generate());
        let first = fleet.table().urgents.sequence + 1;
        for number in 0..=PASSED_ON_MAX as i64 {
            fleet.pass_on(number, http01(0, "one", u64::MAX), None);
        }
        let ack = |sequence| UrgentAck { sequence, ..UrgentAck::default() };
        fleet.urgent_acked(edge, &ack(first));
        assert!(told.try_recv().is_err(), "its sender waits no more");
        fleet.urgent_acked(edge, &ack(first + 1));
        let answer = RelayedAnswer { number: 1, edge, ack: ack(first + 1).encode_to_vec() };
        assert!(matches!(told.try_recv(), Ok(Told::Answer(found)) if found == answer));
    }

    #[test]
    fn what_the_others_are_to_be_told_is_bounded() {
        let (fleet, told) = Fleet::new(Clock::default(), Vec::new(), true);
        for _ in 0..UNTOLD_MAX {
            assert!(fleet.tell_others(Told::Moved));
        }
        assert!(!fleet.tell_others(Told::Moved), "there is no place for it");
        drop(told);
        let (alone, told) = Fleet::new(Clock::default(), Vec::new(), false);
        assert!(alone.tell_others(Told::Moved) && told.is_none(), "there is nobody else");
    }

    #[test]
    fn only_an_awaited_edge_counts_and_only_once() {
        let mut urgents = Urgents::default();
        let (a, b, stranger) = (EdgeId::generate(), EdgeId::generate(), EdgeId::generate());
        let mut done = urgents.wait_for(7, HashSet::from([a, b]));
        let said = |met: u64, code: &str| UrgentAck {
            sequence: 7,
            met,
            error_code: code.to_owned(),
            ..UrgentAck::default()
        };
        urgents.acked(stranger, &said(0, ""));
        urgents.acked(a, &said(3, ""));
        urgents.acked(a, &said(5, ""));
        assert_eq!(done.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        urgents.acked(b, &said(0, "Full"));
        assert_eq!(done.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let outcome = urgents.finish(7);
        assert_eq!((outcome.acked, outcome.not_acked), (vec![a], vec![b]));
        assert_eq!(outcome.met, BTreeMap::from([(a, 3)]));
        assert_eq!(outcome.refusals, [(b, "Full: ".to_owned())]);
    }
}
