//! Credentials: a certificate chain with its sealed key, ready to serve, and the cache of opened keys.
//!
//! All credentials of an edge stay in memory, compact and sealed; only keys in use are opened and parsed. Sketch for a
//! single name: struct 0.25 KB, leaf DER and sealed key in one allocation 1.0-1.3 KB, intermediates shared. A parsed key
//! costs about 20 us on a miss and 1-3 KB in the cache, whose bytes are bounded.
//! Deliberately absent: any wait. A reader never blocks on another thread's parse (`moka`'s `get_with` would), so two
//! workers may parse one key at the same time, and the later insert wins.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::certificate::{
    CERTIFICATE_BYTES_MAX, CertificateChain, CertificateError, CertificateFacts, ChainInterner, KeyType,
};
use crate::custody::Custody;
use crate::domain_name::{DomainName, NamePattern};
use crate::ids::{CellId, CredentialId, GroupId, LineageId};
use crate::key::PrivateKeyError;
use crate::leaf::LeafSummary;
use crate::seal::{CellKey, SealContext, SealError, SealedKey};

/// Largest sealed key in bytes; RSA 4096 has 2.4 KB.
pub const SEALED_KEY_BYTES_MAX: usize = 8 * 1024;
/// Most data keys that one process holds at once: a few epochs of one cell on an edge, all cells in a control plane.
pub const CELL_KEYS_MAX: usize = 4096;

/// One version of a lineage: immutable, compact, its key sealed. Shared as `Arc<Credential>`.
pub struct Credential {
    id: CredentialId,
    lineage: LineageId,
    group: GroupId,
    cell: CellId,
    cell_key_epoch: u32,
    leaf_bytes: u32,
    sealed_bytes: u32,
    key_tenant: Box<str>,
    not_before: u64,
    not_after: u64,
    spki_sha256: [u8; 32],
    key_type: KeyType,
    custody: Custody,
    goes_first: bool,
    names: u16,
    /// One allocation: the leaf's DER, the sealed key, and four bytes of hash for each name.
    bytes: Box<[u8]>,
    intermediates: Arc<[CertificateDer<'static>]>,
}

/// What a credential is made of.
#[derive(Debug, Clone)]
pub struct CredentialParts {
    pub id: CredentialId,
    pub lineage: LineageId,
    pub group: GroupId,
    pub cell: CellId,
    pub cell_key_epoch: u32,
    /// Tenant id, or `operator`; part of what the seal authenticates.
    pub key_tenant: Box<str>,
    /// Of the key that was sealed; must be that of the leaf.
    pub spki_sha256: [u8; 32],
    pub chain: CertificateChain,
    pub sealed_key: SealedKey,
}

/// What a credential that was kept is made of again, all of it borrowed.
#[derive(Debug, Clone, Copy)]
pub struct KeptParts<'a> {
    pub id: CredentialId,
    pub lineage: LineageId,
    pub group: GroupId,
    pub cell: &'a CellId,
    pub cell_key_epoch: u32,
    pub key_tenant: &'a str,
    pub spki_sha256: [u8; 32],
    /// Leaf first, DER.
    pub chain: &'a [&'a [u8]],
    pub sealed_key: &'a [u8],
}

/// What a sealed key belongs to.
struct Owner {
    id: CredentialId,
    lineage: LineageId,
    group: GroupId,
    cell: CellId,
    cell_key_epoch: u32,
    key_tenant: Box<str>,
    spki_sha256: [u8; 32],
}

/// Why a credential's key cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "credential {credential} is sealed under the key of cell {cell}, epoch {epoch}, which this process has not"
    )]
    NoCellKey { credential: CredentialId, cell: CellId, epoch: u32 },
    #[error("open the key of credential {credential}")]
    Seal { credential: CredentialId, source: SealError },
    #[error("read the key of credential {credential}")]
    Key { credential: CredentialId, source: PrivateKeyError },
}

/// How a certificate covers a name; better ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Coverage {
    Wildcard,
    Exact,
}

/// The data keys that this process can open credentials with. Readers never wait; clones share one set.
#[derive(Clone, Default)]
pub struct CellKeys(Arc<ArcSwap<Vec<Arc<CellKey>>>>);

/// Opened keys, bounded by bytes; the least useful go first. Clones share one cache.
#[derive(Clone)]
pub struct KeyCache {
    keys: Cache<CredentialId, Arc<CertifiedKey>, foldhash::fast::RandomState>,
    cell_keys: CellKeys,
}

