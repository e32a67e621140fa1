//! What the edge asks of the operating system for itself: descriptors, no core dumps, a core per worker.

use rustix::{
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{CpuSet, disable_transparent_huge_pages, sched_getaffinity, sched_setaffinity},
};

/// Keys never reach a core file, and no other process of this user may read our memory (promise P10).
pub fn forbid_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process stays dumpable");
    }
}

/// The allocator asks for huge pages, and what it gives back piece by piece the kernel's daemon fills again to make one: after an
/// attack, or for no reason at all. Without them small answers and handshakes cost the same, and memory is what is used.
pub fn forbid_huge_pages() {
    if let Err(error) = disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay in use");
    }
}

/// Raises the soft limit of descriptors to the hard one and says what it is.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the descriptor limit could not be raised");
    }
    // No limit at all: bounded by what a machine can hold.
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 20)
}

/// Ties the calling thread to one of the cores that the process may use. A refusal (some containers) does no harm.
pub fn pin_to_core(index: usize, workers: usize) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    // With fewer workers than cores the scheduler knows better which are free.
    if workers < cores.len() || cores.is_empty() {
        return;
    }
    let mut one = CpuSet::new();
    one.set(cores[index % cores.len()]);
    if let Err(error) = sched_setaffinity(None, &one) {
        tracing::debug!(%error, "a worker could not be tied to a core");
    }
}
