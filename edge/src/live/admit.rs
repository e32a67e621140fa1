//! The envelope of a batch: what makes an edge refuse it whole, before any of its resources is looked at.
//!
//! A refused batch leaves no trace in the published tables. The one rule of the envelope that needs parsed resources, the
//! share of names removed, is applied at publish, also before anything changes.

use portico_api::distribution::{RESOURCE_BYTES_MAX, Resource, Tombstone};
use portico_cert_store::Generation;
use prost::Message as _;

use super::books::HashSet;
use super::{Fault, limits};

/// A snapshot or a delta as it came.
#[derive(Clone, Debug)]
pub struct Batch {
    pub kind: BatchKind,
    pub generation: Generation,
    pub resources: Vec<Resource>,
    /// None in a snapshot: there, what is absent is removed.
    pub tombstones: Vec<Tombstone>,
    pub removals_signed_off: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    Snapshot,
    Delta {
        base: Generation,
    },
    /// What the edge itself kept on disk: it was admitted once.
    LastGood,
}

/// A batch whose envelope is sound.
#[derive(Debug)]
pub struct Admitted {
    pub(super) batch: Batch,
    /// For each resource: it is held at just this version already.
    pub(super) unchanged: Vec<bool>,
    /// Nothing is served yet: nobody else wants the cores.
    pub(super) idle: bool,
}

/// A batch refused whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("generation {generation} is refused: {fault}")]
pub struct Rejected {
    pub generation: Generation,
    pub fault: Fault,
}

/// Checks what can be seen without parsing resources.
pub(super) fn check_envelope(batch: &Batch, applied: Generation) -> Result<(), Fault> {
    check_generation(batch, applied)?;
    check_sizes(batch)?;
    match batch.kind {
        // Unique when it was admitted.
        BatchKind::LastGood => Ok(()),
        BatchKind::Snapshot | BatchKind::Delta { .. } => check_unique(batch),
    }
}

fn check_generation(batch: &Batch, applied: Generation) -> Result<(), Fault> {
    let generation = batch.generation;
    if generation <= applied {
        let text = format!("generation {generation} is not above the applied one, {applied}");
        return Err(Fault::new("GenerationNotAbove", text));
    }
    match batch.kind {
        BatchKind::Delta { base } if base != applied => {
            let text = format!("the delta builds on {base}, and {applied} is applied; a snapshot is needed");
            Err(Fault::new("BaseMismatch", text))
        }
        BatchKind::Delta { base } if base.epoch != generation.epoch => {
            Err(Fault::new("EpochNeedsSnapshot", "a new epoch begins with a snapshot, not with a delta"))
        }
        BatchKind::Delta { .. } | BatchKind::Snapshot | BatchKind::LastGood => Ok(()),
    }
}

fn check_sizes(batch: &Batch) -> Result<(), Fault> {
    let items = batch.resources.len() + batch.tombstones.len();
    let items_max = match batch.kind {
        BatchKind::Delta { .. } => limits::DELTA_ITEMS_MAX,
        BatchKind::Snapshot | BatchKind::LastGood => {
            usize::try_from(limits::SNAPSHOT_RESOURCES_MAX).unwrap_or(usize::MAX)
        }
    };
    if items > items_max {
        return Err(Fault::new(
            "TooManyResources",
            format!("{items} resources; at most {items_max} in one batch"),
        ));
    }
    for resource in &batch.resources {
        let bytes = resource.encoded_len();
        if bytes > RESOURCE_BYTES_MAX {
            let text =
                format!("resource `{:.64}` has {bytes} bytes; at most {RESOURCE_BYTES_MAX}", resource.id);
            return Err(Fault::new("ResourceTooLarge", text));
        }
    }
    let ids =
        batch.resources.iter().map(|resource| &resource.id).chain(batch.tombstones.iter().map(|t| &t.id));
    match ids.into_iter().find(|id| id.is_empty() || id.len() > limits::RESOURCE_ID_BYTES_MAX) {
        Some(id) => Err(Fault::new("BadResourceId", format!("a resource id of {} bytes", id.len()))),
        None => Ok(()),
    }
}

fn check_unique(batch: &Batch) -> Result<(), Fault> {
    let resources = batch.resources.iter().map(|resource| (resource.kind, resource.id.as_str()));
    let tombstones = batch.tombstones.iter().map(|tombstone| (tombstone.kind, tombstone.id.as_str()));
    let mut seen = HashSet::default();
    seen.reserve(batch.resources.len() + batch.tombstones.len());
    match resources.chain(tombstones).find(|key| !seen.insert(*key)) {
        Some((kind, id)) => {
            Err(Fault::new("DuplicateResource", format!("resource `{id}` of kind {kind} is there twice")))
        }
        None => Ok(()),
    }
}
