//! From a batch to served, saved and acknowledged.
//!
//! Staging (parses, handshakes) and saving (disk syncs) run on blocking threads, one batch at a time; publishing is on
//! the service thread and short. Urgent messages are therefore never behind a batch. An ack says that the batch is served;
//! if the disk refuses it, it is served all the same, kept in memory and tried again.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use portico_api::distribution::{Ack, Nack, Rejection};
use portico_cert_store::{CellId, CellKeys, ChainInterner, Generation, LastGood, LastGoodError};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::metrics::ControlMetrics;
use super::saving::{OnDisk, Saving};
use super::{OwnKeys, limits};
use crate::clock;
use crate::live::{
    Batch, BatchKind, Checks, LivePublisher, Published, Rejected, Staged, StagingContext, stage,
};

/// The writer of the tables with its disk.
pub(super) struct Applier {
    pub(super) publisher: LivePublisher,
    pub(super) keys: Keys,
    cell: CellId,
    interner: Arc<ChainInterner>,
    /// Away while a blocking thread writes.
    last_good: Option<LastGood>,
    unsaved: VecDeque<Saving>,
    /// A change is missing on disk: only a snapshot can be written next.
    gap: bool,
    /// A successor reads the files: nothing is written meanwhile.
    held: bool,
    work: Option<Work>,
    metrics: ControlMetrics,
}

/// What credentials are opened with.
pub(super) struct Keys {
    pub(super) of_cell: CellKeys,
    pub(super) own: OwnKeys,
}

/// What a blocking thread is at.
enum Work {
    Staging { kind: BatchKind, begun: Instant, staged: JoinHandle<Staged> },
    Saving { saved: JoinHandle<Saved>, ack: Option<Ack> },
}

struct Saved {
    last_good: LastGood,
    rest: VecDeque<Saving>,
    error: Option<LastGoodError>,
}

impl Applier {
    pub(super) fn new(
        publisher: LivePublisher,
        keys: Keys,
        cell: CellId,
        last_good: LastGood,
        metrics: ControlMetrics,
    ) -> Self {
        Self {
            publisher,
            keys,
            cell,
            interner: Arc::new(ChainInterner::new()),
            last_good: Some(last_good),
            unsaved: VecDeque::new(),
            gap: false,
            held: false,
            work: None,
            metrics,
        }
    }

    /// Publishes what is on disk, before the first connection. Damage is reported, never fatal.
    pub(super) fn boot(&mut self) -> Result<(), LastGoodError> {
        let Some(last_good) = &mut self.last_good else { return Ok(()) };
        let mut present = OnDisk::load(last_good)?;
        let (generation, damage) = (present.generation, std::mem::take(&mut present.warnings));
        let (resources, undecoded) = present.into_resources();
        for warning in damage.iter().chain(&undecoded) {
            tracing::error!(%warning, "last-good files are damaged");
            self.metrics.last_good_errors.increment(1);
        }
        if generation == Generation::default() {
            tracing::info!(
                "no last-good state: this edge serves nothing until the control plane has sent a snapshot"
            );
            return Ok(());
        }
        let batch = Batch {
            kind: BatchKind::LastGood,
            generation,
            resources,
            tombstones: Vec::new(),
            removals_signed_off: false,
        };
        let context = self.context(Checks::ServedBefore);
        match self
            .publisher
            .admit(batch)
            .and_then(|admitted| self.publisher.publish(stage(admitted, &context)))
        {
            Ok(published) => {
                self.booted(&published);
                delete_unused(&self.keys.own, self.publisher.own_keys_in_use());
            }
            Err(rejected) => tracing::error!(%rejected, "the last-good state cannot be published"),
        }
        Ok(())
    }

    fn booted(&self, published: &Published) {
        let (named, unnamed) = named(&published.nacks);
        for nack in named {
            tracing::error!(
                id = nack.id,
                code = nack.code,
                text = nack.text,
                "a kept resource cannot be served"
            );
        }
        if unnamed > 0 {
            tracing::error!(unnamed, "more kept resources cannot be served than are named here");
        }
        let (names, credentials) = (self.publisher.names(), self.publisher.credentials());
        let unserved = published.nacks.len();
        tracing::info!(generation = %published.generation, names, credentials, unserved, "serving the last good state");
        self.note_applied(published.generation);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.work.is_some()
    }