impl Credential {
    /// Checks that the key named is that of the leaf, and stores all compactly.
    ///
    /// # Errors
    /// [`CertificateError::KeyMismatch`]; [`CertificateError::TooLarge`] for an oversized sealed key.
    pub fn new(parts: CredentialParts, interner: &ChainInterner) -> Result<Self, CertificateError> {
        let CredentialParts {
            id,
            lineage,
            group,
            cell,
            cell_key_epoch,
            key_tenant,
            spki_sha256,
            chain,
            sealed_key,
        } = parts;
        if chain.facts().spki_sha256 != spki_sha256 {
            return Err(CertificateError::KeyMismatch);
        }
        let intermediates = interner.intern(Arc::clone(chain.intermediates()));
        let facts = chain.facts();
        let owner = Owner { id, lineage, group, cell, cell_key_epoch, key_tenant, spki_sha256 };
        let dates = (facts.not_before.as_secs(), facts.not_after.as_secs());
        Self::assemble(
            owner,
            (chain.leaf(), sealed_key.as_bytes(), intermediates),
            (&facts.names, dates, facts.key_type),
        )
    }

    /// Takes back a credential that was made with [`new`](Self::new) and kept behind a checksum; gives it with its names.
    /// That its key is the leaf's was found then. Only what the index needs is read of the leaf.
    ///
    /// # Errors
    /// As [`new`](Self::new) and [`CertificateChain::parse_der`], where the bytes are not what was kept after all.
    pub fn take_back(
        kept: KeptParts<'_>,
        interner: &ChainInterner,
    ) -> Result<(Self, Vec<NamePattern>), CertificateError> {
        let KeptParts {
            id,
            lineage,
            group,
            cell,
            cell_key_epoch,
            key_tenant,
            spki_sha256,
            chain,
            sealed_key,
        } = kept;
        let (leaf, rest) = chain.split_first().ok_or(CertificateError::Empty)?;
        let summary = LeafSummary::read(leaf).filter(|_| leaf.len() <= CERTIFICATE_BYTES_MAX);
        let (Some(summary), Some(intermediates)) = (summary, interner.known(rest)) else {
            let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
            let chain = CertificateChain::parse_der(chain)?;
            let names = chain.facts().names.clone();
            let (cell, key_tenant) = (cell.clone(), key_tenant.into());
            let sealed_key = SealedKey::from_bytes(sealed_key);
            let parts = CredentialParts {
                id,
                lineage,
                group,
                cell,
                cell_key_epoch,
                key_tenant,
                spki_sha256,
                chain,
                sealed_key,
            };
            return Ok((Self::new(parts, interner)?, names));
        };
        let LeafSummary { names, not_before, not_after, key_type } = summary;
        let (cell, key_tenant) = (cell.clone(), key_tenant.into());
        let owner = Owner { id, lineage, group, cell, cell_key_epoch, key_tenant, spki_sha256 };
        let credential = Self::assemble(
            owner,
            (leaf, sealed_key, intermediates),
            (&names, (not_before, not_after), key_type),
        )?;
        Ok((credential, names))
    }

    fn assemble(
        owner: Owner,
        (leaf, sealed, intermediates): (&[u8], &[u8], Arc<[CertificateDer<'static>]>),
        (names, (not_before, not_after), key_type): (&[NamePattern], (u64, u64), KeyType),
    ) -> Result<Self, CertificateError> {
        if sealed.len() > SEALED_KEY_BYTES_MAX {
            return Err(CertificateError::SealedKeyTooLarge { octets: sealed.len() });
        }
        let mut bytes = Vec::with_capacity(leaf.len() + sealed.len() + 4 * names.len());
        bytes.extend_from_slice(leaf);
        bytes.extend_from_slice(sealed);
        for name in names {
            bytes.extend_from_slice(&pattern_hash(name).to_le_bytes());
        }
        let Owner { id, lineage, group, cell, cell_key_epoch, key_tenant, spki_sha256 } = owner;
        Ok(Self {
            id,
            lineage,
            group,
            cell,
            cell_key_epoch,
            leaf_bytes: u32::try_from(leaf.len()).expect("a parsed leaf has at most 64 KiB"),
            sealed_bytes: u32::try_from(sealed.len()).expect("a sealed key has at most 8 KiB"),
            key_tenant,
            not_before,
            not_after,
            spki_sha256,
            key_type,
            custody: Custody::Cell,
            goes_first: false,
            names: u16::try_from(names.len()).expect("a parsed leaf has at most 1000 names"),
            bytes: bytes.into(),
            intermediates,
        })
    }

    /// The same with a key of other custody than [`Custody::Cell`].
    #[must_use]
    pub fn in_custody(self, custody: Custody) -> Self {
        Self { custody, ..self }
    }

    /// The same, shown before others that name the same names.
    #[must_use]
    pub fn going_first(self, goes_first: bool) -> Self {
        Self { goes_first, ..self }
    }

    pub fn id(&self) -> CredentialId {
        self.id
    }

    /// Whether it is shown before others that name the same names, as long as it is valid.
    pub fn goes_first(&self) -> bool {
        self.goes_first
    }

    pub fn custody(&self) -> Custody {
        self.custody
    }

    pub fn lineage(&self) -> LineageId {
        self.lineage
    }

    pub fn group(&self) -> GroupId {
        self.group
    }

    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    pub fn cell_key_epoch(&self) -> u32 {
        self.cell_key_epoch
    }

    pub fn key_tenant(&self) -> &str {
        &self.key_tenant
    }

    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }

    pub fn not_before(&self) -> UnixTime {
        unix_time(self.not_before)
    }

    /// The last second of validity.
    pub fn not_after(&self) -> UnixTime {
        unix_time(self.not_after)
    }

    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        (self.not_before..=self.not_after).contains(&now.as_secs())
    }

