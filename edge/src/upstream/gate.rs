//! Reads from an origin no more than the client takes for whom it is.

use std::{
    cell::RefCell,
    fmt, io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{connect::OriginStream, interim::Interim};
use crate::http::budget::{AnswerShare, Room};

/// Of one HTTP/1.1 connection to an origin; open but for answers that count, and shut for good behind too many interim ones.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    share: RefCell<Option<Arc<AnswerShare>>>,
    /// To the request under way.
    interim: RefCell<Option<Arc<Interim>>>,
}

/// The connection's stream.
pub(super) struct GatedStream {
    inner: Box<dyn OriginStream>,
    gate: Rc<Gate>,
}

/// Read at once for an answer that has nothing while others hold all there is; below what the HTTP library's buffer starts
/// with, so that it becomes no larger.
const LEAST_BYTES: usize = 4 * 1024;

impl Gate {
    /// What is read from now on is for this answer.
    pub(crate) fn count_for(&self, share: &Arc<AnswerShare>) {
        *self.share.borrow_mut() = Some(Arc::clone(share));
    }

    /// The answer is over.
    pub(crate) fn open(&self) {
        if let Some(share) = self.share.take() {
            share.ends();
        }
    }

    /// A request begins, and these are its interim answers.
    pub(super) fn follow(&self, interim: &Arc<Interim>) {
        *self.interim.borrow_mut() = Some(Arc::clone(interim));
    }

    fn is_shut(&self) -> bool {
        self.interim.borrow().as_ref().is_some_and(|interim| interim.are_too_many())
    }
}

impl GatedStream {
    pub(super) fn new(inner: Box<dyn OriginStream>, gate: &Rc<Gate>) -> Self {
        Self { inner, gate: Rc::clone(gate) }
    }
}

impl AsyncRead for GatedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.gate.is_shut() {
            return Poll::Pending; // whoever waits for the answer ends the connection
        }
        let share = this.gate.share.borrow();
        let Some(share) = &*share else { return Pin::new(&mut this.inner).poll_read(context, buffer) };
        let room = ready!(share.poll_room(context));
        let before = buffer.filled().len();
        if room == Room::Free || buffer.remaining() <= LEAST_BYTES {
            ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        } else {
            let mut space = [0; LEAST_BYTES];
            let mut least = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut least))?;
            buffer.put_slice(least.filled());
        }
        share.read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GatedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl fmt::Debug for GatedStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GatedStream").finish_non_exhaustive()
    }
}
