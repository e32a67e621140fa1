//! Filling groups within one pool, and merging what has shrunk.

use std::collections::BTreeSet;

use super::{Placeable, PlanGroup};
use crate::domain_name::NamePattern;
use crate::ids::GroupId;

/// A group while it is filled. Members are indexes into the sorted names.
pub(super) struct Bin<'a> {
    pub(super) id: Option<GroupId>,
    pub(super) today: &'a [NamePattern],
    pub(super) members: Vec<usize>,
    /// It was given a name that has no place today.
    pub(super) has_homeless: bool,
}

impl<'a> Bin<'a> {
    pub(super) fn of_today(group: &'a PlanGroup, members: Vec<usize>) -> Self {
        Self { id: Some(group.id), today: &group.names, members, has_homeless: false }
    }

    fn new(members: Vec<usize>) -> Self {
        Self { id: None, today: &[], members, has_homeless: true }
    }
}

/// Houses the homeless names (sorted), then merges. The result is in a fixed order and has no empty group.
pub(super) fn pack<'a>(
    bins: Vec<Bin<'a>>,
    homeless: &[usize],
    names: &[Placeable<'_>],
    names_max: usize,
) -> Vec<Bin<'a>> {
    let mut packing = Packing { gaps: BTreeSet::new(), bins, names, names_max };
    for bin in 0..packing.bins.len() {
        packing.note_gap(bin);
    }
    let mut rest = homeless;
    while let Some(&first) = rest.first() {
        let domain = names[first].registered_domain;
        let count = rest.iter().take_while(|&&index| names[index].registered_domain == domain).count();
        let (bundle, after) = rest.split_at(count);
        packing.house(bundle);
        rest = after;
    }
    packing.house_singles();
    packing.merge_shrunken();
    packing.bins.retain(|bin| !bin.members.is_empty());
    packing.bins
}

/// Takes out of a sorted group what one of its wildcards covers.
pub(super) fn drop_covered(members: &mut Vec<usize>, names: &[Placeable<'_>]) {
    let wildcards: Vec<usize> = wildcards(members, names).collect();
    if !wildcards.is_empty() {
        members.retain(|&index| !wildcards.iter().any(|&wildcard| covers(wildcard, index, names)));
    }
}

struct Packing<'a, 'n> {
    bins: Vec<Bin<'a>>,
    /// Places of bins that have free ones: those that need an order anyway first (false), then the smallest gap.
    gaps: BTreeSet<(bool, usize, usize)>,
    names: &'n [Placeable<'n>],
    names_max: usize,
}

impl Packing<'_, '_> {
    /// Houses the names of one registered domain, together if they fit into one certificate.
    fn house(&mut self, bundle: &[usize]) {
        let names = self.names;
        let covering = |&index: &usize| bundle.iter().any(|&other| covers(index, other, names));
        let (apart, together): (Vec<usize>, Vec<usize>) = if wildcards(bundle, names).next().is_none() {
            (Vec::new(), bundle.to_vec())
        } else {
            bundle.iter().partition(|index| covering(index))
        };
        for chunk in together.chunks(self.names_max) {
            self.house_chunk(chunk);
        }
        for wildcard in apart {
            self.house_chunk(&[wildcard]);
        }
    }

    fn house_chunk(&mut self, chunk: &[usize]) {
        match self.fitting_bin(chunk) {
            Some(bin) => {
                self.forget_gap(bin);
                self.bins[bin].members.extend_from_slice(chunk);
                self.bins[bin].has_homeless = true;
                self.note_gap(bin);
            }
            None => {
                self.bins.push(Bin::new(chunk.to_vec()));
                self.note_gap(self.bins.len() - 1);
            }
        }
    }

    /// A name conflicts with at most one group, and a wildcard with no more groups than it covers names; so this looks
    /// at few candidates for each name.
    fn fitting_bin(&self, chunk: &[usize]) -> Option<usize> {
        let need = chunk.len();
        let ordered_anyway = self.gaps.range((false, need, 0)..(true, 0, 0));
        let others = self.gaps.range((true, need, 0)..);
        ordered_anyway
            .chain(others)
            .map(|&(_, _, bin)| bin)
            .find(|&bin| !self.conflict(&self.bins[bin].members, chunk))
    }

