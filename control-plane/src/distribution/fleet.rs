//! Who of the fleet is here: each edge's stream, what it has applied, when it was last heard.
//!
//! In memory; the table of edges follows it every two seconds. Everything else in this process asks here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portico_api::distribution::{ControlMessage, Hello, Status};
use portico_cert_store::{CellId, EdgeId, Generation};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::metrics;
use super::relay::Told;
use super::urgent::Urgents;
use crate::clock::{self, Clock};
use crate::limits::UNTOLD_MAX;
use crate::store::edge::{EdgeRow, Observation};

/// An edge that was not heard for this long is not live: nothing waits for it. Edges send Status each 5 s.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Looks at what other control planes say are a second apart. With Status each 5 s, an edge that lives has been heard within
/// [`SILENCE_MAX`] unless they were further apart than this.
const LOOKS_APART_MAX: Duration = Duration::from_secs(5);
/// Urgent messages that wait for one edge; a further one counts as not acked.
const URGENT_QUEUE: usize = 1_024;
/// Listener addresses that one edge may report.
const LISTENERS_MAX: usize = 64;

/// A handle to the running distribution. Clones share it.
#[derive(Clone, Debug)]
pub struct Fleet(pub(super) Arc<Members>);

/// What [`Fleet::wait_applied`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub applied: Vec<EdgeId>,
    /// Edges that have not: live but behind at the deadline, or not connected.
    pub behind: Vec<EdgeId>,
}

/// One edge as it is now.
#[derive(Clone, Debug)]
pub struct EdgeView {
    pub id: EdgeId,
    pub cell: CellId,
    /// A stream stands, here or at another control plane, and the edge was heard within [`SILENCE_MAX`].
    pub live: bool,
    /// The stream ends in this process; what another one knows of its edges is in the table of edges.
    pub here: bool,
    pub applied: Generation,
    pub facts: Facts,
    pub seen_at_ms: Option<i64>,
}

/// What an edge says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub build: String,
    pub io_backend: String,
    pub listeners: Vec<String>,
    pub connections: u64,
    pub names: u64,
}

#[derive(Debug)]
pub(super) struct Members {
    pub(super) clock: Clock,
    pub(super) table: Mutex<Table>,
    /// Held from a purge's number to its message.
    pub(super) purges: tokio::sync::Mutex<()>,
    /// Wakes whoever waits for an edge to apply something.
    applied: watch::Sender<()>,
    listeners: watch::Sender<()>,
    /// To the other control planes on the same database.
    others: Option<mpsc::Sender<Told>>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) edges: HashMap<EdgeId, Member>,
    pub(super) urgents: Urgents,
    streams: u64,
    /// At what other control planes say; `None`: there are none.
    looks: Option<Looks>,
}

/// Until when what is known of edges can be relied on. A process that was stopped, or cut off from the database, takes edges for
/// gone that hang on another control plane, or that have spoken and were not heard.
#[derive(Debug)]
struct Looks {
    last: Instant,
    sure_from: Instant,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) cell: CellId,
    pub(super) stream: Option<Stream>,
    heard: Option<Instant>,
    /// When another control plane said that it hangs there.
    elsewhere: Option<Instant>,
    /// When its stream ended, or this process started.
    left: Instant,
    applied: Generation,
    facts: Facts,
    seen_at_ms: Option<i64>,
    /// Differs from the table of edges.
    dirty: bool,
}

#[derive(Debug)]
pub(super) struct Stream {
    number: u64,
    pub(super) urgents: mpsc::Sender<ControlMessage>,
    pub(super) closed: CancellationToken,
}

/// A stream's place in the fleet; the edge has left when it is dropped.
#[derive(Debug)]
pub(super) struct Membership {
    fleet: Fleet,
    pub(super) edge: EdgeId,
    number: u64,
    /// Cancelled when another stream took this one's place, or the edge was removed.
    pub(super) closed: CancellationToken,
}

