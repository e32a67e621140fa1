//! What one client address may take: TLS handshakes and requests by rate, connections by number.
//!
//! An address is an IPv4 address, or the /64 that an IPv6 network gives to one customer. The table is one for the process,
//! because the kernel spreads an address's connections over all workers, and takes no lock: a slot is four atomic words,
//! looked for once for each connection; requests go to the connection's slot.
//!
//! The table has a fixed size. A newcomer takes, of the eight slots that its address may have, a free one, or that of the
//! address without a connection whose meters have least to say; where all eight have connections it is not limited: so
//! many addresses at once are the business of the edge's own bounds. Two threads that take one slot at the same moment may
//! count a connection for the wrong address; it leaves the same slot again, so nothing is ever lost or left over.
//!
//! A successor (`crate::handover`) begins with an empty table.

use std::{
    fmt,
    hash::BuildHasher as _,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use ipnet::IpNet;
use portico_cert_store::KeyType;

use crate::{
    clock, limits,
    metrics::{Limited, Metrics},
    proxy_protocol::holds,
    rate::{Meter, Rate},
};

/// `None`: no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLimits {
    pub handshakes: Option<Rate>,
    pub connections: Option<u32>,
    pub requests: Option<Rate>,
    /// Not limited: this machine, a load balancer that does not say for whom it speaks.
    pub exempt: Box<[IpNet]>,
}

/// The table of addresses.
pub struct Sources {
    limits: SourceLimits,
    slots: Box<[Slot]>,
    hasher: RandomState,
    metrics: Arc<Metrics>,
    /// When a refusal may be logged again: a flood must not be one of the log, too.
    silent_until: AtomicU64,
}

/// One connection of an address; counted until it is dropped.
pub struct Source {
    sources: Arc<Sources>,
    address: IpAddr,
    /// `None`: not limited.
    slot: Option<usize>,
}

/// The address has taken all that it may, and nothing is to be done for this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("one client address takes too much")]
pub struct Refused;

#[derive(Debug, Default)]
struct Slot {
    /// See [`key_of`]; 0: free.
    address: AtomicU64,
    open: AtomicU32,
    handshakes: Meter,
    requests: Meter,
}

/// Slots that one address may have.
const WAYS: usize = 8;

impl Default for SourceLimits {
    fn default() -> Self {
        let handshakes = Rate::new(limits::SOURCE_HANDSHAKES_PER_SECOND, limits::SOURCE_HANDSHAKES_BURST);
        let requests = Rate::new(limits::SOURCE_REQUESTS_PER_SECOND, limits::SOURCE_REQUESTS_BURST);
        Self {
            handshakes: Some(handshakes),
            connections: Some(limits::SOURCE_CONNECTIONS_MAX),
            requests: Some(requests),
            exempt: ["127.0.0.0/8", "::1/128"]
                .map(|net| net.parse().expect("written as networks are"))
                .into(),
        }
    }
}

impl SourceLimits {
    /// Nobody is limited.
    pub fn none() -> Self {
        Self { handshakes: None, connections: None, requests: None, exempt: Box::default() }
    }

    fn exempts(&self, address: IpAddr) -> bool {
        holds(&self.exempt, address)
    }
}

impl Sources {
    pub fn new(limits: SourceLimits, metrics: Arc<Metrics>) -> Arc<Self> {
        let slots = (0..limits::SOURCES_MAX).map(|_| Slot::default()).collect();
        Arc::new(Self {
            limits,
            slots,
            hasher: RandomState::default(),
            metrics,
            silent_until: AtomicU64::new(0),
        })
    }

