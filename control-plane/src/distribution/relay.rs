//! The fleet over several control planes: an edge may hang on any of them, and all of them know where it hangs, what it has
//! applied, and what it answers to an urgent message that another one sends.
//!
//! Through the store: what is to be told is a row, read at once by a hint and each second without. One turn writes what came
//! up here in one transaction, then reads what came up elsewhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portico_api::distribution::{Urgent, UrgentAck};
use portico_cert_store::{CellId, EdgeId, Generation};
use prost::Message as _;
use tokio::sync::mpsc;

use super::context::Context;
use crate::clock::{self, MINUTE_MS};
use crate::limits::{RELAYED_PER_LOOK_MAX, UNTOLD_MAX};
use crate::store::edge::{self, EdgeRow};
use crate::store::lease::Term;
use crate::store::relay::{self, Elsewhere, Relayed, RelayedAnswer};
use crate::store::{StoreError, publication};

/// Turns come at least this often.
const TURN: Duration = Duration::from_secs(1);
/// And are this far apart at least: each commit of another control plane is a hint.
const PAUSE: Duration = Duration::from_millis(20);
/// An edge that hangs here is told of this often although nothing has changed.
const SEEN_EVERY: Duration = Duration::from_secs(3);
/// One that another control plane has not told of for so long is not live.
const SEEN_WITHIN_MS: i64 = 10_000;
/// Messages are kept for a control plane that starts: longer than a challenge stands.
const KEPT_MS: i64 = 20 * MINUTE_MS;
const PRUNE_EVERY: Duration = Duration::from_secs(300);

/// What came up here and the others are to know.
#[derive(Debug)]
pub(super) enum Told {
    /// An urgent message of ours, by what number its answers are awaited here, and the term that it is not sent beyond.
    Message { sequence: u64, urgent: Urgent, cells: Option<Vec<CellId>>, term: Option<Term> },
    /// An edge that hangs here has answered another's message.
    Answer(RelayedAnswer),
    /// An edge came, went or applied something.
    Moved,
}

/// Follows the others until shutdown.
pub(super) async fn run(context: Arc<Context>, mut told: mpsc::Receiver<Told>) -> anyhow::Result<()> {
    let mut woken = context.store.woken();
    let mut relay = Relay::new(context.clone());
    loop {
        while relay.waiting.len() < UNTOLD_MAX
            && let Ok(next) = told.try_recv()
        {
            relay.waiting.push(next);
        }
        if let Err(error) = relay.turn().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot tell the other control planes of edges; tried again"
            );
            tokio::time::sleep(TURN).await;
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = context.shutdown.cancelled() => {
                if let Err(error) = relay.leave().await {
                    tracing::info!(%error, "edges count as live here until others have not heard of them for a while");
                }
                return Ok(());
            }
            Some(next) = told.recv(), if relay.waiting.len() < UNTOLD_MAX => relay.waiting.push(next),
            _ = woken.changed() => {}
            () = tokio::time::sleep(TURN) => {}
        }
    }
}

struct Relay {
    context: Arc<Context>,
    waiting: Vec<Told>,
    /// The newest message of another that was passed on.
    passed: i64,
    /// Ours, by number: the sequence by which the fleet waits.
    asked: BTreeMap<i64, u64>,
    /// Answers that the fleet has heard.
    heard: HashSet<(i64, EdgeId)>,
    /// As the table says it.
    streams: HashMap<EdgeId, (Generation, Instant)>,
    edges: HashSet<EdgeId>,
    /// When all edges were read.
    edges_at: Option<Instant>,
    pruned_at: Instant,
}

impl Relay {
    fn new(context: Arc<Context>) -> Self {
        Self {
            context,
            waiting: Vec::new(),
            passed: 0,
            asked: BTreeMap::new(),
            heard: HashSet::new(),
            streams: HashMap::new(),
            edges: HashSet::new(),
            edges_at: None,
            pruned_at: clock::instant(),
        }
    }

    async fn turn(&mut self) -> Result<(), StoreError> {
        self.write().await?;
        self.read().await
    }

