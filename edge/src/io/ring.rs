//! The one operation that goes through the ring: "tell me when this descriptor is ready".

use std::{
    future::Future,
    io,
    os::fd::{AsRawFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use io_uring::{cqueue, opcode, types};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// A POLL_ADD in flight. It owns a share of the descriptor, so the number that the kernel holds cannot be reused for
/// another connection before the operation has completed.
///
/// Dropping it does not cancel: whoever drops it must make the descriptor ready (shut it down), or the share stays.
pub(super) struct Readiness(InFlightOneshot<Rc<OwnedFd>, PollResult>);

impl Readiness {
    pub(super) fn readable(fd: &Rc<OwnedFd>) -> Self {
        Self::submit(fd, libc::POLLIN | libc::POLLRDHUP)
    }

    pub(super) fn writable(fd: &Rc<OwnedFd>) -> Self {
        Self::submit(fd, libc::POLLOUT)
    }

    fn submit(fd: &Rc<OwnedFd>, events: libc::c_short) -> Self {
        let events = u32::from(events.cast_unsigned());
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).build();
        // The entry names no memory, only a descriptor, and `Rc<OwnedFd>` stored with the operation keeps that open until
        // the completion is taken: this is what makes the safe-looking constructor sound.
        Self(UnsubmittedOneshot::new(Rc::clone(fd), PollResult, entry).submit())
    }
}

impl Future for Readiness {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll(context)
    }
}

struct PollResult;

impl OneshotOutputTransform for PollResult {
    type Output = io::Result<()>;
    type StoredData = Rc<OwnedFd>;

    fn transform_oneshot_output(self, _: Rc<OwnedFd>, completion: cqueue::Entry) -> io::Result<()> {
        match completion.result() {
            // Which events is of no interest: the operation is tried again and says itself how it went.
            0.. => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        }
    }
}
