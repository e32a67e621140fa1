//! From a name to what is known of it: exact names and one-label wildcards, for readers that never wait.
//!
//! Used by the SNI index, and by whoever else asks by name in a handshake or a request (routes, challenges). Two maps,
//! so that a wildcard is found by the text after the first dot, without building `*.base`. Deliberately absent: any
//! lookup more than one label deep.

use std::fmt;
use std::sync::Arc;

use crate::domain_name::{DomainName, NamePattern};
use crate::sharded_map::{Reader, Writer};

/// The readers' half; clones read the same table.
pub struct NameTable<V> {
    exact: Reader<DomainName, Arc<V>>,
    wildcard: Reader<DomainName, Arc<V>>,
}

/// The writer's half; there is one.
pub struct NameTablePublisher<V> {
    exact: Writer<DomainName, Arc<V>>,
    wildcard: Writer<DomainName, Arc<V>>,
}

/// How a name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    Exact,
    Wildcard,
}

impl<V> NameTable<V> {
    /// An entry for exactly this name, in A-label form and lower case.
    pub fn get_exact(&self, name: &str) -> Option<Arc<V>> {
        self.exact.get(name)
    }

    /// The entry for `*.base`.
    pub fn get_wildcard(&self, base: &str) -> Option<Arc<V>> {
        self.wildcard.get(base)
    }

    /// The entry for the pattern itself; what [`NameTablePublisher::insert`] put there.
    pub fn get(&self, pattern: &NamePattern) -> Option<Arc<V>> {
        match pattern {
            NamePattern::Exact(name) => self.get_exact(name.as_str()),
            NamePattern::Wildcard(base) => self.get_wildcard(base.as_str()),
        }
    }

    /// The exact entry, else the wildcard one label above.
    pub fn find(&self, name: &DomainName) -> Option<(Match, Arc<V>)> {
        if let Some(value) = self.get_exact(name.as_str()) {
            return Some((Match::Exact, value));
        }
        self.find_wildcard(name).map(|value| (Match::Wildcard, value))
    }

    /// The wildcard that matches `name`, whether or not there is an exact entry.
    pub fn find_wildcard(&self, name: &DomainName) -> Option<Arc<V>> {
        self.wildcard.get(name.parent_str()?)
    }

    /// Names and wildcards.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V> NameTablePublisher<V> {
    /// An empty table with room for `expected_names`; it grows by itself.
    pub fn new(expected_names: usize) -> Self {
        // Wildcards are few where names are many; a wrong guess costs nothing but early growth.
        Self { exact: Writer::new(expected_names), wildcard: Writer::new(expected_names / 16) }
    }

    pub fn reader(&self) -> NameTable<V> {
        NameTable { exact: self.exact.reader(), wildcard: self.wildcard.reader() }
    }

    /// Adds or replaces an entry, and gives the replaced value. Readers see it at once.
    pub fn insert(&mut self, pattern: NamePattern, value: Arc<V>) -> Option<Arc<V>> {
        match pattern {
            NamePattern::Exact(name) => self.exact.insert(name, value),
            NamePattern::Wildcard(base) => self.wildcard.insert(base, value),
        }
    }

    pub fn remove(&mut self, pattern: &NamePattern) -> Option<Arc<V>> {
        match pattern {
            NamePattern::Exact(name) => self.exact.remove(name.as_str()),
            NamePattern::Wildcard(base) => self.wildcard.remove(base.as_str()),
        }
    }

    pub fn get(&self, pattern: &NamePattern) -> Option<Arc<V>> {
        match pattern {
            NamePattern::Exact(name) => self.exact.get(name.as_str()),
            NamePattern::Wildcard(base) => self.wildcard.get(base.as_str()),
        }
    }

    /// Puts `entries` in the place of all there is: built aside, then one swap for exact names and one for wildcards.
    /// A later entry of the same pattern wins.
    pub fn replace_all(&mut self, entries: impl IntoIterator<Item = (NamePattern, Arc<V>)>) {
        let (mut exact, mut wildcard) = (Vec::new(), Vec::new());
        for (pattern, value) in entries {
            match pattern {
                NamePattern::Exact(name) => exact.push((name, value)),
                NamePattern::Wildcard(base) => wildcard.push((base, value)),
            }
        }
        self.exact.replace_all(exact);
        self.wildcard.replace_all(wildcard);
    }

    /// Entries copied by all changes so far; [`replace_all`](Self::replace_all) moves and does not count.
    pub fn entries_cloned(&self) -> u64 {
        self.exact.entries_cloned() + self.wildcard.entries_cloned()
    }

    /// Names and wildcards.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<V> Clone for NameTable<V> {
    fn clone(&self) -> Self {
        Self { exact: self.exact.clone(), wildcard: self.wildcard.clone() }
    }
}

impl<V> fmt::Debug for NameTable<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameTable").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<V> fmt::Debug for NameTablePublisher<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameTablePublisher").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