    pub fn leaf(&self) -> &[u8] {
        &self.bytes[..self.leaf_bytes as usize]
    }

    pub fn intermediates(&self) -> &Arc<[CertificateDer<'static>]> {
        &self.intermediates
    }

    pub fn sealed_key(&self) -> SealedKey {
        SealedKey::from_bytes(self.sealed())
    }

    /// The chain, leaf first, copied out.
    pub fn chain_der(&self) -> Vec<CertificateDer<'static>> {
        let leaf = CertificateDer::from(self.leaf().to_vec());
        std::iter::once(leaf).chain(self.intermediates.iter().cloned()).collect()
    }

    /// Reads the leaf again (some microseconds): a list of names would be half of a grouped credential's memory.
    pub fn facts(&self) -> CertificateFacts {
        CertificateFacts::of_der(self.leaf()).expect("the leaf was parsed when the credential was made")
    }

    /// Whether a client that asks for `name` accepts this certificate. Reads the leaf again where it seems so: the rule
    /// that lets a connection serve other names than its own must not rest on a hash.
    pub fn covers(&self, name: &DomainName) -> bool {
        self.coverage(name).is_some() && self.facts().covers(name)
    }

    /// How the certificate covers `name`, for choosing in a handshake: by hashes of four bytes, so a name that is not
    /// covered passes once in 10^8 (and then the client refuses).
    pub(crate) fn coverage(&self, name: &DomainName) -> Option<Coverage> {
        if self.holds_hash(exact_hash(name.as_str())) {
            return Some(Coverage::Exact);
        }
        let parent = name.parent_str()?;
        self.holds_hash(wildcard_hash(parent)).then_some(Coverage::Wildcard)
    }

    /// How many names the certificate holds.
    pub fn names(&self) -> usize {
        usize::from(self.names)
    }

    /// Bytes on the heap that are this credential's alone, without the allocator's own.
    pub fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.len() + self.key_tenant.len()
    }

    fn sealed(&self) -> &[u8] {
        let start = self.leaf_bytes as usize;
        &self.bytes[start..start + self.sealed_bytes as usize]
    }

    fn holds_hash(&self, hash: u32) -> bool {
        let start = (self.leaf_bytes + self.sealed_bytes) as usize;
        self.bytes[start..].chunks_exact(4).any(|held| held == hash.to_le_bytes())
    }

    fn seal_context(&self) -> SealContext<'_> {
        SealContext {
            cell: &self.cell,
            epoch: self.cell_key_epoch,
            key_tenant: &self.key_tenant,
            credential: self.id,
            spki_sha256: self.spki_sha256,
        }
    }

    /// Opens and parses the key: about 20 us for ECDSA P-256. [`KeyCache::certified_key`] does it once per key.
    ///
    /// # Errors
    /// [`KeyError`] where the data key is missing, or the sealed key does not open as this credential's.
    pub fn open(&self, cell_keys: &CellKeys) -> Result<CertifiedKey, KeyError> {
        let cell_key = cell_keys.find(&self.cell, self.cell_key_epoch).ok_or_else(|| {
            KeyError::NoCellKey { credential: self.id, cell: self.cell.clone(), epoch: self.cell_key_epoch }
        })?;
        let key = cell_key
            .open_signing_key(self.sealed(), &self.seal_context())
            .map_err(|source| KeyError::Seal { credential: self.id, source })?;
        Ok(CertifiedKey::new(self.chain_der(), key))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("id", &self.id)
            .field("lineage", &self.lineage)
            .field("cell", &self.cell)
            .field("cell_key_epoch", &self.cell_key_epoch)
            .field("key_type", &self.key_type)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl CellKeys {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces the key of its (cell, epoch). Beyond [`CELL_KEYS_MAX`] the oldest added goes.
    pub fn add(&self, key: CellKey) {
        let key = Arc::new(key);
        self.0.rcu(|keys| {
            let mut keys = without(keys, key.cell(), key.epoch());
            keys.push(Arc::clone(&key));
            let excess = keys.len().saturating_sub(CELL_KEYS_MAX);
            keys.drain(..excess);
            keys
        });
    }

    /// Forgets a key; true if there was one. It is zeroed once no handshake uses it.
    pub fn remove(&self, cell: &CellId, epoch: u32) -> bool {
        let before = self.0.rcu(|keys| without(keys, cell, epoch));
        before.iter().any(|key| is_of(key, cell, epoch))
    }

    pub fn find(&self, cell: &CellId, epoch: u32) -> Option<Arc<CellKey>> {
        // The newest is asked for most, and is last.
        self.0.load().iter().rev().find(|key| is_of(key, cell, epoch)).cloned()
    }

    /// The (cell, epoch) of each key held.
    pub fn held(&self) -> Vec<(CellId, u32)> {
        self.0.load().iter().map(|key| (key.cell().clone(), key.epoch())).collect()
    }
}

impl fmt::Debug for CellKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CellKeys").field(&self.held()).finish()
    }
}