impl Fleet {
    /// The second value: what the other control planes on the same database are to be told, if there may be any.
    pub(super) fn new(
        clock: Clock,
        edges: Vec<EdgeRow>,
        is_shared: bool,
    ) -> (Self, Option<mpsc::Receiver<Told>>) {
        let (others, told) = if is_shared {
            let (sender, receiver) = mpsc::channel(UNTOLD_MAX);
            (Some(sender), Some(receiver))
        } else {
            (None, None)
        };
        let now = clock::instant();
        let urgents = Urgents::starting_at(clock.now_ms());
        let looks = is_shared.then_some(Looks { last: now, sure_from: now });
        let edges = edges.into_iter().map(|row| (row.id, Member::from_row(row, now))).collect();
        let members = Members {
            clock,
            table: Mutex::new(Table { edges, urgents, streams: 0, looks }),
            purges: tokio::sync::Mutex::default(),
            applied: watch::Sender::new(()),
            listeners: watch::Sender::new(()),
            others,
        };
        (Self(Arc::new(members)), told)
    }

    /// Tells the other control planes, if there may be any. `false`: there is no place for it.
    pub(super) fn tell_others(&self, told: Told) -> bool {
        self.0.others.as_ref().is_none_or(|others| others.try_send(told).is_ok())
    }

    /// Live edges whose stream ends in this process, with what they have applied.
    pub(super) fn hanging_here(&self) -> Vec<(EdgeId, Generation)> {
        let now = clock::instant();
        let table = self.table();
        let here = table.edges.iter().filter(|(_, member)| member.live_here(now));
        here.map(|(&edge, member)| (edge, member.applied)).collect()
    }

    /// What other control planes say of edges: which may be new to us, and which hang there.
    pub(super) fn hang_elsewhere(&self, edges: &[EdgeRow], elsewhere: &HashMap<EdgeId, Generation>) {
        let now = clock::instant();
        let mut table = self.table();
        if let Some(looks) = &mut table.looks {
            looks.look(now);
        }
        for row in edges {
            table.edges.entry(row.id).or_insert_with(|| Member::from_row(row.clone(), now));
        }
        for (edge, member) in &mut table.edges {
            member.elsewhere = elsewhere.contains_key(edge).then_some(now);
            if let Some(applied) = elsewhere.get(edge).filter(|_| member.stream.is_none()) {
                member.applied = *applied;
                // Whoever asks when it was seen must not take it for one that is away.
                member.seen_at_ms = Some(self.0.clock.now_ms());
            }
        }
        drop(table);
        self.0.applied.send_replace(());
    }

    /// Edges that are live now, of the given cells (`None`: of all).
    pub fn live_edges(&self, cells: Option<&[CellId]>) -> Vec<EdgeId> {
        let now = clock::instant();
        let table = self.table();
        let of = |member: &Member| cells.is_none_or(|cells| cells.contains(&member.cell));
        let mut live: Vec<_> = table
            .edges
            .iter()
            .filter(|(_, member)| of(member) && member.live(now))
            .map(|(&edge, _)| edge)
            .collect();
        live.sort();
        live
    }

    /// Whether an edge that is not live is gone, as far as anybody knows; else nobody can say which edges are live.
    pub fn knows_who_is_live(&self) -> bool {
        let now = clock::instant();
        self.table().looks.as_ref().is_none_or(|looks| looks.are_sure(now))
    }

    /// How many live edges have not applied `published`, and how many changes the last of them lacks.
    pub(super) fn behind(&self, published: Generation) -> (usize, u64) {
        let now = clock::instant();
        let table = self.table();
        let behind = table.edges.values().filter(|member| member.live(now) && member.applied < published);
        let lacks = behind.map(|member| match member.applied.epoch == published.epoch {
            true => published.sequence.saturating_sub(member.applied.sequence),
            false => published.sequence,
        });
        lacks.fold((0, 0), |(edges, most), lacks| (edges + 1, most.max(lacks)))
    }

    /// The generation that an edge has acknowledged; (0, 0) for an unknown edge.
    pub fn applied(&self, edge: EdgeId) -> Generation {
        self.table().edges.get(&edge).map(|member| member.applied).unwrap_or_default()
    }

    /// Every edge, by id.
    pub fn edges(&self) -> Vec<EdgeView> {
        let now = clock::instant();
        let table = self.table();
        let mut edges: Vec<_> = table.edges.iter().map(|(&id, member)| member.view(id, now)).collect();
        edges.sort_by_key(|edge| edge.id);
        edges
    }

