//! The feeding half of a stream: keeps one edge at the published generation.
//!
//! At any time at most one batch is under way; the next waits for the edge's ack, so a slow edge slows nobody else and
//! queues nothing here. What it missed meanwhile comes as one delta. A cell key always goes before the first credential
//! that is sealed under it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use portico_api::distribution::{
    Ack, ControlMessage, Hello, SNAPSHOT_CHUNK_BYTES_MAX, SealedCellKey, SnapshotBegin, SnapshotChunk,
    SnapshotEnd, control_message::Kind,
};
use portico_cert_store::{CellId, CellKey, EdgeId, Generation, hpke};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::context::Context;
use super::delta::{Backlog, NeedsSnapshot, Part, PartLimits};
use super::fleet::Membership;
use super::image::{Missing, Pending, removals_allowed};
use super::metrics;
use super::refusals::Refusals;
use super::resource::{Published, ResourceKey};
use super::sync::{unavailable, wrap};
use crate::store::cell;
use crate::store::edge::EdgeRow;

/// How long an edge may take to apply a batch, its disk included.
const ACK_DEADLINE: Duration = Duration::from_secs(60);
const SNAPSHOT_ACK_DEADLINE: Duration = Duration::from_secs(300);
/// A generation that holds nothing for the edge's cell is told with this delay, many in one empty delta.
const IDLE_DELAY: Duration = Duration::from_millis(200);
/// Resources that an edge refused and that go along with one batch of changes.
const REFUSED_AGAIN_MAX: usize = 64;
/// The wait after a refused snapshot doubles from the first to the second.
const REFUSED_WAIT: Duration = Duration::from_secs(5);
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(300);

pub(super) struct Feed<'a> {
    context: &'a Context,
    edge: EdgeId,
    cell: CellId,
    hpke_public_key: Vec<u8>,
    bulk: mpsc::Sender<Result<ControlMessage, Status>>,
    acks: mpsc::Receiver<Ack>,
    /// What the edge has; `None`: not to be built upon, a snapshot is due.
    base: Option<Generation>,
    key_epochs: BTreeSet<u32>,
    key_changes: watch::Receiver<()>,
    refusals: Refusals,
    refused_in_a_row: u32,
}

/// What became of a batch.
enum Outcome {
    Applied,
    /// The edge refused it whole; it still is at this generation.
    Refused(Generation),
}

impl<'a> Feed<'a> {
    pub(super) async fn open(
        context: &'a Context,
        edge: &EdgeRow,
        hello: &Hello,
        base: Generation,
        bulk: mpsc::Sender<Result<ControlMessage, Status>>,
        acks: mpsc::Receiver<Ack>,
    ) -> Result<Self, Status> {
        let key_changes = context.signals.cell_keys.subscribe();
        let refusals = Refusals::load(context, edge.id).await.map_err(unavailable)?;
        Ok(Self {
            context,
            edge: edge.id,
            cell: edge.cell.clone(),
            hpke_public_key: hello.hpke_public_key.to_vec(),
            bulk,
            acks,
            base: Some(base),
            key_epochs: BTreeSet::new(),
            key_changes,
            refusals,
            refused_in_a_row: 0,
        })
    }

    /// Runs until the stream ends.
    pub(super) async fn run(mut self, member: &Membership) -> Result<(), Status> {
        let mut published = self.context.publisher.subscribe();
        self.send_keys_in_use().await?;
        loop {
            let target = *published.borrow_and_update();
            if self.base != Some(target) {
                self.bring_up(member, &mut published).await?;
                continue;
            }
            tokio::select! {
                changed = published.changed() => changed.map_err(|_| Status::unavailable("publishing has ended"))?,
                Ok(()) = self.key_changes.changed() => self.send_keys_in_use().await?,
            }
        }
    }

    /// Sends what brings the edge nearer to the published generation.
    async fn bring_up(
        &mut self,
        member: &Membership,
        published: &mut watch::Receiver<Generation>,
    ) -> Result<(), Status> {
        let missing = self.base.map(|base| (base, self.context.publisher.missing(&self.cell, base)));
        let Some((base, (target, Missing::Changes(items)))) = missing else {
            return self.send_snapshot(member).await;
        };
        if items.is_empty() {
            let more = tokio::time::timeout(IDLE_DELAY, self.relevant_change(base, published)).await;
            if more.is_ok() {
                return Ok(());
            }
        }
        let again = self.refused_again(&items);
        let mut backlog = Backlog::new(items, target);
        backlog.take_along(again, PartLimits::default());
        self.send_deltas(member, base, backlog).await
    }