fn pattern_hash(pattern: &NamePattern) -> u32 {
    match pattern {
        NamePattern::Exact(name) => exact_hash(name.as_str()),
        NamePattern::Wildcard(base) => wildcard_hash(base.as_str()),
    }
}

fn exact_hash(name: &str) -> u32 {
    crc32c::crc32c(name.as_bytes())
}

/// That of the text `*.base`, without building it.
fn wildcard_hash(base: &str) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(b"*."), base.as_bytes())
}

fn is_of(key: &CellKey, cell: &CellId, epoch: u32) -> bool {
    key.epoch() == epoch && key.cell() == cell
}

fn without(keys: &[Arc<CellKey>], cell: &CellId, epoch: u32) -> Vec<Arc<CellKey>> {
    keys.iter().filter(|key| !is_of(key, cell, epoch)).cloned().collect()
}

impl KeyCache {
    /// A cache that holds at most about `bytes_max` bytes of parsed keys and chains.
    pub fn new(bytes_max: u64, cell_keys: CellKeys) -> Self {
        let keys = Cache::builder()
            .max_capacity(bytes_max)
            .weigher(|_, key: &Arc<CertifiedKey>| parsed_bytes(key))
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self { keys, cell_keys }
    }

    /// The credential's key, ready to sign. A miss opens and parses it, and never waits for anybody.
    ///
    /// # Errors
    /// As [`Credential::open`].
    pub fn certified_key(&self, credential: &Credential) -> Result<Arc<CertifiedKey>, KeyError> {
        if let Some(key) = self.keys.get(&credential.id) {
            return Ok(key);
        }
        let key = Arc::new(credential.open(&self.cell_keys)?);
        self.keys.insert(credential.id, Arc::clone(&key));
        Ok(key)
    }

    /// Forgets a key, as when its credential was replaced or its cell key was withdrawn.
    pub fn evict(&self, credential: CredentialId) {
        self.keys.invalidate(&credential);
    }

    pub fn cell_keys(&self) -> &CellKeys {
        &self.cell_keys
    }

    /// Bytes held, as weighed; exact once pending work has run.
    pub fn weighted_bytes(&self) -> u64 {
        self.keys.run_pending_tasks();
        self.keys.weighted_size()
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCache")
            .field("entries", &self.keys.entry_count())
            .field("cell_keys", &self.cell_keys)
            .finish()
    }
}

/// A parsed key without its chain, in bytes: 0.6 KB in Rust and 0.6 KB in aws-lc for ECDSA (measured), more for RSA.
const PARSED_KEY_BYTES: usize = 1_280;
/// moka's own bookkeeping of one entry, in bytes (an estimate from its structs).
const CACHE_ENTRY_BYTES: usize = 200;

fn parsed_bytes(key: &CertifiedKey) -> u32 {
    let chain: usize = key.cert.iter().map(|der| der.len() + size_of::<CertificateDer<'_>>()).sum();
    let rsa = if key.key.algorithm() == rustls::SignatureAlgorithm::RSA { 4 * 1024 } else { 0 };
    u32::try_from(chain + PARSED_KEY_BYTES + CACHE_ENTRY_BYTES + rsa).unwrap_or(u32::MAX)
}

fn unix_time(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
