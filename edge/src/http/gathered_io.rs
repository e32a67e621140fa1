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
    refusals: Refusals,
}

/// What the protocol has refused by itself since it was asked last; it tells nobody else.
#[derive(Debug, Default)]
struct Refusals {
    counts: RefusalCounts,
    /// Streams whose answers have begun and not ended: what ends them as a head is their trailers.
    begun: Vec<u32>,
    /// Streams whose answers were nothing but a status, the newest first.
    bare: [u32; BARE_KEPT],
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RefusalCounts {
    /// Requests that are malformed: their streams were reset.
    pub(super) malformed: usize,
    /// Requests whose heads are beyond the limit: they were answered 431.
    pub(super) too_large: usize,
}

/// One TLS record's plaintext (RFC 8446 section 5.1).
const HELD_BYTES_MAX: usize = 16 * 1024;
/// Writes from this size on are worth a record of their own, and not worth a copy.
const DIRECT_BYTES: usize = 8 * 1024;

/// RFC 9113 sections 7 and 8.1.1.
const PROTOCOL_ERROR: u32 = 1;
/// An answer of ours names the request (X-Request-Id, 32 digits); one that is shorter than this is the protocol's own.
const BARE_HEAD_BYTES: usize = 16;
/// Where the request has not ended, a reset comes behind the answer; those of other streams may come between them.
const BARE_KEPT: usize = 4;

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
            refusals: Refusals::default(),
        })))
    }

    /// A second handle on the same stream.
    pub(super) fn share(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: AsyncWrite + Unpin> GatheredIo<S> {
    /// What has been refused since the last call.
    pub(super) fn take_refusals(&self) -> RefusalCounts {
        std::mem::take(&mut self.0.borrow_mut().refusals.counts)
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
            let refusals = &mut self.refusals;
            self.heads.feed(taken, |head| refusals.see(head));
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

impl Refusals {
    fn see(&mut self, head: FrameHead) {
        let begun = |stream: u32| self.begun.iter().position(|&begun| begun == stream);
        match head {
            FrameHead::Headers { stream, ends_stream: false, .. } => {
                if begun(stream).is_none() {
                    self.begun.push(stream); // as many as there may be streams
                }
            }
            FrameHead::Headers { stream, length, ends_stream: true } => match begun(stream) {
                Some(place) => drop(self.begun.swap_remove(place)),
                None if length < BARE_HEAD_BYTES => {
                    self.counts.too_large += 1;
                    self.bare.rotate_right(1);
                    self.bare[0] = stream;
                }
                None => {}
            },
            FrameHead::LastData { stream } => {
                begun(stream).map(|place| self.begun.swap_remove(place));
            }
            FrameHead::Reset { stream, code } => {
                begun(stream).map(|place| self.begun.swap_remove(place));
                let is_of_refusal = self.bare.contains(&stream);
                self.counts.malformed += usize::from(code == PROTOCOL_ERROR && !is_of_refusal);
            }
            FrameHead::Other => {}
        }
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
