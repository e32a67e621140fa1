//! Cuts what an edge lacks into deltas of bounded size.
//!
//! Each part ends at a sequence below which nothing is left out, so that an edge that loses its stream after any part
//! resumes from there. Within that, a part is always safe to apply alone: a domain travels with the tenant and the
//! credentials that it needs, and a credential's tombstone only after every domain that may have left it.

use std::collections::HashMap;

use portico_api::distribution::{Delta, Generation as WireGeneration};
use portico_cert_store::Generation;
use prost::Message;

use super::image::Pending;
use super::resource::{Kind, ResourceKey};

/// The most resources and tombstones of one delta ...
pub(super) const DELTA_ITEMS_MAX: usize = 2_000;
/// ... and the most bytes of its resources, which one item alone may exceed. With tags, lengths and tombstones the
/// message stays below 4 MiB, which is what gRPC clients take by default.
pub(super) const DELTA_BYTES_MAX: usize = (4 << 20) - (256 << 10);

/// What is still to be sent to one edge, oldest first, up to a generation.
#[derive(Debug)]
pub(super) struct Backlog {
    items: Vec<Pending>,
    target: Generation,
}

/// One part of a backlog.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) items: Vec<Pending>,
    pub(super) generation: Generation,
}

/// The backlog cannot be cut into safe parts; a snapshot can always be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeedsSnapshot;

/// The bounds of a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartLimits {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

impl Default for PartLimits {
    fn default() -> Self {
        Self { items: DELTA_ITEMS_MAX, bytes: DELTA_BYTES_MAX }
    }
}

impl Backlog {
    /// `items` as [`super::image::Image::missing`] gives them.
    pub(super) fn new(items: Vec<Pending>, target: Generation) -> Self {
        Self { items, target }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Takes more along where all of it is still one part. These are older than the base, and a part that ended at one of
    /// them would lead back.
    pub(super) fn take_along(&mut self, more: Vec<Pending>, limits: PartLimits) {
        let own = self.items.len();
        self.items.extend(more);
        if !self.fits(limits) {
            self.items.truncate(own);
        }
    }

    /// Takes the next part off.
    pub(super) fn next_part(&mut self, limits: PartLimits) -> Result<Part, NeedsSnapshot> {
        if let Some(part) = self.take_all(limits) {
            return Ok(part);
        }
        let mut cut = Cut::new(&self.items, limits);
        let mut reached = None;
        for at in 0..self.items.len() {
            if !cut.take_with_needs(at)? {
                break;
            }
            reached = Some(at);
        }
        let taken = cut.taken;
        let all = reached.is_none_or(|at| at + 1 == self.items.len());
        let sequence = match reached {
            Some(at) if !all => self.items[at].sequence,
            _ => self.target.sequence,
        };
        let (mut items, mut rest) = (Vec::new(), Vec::new());
        for (item, taken) in std::mem::take(&mut self.items).into_iter().zip(taken) {
            if taken { items.push(item) } else { rest.push(item) }
        }
        self.items = rest;
        Ok(Part { items, generation: Generation { epoch: self.target.epoch, sequence } })
    }
}

impl Backlog {
    /// The usual case: all of it fits into one part.
    fn take_all(&mut self, limits: PartLimits) -> Option<Part> {
        self.fits(limits).then(|| Part { items: std::mem::take(&mut self.items), generation: self.target })
    }

    fn fits(&self, limits: PartLimits) -> bool {
        self.items.len() <= limits.items && self.items.iter().map(bytes_of).sum::<usize>() <= limits.bytes
    }
}

impl Part {
    /// The message; `signed_off` says that the publisher's gate has passed these removals.
    pub(super) fn into_delta(self, base: Generation, signed_off: bool) -> Delta {
        let mut items = self.items;
        // What is referred to goes before what refers to it, and goes away after it.
        items.sort_by_key(|item| item.key);
        let resources = items.iter().filter_map(|item| item.published.as_ref());
        let gone = items.iter().rev().filter(|item| item.published.is_none());
        Delta {
            base: Some(WireGeneration::from(base)),
            generation: Some(self.generation.into()),
            resources: resources.map(|published| published.resource.clone()).collect(),
            tombstones: gone.map(|item| item.key.tombstone()).collect(),
            removals_signed_off: signed_off,
        }
    }

