//! The allocator's own controls, as far as an edge that is short of memory needs them.

/// Gives what this thread's part of the allocator has free, and what other threads have freed of it, back to the kernel. Costs a
/// walk over the thread's pages: not for the way of a request.
#[cfg(not(feature = "heap-profile"))]
pub(crate) fn return_free_memory() {
    // Linked for its C library, which is there whichever allocator the program has chosen.
    use mimalloc as _;

    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: it may be called on any thread at any time, also where nothing was allocated (mimalloc's documentation); a Rust
    // bool is a C bool.
    unsafe { mi_collect(true) }
}

/// jemalloc gives back what is free by itself, within seconds.
#[cfg(feature = "heap-profile")]
pub(crate) fn return_free_memory() {}
