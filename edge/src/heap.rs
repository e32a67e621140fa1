//! A profile of the heap: which calls have allocated what is there now, sampled by jemalloc.
//!
//! Only in builds with the feature `heap-profile`, whose allocator is jemalloc in place of mimalloc (its own build needs
//! make), and only in a process that was started with sampling on. It holds addresses and sizes, never contents.

use http::StatusCode;

#[cfg(feature = "heap-profile")]
pub use tikv_jemallocator::Jemalloc;

/// Why there is no profile, and how to get one.
#[derive(Debug, thiserror::Error)]
pub enum NoProfile {
    #[error(
        "this build takes no heap profiles; build one that does with `cargo build --profile dist -p portico-cli --features \
         heap-profile` (jemalloc in place of mimalloc, make is needed), start it with _RJEM_MALLOC_CONF=prof:true and ask again"
    )]
    NotBuilt,
    #[error(
        "allocations are not sampled: start the edge with _RJEM_MALLOC_CONF=prof:true in its environment"
    )]
    NotSampling,
    #[error("the profile could not be taken: {0}")]
    Failed(String),
}

impl NoProfile {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotBuilt => StatusCode::NOT_IMPLEMENTED,
            Self::NotSampling => StatusCode::CONFLICT,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotBuilt => "HeapProfileNotBuilt",
            Self::NotSampling => "HeapProfileNotSampling",
            Self::Failed(_) => "HeapProfileFailed",
        }
    }
}

/// Takes a profile, as `jeprof` and `pprof` read it. Blocks for as long as jemalloc walks its samples.
///
/// # Errors
/// [`NoProfile`].
#[cfg(not(feature = "heap-profile"))]
pub fn profile() -> Result<Vec<u8>, NoProfile> {
    Err(NoProfile::NotBuilt)
}

/// Takes a profile, as `jeprof` and `pprof` read it. Blocks for as long as jemalloc walks its samples.
///
/// # Errors
/// [`NoProfile`].
#[cfg(feature = "heap-profile")]
pub fn profile() -> Result<Vec<u8>, NoProfile> {
    if !crate::io::jemalloc::is_sampling() {
        return Err(NoProfile::NotSampling);
    }
    dump().map_err(|error| NoProfile::Failed(error.to_string()))
}

/// jemalloc writes to a path: that of a file in memory.
#[cfg(feature = "heap-profile")]
fn dump() -> std::io::Result<Vec<u8>> {
    use std::{ffi::CString, fs::File, io::Read as _, os::fd::AsRawFd as _};

    let mut file = File::from(rustix::fs::memfd_create("heap-profile", rustix::fs::MemfdFlags::CLOEXEC)?);
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    crate::io::jemalloc::dump_profile(&path)?;
    let mut profile = Vec::new();
    file.read_to_end(&mut profile)?;
    Ok(profile)
}