    /// What the edge refused before goes along with what is new: the reason may have lain in something else that has
    /// changed since, such as a domain that still pointed to the certificate.
    fn refused_again(&mut self, items: &[Pending]) -> Vec<Pending> {
        let refused = self.refusals.next(REFUSED_AGAIN_MAX).into_iter();
        let new: HashSet<_> = items.iter().map(|item| item.key).collect();
        self.context.publisher.pending(&self.cell, refused.filter(|key| !new.contains(key)))
    }

    /// Ends when something was published that this edge lacks.
    async fn relevant_change(&self, base: Generation, published: &mut watch::Receiver<Generation>) {
        while published.changed().await.is_ok() {
            match self.context.publisher.missing(&self.cell, base).1 {
                Missing::Changes(items) if items.is_empty() => {}
                Missing::Changes(_) | Missing::Snapshot => return,
            }
        }
    }

    async fn send_deltas(
        &mut self,
        member: &Membership,
        mut base: Generation,
        mut backlog: Backlog,
    ) -> Result<(), Status> {
        loop {
            let Ok(part) = backlog.next_part(PartLimits::default()) else {
                let NeedsSnapshot = NeedsSnapshot;
                return self.send_snapshot(member).await;
            };
            let generation = part.generation;
            self.send_keys_for(part.key_epochs()).await?;
            let sent: Vec<_> = part.items.iter().map(|item| item.key).collect();
            let delta = self.delta(part, base);
            self.send(Kind::Delta(delta)).await?;
            metrics::batch_sent("delta");
            match self.outcome(member, generation, &sent, false, ACK_DEADLINE).await? {
                Outcome::Applied => base = generation,
                // It may be elsewhere than we thought; if it is not, only a snapshot helps.
                Outcome::Refused(at) => {
                    self.base = (at != base).then_some(at);
                    return Ok(());
                }
            }
            if backlog.is_empty() {
                return Ok(());
            }
        }
    }

    /// The publisher's gate has passed every removal in the log, so where a delta has gathered more of them than an edge
    /// takes unasked, it is told so.
    fn delta(&self, part: Part, base: Generation) -> portico_api::distribution::Delta {
        let removed = part.names_removed();
        let held = self.context.publisher.names(&self.cell);
        let signed_off = !removals_allowed(removed, held);
        part.into_delta(base, signed_off)
    }

    async fn send_snapshot(&mut self, member: &Membership) -> Result<(), Status> {
        let context = self.context;
        let permit = context.snapshots.acquire().await.map_err(|_| Status::unavailable("shutting down"))?;
        let (generation, items) = context.publisher.snapshot(&self.cell);
        let epochs: BTreeSet<_> = items.iter().filter_map(|published| published.key_epoch).collect();
        self.send_keys_for(epochs.into_iter()).await?;
        let begin = SnapshotBegin {
            generation: Some(generation.into()),
            resources: items.len() as u64,
            removals_signed_off: self.may_shrink(generation),
        };
        self.send(Kind::SnapshotBegin(begin)).await?;
        let sha256 = self.send_chunks(&items).await?;
        self.send(Kind::SnapshotEnd(SnapshotEnd { sha256: sha256.into() })).await?;
        metrics::batch_sent("snapshot");
        drop(permit);
        match self.outcome(member, generation, &[], true, SNAPSHOT_ACK_DEADLINE).await? {
            Outcome::Applied => {
                self.refused_in_a_row = 0;
                Ok(())
            }
            Outcome::Refused(_) => {
                self.base = None;
                self.wait_after_refusal().await;
                Ok(())
            }
        }
    }

    /// Whether a snapshot with far fewer names than the edge has is meant so: it continues the very history that the edge
    /// has followed, whose removals all passed the gate; or an operator has signed off lately.
    fn may_shrink(&self, generation: Generation) -> bool {
        let own_history = self.base.is_some_and(|base| base.epoch == generation.epoch && base <= generation);
        own_history || *self.context.signals.signed_off_until.borrow() > self.context.clock.now_ms()
    }

    async fn send_chunks(&self, items: &[Arc<Published>]) -> Result<Vec<u8>, Status> {
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut chunk = SnapshotChunk::default();
        let (mut bytes, mut encoded) = (0, Vec::new());
        for published in items {
            let resource = &published.resource;
            encoded.clear();
            resource.encode(&mut encoded).map_err(|_| Status::internal("a resource has no encoding"))?;
            hash.update(&encoded);
            // A field's tag and length take at most 5 bytes below 1 MiB.
            let length = encoded.len() + 5;
            if bytes + length > SNAPSHOT_CHUNK_BYTES_MAX && bytes > 0 {
                self.send(Kind::SnapshotChunk(std::mem::take(&mut chunk))).await?;
                bytes = 0;
            }
            bytes += length;
            chunk.resources.push(resource.clone());
        }
        if !chunk.resources.is_empty() {
            self.send(Kind::SnapshotChunk(chunk)).await?;
        }
        Ok(hash.finish().as_ref().to_vec())
    }