    /// Waits until every live edge of `cells` has applied `generation`, for at most `deadline`.
    ///
    /// An edge that stops being live meanwhile is waited for no longer and named as behind.
    pub async fn wait_applied(
        &self,
        cells: &[CellId],
        generation: Generation,
        deadline: Duration,
    ) -> Applied {
        let mut woken = self.0.applied.subscribe();
        let until = clock::instant() + deadline;
        loop {
            let (found, waiting) = self.count_applied(cells, generation);
            if !waiting {
                return found;
            }
            // Once a second without a wake, to see an edge fall silent.
            let left = until.saturating_duration_since(clock::instant());
            drop(tokio::time::timeout(left.min(Duration::from_secs(1)), woken.changed()).await);
            if clock::instant() >= until {
                return self.count_applied(cells, generation).0;
            }
        }
    }

    /// The second value: whether a live edge is still behind.
    fn count_applied(&self, cells: &[CellId], generation: Generation) -> (Applied, bool) {
        let now = clock::instant();
        let table = self.table();
        let mut found = Applied::default();
        let mut waiting = false;
        for (&edge, member) in table.edges.iter().filter(|(_, member)| cells.contains(&member.cell)) {
            let live = member.live(now);
            if live && member.applied >= generation {
                found.applied.push(edge);
            } else {
                waiting |= live;
                found.behind.push(edge);
            }
        }
        found.applied.sort();
        found.behind.sort();
        (found, waiting)
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stream in, instead of an older one of the same edge; answers the urgent messages for it, standing ones
    /// first.
    pub(super) fn connect(
        &self,
        edge: &EdgeRow,
        hello: &Hello,
    ) -> (Membership, Vec<ControlMessage>, mpsc::Receiver<ControlMessage>) {
        let now = clock::instant();
        let (urgents, receiver) = mpsc::channel(URGENT_QUEUE);
        let closed = CancellationToken::new();
        let mut table = self.table();
        table.streams += 1;
        let number = table.streams;
        let standing = table.urgents.standing(&edge.cell, self.0.clock.now_ms());
        let member = table.edges.entry(edge.id).or_insert_with(|| Member::from_row(edge.clone(), now));
        if let Some(old) = member.stream.replace(Stream { number, urgents, closed: closed.clone() }) {
            old.closed.cancel();
        }
        member.heard = Some(now);
        member.applied = hello.applied.unwrap_or_default().into();
        member.facts.build.clone_from(&hello.build);
        member.seen_at_ms = Some(self.0.clock.now_ms());
        member.dirty = true;
        metrics::edge_connected();
        drop(table);
        self.tell_others(Told::Moved);
        (Membership { fleet: self.clone(), edge: edge.id, number, closed }, standing, receiver)
    }

    /// Forgets a removed edge and ends its stream.
    pub(super) fn forget(&self, edge: EdgeId) {
        let removed = self.table().edges.remove(&edge);
        if let Some(stream) = removed.and_then(|member| member.stream) {
            stream.closed.cancel();
        }
        self.0.applied.send_replace(());
        self.0.listeners.send_replace(());
    }

    /// Wakes when an edge's listener addresses have changed.
    pub(super) fn listeners_changed(&self) -> watch::Receiver<()> {
        self.0.listeners.subscribe()
    }

    /// What differs from the table of edges; counts as written from then on.
    pub(super) fn take_observations(&self) -> Vec<Observation> {
        let mut table = self.table();
        let dirty = table.edges.iter_mut().filter(|(_, member)| member.dirty);
        dirty
            .map(|(&edge, member)| {
                member.dirty = false;
                member.observation(edge)
            })
            .collect()
    }
}

impl Looks {
    fn look(&mut self, now: Instant) {
        if now.duration_since(self.last) > LOOKS_APART_MAX {
            // All that live are heard of by then.
            self.sure_from = now + SILENCE_MAX;
        }
        self.last = now;
    }

    fn are_sure(&self, now: Instant) -> bool {
        now >= self.sure_from && now.duration_since(self.last) <= LOOKS_APART_MAX
    }
}

impl Membership {
    /// The edge was heard.
    pub(super) fn heard(&self) {
        self.with(|member, clock| {
            member.heard = Some(clock::instant());
            member.seen_at_ms = Some(clock.now_ms());
        });
    }

