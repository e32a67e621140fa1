//! A snapshot on its way in: chunks are collected, counted and hashed, and nothing is looked at before the last one.

use aws_lc_rs::digest::{Context, SHA256};
use portico_api::distribution::{SnapshotBegin, SnapshotChunk, SnapshotEnd};
use portico_cert_store::Generation;
use prost::Message as _;

use crate::live::{Batch, BatchKind, Fault, Rejected, limits};

pub(super) struct Incoming {
    generation: Generation,
    announced: u64,
    removals_signed_off: bool,
    resources: Vec<portico_api::distribution::Resource>,
    bytes: usize,
    hash: Context,
    /// Found early; the rest is still read, so that the stream stays in step, but no longer kept.
    fault: Option<Fault>,
}

impl Incoming {
    pub(super) fn begin(begin: &SnapshotBegin) -> Self {
        let fault = (begin.resources > limits::SNAPSHOT_RESOURCES_MAX).then(|| {
            let text = format!(
                "{} resources announced; at most {}",
                begin.resources,
                limits::SNAPSHOT_RESOURCES_MAX
            );
            Fault::new("TooManyResources", text)
        });
        Self {
            generation: begin.generation.unwrap_or_default().into(),
            announced: begin.resources,
            removals_signed_off: begin.removals_signed_off,
            resources: Vec::new(),
            bytes: 0,
            hash: Context::new(&SHA256),
            fault,
        }
    }

    pub(super) fn chunk(&mut self, chunk: SnapshotChunk) {
        if self.fault.is_some() {
            return;
        }
        for resource in chunk.resources {
            let encoded = resource.encode_to_vec();
            self.bytes += encoded.len();
            self.hash.update(&encoded);
            self.resources.push(resource);
        }
        if self.resources.len() as u64 > self.announced {
            self.refuse("CountMismatch", format!("more than the {} resources announced", self.announced));
        } else if self.bytes > limits::SNAPSHOT_BYTES_MAX {
            self.refuse("SnapshotTooLarge", format!("more than {} bytes", limits::SNAPSHOT_BYTES_MAX));
        }
    }

    /// The whole batch, if it is what was sent.
    pub(super) fn end(mut self, end: &SnapshotEnd) -> Result<Batch, Rejected> {
        let count = self.resources.len() as u64;
        let hash = self.hash.clone().finish();
        if self.fault.is_none() && count != self.announced {
            self.refuse(
                "CountMismatch",
                format!("{count} resources where {} were announced", self.announced),
            );
        } else if self.fault.is_none() && hash.as_ref() != end.sha256.as_ref() {
            self.refuse("ChecksumMismatch", "the snapshot is not what its sender has hashed".to_owned());
        }
        match self.fault {
            Some(fault) => Err(Rejected { generation: self.generation, fault }),
            None => Ok(Batch {
                kind: BatchKind::Snapshot,
                generation: self.generation,
                resources: self.resources,
                tombstones: Vec::new(),
                removals_signed_off: self.removals_signed_off,
            }),
        }
    }

    fn refuse(&mut self, code: &'static str, text: String) {
        self.fault = Some(Fault::new(code, text));
        self.resources = Vec::new();
    }
}

#[cfg(test)]
mod tests;
