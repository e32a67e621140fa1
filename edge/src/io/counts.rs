//! How many operations went which way, so that a ring that nobody uses is noticed.
//!
//! Each worker counts in its own cells and adds them to the process's totals a few times a second: no shared cache line
//! is written per operation.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// Totals since the process began, over all workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperationCounts {
    /// Done by the first non-blocking try.
    pub direct: u64,
    /// Waited for through io_uring.
    pub ring: u64,
    /// Waited for through epoll.
    pub epoll: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Path {
    Direct,
    Ring,
    Epoll,
}

thread_local! {
    static LOCAL: [Cell<u64>; 3] = const { [Cell::new(0), Cell::new(0), Cell::new(0)] };
}

static TOTALS: [AtomicU64; 3] = [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];

pub(super) fn count(path: Path) {
    LOCAL.with(|cells| {
        let cell = &cells[path as usize];
        cell.set(cell.get() + 1);
    });
}

/// Adds what this thread has counted to the totals; a worker calls it on its tick.
pub fn publish_counts() {
    LOCAL.with(|cells| {
        for (cell, total) in cells.iter().zip(&TOTALS) {
            total.fetch_add(cell.take(), Ordering::Relaxed);
        }
    });
}

/// Reads the totals.
pub fn operation_counts() -> OperationCounts {
    let [direct, ring, epoll] = &TOTALS;
    OperationCounts {
        direct: direct.load(Ordering::Relaxed),
        ring: ring.load(Ordering::Relaxed),
        epoll: epoll.load(Ordering::Relaxed),
    }
}
