//! A hash map for many readers that never wait and one writer.
//!
//! Extendible hashing over `ArcSwap`: a directory of 2^bits slots, each a small immutable hash map. A reader loads the
//! directory and one slot. The writer clones one small map, changes it and swaps it in, so a change costs about
//! [`SHARD_ENTRIES_MEAN`] entry clones at any size. When the mean is passed, the directory doubles by sharing: two slots
//! then point to the same map, which is divided at its first change, so growth needs no pause either.
//!
//! Sketch at 1M entries of 24 bytes: 16,384 maps, 42 bytes an entry with the free buckets, 2 bytes an entry for the
//! directory; 3-6 us a change. Deliberately absent: a second writer, iteration, and shrinking.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

/// Mean entries of a shard at which the directory doubles. Measured: some hundred entries cost tens of microseconds.
pub(crate) const SHARD_ENTRIES_MEAN: usize = 64;
/// Directory size limit, for 64 million entries at the mean; beyond it shards just grow.
const DIRECTORY_BITS_MAX: u32 = 20;

pub(crate) struct Reader<K, V>(Arc<Shared<K, V>>);

pub(crate) struct Writer<K, V> {
    shared: Arc<Shared<K, V>>,
    entries_cloned: u64,
}

struct Shared<K, V> {
    directory: ArcSwap<Directory<K, V>>,
    len: AtomicUsize,
    hasher: RandomState,
}

struct Directory<K, V> {
    bits: u32,
    slots: Box<[ArcSwap<Shard<K, V>>]>,
}

/// All entries whose hashes begin with the same `bits` bits. In a directory of more bits, several slots hold it.
struct Shard<K, V> {
    bits: u32,
    entries: HashMap<K, V, RandomState>,
}

impl<K: Hash + Eq + Clone, V: Clone> Writer<K, V> {
    /// An empty map with room for `expected` entries; it grows by itself beyond them.
    pub(crate) fn new(expected: usize) -> Self {
        let hasher = RandomState::default();
        let directory = Directory::filled(directory_bits(expected), Vec::new(), &hasher);
        let shared = Shared { directory: ArcSwap::from_pointee(directory), len: AtomicUsize::new(0), hasher };
        Self { shared: Arc::new(shared), entries_cloned: 0 }
    }

    pub(crate) fn reader(&self) -> Reader<K, V> {
        Reader(Arc::clone(&self.shared))
    }

    /// Adds or replaces an entry, and gives the replaced value.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.len() >= self.shared.directory.load().slots.len() * SHARD_ENTRIES_MEAN {
            self.double_directory();
        }
        let hash = self.shared.hasher.hash_one(&key);
        let replaced = self.change(hash, |entries| entries.insert(key, value));
        if replaced.is_none() {
            self.shared.len.fetch_add(1, Ordering::Relaxed);
        }
        replaced
    }

    pub(crate) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shared.get(key)?;
        let hash = self.shared.hasher.hash_one(key);
        let removed = self.change(hash, |entries| entries.remove(key));
        self.shared.len.fetch_sub(1, Ordering::Relaxed);
        removed
    }

    /// Puts `entries` in the place of all there is, in one swap. A later entry of the same key wins.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "one writer: two at once would lose changes")]
    pub(crate) fn replace_all(&mut self, entries: Vec<(K, V)>) {
        let directory = Directory::filled(directory_bits(entries.len()), entries, &self.shared.hasher);
        let len = directory.slots.iter().map(|slot| slot.load().entries.len()).sum();
        self.shared.directory.store(Arc::new(directory));
        self.shared.len.store(len, Ordering::Relaxed);
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shared.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.shared.len.load(Ordering::Relaxed)
    }

    /// Entries copied by all changes so far; tests hold it to a bound for each added entry.
    pub(crate) fn entries_cloned(&self) -> u64 {
        self.entries_cloned
    }

    fn change<T>(&mut self, hash: u64, change: impl FnOnce(&mut HashMap<K, V, RandomState>) -> T) -> T {
        let directory = self.shared.directory.load_full();
        let index = directory.index(hash);
        let mut shard = directory.slots[index].load_full();
        if shard.bits < directory.bits {
            self.divide(&directory, index, &shard);
            shard = directory.slots[index].load_full();
        }
        let mut entries = shard.entries.clone();
        self.entries_cloned += entries.len() as u64;
        let result = change(&mut entries);
        directory.slots[index].store(Arc::new(Shard { bits: shard.bits, entries }));
        result
    }

    /// Gives each slot that holds `shard` a map of its own.
    fn divide(&mut self, directory: &Directory<K, V>, index: usize, shard: &Shard<K, V>) {
        let span = 1_usize << (directory.bits - shard.bits);
        let first = index & !(span - 1);
        let hasher = &self.shared.hasher;
        let mut parts: Vec<_> = (0..span).map(|_| HashMap::with_hasher(hasher.clone())).collect();
        for (key, value) in &shard.entries {
            parts[directory.index(hasher.hash_one(key)) - first].insert(key.clone(), value.clone());
        }
        self.entries_cloned += shard.entries.len() as u64;
        for (slot, entries) in directory.slots[first..].iter().zip(parts) {
            slot.store(Arc::new(Shard { bits: directory.bits, entries }));
        }
    }

    #[expect(clippy::needless_pass_by_ref_mut, reason = "one writer: two at once would lose changes")]
    fn double_directory(&mut self) {
        let old = self.shared.directory.load();
        if old.bits == DIRECTORY_BITS_MAX {
            return;
        }
        let slots = old
            .slots
            .iter()
            .flat_map(|slot| {
                let shard = slot.load_full();
                [ArcSwap::new(Arc::clone(&shard)), ArcSwap::new(shard)]
            })
            .collect();
        self.shared.directory.store(Arc::new(Directory { bits: old.bits + 1, slots }));
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Reader<K, V> {
    /// Never waits: two atomic loads and a look into one small hash map.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len.load(Ordering::Relaxed)
    }
}

impl<K, V> Clone for Reader<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shared<K, V> {
    fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let directory = self.directory.load();
        let shard = directory.slots[directory.index(self.hasher.hash_one(key))].load();
        shard.entries.get(key).cloned()
    }
}

impl<K: Hash + Eq, V> Directory<K, V> {
    fn filled(bits: u32, entries: Vec<(K, V)>, hasher: &RandomState) -> Self {
        let slots = 1_usize << bits;
        let room = entries.len() / slots;
        let mut shards: Vec<_> =
            (0..slots).map(|_| HashMap::with_capacity_and_hasher(room, hasher.clone())).collect();
        for (key, value) in entries {
            shards[slot_index(hasher.hash_one(&key), bits)].insert(key, value);
        }
        let slots =
            shards.into_iter().map(|entries| ArcSwap::from_pointee(Shard { bits, entries })).collect();
        Self { bits, slots }
    }

    fn index(&self, hash: u64) -> usize {
        slot_index(hash, self.bits)
    }
}

/// The inner maps use the hash's lowest and its highest seven bits; these are the ones between.
fn slot_index(hash: u64, bits: u32) -> usize {
    let middle = (hash << 20) >> 1 >> (63 - bits);
    usize::try_from(middle).expect("a directory has at most 2^20 slots")
}

fn directory_bits(expected: usize) -> u32 {
    let slots = expected.div_ceil(SHARD_ENTRIES_MEAN).max(1).next_power_of_two();
    slots.trailing_zeros().min(DIRECTORY_BITS_MAX)
}

impl<K: Hash + Eq + Clone, V: Clone> fmt::Debug for Reader<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> fmt::Debug for Writer<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