    /// Counts a connection that begins.
    ///
    /// # Errors
    /// [`Refused`], counted: the address has as many as it may.
    pub fn connect(self: &Arc<Self>, address: IpAddr) -> Result<Source, Refused> {
        let address = address.to_canonical();
        let slot = if self.limits.exempts(address) { None } else { self.find_or_take(address) };
        if let (Some(slot), Some(most)) = (slot, self.limits.connections) {
            let more = |open: u32| (open < most).then_some(open + 1);
            let open = &self.slots[slot].open;
            if open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
                return Err(self.refuse(address, Limited::SourceConnections));
            }
        } else if let Some(slot) = slot {
            self.slots[slot].open.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Source { sources: Arc::clone(self), address, slot })
    }

    /// Whether a further connection with its handshake would be taken. Takes nothing: the address may be forged.
    pub fn has_room(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let Some(slot) = self.find(key_of(address)).filter(|_| !self.limits.exempts(address)) else {
            return true;
        };
        let slot = &self.slots[slot];
        let fits = self.limits.connections.is_none_or(|most| slot.open.load(Ordering::Relaxed) < most);
        let now = clock::uptime();
        fits && self.limits.handshakes.is_none_or(|rate| slot.handshakes.has_room(rate, now))
    }

    fn find(&self, key: u64) -> Option<usize> {
        self.ways(key).find(|&way| self.slots[way].address.load(Ordering::Relaxed) == key)
    }

    /// Nobody outside knows the hash, so nobody chooses whom to push out.
    fn ways(&self, key: u64) -> std::ops::Range<usize> {
        let sets = self.slots.len() / WAYS;
        let hash = usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or(0);
        let first = hash % sets * WAYS;
        first..first + WAYS
    }

    fn find_or_take(&self, address: IpAddr) -> Option<usize> {
        let key = key_of(address);
        // Another thread may take the same slot for somebody else; each round one of them gets on.
        for _ in 0..WAYS {
            if let Some(found) = self.find(key) {
                return Some(found);
            }
            let is_free = |&way: &usize| self.slots[way].open.load(Ordering::Relaxed) == 0;
            let way = self.ways(key).filter(is_free).min_by_key(|&way| self.slots[way].weight())?;
            let slot = &self.slots[way];
            let before = slot.address.load(Ordering::Relaxed);
            let taken = slot.address.compare_exchange(before, key, Ordering::Relaxed, Ordering::Relaxed);
            if taken.is_err() {
                continue;
            }
            if self.find(key) == Some(way) {
                slot.handshakes.reset();
                slot.requests.reset();
                return Some(way);
            }
            // Another thread was first; of two slots with one address the first is the one.
            let _ = slot.address.compare_exchange(key, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        None
    }

    fn refuse(&self, address: IpAddr, limited: Limited) -> Refused {
        self.metrics.limited(limited);
        let now = clock::uptime().as_secs();
        let until = self.silent_until.load(Ordering::Relaxed);
        let next = now + limits::SOURCE_LOG_PAUSE.as_secs();
        let mine = || self.silent_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed);
        if now >= until && mine().is_ok() {
            tracing::warn!(%address, limit = limited.as_str(), "a client address takes too much and is refused");
        }
        Refused
    }
}

impl Slot {
    /// When its address is forgotten without a loss.
    fn weight(&self) -> u64 {
        self.handshakes.paid_at().max(self.requests.paid_at())
    }
}

impl Source {
    /// Takes a handshake, before anything of it is computed.
    ///
    /// # Errors
    /// [`Refused`], counted.
    pub fn take_handshake(&self) -> Result<(), Refused> {
        let (Some(slot), Some(rate)) = (self.slot, self.sources.limits.handshakes) else { return Ok(()) };
        let taken = self.sources.slots[slot].handshakes.take(rate, clock::uptime());
        taken.map_err(|_| self.sources.refuse(self.address, Limited::SourceHandshakes))
    }

    /// Takes what a signature by a key of this type costs beside the handshake, before it is made where that can be.
    ///
    /// # Errors
    /// [`Refused`], counted: those before have not been paid for.
    pub fn take_signature(&self, key: KeyType) -> Result<(), Refused> {
        let (Some(slot), Some(rate)) = (self.slot, self.sources.limits.handshakes) else { return Ok(()) };
        let more = signature_price(key);
        if more == 0 {
            return Ok(());
        }
        let taken = self.sources.slots[slot].handshakes.take_on_credit(rate, more, clock::uptime());
        taken.map_err(|_| self.sources.refuse(self.address, Limited::SourceHandshakes))
    }

    /// The signature that was taken turned out not to be needed.
    pub fn give_signature_back(&self, key: KeyType) {
        self.give_back((signature_price(key), 1));
    }

    /// The handshake was a resumed one: that is known when it has ended, and costs a fraction of a full one.
    pub fn handshake_was_resumed(&self) {
        self.give_back(limits::SOURCE_RESUMED_BACK);
    }

    fn give_back(&self, share: (u64, u64)) {
        if let (Some(slot), Some(rate)) = (self.slot, self.sources.limits.handshakes) {
            self.sources.slots[slot].handshakes.give_back(rate, share);
        }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// After what time there will be room for one; counted.
    pub fn take_request(&self) -> Result<(), Duration> {
        let (Some(slot), Some(rate)) = (self.slot, self.sources.limits.requests) else { return Ok(()) };
        let taken = self.sources.slots[slot].requests.take(rate, clock::uptime());
        taken.inspect_err(|_| {
            self.sources.refuse(self.address, Limited::SourceRequests);
        })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.sources.slots[slot].open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// In handshakes with ECDSA P-256.
fn signature_price(key: KeyType) -> u64 {
    match key {
        KeyType::EcdsaP256 | KeyType::Ed25519 => 0,
        KeyType::EcdsaP384 => limits::SOURCE_P384_MORE,
        KeyType::Rsa2048 => limits::SOURCE_RSA2048_MORE,
        KeyType::Rsa3072 => limits::SOURCE_RSA3072_MORE,
        KeyType::Rsa4096 => limits::SOURCE_RSA4096_MORE,
    }
}

/// Addresses as numbers: a /64 by its prefix, an IPv4 address in a range of prefixes that no client has (ff00::/8 is for
/// multicast, RFC 4291 section 2.7).
fn key_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => 0xffff_ffff_0000_0000 | u64::from(u32::from(address)),
        // Nobody comes from ::/64 but this machine, and 0 stands for a free slot.
        IpAddr::V6(address) => u64::try_from(u128::from(address) >> 64).unwrap_or(0).max(1),
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sources").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Source").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "sources/tests.rs"]
mod tests;
