//! The SNI index: which credential a handshake shows for a name.
//!
//! A name entry points to the slots of the lineages that carry it, and a slot holds the present credential. Renewing a
//! group of 25 names is one pointer swap in its slot and touches no entry. One thread publishes; workers only read, and
//! never wait for it.
//!
//! Among the credentials of a name the choice is, in this order: a kind of key that the client can use, validity at
//! `now`, the entry of the exact name before that of its wildcard, an uploaded certificate before an issued one (but
//! for its last hour, since clocks of clients run ahead), a certificate that names it before one that covers it by
//! wildcard, one that the operator has switched to before others (but for its last hour too), ECDSA or Ed25519 before
//! RSA (a tenth of the CPU), the later expiry. The rank is computed at lookup, on at most four slots and nearly
//! always one, so a renewal re-orders nothing and a credential may arrive after its name. If all are expired, the
//! least expired is served: the client can refuse it, and an operator can still get in. A certificate that does not
//! cover the name is never shown: a name may point to a group before the group's next certificate, which will hold
//! it, has come.
//!
//! An exact entry owns its name: its tenant, domain and policy are in the hit even where the credential is that of the
//! wildcard above, and only a wildcard of the same tenant stands in.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwapOption;
use rustls_pki_types::UnixTime;

use crate::client_capabilities::{ClientCapabilities, Support};
use crate::credential::{Coverage, Credential};
use crate::custody::Custody;
use crate::domain_name::{DomainName, NamePattern};
use crate::ids::{DomainId, LineageId, TenantId};
use crate::name_table::{NameTable, NameTablePublisher};
use crate::sharded_map::{Reader, Writer};
use crate::tls_policy::TlsPolicy;

/// Most lineages that carry one name: an ECDSA and an RSA pair, and their successors while a group is rearranged.
pub const SLOTS_PER_NAME_MAX: usize = 4;
/// So long before its end an uploaded certificate, or one that was switched to, goes first no longer, where there is another.
const FIRST_UNTIL_SECONDS: u64 = 3600;

/// The readers' half; clones read the same index.
#[derive(Clone)]
pub struct SniIndex {
    names: NameTable<SniEntry>,
    slots: Reader<LineageId, Arc<Slot>>,
    default: Arc<ArcSwapOption<Slot>>,
}

/// The writer's half; there is one in a process.
pub struct SniPublisher {
    names: NameTablePublisher<SniEntry>,
    slots: Writer<LineageId, Arc<Slot>>,
    default: Arc<ArcSwapOption<Slot>>,
}

/// Where a lineage's present credential is. Empty before the first one arrives and after the lineage was removed.
pub struct Slot {
    lineage: LineageId,
    current: ArcSwapOption<Credential>,
    /// Entries that point here, and the default; written by the publisher only.
    uses: AtomicUsize,
}

/// What the index knows of a name.
#[derive(Debug)]
pub struct SniEntry {
    pub tenant: TenantId,
    pub domain: DomainId,
    pub policy: TlsPolicy,
    slots: [Option<Arc<Slot>>; SLOTS_PER_NAME_MAX],
}

/// What [`SniPublisher::publish_name`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SniEntryInput<'a> {
    pub tenant: TenantId,
    pub domain: DomainId,
    pub policy: TlsPolicy,
    /// At most [`SLOTS_PER_NAME_MAX`]; they need not have a credential yet.
    pub lineages: &'a [LineageId],
}

/// The answer to a lookup.
#[derive(Debug, Clone)]
pub struct Hit {
    pub tenant: TenantId,
    pub domain: DomainId,
    pub policy: TlsPolicy,
    pub credential: Arc<Credential>,
    /// The name has no entry of its own: this is its wildcard's.
    pub by_wildcard: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("{name} has {lineages} lineages and {SLOTS_PER_NAME_MAX} are possible; retire some")]
    TooManyLineages { name: NamePattern, lineages: usize },
}

