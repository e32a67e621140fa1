//! The edges: what each serves for which name, and what visitors would get.

use std::collections::{BTreeMap, HashMap};

use portico_cert_store::{CellId, DomainId, LineageId};

use crate::ca::CertificateNo;

/// What the control plane tells an edge.
#[derive(Clone, Debug)]
pub enum Change {
    Publish { lineage: LineageId, certificate: CertificateNo, not_after_ms: i64, domains: Vec<DomainId> },
    Remove { lineage: LineageId },
}

#[derive(Debug)]
pub struct Edge {
    pub cell: CellId,
    /// Its stream is down until then: it serves what it has.
    pub away_until_ms: i64,
    slots: BTreeMap<LineageId, Slot>,
    by_name: HashMap<DomainId, Vec<LineageId>>,
}

#[derive(Debug)]
struct Slot {
    certificate: CertificateNo,
    not_after_ms: i64,
    domains: Vec<DomainId>,
}

impl Edge {
    pub fn new(cell: CellId) -> Self {
        Self { cell, away_until_ms: 0, slots: BTreeMap::new(), by_name: HashMap::new() }
    }

    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Publish { lineage, certificate, not_after_ms, domains } => {
                self.remove(lineage);
                for domain in &domains {
                    self.by_name.entry(*domain).or_default().push(lineage);
                }
                self.slots.insert(lineage, Slot { certificate, not_after_ms, domains });
            }
            Change::Remove { lineage } => self.remove(lineage),
        }
    }

    fn remove(&mut self, lineage: LineageId) {
        let Some(slot) = self.slots.remove(&lineage) else { return };
        for domain in slot.domains {
            if let Some(lineages) = self.by_name.get_mut(&domain) {
                lineages.retain(|other| *other != lineage);
                if lineages.is_empty() {
                    self.by_name.remove(&domain);
                }
            }
        }
    }

    /// The certificate that a handshake for the name gets, and its end: the later one of two.
    pub fn serves(&self, domain: DomainId) -> Option<(CertificateNo, i64)> {
        let slots = self.by_name.get(&domain)?.iter().filter_map(|lineage| self.slots.get(lineage));
        slots.map(|slot| (slot.certificate, slot.not_after_ms)).max_by_key(|(_, end)| *end)
    }

    /// Names that a lineage's slot is for, if it still holds this certificate.
    pub fn names_of(&self, lineage: LineageId, certificate: CertificateNo) -> &[DomainId] {
        match self.slots.get(&lineage) {
            Some(slot) if slot.certificate == certificate => &slot.domains,
            _ => &[],
        }
    }

    /// How many names it serves.
    pub fn names(&self) -> usize {
        self.by_name.len()
    }
}