    /// Whether a batch is under way that is not served yet.
    pub(super) fn is_staging(&self) -> bool {
        matches!(self.work, Some(Work::Staging { .. }))
    }

    /// Begins with a batch. An envelope fault is answered at once.
    pub(super) fn start(&mut self, batch: Batch) -> Option<Ack> {
        let kind = batch.kind;
        match self.publisher.admit(batch) {
            Ok(admitted) => {
                let context = self.context(Checks::Handshake);
                let staged = spawn_blocking(move || stage(admitted, &context));
                self.work = Some(Work::Staging { kind, begun: clock::now(), staged });
                None
            }
            Err(rejected) => Some(self.reject(&rejected)),
        }
    }

    /// The refusal of a batch that could not even be put together.
    pub(super) fn reject(&self, rejected: &Rejected) -> Ack {
        tracing::error!(generation = %rejected.generation, fault = %rejected.fault, "a batch is refused whole");
        self.metrics.rejected.increment(1);
        Ack {
            generation: Some(self.publisher.applied().into()),
            nacks: Vec::new(),
            rejected: Some(Rejection {
                refused: Some(rejected.generation.into()),
                code: rejected.fault.code.to_owned(),
                text: rejected.fault.text.clone(),
            }),
        }
    }

    /// The next step of the work under way; an ack when a batch is done. Cancel-safe. Never ends while there is no work.
    pub(super) async fn step(&mut self) -> Option<Ack> {
        match &mut self.work {
            None => std::future::pending().await,
            Some(Work::Staging { kind, begun, staged }) => {
                let (kind, begun, staged) = (*kind, *begun, staged.await);
                self.work = None;
                self.publish(kind, begun, staged)
            }
            Some(Work::Saving { saved, ack }) => {
                let saved = saved.await;
                let ack = ack.take();
                self.work = None;
                self.saved(saved);
                ack
            }
        }
    }

    /// Lets a write that is under way end; a batch that is only staged is forgotten, the control plane sends it again.
    pub(super) async fn settle(&mut self) {
        while matches!(self.work, Some(Work::Saving { .. })) {
            // Nobody is there to be told.
            let _ack = self.step().await;
        }
        self.work = None;
    }

    /// Writes nothing more, once what is under way is written; gives the acks of that. Batches are served and acknowledged
    /// all the same.
    pub(super) async fn hold(&mut self) -> Vec<Ack> {
        self.held = true;
        let mut acks = Vec::new();
        while matches!(self.work, Some(Work::Saving { .. })) {
            acks.extend(self.step().await);
        }
        acks
    }

    /// Writes again, first what came meanwhile.
    pub(super) fn release(&mut self) {
        self.held = false;
        self.retry_saving();
    }

    /// Tries again to write what the disk refused.
    pub(super) fn retry_saving(&mut self) {
        if !self.held && !self.is_busy() && !self.unsaved.is_empty() {
            self.save(None);
        }
    }

    fn publish(&mut self, kind: BatchKind, begun: Instant, staged: Result<Staged, JoinError>) -> Option<Ack> {
        let staged = match staged {
            Ok(staged) => staged,
            // Staging holds panics to the resource; only a shutdown of the runtime ends it.
            Err(error) => {
                tracing::error!(%error, "a batch was not staged");
                return None;
            }
        };
        let published = match self.publisher.publish(staged) {
            Ok(published) => published,
            Err(rejected) => return Some(self.reject(&rejected)),
        };
        self.metrics.applied.increment(1);
        self.metrics.applied_within(clock::now().duration_since(begun));
        self.metrics.nacks.increment(published.nacks.len() as u64);
        self.note_applied(published.generation);
        let saving = match kind {
            BatchKind::Snapshot | BatchKind::LastGood => Saving::snapshot(&published),
            BatchKind::Delta { .. } => Saving::delta(&published),
        };
        tracing::info!(
            generation = %published.generation,
            accepted = published.accepted.len(),
            removed = published.removed.len(),
            nacks = published.nacks.len(),
            "applied"
        );
        let ack = Ack {
            generation: Some(published.generation.into()),
            nacks: bounded(published.nacks),
            rejected: None,
        };
        self.keep(saving);
        self.save(Some(ack))
    }