    /// Names that the edge loses by it.
    pub(super) fn names_removed(&self) -> u64 {
        let gone = |item: &&Pending| item.published.is_none() && item.key.kind == Kind::Domain;
        self.items.iter().filter(gone).count() as u64
    }

    /// The cell-key epochs that its credentials are sealed under.
    pub(super) fn key_epochs(&self) -> impl Iterator<Item = u32> + '_ {
        self.items.iter().filter_map(|item| item.published.as_ref()?.key_epoch)
    }
}

/// The state of cutting one part.
struct Cut<'a> {
    items: &'a [Pending],
    limits: PartLimits,
    at: HashMap<ResourceKey, usize>,
    taken: Vec<bool>,
    count: usize,
    bytes: usize,
}

impl<'a> Cut<'a> {
    fn new(items: &'a [Pending], limits: PartLimits) -> Self {
        let at = items.iter().enumerate().map(|(at, item)| (item.key, at)).collect();
        Self { items, limits, at, taken: vec![false; items.len()], count: 0, bytes: 0 }
    }

    /// Takes the item at `at` and all that must not come later than it; `false` when that does not fit any more.
    fn take_with_needs(&mut self, at: usize) -> Result<bool, NeedsSnapshot> {
        if self.taken[at] {
            return Ok(true);
        }
        let item = &self.items[at];
        let mut group = vec![at];
        match &item.published {
            Some(published) => {
                group.extend(
                    published.needs.iter().filter_map(|&key| self.find(key)).filter(|&at| !self.taken[at]),
                );
            }
            None if matches!(item.key.kind, Kind::Credential | Kind::Tenant) => {
                let later = (at + 1)..self.items.len();
                group.extend(later.filter(|&at| !self.taken[at] && self.items[at].key.kind == Kind::Domain));
            }
            None => {}
        }
        let bytes: usize = group.iter().map(|&at| bytes_of(&self.items[at])).sum();
        if self.count + group.len() > self.limits.items || self.bytes + bytes > self.limits.bytes {
            let small = group.len() <= 1 + 16;
            return match self.count {
                0 if small => Ok(self.take(&group, bytes)),
                0 => Err(NeedsSnapshot),
                _ => Ok(false),
            };
        }
        Ok(self.take(&group, bytes))
    }

    fn take(&mut self, group: &[usize], bytes: usize) -> bool {
        for &at in group {
            self.taken[at] = true;
        }
        self.count += group.len();
        self.bytes += bytes;
        true
    }

    fn find(&self, key: ResourceKey) -> Option<usize> {
        self.at.get(&key).copied()
    }
}

