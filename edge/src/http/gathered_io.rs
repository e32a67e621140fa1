//! Small answers that are ready in one turn leave as one TLS record and one write.
//!
//! h2 flushes its stream behind each DATA frame, and TLS makes a record and a system call of each write. Here small
//! writes are held until the turn is over: whoever polls the protocol calls [`GatheredIo::poll_send`] behind it, before
//! the task goes to sleep. Large writes pass by without a copy. A flush in between promises nothing; a shutdown sends.

use std::{
    cell::{Cell, RefCell},
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame_heads::{FrameHead, FrameHeads};

/// A share of a connection's stream: the protocol has one, its driver the other.
pub(super) struct GatheredIo<S>(Rc<RefCell<Gathering<S>>>);

struct Gathering<S> {
    inner: S,
    held: Vec<u8>,
    /// Bytes of `held` that have been written.
    sent: usize,
    heads: FrameHeads,
    malformed: usize,
}

/// One TLS record's plaintext (RFC 8446 section 5.1).
const HELD_BYTES_MAX: usize = 16 * 1024;
/// Writes from this size on are worth a record of their own, and not worth a copy.
const DIRECT_BYTES: usize = 8 * 1024;

/// RFC 9113 sections 7 and 8.1.1.
const PROTOCOL_ERROR: u32 = 1;

thread_local! {
    /// The buffer that was emptied last: one is enough for all connections of a worker that are not stuck.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl<S> GatheredIo<S> {
    pub(super) fn new(inner: S) -> Self {
        Self(Rc::new(RefCell::new(Gathering {
            inner,
            held: Vec::new(),
            sent: 0,
            heads: FrameHeads::default(),
            malformed: 0,
        })))
    }

    /// A second handle on the same stream.
    pub(super) fn share(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: AsyncWrite + Unpin> GatheredIo<S> {
    /// How many requests the protocol has found malformed since the last call: it resets their streams and tells nobody.
    pub(super) fn take_malformed(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().malformed)
    }

    /// Sends what is held, all of it unless the client takes no more for now.
    pub(super) fn poll_send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        if gathering.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(gathering.poll_send_held(context))?;
        Pin::new(&mut gathering.inner).poll_flush(context)
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    fn poll_send_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.held.len() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.held[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.sent = 0;
        let mut emptied = std::mem::take(&mut self.held);
        if emptied.capacity() > 0 {
            emptied.clear();
            SPARE.set(emptied);
        }
        Poll::Ready(Ok(()))
    }

    /// Looks for resets in the first `written` bytes.
    fn follow(&mut self, pieces: &[IoSlice<'_>], mut written: usize) {
        for piece in pieces {
            let (taken, _) = piece.split_at(piece.len().min(written));
            written -= taken.len();
            let malformed = &mut self.malformed;
            self.heads
                .feed(taken, |head| *malformed += usize::from(head == FrameHead::Reset(PROTOCOL_ERROR)));
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total = pieces.iter().map(|piece| piece.len()).sum();
        let direct = total >= DIRECT_BYTES;
        if direct || self.held.len() + total > HELD_BYTES_MAX {
            ready!(self.poll_send_held(context))?;
        }
        if direct {
            let written = ready!(Pin::new(&mut self.inner).poll_write_vectored(context, pieces))?;
            self.follow(pieces, written);
            return Poll::Ready(Ok(written));
        }
        self.follow(pieces, total);
        if self.held.capacity() == 0 {
            self.held = SPARE.take();
            self.held.reserve_exact(HELD_BYTES_MAX);
        }
        for piece in pieces {
            self.held.extend_from_slice(piece);
        }
        Poll::Ready(Ok(total))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GatheredIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GatheredIo<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        if gathering.held.is_empty() {
            Pin::new(&mut gathering.inner).poll_flush(context)
        } else {
            Poll::Ready(Ok(())) // sent at the end of the turn
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathering = self.0.borrow_mut();
        ready!(gathering.poll_send_held(context))?;
        Pin::new(&mut gathering.inner).poll_shutdown(context)
    }
}

impl<S> fmt::Debug for GatheredIo<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GatheredIo").finish_non_exhaustive()
    }
}