    fn keep(&mut self, saving: Saving) {
        if saving.is_snapshot() {
            self.unsaved.clear();
            self.gap = false;
        }
        let waiting: usize = self.unsaved.iter().map(Saving::bytes).sum();
        if self.gap || (!saving.is_snapshot() && waiting + saving.bytes() > limits::UNSAVED_BYTES_MAX) {
            tracing::error!(
                generation = %saving.generation,
                "the disk has refused too much: after a restart this edge will begin at an older generation"
            );
            self.gap = true;
            return;
        }
        self.unsaved.push_back(saving);
    }

    /// Writes all that is unsaved. The ack comes when that was tried; it is given back if nothing can be tried.
    fn save(&mut self, ack: Option<Ack>) -> Option<Ack> {
        if self.held {
            return ack;
        }
        let Some(mut last_good) = self.last_good.take() else { return ack };
        let mut rest = std::mem::take(&mut self.unsaved);
        let own =
            (!self.keys.own.is_empty()).then(|| (self.keys.own.clone(), self.publisher.own_keys_in_use()));
        let gap = self.gap;
        let saved = spawn_blocking(move || {
            let mut error = None;
            while let Some(saving) = rest.front() {
                match saving.save(&mut last_good) {
                    Ok(()) => drop(rest.pop_front()),
                    Err(refused) => {
                        error = Some(refused);
                        break;
                    }
                }
            }
            // What the disk still says may be served after a restart.
            if let Some((own, in_use)) = own.filter(|_| rest.is_empty() && !gap) {
                delete_unused(&own, in_use);
            }
            Saved { last_good, rest, error }
        });
        self.work = Some(Work::Saving { saved, ack });
        None
    }

    fn saved(&mut self, saved: Result<Saved, JoinError>) {
        match saved {
            Ok(Saved { last_good, rest, error }) => {
                self.last_good = Some(last_good);
                self.unsaved = rest;
                if let Some(error) = error {
                    self.metrics.last_good_errors.increment(1);
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot write the last-good files; will try again"
                    );
                }
            }
            Err(error) => {
                self.gap = true;
                self.metrics.last_good_errors.increment(1);
                tracing::error!(%error, "the writer of the last-good files is gone; nothing more is written");
            }
        }
    }

    fn context(&self, checks: Checks) -> StagingContext {
        StagingContext {
            cell: self.cell.clone(),
            cell_keys: self.keys.of_cell.clone(),
            own_keys: Some(self.keys.own.clone()),
            interner: Arc::clone(&self.interner),
            now: clock::unix_time(),
            checks,
        }
    }

    fn note_applied(&self, generation: Generation) {
        self.metrics.set_applied(generation, clock::unix_time().as_secs());
    }
}

/// Deletes keys of this edge's own that nothing refers to any more.
fn delete_unused(own: &OwnKeys, in_use: HashSet<[u8; 32]>) {
    if let Err(error) = own.delete_unused(&in_use, clock::unix_elapsed()) {
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, "a key that nothing uses any more cannot be deleted; will try again");
    }
}

/// Those that the log names, and how many it does not.
fn named(nacks: &[Nack]) -> (&[Nack], usize) {
    let (named, rest) = nacks.split_at(nacks.len().min(limits::UNSERVED_NAMED_MAX));
    (named, rest.len())
}

/// An ack has to fit into one message.
fn bounded(mut nacks: Vec<Nack>) -> Vec<Nack> {
    if nacks.len() > limits::NACKS_MAX {
        tracing::error!(nacks = nacks.len(), "more nacks than an ack holds; the rest is cut");
        nacks.truncate(limits::NACKS_MAX);
    }
    for nack in &mut nacks {
        tracing::warn!(
            kind = nack.kind,
            id = nack.id,
            version = nack.version,
            code = nack.code,
            text = nack.text,
            "nack"
        );
        let end = (0..=nack.text.len().min(limits::NACK_TEXT_BYTES_MAX))
            .rev()
            .find(|end| nack.text.is_char_boundary(*end));
        nack.text.truncate(end.unwrap_or(0));
    }
    nacks
}

#[cfg(test)]
mod tests;
