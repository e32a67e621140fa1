//! From published batches to last-good files and back. Runs on a blocking thread: it syncs to disk.
//!
//! A snapshot's frames are Resource messages as on the wire. A logged delta has one frame for each resource or tombstone,
//! a Delta message with just that, so that no frame is large.

use std::collections::HashMap;

use portico_api::distribution::{Delta, Resource, Tombstone};
use portico_cert_store::{Generation, LastGood, LastGoodError, Loaded};
use prost::Message as _;

use crate::live::Published;

/// A published batch on its way to the disk.
#[derive(Debug)]
pub(super) struct Saving {
    pub(super) generation: Generation,
    what: What,
}

#[derive(Debug)]
enum What {
    Snapshot {
        frames: Vec<Vec<u8>>,
        /// Held with other bytes than the snapshot's: taken over from what is on disk.
        carried: Vec<(u32, String)>,
    },
    Delta {
        frames: Vec<Vec<u8>>,
    },
}

/// What is on disk, resource by resource.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    pub(super) generation: Generation,
    pub(super) resources: HashMap<(u32, String), Vec<u8>>,
    pub(super) warnings: Vec<String>,
}

impl Saving {
    pub(super) fn snapshot(published: &Published) -> Self {
        let frames = published.accepted.iter().map(prost::Message::encode_to_vec).collect();
        let what = What::Snapshot { frames, carried: published.carried.clone() };
        Self { generation: published.generation, what }
    }

    pub(super) fn delta(published: &Published) -> Self {
        let resources = published.accepted.iter().map(|resource| one_resource(resource.clone()));
        let tombstones = published.removed.iter().map(|tombstone| one_tombstone(tombstone.clone()));
        let frames = resources.chain(tombstones).map(|delta| delta.encode_to_vec()).collect();
        Self { generation: published.generation, what: What::Delta { frames } }
    }

    /// Bytes that it holds in memory.
    pub(super) fn bytes(&self) -> usize {
        let (What::Snapshot { frames, .. } | What::Delta { frames }) = &self.what;
        frames.iter().map(Vec::len).sum()
    }

    pub(super) fn is_snapshot(&self) -> bool {
        matches!(self.what, What::Snapshot { .. })
    }

    /// Puts it on disk.
    pub(super) fn save(&self, last_good: &mut LastGood) -> Result<(), LastGoodError> {
        match &self.what {
            What::Snapshot { frames, carried } if carried.is_empty() => {
                last_good.write_snapshot(self.generation, frames)
            }
            What::Snapshot { frames, carried } => {
                let mut present = OnDisk::load(last_good)?;
                let carried =
                    carried.iter().filter_map(|key| present.resources.remove(key)).collect::<Vec<_>>();
                last_good.write_snapshot(self.generation, frames.iter().chain(&carried))
            }
            What::Delta { frames } => self.save_delta(last_good, frames),
        }
    }

    fn save_delta(&self, last_good: &mut LastGood, frames: &[Vec<u8>]) -> Result<(), LastGoodError> {
        match last_good.append(self.generation, frames) {
            Ok(()) if last_good.needs_compaction() => {
                let present = OnDisk::load(last_good)?;
                last_good.write_snapshot(self.generation, present.resources.into_values())
            }
            // Nothing to append to, or the log cannot be trusted: write the state as a whole.
            Err(LastGoodError::NoSnapshot | LastGoodError::LogBroken) => {
                let mut present = OnDisk::load(last_good)?;
                present.add(frames);
                last_good.write_snapshot(self.generation, present.resources.into_values())
            }
            done => done,
        }
    }
}

impl OnDisk {
    pub(super) fn load(last_good: &mut LastGood) -> Result<Self, LastGoodError> {
        let Loaded { generation, resources, deltas, warnings } = last_good.load()?;
        let mut present = Self { generation, warnings, ..Self::default() };
        for frame in resources {
            match Resource::decode(frame.as_slice()) {
                Ok(resource) => present.put(resource.kind, resource.id, frame),
                Err(error) => present.warnings.push(format!("a kept resource does not decode: {error}")),
            }
        }
        for delta in deltas {
            present.add(&delta.frames);
        }
        Ok(present)
    }

    /// Applies one logged delta.
    fn add(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            match Delta::decode(frame.as_slice()) {
                Ok(delta) => {
                    for resource in delta.resources {
                        let bytes = resource.encode_to_vec();
                        self.put(resource.kind, resource.id, bytes);
                    }
                    for tombstone in delta.tombstones {
                        self.resources.remove(&(tombstone.kind, tombstone.id));
                    }
                }
                Err(error) => self.warnings.push(format!("a kept change does not decode: {error}")),
            }
        }
    }

    fn put(&mut self, kind: u32, id: String, bytes: Vec<u8>) {
        self.resources.insert((kind, id), bytes);
    }
}

fn one_resource(resource: Resource) -> Delta {
    Delta { resources: vec![resource], ..Delta::default() }
}

fn one_tombstone(tombstone: Tombstone) -> Delta {
    Delta { tombstones: vec![tombstone], ..Delta::default() }
}
