//! Sockets that the service manager bound for us (sd_listen_fds(3)).

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// The sockets that systemd passes, in the order of its unit; none after the first call, or where it passes none.
///
/// # Errors
/// When its environment variables are malformed, or a descriptor that they name is not open.
pub fn sockets_of_the_service_manager() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    // Checks LISTEN_PID, so that a child with the same environment takes none, and that each descriptor is open: it sets
    // FD_CLOEXEC on it.
    let numbers = sd_notify::listen_fds()?;
    // SAFETY: by the protocol these descriptors were opened for this process and are its own to close; nothing else in it
    // names them, and the flag above keeps a second call from owning them twice.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}
