//! jemalloc's own controls (mallctl), as far as heap profiles need them.

use std::{
    ffi::{CStr, c_char},
    io, ptr,
};

use tikv_jemalloc_sys::mallctl;

/// Allocations are sampled: the process was started with `prof:true`.
pub(crate) fn is_sampling() -> bool {
    let mut sampling = false;
    let mut length = size_of::<bool>();
    // SAFETY: `opt.prof` is a C bool, 0 or 1; jemalloc writes it where it fits exactly, and reads nothing.
    let result = unsafe {
        mallctl(c"opt.prof".as_ptr(), (&raw mut sampling).cast(), &raw mut length, ptr::null_mut(), 0)
    };
    result == 0 && sampling
}

/// Writes a profile to the file at `path`.
pub(crate) fn dump_profile(path: &CStr) -> io::Result<()> {
    let mut path: *const c_char = path.as_ptr();
    let length = size_of::<*const c_char>();
    // SAFETY: `prof.dump` takes a pointer to a string that ends in a zero byte, and uses it during the call alone.
    let result = unsafe {
        mallctl(c"prof.dump".as_ptr(), ptr::null_mut(), ptr::null_mut(), (&raw mut path).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}