    /// A name that has a group to itself takes any free place: so one that failed and was issued alone comes back to those it was
    /// with, however full their certificate is. It moves when that one is renewed.
    fn house_singles(&mut self) {
        for bin in 0..self.bins.len() {
            let [single] = self.bins[bin].members[..] else { continue };
            self.forget_gap(bin);
            match self.fitting_bin(&[single]) {
                Some(other) => {
                    self.forget_gap(other);
                    let kept = self.merge(bin, other);
                    self.note_gap(kept);
                }
                None => self.note_gap(bin),
            }
        }
    }

    /// Merges the two smallest groups that together fill no more than four fifths of a certificate, until none do. The
    /// fifth that stays free keeps a pool from merging and splitting at each change.
    fn merge_shrunken(&mut self) {
        let merged_max = self.names_max * 4 / 5;
        let mut small: BTreeSet<(usize, usize)> = self
            .bins
            .iter()
            .enumerate()
            .map(|(index, bin)| (bin.members.len(), index))
            .filter(|&(size, _)| 0 < size && size <= merged_max)
            .collect();
        while let Some(smallest) = small.pop_first() {
            let partner = small
                .iter()
                .take_while(|(size, _)| size + smallest.0 <= merged_max)
                .find(|(_, bin)| !self.conflict(&self.bins[*bin].members, &self.bins[smallest.1].members))
                .copied();
            if let Some(partner) = partner {
                small.remove(&partner);
                let kept = self.merge(smallest.1, partner.1);
                small.insert((self.bins[kept].members.len(), kept));
            }
        }
    }

    /// Empties one of two groups into the other: a group of today stays before a new one, then the larger, then the
    /// earlier.
    fn merge(&mut self, a: usize, b: usize) -> usize {
        let rank = |index: usize| {
            let bin = &self.bins[index];
            (bin.id.is_some(), bin.members.len(), std::cmp::Reverse(index))
        };
        let (kept, emptied) = if rank(a) > rank(b) { (a, b) } else { (b, a) };
        let moved = std::mem::take(&mut self.bins[emptied].members);
        self.bins[kept].members.extend(moved);
        self.bins[kept].has_homeless |= self.bins[emptied].has_homeless;
        kept
    }

    fn conflict(&self, a: &[usize], b: &[usize]) -> bool {
        let covers_any = |wildcard: usize, others: &[usize]| {
            others.iter().any(|&other| covers(wildcard, other, self.names))
        };
        wildcards(a, self.names).any(|wildcard| covers_any(wildcard, b))
            || wildcards(b, self.names).any(|wildcard| covers_any(wildcard, a))
    }

    fn note_gap(&mut self, bin: usize) {
        if let Some(gap) = self.gap(bin) {
            self.gaps.insert(gap);
        }
    }

    fn forget_gap(&mut self, bin: usize) {
        if let Some(gap) = self.gap(bin) {
            self.gaps.remove(&gap);
        }
    }

    fn gap(&self, index: usize) -> Option<(bool, usize, usize)> {
        let bin = &self.bins[index];
        let free = self.names_max.saturating_sub(bin.members.len());
        (free > 0).then_some((!bin.has_homeless, free, index))
    }
}

fn wildcards(members: &[usize], names: &[Placeable<'_>]) -> impl Iterator<Item = usize> {
    members.iter().copied().filter(|&index| names[index].plan.name.is_wildcard())
}

/// Whether `wildcard` is one and stands for the exact name `other`.
fn covers(wildcard: usize, other: usize, names: &[Placeable<'_>]) -> bool {
    match (&names[wildcard].plan.name, &names[other].plan.name) {
        (pattern @ NamePattern::Wildcard(_), NamePattern::Exact(name)) => pattern.matches(name),
        _ => false,
    }
}
