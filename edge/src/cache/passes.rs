//! Resources whose answers have just proved not to be kept: requests for them do not wait for each other.
//!
//! A table of fixed size, without keys: two resources that meet in it cost each other some collapsing, and nothing else.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

const PLACES: usize = 16 * 1024;
/// How long. Then one request goes ahead again, and what has become storable is stored.
const LIFE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Passes {
    /// High half: of the key's hash; low half: the second since `since` at which it ends.
    places: Box<[AtomicU64]>,
    since: Instant,
}

impl Passes {
    pub(super) fn new(now: Instant) -> Self {
        Self { places: std::iter::repeat_with(AtomicU64::default).take(PLACES).collect(), since: now }
    }

    pub(super) fn note(&self, hash: u64, now: Instant) {
        let ends = u64::from(self.second(now + LIFE));
        self.place(hash).store((hash & !u64::from(u32::MAX)) | ends, Ordering::Relaxed);
    }

    pub(super) fn holds(&self, hash: u64, now: Instant) -> bool {
        let noted = self.place(hash).load(Ordering::Relaxed);
        let ends = noted & u64::from(u32::MAX);
        noted >> 32 == hash >> 32 && u64::from(self.second(now)) < ends
    }

    fn place(&self, hash: u64) -> &AtomicU64 {
        let index = usize::try_from(hash % PLACES as u64).expect("fewer places than usize has values");
        &self.places[index]
    }

    fn second(&self, at: Instant) -> u32 {
        u32::try_from(at.saturating_duration_since(self.since).as_secs()).unwrap_or(u32::MAX)
    }
}