impl SniIndex {
    /// The credential to show for `name`, with what governs the connection; None for an unknown name and for one that no
    /// credential of its lineages covers. If the client can use none of them, the best is
    /// given, so that the TLS stack can answer with the right alert.
    pub fn lookup(&self, name: &DomainName, now: UnixTime, capabilities: ClientCapabilities) -> Option<Hit> {
        let exact = self.names.get_exact(name.as_str());
        let chosen = exact.as_ref().and_then(|entry| entry.best(name, now, capabilities, true));
        if let (Some(entry), Some(choice)) = (&exact, &chosen)
            && choice.rank.is_good()
        {
            return Some(entry.hit(Arc::clone(&choice.credential), false));
        }
        let wildcard = self.names.find_wildcard(name);
        let Some(owner) = exact else {
            let entry = wildcard?;
            let best = entry.best(name, now, capabilities, false);
            return best.map(|choice| entry.hit(choice.credential, true));
        };
        let stand_in = wildcard
            .filter(|entry| entry.tenant == owner.tenant)
            .and_then(|entry| entry.best(name, now, capabilities, false));
        // Of equals the last is taken: the exact entry's own.
        let best = [stand_in, chosen].into_iter().flatten().max_by_key(|choice| choice.rank)?;
        Some(owner.hit(best.credential, false))
    }

    /// What is known of a name, whether or not it has a credential: the exact entry, else the wildcard's.
    pub fn entry(&self, name: &DomainName) -> Option<Arc<SniEntry>> {
        self.names.find(name).map(|(_, entry)| entry)
    }

    /// What to show where no name fits, if the operator has chosen such a lineage.
    pub fn default_credential(&self) -> Option<Arc<Credential>> {
        self.default.load().as_ref()?.credential()
    }

    pub fn credential_of(&self, lineage: LineageId) -> Option<Arc<Credential>> {
        self.slots.get(&lineage)?.credential()
    }

    /// Names and wildcards.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lineages, those still without a credential included.
    pub fn lineages(&self) -> usize {
        self.slots.len()
    }
}

impl SniPublisher {
    /// An empty index with room for `expected_names`; it grows by itself.
    pub fn new(expected_names: usize) -> Self {
        Self {
            names: NameTablePublisher::new(expected_names),
            slots: Writer::new(expected_names / 8),
            default: Arc::new(ArcSwapOption::empty()),
        }
    }

    pub fn reader(&self) -> SniIndex {
        SniIndex {
            names: self.names.reader(),
            slots: self.slots.reader(),
            default: Arc::clone(&self.default),
        }
    }

    /// Puts a credential into its lineage's slot, and gives the one that it replaces. One swap, however many names.
    pub fn publish_credential(&mut self, credential: Credential) -> Option<Arc<Credential>> {
        self.publish_shared(Arc::new(credential))
    }

    /// The same with a credential that its publisher keeps too.
    pub fn publish_shared(&mut self, credential: Arc<Credential>) -> Option<Arc<Credential>> {
        let slot = self.slot(credential.lineage());
        slot.current.swap(Some(credential))
    }

    /// Empties a lineage's slot, and gives what was in it. Names fall back to their other slots.
    pub fn remove_lineage(&mut self, lineage: LineageId) -> Option<Arc<Credential>> {
        let slot = self.slots.get(&lineage)?;
        let removed = slot.current.swap(None);
        self.drop_if_unused(&slot);
        removed
    }

    /// Adds or replaces a name.
    ///
    /// # Errors
    /// [`PublishError::TooManyLineages`]; the present entry then stays.
    pub fn publish_name(&mut self, name: NamePattern, input: &SniEntryInput<'_>) -> Result<(), PublishError> {
        let entry = self.entry(&name, input)?;
        if let Some(replaced) = self.names.insert(name, Arc::new(entry)) {
            self.release(&replaced);
        }
        Ok(())
    }

    /// Forgets a name; false if it was unknown.
    pub fn remove_name(&mut self, name: &NamePattern) -> bool {
        match self.names.remove(name) {
            Some(removed) => {
                self.release(&removed);
                true
            }
            None => false,
        }
    }

