//! From published batches to last-good files and back. Runs on a blocking thread: it syncs to disk.
//!
//! A snapshot's frames are Resource messages as on the wire. A logged delta has one frame for each resource or tombstone,
//! a Delta message with just that, so that no frame is large.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;
use portico_api::distribution::{Delta, Resource, Tombstone};
use portico_cert_store::{Frames, Generation, LastGood, LastGoodError, Loaded};
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

/// What is on disk: the snapshot, and what the logged changes make of it.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    pub(super) generation: Generation,
    pub(super) warnings: Vec<String>,
    snapshot: Frames,
    /// None: removed.
    changes: HashMap<(u32, String), Option<Resource>>,
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
                let carried = OnDisk::load(last_good)?.frames_of(carried);
                last_good.write_snapshot(self.generation, frames.iter().chain(&carried))
            }
            What::Delta { frames } => self.save_delta(last_good, frames),
        }
    }

    fn save_delta(&self, last_good: &mut LastGood, frames: &[Vec<u8>]) -> Result<(), LastGoodError> {
        match last_good.append(self.generation, frames) {
            Ok(()) if last_good.needs_compaction() => {
                let present = OnDisk::load(last_good)?;
                last_good.write_snapshot(self.generation, present.into_frames())
            }
            // Nothing to append to, or the log cannot be trusted: write the state as a whole.
            Err(LastGoodError::NoSnapshot | LastGoodError::LogBroken) => {
                let mut present = OnDisk::load(last_good)?;
                present.add(frames);
                last_good.write_snapshot(self.generation, present.into_frames())
            }
            done => done,
        }
    }
}

impl OnDisk {
    pub(super) fn load(last_good: &mut LastGood) -> Result<Self, LastGoodError> {
        let Loaded { generation, resources, deltas, warnings } = last_good.load()?;
        let mut present = Self { generation, warnings, snapshot: resources, changes: HashMap::new() };
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
                        self.changes.insert((resource.kind, resource.id.clone()), Some(resource));
                    }
                    for tombstone in delta.tombstones {
                        self.changes.insert((tombstone.kind, tombstone.id), None);
                    }
                }
                Err(error) => self.warnings.push(format!("a kept change does not decode: {error}")),
            }
        }
    }

    /// All resources, decoded on all cores, with what could not be decoded as warnings. Bodies point into the file.
    pub(super) fn into_resources(self) -> (Vec<Resource>, Vec<String>) {
        let (bytes, ranges) = self.snapshot.into_parts();
        let (bytes, changes) = (Bytes::from(bytes), &self.changes);
        let decode = |ranges: &[Range<usize>]| {
            let (mut resources, mut warnings) = (Vec::with_capacity(ranges.len()), Vec::new());
            for range in ranges {
                match Resource::decode(bytes.slice(range.clone())) {
                    Ok(resource) if is_changed(changes, &resource) => {}
                    Ok(resource) => resources.push(resource),
                    Err(error) => warnings.push(format!("a kept resource does not decode: {error}")),
                }
            }
            (resources, warnings)
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = ranges.len().div_ceil(threads).max(1);
        let parts = std::thread::scope(|scope| {
            let parts: Vec<_> = ranges.chunks(share).map(|ranges| scope.spawn(|| decode(ranges))).collect();
            parts.into_iter().map(|part| part.join().expect("decoding does not panic")).collect::<Vec<_>>()
        });
        let (mut resources, mut warnings) = (Vec::with_capacity(ranges.len() + changes.len()), Vec::new());
        for (part, told) in parts {
            resources.extend(part);
            warnings.extend(told);
        }
        resources.extend(self.changes.into_values().flatten());
        (resources, warnings)
    }

    /// The frames of the state as it is now.
    fn into_frames(self) -> Vec<Vec<u8>> {
        self.into_resources().0.iter().map(prost::Message::encode_to_vec).collect()
    }

    /// The frames of some resources, by kind and id.
    fn frames_of(self, keys: &[(u32, String)]) -> Vec<Vec<u8>> {
        let wanted: HashSet<(u32, &str)> = keys.iter().map(|(kind, id)| (*kind, id.as_str())).collect();
        let (mut resources, _) = self.into_resources();
        resources.retain(|resource| wanted.contains(&(resource.kind, resource.id.as_str())));
        resources.iter().map(prost::Message::encode_to_vec).collect()
    }
}

fn is_changed(changes: &HashMap<(u32, String), Option<Resource>>, resource: &Resource) -> bool {
    !changes.is_empty() && changes.contains_key(&(resource.kind, resource.id.clone()))
}

fn one_resource(resource: Resource) -> Delta {
    Delta { resources: vec![resource], ..Delta::default() }
}

fn one_tombstone(tombstone: Tombstone) -> Delta {
    Delta { tombstones: vec![tombstone], ..Delta::default() }
}
