//! The published state in memory, and what an edge is missing of it.
//!
//! One writer (the publisher) brings it from generation to generation; every stream reads it. It holds each resource's
//! newest version, encoded once for all edges, and removed resources as tombstones, both indexed by sequence: what an
//! edge at base B lacks is the range above B. About 1.9 KB for a name with its own certificate, so 100,000 of them take
//! some 190 MB.
//!
//! Deliberately absent: older versions. An edge that missed three versions of a resource gets the last one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use portico_api::distribution::{REMOVAL_ALWAYS_ALLOWED, REMOVAL_PERCENT_MAX};
use portico_cert_store::{CellId, Generation};

use super::resource::{Cells, Kind, Published, ResourceKey};

/// Everything that is published, at one generation.
#[derive(Debug, Default)]
pub(super) struct Image {
    generation: Generation,
    /// Removals up to this sequence are forgotten: a base below it cannot be brought up by a delta.
    floor: u64,
    entries: HashMap<ResourceKey, Entry>,
    by_sequence: BTreeMap<u64, ResourceKey>,
    /// Domains published to each cell.
    names: HashMap<CellId, u64>,
}

#[derive(Debug)]
struct Entry {
    version: u64,
    /// `None`: removed.
    published: Option<Arc<Published>>,
    left: Left,
}

/// Cells that may still hold an older version of a resource that they no longer get.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Left {
    Cells(Vec<CellId>),
    /// It changed before this process started, so any cell may.
    Unknown,
}

/// A resource's next state.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) key: ResourceKey,
    pub(super) version: u64,
    /// `None`: removed.
    pub(super) published: Option<Published>,
}

/// Something that an edge has to learn.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) key: ResourceKey,
    pub(super) sequence: u64,
    /// `None`: a tombstone.
    pub(super) published: Option<Arc<Published>>,
}

/// What brings an edge to the image's generation.
#[derive(Debug)]
pub(super) enum Missing {
    /// Oldest first; empty when nothing of the edge's cell has changed.
    Changes(Vec<Pending>),
    /// The base is unknown: everything.
    Snapshot,
}