    async fn send_keys_in_use(&mut self) -> Result<(), Status> {
        let mut tx = self.context.store.read().await.map_err(unavailable)?;
        let keys = cell::keys_in_use(&mut tx, &self.context.sealer, &self.cell).await.map_err(unavailable)?;
        drop(tx);
        for key in keys {
            self.send_key(&key).await?;
        }
        Ok(())
    }

    async fn send_keys_for(&mut self, epochs: impl Iterator<Item = u32>) -> Result<(), Status> {
        let new: BTreeSet<_> = epochs.filter(|epoch| !self.key_epochs.contains(epoch)).collect();
        for epoch in new {
            let mut tx = self.context.store.read().await.map_err(unavailable)?;
            let key =
                cell::key(&mut tx, &self.context.sealer, &self.cell, epoch).await.map_err(unavailable)?;
            drop(tx);
            match key {
                Some(key) => self.send_key(&key).await?,
                // The edge will nack that credential and keep its last one.
                None => {
                    tracing::error!(cell = %self.cell, epoch, "a credential names a key epoch that is not stored")
                }
            }
        }
        Ok(())
    }

    async fn send_key(&mut self, key: &CellKey) -> Result<(), Status> {
        if !self.key_epochs.insert(key.epoch()) {
            return Ok(());
        }
        let sealed = hpke::seal_cell_key(&self.hpke_public_key, key);
        let (encapsulated_key, ciphertext) = sealed
            .map_err(|_| Status::invalid_argument("the HPKE public key of the Hello cannot be used"))?;
        self.send(Kind::CellKey(SealedCellKey {
            cell_id: self.cell.to_string(),
            epoch: key.epoch(),
            encapsulated_key: encapsulated_key.into(),
            ciphertext: ciphertext.into(),
        }))
        .await
    }

    async fn send(&self, kind: Kind) -> Result<(), Status> {
        self.bulk.send(Ok(wrap(kind))).await.map_err(|_| Status::cancelled("the edge closed its stream"))
    }

    /// Waits for the edge's word on the batch that leads to `generation`, and records it.
    async fn outcome(
        &mut self,
        member: &Membership,
        generation: Generation,
        sent: &[ResourceKey],
        whole: bool,
        deadline: Duration,
    ) -> Result<Outcome, Status> {
        let late =
            |_| Status::deadline_exceeded(format!("no ack of {generation} within {} s", deadline.as_secs()));
        let ack = tokio::time::timeout(deadline, self.ack_of(generation)).await.map_err(late)??;
        if let Some(rejection) = &ack.rejected {
            metrics::rejected();
            self.refusals.rejected(self.context, rejection).await.map_err(unavailable)?;
            let at = ack.generation.unwrap_or_default().into();
            member.set_applied(at);
            return Ok(Outcome::Refused(at));
        }
        metrics::nacked(ack.nacks.len());
        let sent: HashSet<_> = sent.iter().copied().collect();
        self.refusals.applied(self.context, &ack.nacks, &sent, whole).await.map_err(unavailable)?;
        self.base = Some(generation);
        member.set_applied(generation);
        Ok(Outcome::Applied)
    }

    async fn ack_of(&mut self, generation: Generation) -> Result<Ack, Status> {
        loop {
            let ack =
                self.acks.recv().await.ok_or_else(|| Status::cancelled("the edge closed its stream"))?;
            let of = match &ack.rejected {
                Some(rejection) => rejection.refused,
                None => ack.generation,
            };
            if of.map(Generation::from) == Some(generation) {
                return Ok(ack);
            }
            tracing::debug!(edge = %self.edge, ?of, %generation, "an ack of something else is ignored");
        }
    }

    /// The same snapshot would be refused again; an operator's word ends the wait early.
    async fn wait_after_refusal(&mut self) {
        let wait = REFUSED_WAIT.saturating_mul(1 << self.refused_in_a_row.min(8)).min(REFUSED_WAIT_MAX);
        self.refused_in_a_row += 1;
        let mut signed_off = self.context.signals.signed_off_until.subscribe();
        drop(tokio::time::timeout(wait, signed_off.changed()).await);
    }
}