/// The encoded size; a tombstone is a kind and an id.
fn bytes_of(item: &Pending) -> usize {
    item.published.as_ref().map_or(40, |published| published.resource.encoded_len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::distribution::resource::{Cells, Published};
    use portico_cert_store::{DomainId, LineageId};

    const FEW: PartLimits = PartLimits { items: 3, bytes: 1 << 20 };

    fn new(key: ResourceKey, sequence: u64, needs: &[ResourceKey]) -> Pending {
        let mut published = Published::new(key, sequence, Cells::All, String::new(), vec![0; 100]);
        published.needs = needs.into();
        Pending { key, sequence, published: Some(Arc::new(published)) }
    }

    fn gone(key: ResourceKey, sequence: u64) -> Pending {
        Pending { key, sequence, published: None }
    }

    fn dom() -> ResourceKey {
        ResourceKey::domain(DomainId::generate())
    }

    fn lin() -> ResourceKey {
        ResourceKey::credential(LineageId::generate())
    }

    fn backlog(items: Vec<Pending>) -> Backlog {
        let target = Generation { epoch: 1, sequence: items.last().unwrap().sequence + 5 };
        Backlog::new(items, target)
    }

    fn parts(mut backlog: Backlog, limits: PartLimits) -> Result<Vec<(u64, Vec<u64>)>, NeedsSnapshot> {
        let mut parts = Vec::new();
        while !backlog.is_empty() {
            let part = backlog.next_part(limits)?;
            parts.push((part.generation.sequence, part.items.iter().map(|item| item.sequence).collect()));
        }
        Ok(parts)
    }

    #[test]
    fn part_ends_where_nothing_below_is_left_out() {
        let items = (1..=7).map(|sequence| new(dom(), sequence, &[])).collect();
        let cut = parts(backlog(items), FEW).unwrap();
        assert_eq!(cut, [(3, vec![1, 2, 3]), (6, vec![4, 5, 6]), (12, vec![7])]);
    }

    #[test]
    fn domain_never_travels_ahead_of_its_credential() {
        let credential = lin();
        let items = vec![
            new(dom(), 1, &[]),
            new(dom(), 2, &[credential]),
            new(dom(), 3, &[]),
            new(dom(), 4, &[]),
            new(credential, 9, &[]),
        ];
        let cut = parts(backlog(items), FEW).unwrap();
        assert_eq!(cut, [(2, vec![1, 2, 9]), (14, vec![3, 4])]);
    }

    #[test]
    fn retired_credential_goes_only_with_every_domain_that_may_have_left_it() {
        let items = vec![new(dom(), 1, &[]), gone(lin(), 2), new(dom(), 3, &[]), new(dom(), 4, &[])];
        let cut = parts(backlog(items), FEW).unwrap();
        assert_eq!(cut, [(1, vec![1]), (9, vec![2, 3, 4])]);
        let mut items = vec![gone(lin(), 1)];
        items.extend((2..40).map(|sequence| new(dom(), sequence, &[])));
        assert_eq!(parts(backlog(items), FEW), Err(NeedsSnapshot));
    }

    #[test]
    fn what_was_refused_goes_along_only_where_no_part_can_end_at_it() {
        let along = |count: u64| {
            let mut backlog = backlog((11..=10 + count).map(|sequence| new(dom(), sequence, &[])).collect());
            backlog.take_along(vec![new(dom(), 2, &[])], FEW);
            parts(backlog, FEW).unwrap()
        };
        assert_eq!(along(2), [(17, vec![11, 12, 2])]);
        assert_eq!(along(3), [(18, vec![11, 12, 13])]);
        assert_eq!(along(4), [(13, vec![11, 12, 13]), (19, vec![14])]);
    }

    #[test]
    fn one_item_larger_than_a_part_still_goes() {
        let limits = PartLimits { items: 10, bytes: 50 };
        let cut = parts(backlog(vec![new(dom(), 1, &[]), new(dom(), 2, &[])]), limits).unwrap();
        assert_eq!(cut, [(1, vec![1]), (7, vec![2])]);
    }

    #[test]
    fn delta_names_its_base_and_orders_what_is_referred_to_first() {
        let (domain, credential, old) = (dom(), lin(), lin());
        let items = vec![new(domain, 1, &[]), new(credential, 2, &[]), gone(old, 3), gone(dom(), 4)];
        let part = backlog(items).next_part(PartLimits::default()).unwrap();
        assert_eq!(part.names_removed(), 1);
        let delta = part.into_delta(Generation { epoch: 1, sequence: 0 }, false);
        assert_eq!(delta.base.unwrap().sequence, 0);
        assert_eq!(delta.generation.unwrap().sequence, 9);
        let sent: Vec<_> = delta.resources.iter().map(|resource| resource.id.clone()).collect();
        assert_eq!(sent, [credential.id(), domain.id()]);
        assert_eq!(delta.tombstones.last().unwrap().id, old.id());
    }
}