    /// What waits stays until it is committed.
    async fn write(&mut self) -> Result<(), StoreError> {
        let now = clock::instant();
        let here = self.context.fleet.hanging_here();
        let changed: Vec<(EdgeId, Generation)> = here
            .iter()
            .filter(|(edge, applied)| {
                self.streams.get(edge).is_none_or(|(told, at)| told != applied || now - *at > SEEN_EVERY)
            })
            .copied()
            .collect();
        let is_here = |edge: &EdgeId| here.iter().any(|(of, _)| of == edge);
        let gone: Vec<EdgeId> = self.streams.keys().copied().filter(|edge| !is_here(edge)).collect();
        let prunes = now - self.pruned_at > PRUNE_EVERY;
        let speaks = self.waiting.iter().any(|told| !matches!(told, Told::Moved));
        if !speaks && changed.is_empty() && gone.is_empty() && !prunes {
            self.waiting.clear();
            return Ok(());
        }
        let replica = &self.context.replica;
        let (mut sent, mut answers) = (Vec::new(), Vec::new());
        let mut tx = self.context.store.begin().await?;
        for told in &self.waiting {
            match told {
                // While this transaction writes nobody else takes the term: if we were stopped, it is seen here.
                Told::Message { term: Some(term), .. } if !term.stands() => {}
                Told::Message { sequence, urgent, cells, term: _ } => {
                    let bytes = urgent.encode_to_vec();
                    sent.push((relay::send(&mut tx, replica, cells.as_deref(), &bytes).await?, *sequence));
                }
                Told::Answer(answer) => answers.push(answer.clone()),
                Told::Moved => {}
            }
        }
        relay::answer(&mut tx, &answers).await?;
        relay::put_streams(&mut tx, replica, &changed).await?;
        for edge in &gone {
            relay::drop_stream(&mut tx, replica, *edge).await?;
        }
        if prunes {
            relay::prune(&mut tx, KEPT_MS).await?;
        }
        tx.commit().await?;
        self.waiting.clear();
        self.streams.retain(|edge, _| !gone.contains(edge));
        self.streams.extend(changed.into_iter().map(|(edge, applied)| (edge, (applied, now))));
        self.asked.extend(sent);
        if prunes {
            self.pruned_at = now;
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        let context = self.context.clone();
        let fleet = &context.fleet;
        let replica = &context.replica;
        self.asked.retain(|_, sequence| fleet.awaits(*sequence));
        self.heard.retain(|(number, _)| self.asked.contains_key(number));
        let asked: Vec<i64> = self.asked.keys().copied().collect();
        let now = clock::instant();
        let mut read = context.store.read().await?;
        let messages = relay::since(&mut read, self.passed, replica).await?;
        let newest = relay::newest(&mut read).await?;
        let answers = relay::answers(&mut read, &asked).await?;
        let elsewhere = relay::elsewhere(&mut read, replica, SEEN_WITHIN_MS).await?;
        let is_due = self.edges_at.is_none_or(|at| now - at >= TURN)
            || elsewhere.iter().any(|one| !self.edges.contains(&one.edge));
        let edges = if is_due { Some(edge::all(&mut read).await?) } else { None };
        let signed_off_until = publication::signed_off_until(&mut read).await?;
        drop(read);
        if let Some(edges) = &edges {
            self.edges_at = Some(now);
            self.forget_removed(edges);
        }
        context.signals.signed_off_until.send_if_modified(|until| {
            let later = signed_off_until > *until;
            *until = signed_off_until.max(*until);
            later
        });
        let elsewhere: HashMap<EdgeId, Generation> =
            elsewhere.iter().map(|Elsewhere { edge, applied }| (*edge, *applied)).collect();
        fleet.hang_elsewhere(&edges.unwrap_or_default(), &elsewhere);
        for RelayedAnswer { number, edge, ack } in answers {
            if self.heard.insert((number, edge)) {
                // One that cannot be read says that it is not done.
                let unread = |_| UrgentAck { error_code: "Unreadable".to_owned(), ..UrgentAck::default() };
                let ack = UrgentAck::decode(ack.as_slice()).unwrap_or_else(unread);
                fleet.answered_elsewhere(self.asked[&number], edge, ack);
            }
        }
        self.pass_on(messages, newest);
        Ok(())
    }

    /// What another control plane has taken out of the fleet.
    fn forget_removed(&mut self, edges: &[EdgeRow]) {
        let known: HashSet<EdgeId> = edges.iter().map(|edge| edge.id).collect();
        let mut removed = self.edges.difference(&known).peekable();
        if removed.peek().is_some() {
            removed.for_each(|edge| self.context.fleet.forget(*edge));
            // Their cells have new keys.
            self.context.signals.cell_keys.send_replace(());
        }
        self.edges = known;
    }

    /// `newest` is read with them: when these are not as many as one look takes, there is nothing else up to it.
    fn pass_on(&mut self, messages: Vec<Relayed>, newest: i64) {
        let is_all = messages.len() < RELAYED_PER_LOOK_MAX;
        for message in messages {
            self.passed = message.number;
            match Urgent::decode(message.message.as_slice()) {
                Ok(urgent) => self.context.fleet.pass_on(message.number, urgent, message.cells.as_deref()),
                Err(error) => {
                    tracing::warn!(%error, number = message.number, "an urgent message cannot be read")
                }
            }
        }
        if is_all {
            self.passed = self.passed.max(newest);
        }
    }

    /// The edges that hang here are free to be counted elsewhere at once.
    async fn leave(self) -> Result<(), StoreError> {
        let mut tx = self.context.store.begin().await?;
        for edge in self.streams.keys() {
            relay::drop_stream(&mut tx, &self.context.replica, *edge).await?;
        }
        tx.commit().await
    }
}