    /// Chooses the lineage of the default certificate, or none.
    pub fn set_default(&mut self, lineage: Option<LineageId>) {
        let slot = lineage.map(|lineage| self.used_slot(lineage));
        if let Some(before) = self.default.swap(slot) {
            self.release_slot(&before);
        }
    }

    /// Puts these credentials and names in the place of all there are, as for a snapshot. Built aside: a name that
    /// stays is served without a gap. The default lineage stays chosen.
    ///
    /// # Errors
    /// [`PublishError::TooManyLineages`]; nothing has changed then.
    pub fn publish_all<'a>(
        &mut self,
        credentials: impl IntoIterator<Item = Credential>,
        names: impl IntoIterator<Item = (NamePattern, SniEntryInput<'a>)>,
    ) -> Result<(), PublishError> {
        self.replace_all(credentials.into_iter().map(Arc::new), names)
    }

    /// The same with credentials that their publisher keeps too.
    ///
    /// # Errors
    /// As [`publish_all`](Self::publish_all).
    pub fn replace_all<'a>(
        &mut self,
        credentials: impl IntoIterator<Item = Arc<Credential>>,
        names: impl IntoIterator<Item = (NamePattern, SniEntryInput<'a>)>,
    ) -> Result<(), PublishError> {
        let mut planned = Slots::default();
        let mut entries = Vec::new();
        for (name, input) in names {
            let entry = new_entry(&name, &input, |lineage| {
                let (slot, uses) = planned.entry(lineage).or_insert_with(|| (self.known_slot(lineage), 0));
                *uses += 1;
                Arc::clone(slot)
            })?;
            entries.push((name, Arc::new(entry)));
        }
        if let Some(default) = self.default.load_full() {
            planned.entry(default.lineage).or_insert((default, 0)).1 += 1;
        }
        let mut filled = Lineages::default();
        for credential in credentials {
            let lineage = credential.lineage();
            let (slot, _) = planned.entry(lineage).or_insert_with(|| (self.known_slot(lineage), 0));
            slot.current.store(Some(credential));
            filled.insert(lineage);
        }
        self.names.replace_all(entries);
        // Only now, when no entry asks for them any more.
        for (slot, uses) in planned.values() {
            slot.uses.store(*uses, Ordering::Relaxed);
            if !filled.contains(&slot.lineage) {
                slot.current.store(None);
            }
        }
        self.slots.replace_all(planned.into_iter().map(|(lineage, (slot, _))| (lineage, slot)).collect());
        Ok(())
    }

    /// Entries copied by all changes so far; see [`NameTablePublisher::entries_cloned`].
    pub fn entries_cloned(&self) -> u64 {
        self.names.entries_cloned() + self.slots.entries_cloned()
    }

    fn entry(&mut self, name: &NamePattern, input: &SniEntryInput<'_>) -> Result<SniEntry, PublishError> {
        new_entry(name, input, |lineage| self.used_slot(lineage))
    }

    /// The slot of a lineage for one more use.
    fn used_slot(&mut self, lineage: LineageId) -> Arc<Slot> {
        let slot = self.slot(lineage);
        slot.uses.fetch_add(1, Ordering::Relaxed);
        slot
    }

    fn slot(&mut self, lineage: LineageId) -> Arc<Slot> {
        if let Some(slot) = self.slots.get(&lineage) {
            return slot;
        }
        let slot = Slot::empty(lineage);
        self.slots.insert(lineage, Arc::clone(&slot));
        slot
    }

    /// The slot of a lineage, or a new one that nobody sees yet.
    fn known_slot(&self, lineage: LineageId) -> Arc<Slot> {
        self.slots.get(&lineage).unwrap_or_else(|| Slot::empty(lineage))
    }

    fn release(&mut self, entry: &SniEntry) {
        for slot in entry.slots() {
            self.release_slot(slot);
        }
    }

    fn release_slot(&mut self, slot: &Arc<Slot>) {
        slot.uses.fetch_sub(1, Ordering::Relaxed);
        self.drop_if_unused(slot);
    }

    fn drop_if_unused(&mut self, slot: &Slot) {
        if slot.uses.load(Ordering::Relaxed) == 0 && slot.current.load().is_none() {
            self.slots.remove(&slot.lineage);
        }
    }
}