impl Image {
    pub(super) fn new(floor: u64) -> Self {
        Self { floor, ..Self::default() }
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// Names published to a cell.
    pub(super) fn names(&self, cell: &CellId) -> u64 {
        self.names.get(cell).copied().unwrap_or(0)
    }

    /// A resource that is published now.
    pub(super) fn find(&self, key: ResourceKey) -> Option<Arc<Published>> {
        self.entries.get(&key)?.published.clone()
    }

    /// Brings the image to `generation`. A change whose version is not above the held one is ignored.
    pub(super) fn apply(&mut self, generation: Generation, changes: Vec<Change>) {
        for change in changes {
            self.apply_change(change);
        }
        self.generation = self.generation.max(generation);
    }

    fn apply_change(&mut self, change: Change) {
        let Change { key, version, published } = change;
        let published = published.map(Arc::new);
        let left = match self.entries.remove(&key) {
            Some(old) if old.version >= version => {
                self.entries.insert(key, old);
                return;
            }
            Some(old) => {
                self.by_sequence.remove(&old.version);
                if let Some(old) = &old.published {
                    self.count_names(old, false);
                }
                left_after(old, published.as_deref())
            }
            None => left_unknown(key, published.is_none()),
        };
        if let Some(new) = &published {
            self.count_names(new, true);
        }
        self.by_sequence.insert(version, key);
        self.entries.insert(key, Entry { version, published, left });
    }

    fn count_names(&mut self, published: &Published, added: bool) {
        if published.key.kind != Kind::Domain {
            return;
        }
        for cell in published.cells.named() {
            let count = self.names.entry(cell.clone()).or_default();
            *count = if added { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    /// The domains among `changes` that edges would lose, with the cells that would lose them.
    pub(super) fn removals<'a>(
        &'a self,
        changes: &'a [Change],
    ) -> impl Iterator<Item = (ResourceKey, Vec<CellId>)> + 'a {
        changes.iter().filter(|change| change.key.kind == Kind::Domain).filter_map(|change| {
            let old = self.entries.get(&change.key)?.published.as_ref()?;
            let stays = |cell: &CellId| change.published.as_ref().is_some_and(|new| new.cells.contains(cell));
            let lost: Vec<_> = old.cells.named().iter().filter(|cell| !stays(cell)).cloned().collect();
            (!lost.is_empty()).then_some((change.key, lost))
        })
    }

    /// What an edge of `cell` at `base` has to learn.
    pub(super) fn missing(&self, cell: &CellId, base: Generation) -> Missing {
        let foreign = base.epoch != self.generation.epoch || base.sequence > self.generation.sequence;
        if foreign || base.sequence < self.floor || base == Generation::default() {
            return Missing::Snapshot;
        }
        let above = self.by_sequence.range(base.sequence + 1..);
        Missing::Changes(above.filter_map(|(_, &key)| self.pending(cell, key)).collect())
    }

    /// How a resource stands for an edge of `cell`; `None` where such an edge never had it.
    pub(super) fn pending(&self, cell: &CellId, key: ResourceKey) -> Option<Pending> {
        let entry = self.entries.get(&key)?;
        let published = entry.published.clone().filter(|published| published.cells.contains(cell));
        let known = published.is_some() || entry.left.may_hold(cell);
        known.then_some(Pending { key, sequence: entry.version, published })
    }

    /// Everything that an edge of `cell` gets, in the order of sending.
    pub(super) fn everything(&self, cell: &CellId) -> Vec<Arc<Published>> {
        let all = self.entries.values().filter_map(|entry| entry.published.clone());
        let mut all: Vec<_> = all.filter(|published| published.cells.contains(cell)).collect();
        all.sort_unstable_by_key(|published| published.key);
        all
    }

    /// Drops tombstones up to `sequence`; bases below it get a snapshot from now on.
    pub(super) fn forget_removals(&mut self, sequence: u64) {
        let forgotten: Vec<_> = self
            .by_sequence
            .range(..=sequence)
            .filter(|(_, key)| self.entries.get(key).is_some_and(|entry| entry.published.is_none()))
            .map(|(&sequence, &key)| (sequence, key))
            .collect();
        for (sequence, key) in forgotten {
            self.by_sequence.remove(&sequence);
            self.entries.remove(&key);
            self.floor = self.floor.max(sequence);
        }
    }
}

impl Left {
    fn may_hold(&self, cell: &CellId) -> bool {
        match self {
            Self::Cells(cells) => cells.contains(cell),
            Self::Unknown => true,
        }
    }
}

fn left_unknown(key: ResourceKey, removed: bool) -> Left {
    // A lineage never changes its cell, and tenants and the fleet's policy go everywhere: while such a resource stands,
    // no cell can have lost it.
    if removed || key.kind == Kind::Domain { Left::Unknown } else { Left::Cells(Vec::new()) }
}

fn left_after(old: Entry, new: Option<&Published>) -> Left {
    let mut left = match (old.left, old.published.as_deref().map(|old| &old.cells)) {
        (Left::Unknown, _) | (_, Some(Cells::All)) if new.is_none() => return Left::Unknown,
        (Left::Unknown, _) => return Left::Unknown,
        (Left::Cells(left), _) => left,
    };
    if let Some(old) = &old.published {
        left.extend_from_slice(old.cells.named());
    }
    left.retain(|cell| !new.is_some_and(|new| new.cells.contains(cell)));
    left.sort();
    left.dedup();
    Left::Cells(left)
}

/// Whether `removed` of `held` names may go at once without an operator's word: at most 5 %, or at most 32.
pub(super) fn removals_allowed(removed: u64, held: u64) -> bool {
    removed <= REMOVAL_ALWAYS_ALLOWED
        || removed.saturating_mul(100) <= held.saturating_mul(REMOVAL_PERCENT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_cert_store::{DomainId, LineageId};

    fn cell(name: &str) -> CellId {
        CellId::parse(name).unwrap()
    }

    fn domain(id: DomainId, version: u64, cells: &[&str]) -> Change {
        let key = ResourceKey::domain(id);
        let cells = Cells::only(cells.iter().map(|name| cell(name)).collect());
        let published = Published::new(key, version, cells, "ten".to_owned(), version.to_be_bytes().to_vec());
        Change { key, version, published: Some(published) }
    }

    fn removed(key: ResourceKey, version: u64) -> Change {
        Change { key, version, published: None }
    }

    fn at(sequence: u64) -> Generation {
        Generation { epoch: 1, sequence }
    }

    /// (sequence, is a resource) of what is missing.
    fn missing(image: &Image, name: &str, base: u64) -> Option<Vec<(u64, bool)>> {
        match image.missing(&cell(name), at(base)) {
            Missing::Changes(all) => Some(all.iter().map(|p| (p.sequence, p.published.is_some())).collect()),
            Missing::Snapshot => None,
        }
    }

    #[test]
    fn domain_that_leaves_a_cell_is_a_tombstone_there_and_a_resource_elsewhere() {
        let mut image = Image::default();
        let (a, b) = (DomainId::generate(), DomainId::generate());
        image.apply(at(2), vec![domain(a, 1, &["one"]), domain(b, 2, &["one", "two"])]);
        image.apply(at(3), vec![domain(a, 3, &["two"])]);
        assert_eq!(missing(&image, "one", 2), Some(vec![(3, false)]));
        assert_eq!(missing(&image, "two", 2), Some(vec![(3, true)]));
        image.apply(at(4), vec![removed(ResourceKey::domain(b), 4)]);
        assert_eq!(missing(&image, "one", 3), Some(vec![(4, false)]));
        assert_eq!(missing(&image, "one", 4), Some(vec![]));
        assert_eq!((image.names(&cell("one")), image.names(&cell("two"))), (0, 1));
    }

    #[test]
    fn cell_that_never_had_a_resource_is_told_nothing_of_its_removal() {
        let mut image = Image::default();
        let (id, first) = (DomainId::generate(), DomainId::generate());
        image.apply(at(2), vec![domain(first, 1, &["one"]), domain(id, 2, &["one"])]);
        // What this process saw for the first time may have been anywhere before.
        assert_eq!(missing(&image, "two", 1), Some(vec![(2, false)]));
        let lineage = ResourceKey::credential(LineageId::generate());
        let published = Published::new(lineage, 3, Cells::only(vec![cell("one")]), String::new(), vec![]);
        image.apply(at(3), vec![Change { key: lineage, version: 3, published: Some(published) }]);
        assert_eq!(missing(&image, "two", 2), Some(vec![]));
        image.apply(at(4), vec![removed(lineage, 4)]);
        assert_eq!(missing(&image, "one", 3), Some(vec![(4, false)]));
        assert_eq!(missing(&image, "two", 3), Some(vec![]));
    }

    #[test]
    fn base_that_is_foreign_or_forgotten_gets_a_snapshot() {
        let mut image = Image::default();
        let id = DomainId::generate();
        image.apply(at(1), vec![domain(id, 1, &["one"])]);
        image.apply(at(5), vec![removed(ResourceKey::domain(id), 5)]);
        assert_eq!(missing(&image, "one", 6), None, "ahead of us");
        assert_eq!(missing(&image, "one", 1), Some(vec![(5, false)]));
        image.forget_removals(5);
        assert_eq!(missing(&image, "one", 1), None);
        assert_eq!(missing(&image, "one", 5), Some(vec![]));
        assert!(matches!(
            image.missing(&cell("one"), Generation { epoch: 2, sequence: 5 }),
            Missing::Snapshot
        ));
        assert!(matches!(image.missing(&cell("one"), Generation::default()), Missing::Snapshot));
    }

    #[test]
    fn stale_change_never_replaces_a_newer_one() {
        let mut image = Image::default();
        let id = DomainId::generate();
        image.apply(at(9), vec![domain(id, 9, &["one"])]);
        image.apply(at(4), vec![removed(ResourceKey::domain(id), 4)]);
        assert_eq!(image.find(ResourceKey::domain(id)).unwrap().version, 9);
        assert_eq!(image.generation(), at(9));
        assert_eq!(image.names(&cell("one")), 1);
    }

    #[test]
    fn few_removals_pass_and_many_need_a_word() {
        for (removed, held, allowed) in [
            (0, 0, true),
            (32, 32, true),
            (33, 100, false),
            (33, 660, true),
            (33, 659, false),
            (51, 1000, false),
        ] {
            assert_eq!(removals_allowed(removed, held), allowed, "{removed} of {held}");
        }
    }
}