    pub(super) fn set_applied(&self, generation: Generation) {
        self.with(|member, _| {
            member.applied = generation;
            member.dirty = true;
        });
        self.fleet.0.applied.send_replace(());
        self.fleet.tell_others(Told::Moved);
    }

    pub(super) fn observe(&self, status: Status) {
        let mut moved = false;
        self.with(|member, _| {
            let Status { io_backend, connections, names, mut listeners, .. } = status;
            listeners.truncate(LISTENERS_MAX);
            listeners.retain(|listener| super::fleet_policy::listener(listener).is_some());
            moved = listeners != member.facts.listeners;
            let io_backend = io_backend.chars().take(16).collect();
            let build = std::mem::take(&mut member.facts.build);
            member.facts = Facts { build, io_backend, listeners, connections, names };
            member.dirty = true;
        });
        if moved {
            self.fleet.0.listeners.send_replace(());
        }
    }

    /// Does nothing once another stream has taken this one's place.
    fn with(&self, act: impl FnOnce(&mut Member, &Clock)) {
        let mut table = self.fleet.table();
        let member = table.edges.get_mut(&self.edge);
        let own = member.filter(|member| member.stream.as_ref().is_some_and(|s| s.number == self.number));
        if let Some(member) = own {
            act(member, &self.fleet.0.clock);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        metrics::edge_disconnected();
        self.with(|member, _| {
            member.stream = None;
            member.left = clock::instant();
            member.dirty = true;
        });
        self.fleet.0.applied.send_replace(());
        self.fleet.tell_others(Told::Moved);
    }
}

impl Member {
    fn from_row(row: EdgeRow, now: Instant) -> Self {
        Self {
            cell: row.cell,
            stream: None,
            heard: None,
            elsewhere: None,
            left: now,
            applied: row.applied,
            facts: Facts {
                build: row.build,
                io_backend: row.io_backend,
                listeners: row.listeners,
                connections: row.connections,
                names: row.names,
            },
            seen_at_ms: row.last_seen_at_ms,
            dirty: false,
        }
    }

    fn live(&self, now: Instant) -> bool {
        self.live_here(now) || self.elsewhere.is_some_and(|said| now.duration_since(said) < SILENCE_MAX)
    }

    fn live_here(&self, now: Instant) -> bool {
        self.stream.is_some() && self.heard.is_some_and(|heard| now.duration_since(heard) < SILENCE_MAX)
    }

    /// Live, or gone for so short a time that it may be back within a deadline.
    pub(super) fn waited_for(&self, now: Instant) -> bool {
        match self.stream {
            Some(_) => self.live(now),
            None => self.live(now) || now.duration_since(self.left) < SILENCE_MAX,
        }
    }

    fn view(&self, id: EdgeId, now: Instant) -> EdgeView {
        EdgeView {
            id,
            cell: self.cell.clone(),
            live: self.live(now),
            here: self.stream.is_some(),
            applied: self.applied,
            facts: self.facts.clone(),
            seen_at_ms: self.seen_at_ms,
        }
    }

    fn observation(&self, edge: EdgeId) -> Observation {
        Observation {
            edge,
            applied: self.applied,
            io_backend: self.facts.io_backend.clone(),
            listeners: self.facts.listeners.clone(),
            connections: self.facts.connections,
            names: self.facts.names,
            seen_at_ms: self.seen_at_ms.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_stopped_does_not_know_who_is_live_until_all_that_live_are_heard_of() {
        let at = clock::instant();
        let after = |seconds| at + Duration::from_secs(seconds);
        let mut looks = Looks { last: at, sure_from: at };
        assert!(looks.are_sure(after(5)));
        assert!(!looks.are_sure(after(6)), "it has not looked for long");
        looks.look(after(6));
        assert!(!looks.are_sure(after(6)), "it has looked, and edges had no time to speak");
        for second in 7..=16 {
            looks.look(after(second));
        }
        assert!(!looks.are_sure(after(15)));
        assert!(looks.are_sure(after(16)));
    }
}