type Slots = std::collections::HashMap<LineageId, (Arc<Slot>, usize), foldhash::fast::RandomState>;
type Lineages = std::collections::HashSet<LineageId, foldhash::fast::RandomState>;

fn new_entry(
    name: &NamePattern,
    input: &SniEntryInput<'_>,
    mut slot_of: impl FnMut(LineageId) -> Arc<Slot>,
) -> Result<SniEntry, PublishError> {
    let lineages = input.lineages;
    if lineages.len() > SLOTS_PER_NAME_MAX {
        return Err(PublishError::TooManyLineages { name: name.clone(), lineages: lineages.len() });
    }
    let mut slots = [const { None }; SLOTS_PER_NAME_MAX];
    for (slot, lineage) in slots.iter_mut().zip(lineages) {
        *slot = Some(slot_of(*lineage));
    }
    Ok(SniEntry { tenant: input.tenant, domain: input.domain, policy: input.policy, slots })
}

impl SniEntry {
    pub fn lineages(&self) -> impl Iterator<Item = LineageId> {
        self.slots().map(|slot| slot.lineage)
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.slots.iter().flatten()
    }

    fn best(
        &self,
        name: &DomainName,
        now: UnixTime,
        capabilities: ClientCapabilities,
        exact_entry: bool,
    ) -> Option<Choice> {
        let mut choices = self.slots().filter_map(|slot| {
            let credential = slot.credential()?;
            let coverage = credential.coverage(name)?;
            Some(Choice { rank: Rank::of(&credential, coverage, now, capabilities, exact_entry), credential })
        });
        let mut best = choices.next()?;
        for choice in choices {
            // Between equals the first stays: the order given at publish.
            if choice.rank > best.rank {
                best = choice;
            }
        }
        Some(best)
    }

    fn hit(&self, credential: Arc<Credential>, by_wildcard: bool) -> Hit {
        let Self { tenant, domain, policy, .. } = *self;
        Hit { tenant, domain, policy, credential, by_wildcard }
    }
}

struct Choice {
    rank: Rank,
    credential: Arc<Credential>,
}

/// What makes one credential better than another for a client; compared field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    supported: Support,
    valid: bool,
    // The next five only tell valid ones apart: of expired ones the least expired is best.
    exact_entry: bool,
    uploaded: bool,
    names_exactly: bool,
    goes_first: bool,
    cheap_to_sign: bool,
    not_after: UnixTime,
}

impl Rank {
    fn of(
        credential: &Credential,
        coverage: Coverage,
        now: UnixTime,
        capabilities: ClientCapabilities,
        exact_entry: bool,
    ) -> Self {
        let valid = credential.is_valid_at(now);
        let remaining_seconds = credential.not_after().as_secs().saturating_sub(now.as_secs());
        let first = valid && remaining_seconds > FIRST_UNTIL_SECONDS;
        Self {
            supported: capabilities.supports(credential.key_type()),
            valid,
            exact_entry: valid && exact_entry,
            uploaded: first && credential.custody() == Custody::Uploaded,
            names_exactly: valid && coverage == Coverage::Exact,
            goes_first: first && credential.goes_first(),
            cheap_to_sign: valid && !credential.key_type().is_rsa(),
            not_after: credential.not_after(),
        }
    }

    /// Nothing outside the exact entry can be better.
    fn is_good(&self) -> bool {
        self.supported == Support::Yes && self.valid
    }
}

impl Slot {
    fn empty(lineage: LineageId) -> Arc<Self> {
        Arc::new(Self { lineage, current: ArcSwapOption::empty(), uses: AtomicUsize::new(0) })
    }

    pub fn lineage(&self) -> LineageId {
        self.lineage
    }

    pub fn credential(&self) -> Option<Arc<Credential>> {
        self.current.load_full()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("lineage", &self.lineage)
            .field("current", &self.credential())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SniIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SniIndex")
            .field("names", &self.len())
            .field("lineages", &self.lineages())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SniPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SniPublisher").field("names", &self.names.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
