//! The stream between TLS and hyper: follows HTTP/1 framing and tells the connection's clock what is going on.

use std::{
    fmt,
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    clock::ConnectionClock,
    frame_budget::{FrameBudget, UndecidedHeads},
    framing::{FramingFault, Refusal, RequestFraming},
    late_pong::LatePong,
};
use crate::{clock, drain::LocalDrain};

/// Bytes that no HTTP/1 parser takes, wherever they come in a head: hyper answers 400 and closes.
const POISON: &[u8] = b"\0\0\r\n\r\n";

/// What is read at once while nobody holds a buffer.
const AHEAD_BYTES: usize = 4096;

/// Wraps a connection's stream.
pub struct GuardedIo<S> {
    inner: S,
    clock: Rc<ConnectionClock>,
    framing: Framing,
    refused: Option<Refusal>,
    /// Read and followed before there was a reader.
    ahead: Bytes,
}

enum Framing {
    Http1(RequestFraming),
    /// Frames have lengths; what is watched is their number. Last, what was read and not followed yet.
    Http2(FrameBudget, LatePong, Bytes),
}

impl<S> GuardedIo<S> {
    pub fn http1(inner: S, clock: Rc<ConnectionClock>) -> Self {
        Self::new(inner, clock, Framing::Http1(RequestFraming::default()))
    }

    pub(super) fn http2(
        inner: S,
        clock: Rc<ConnectionClock>,
        drain: LocalDrain,
        heads: UndecidedHeads,
    ) -> Self {
        let budget = FrameBudget::new(clock::now(), heads);
        Self::new(inner, clock, Framing::Http2(budget, LatePong::new(drain), Bytes::new()))
    }

    fn new(inner: S, clock: Rc<ConnectionClock>, framing: Framing) -> Self {
        Self { inner, clock, framing, refused: None, ahead: Bytes::new() }
    }

    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Why nothing more of what comes is passed on.
    pub fn refused(&self) -> Option<Refusal> {
        self.refused
    }

    /// Whether bytes were read that nobody has taken.
    pub fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Takes back what a reader took and did not use; the next one gets it first.
    pub fn put_back(&mut self, unread: Bytes) {
        self.ahead = if self.has_ahead() { [unread, self.ahead.clone()].concat().into() } else { unread };
    }

    fn wrote(&mut self, result: &Poll<io::Result<usize>>) {
        self.clock.wrote(result.is_pending());
        self.clock.unflushed();
        if let (Framing::Http2(budget, ..), Poll::Ready(Ok(count))) = (&mut self.framing, result) {
            budget.wrote(*count);
        }
    }

    fn follow(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let framing = match &mut self.framing {
            Framing::Http1(framing) => framing,
            Framing::Http2(budget, pong, rest) => {
                let new = &buffer.filled()[before..];
                let taken = feed(budget, new, &self.clock)?;
                if taken < new.len() {
                    *rest = Bytes::copy_from_slice(&new[taken..]);
                    buffer.set_filled(before + taken);
                }
                pong.take_out(buffer, before, budget);
                return Ok(());
            }
        };
        if let Some(accepted) = self.clock.take_upgrade_decision() {
            framing.upgrade_decided(accepted);
        }
        let refusal = match framing.feed(&buffer.filled()[before..]) {
            Ok(()) => {
                self.clock.head_open(framing.in_head());
                self.clock.mid_message(!framing.is_at_rest());
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        self.refused = Some(refusal);
        self.clock.head_open(false);
        buffer.set_filled(before + refusal.sound_bytes);
        if !refusal.in_head {
            // The head may have come with it, and then somebody waits for an answer.
            return if refusal.sound_bytes > 0 { Ok(()) } else { Err(broken(refusal.fault)) };
        }
        let room = buffer.remaining().min(POISON.len());
        if room == 0 {
            return Err(broken(refusal.fault));
        }
        buffer.put_slice(&POISON[..room]);
        Ok(())
    }
}

fn broken(fault: FramingFault) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

fn feed(budget: &mut FrameBudget, bytes: &[u8], clock: &ConnectionClock) -> io::Result<usize> {
    budget.feed(bytes, clock::now()).map_err(|flood| {
        clock.abuse();
        io::Error::new(io::ErrorKind::InvalidData, flood)
    })
}

impl<S: AsyncRead + Unpin> GuardedIo<S> {
    /// Waits for the next bytes without a buffer of its own, and keeps them for the next reader; none: the stream's end.
    pub fn poll_ahead(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_ahead() {
            return Poll::Ready(Ok(()));
        }
        let mut space = [const { MaybeUninit::uninit() }; AHEAD_BYTES];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut *self).poll_read(context, &mut buffer))?;
        self.ahead = Bytes::copy_from_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.has_ahead() {
            let taken = this.ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.ahead[..taken]);
            this.ahead.advance(taken);
            if this.ahead.is_empty() {
                this.ahead = Bytes::new(); // gives the room back
            }
            return Poll::Ready(Ok(()));
        }
        match this.refused {
            None => {}
            // The stream's end: hyper has what it answers 400 to.
            Some(Refusal { in_head: true, .. }) => return Poll::Ready(Ok(())),
            // The body breaks off, and whoever reads it answers.
            Some(Refusal { fault, .. }) => return Poll::Ready(Err(broken(fault))),
        }
        if this.clock.is_abusive() {
            let text = "the client makes work for nothing";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let before = buffer.filled().len();
        loop {
            if let Framing::Http2(budget, pong, rest) = &mut this.framing {
                if pong.put_back(context, buffer, budget) {
                    return Poll::Ready(Ok(()));
                }
                if budget.heads().are_enough() {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if !rest.is_empty() {
                    let ready = rest.len().min(buffer.remaining());
                    let taken = feed(budget, &rest[..ready], &this.clock)?;
                    buffer.put_slice(&rest[..taken]);
                    rest.advance(taken);
                    if rest.is_empty() {
                        *rest = Bytes::new(); // gives the room back
                    }
                    pong.take_out(buffer, before, budget);
                    // Nothing may be left of it, and that would look like the end.
                    if buffer.filled().len() > before || ready == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
            }
            ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
            if buffer.filled().len() == before {
                return Poll::Ready(Ok(())); // the stream's end
            }
            this.clock.bytes_read();
            this.follow(buffer, before)?;
            // Nothing may be left of what came, and that would look like the end.
            if buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardedIo<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.wrote(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(context, pieces);
        this.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(context);
        match &result {
            Poll::Pending => this.clock.wrote(true),
            Poll::Ready(_) => this.clock.flushed(),
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl<S> fmt::Debug for GuardedIo<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GuardedIo").field("refused", &self.refused).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::limits::{self, Deadlines};

    /// What h2 sends as the answer to its own PING, which is held back while the connection drains.
    const PONG: [u8; 17] = [0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
    const HEAD: [u8; 10] = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x82];
    const PREFACE_BYTES: usize = 24;

    #[tokio::test]
    async fn a_pong_alone_behind_many_heads_does_not_look_like_the_end() {
        let first = [&[0; PREFACE_BYTES][..], &HEAD.repeat(limits::H2_HEADS_AT_ONCE), &PONG].concat();
        let stream = tokio::io::AsyncReadExt::chain(&first[..], &HEAD[..]);
        let (drain, heads) = (LocalDrain::default(), UndecidedHeads::default());
        let clock = Rc::new(ConnectionClock::new(Deadlines::default()));
        drain.begin();
        let mut guarded = GuardedIo::http2(stream, clock, drain, heads.clone());
        let mut buffer = [0; 4096];
        let taken = guarded.read(&mut buffer).await.unwrap();
        assert_eq!(taken, first.len() - PONG.len());
        heads.all_go();
        let taken = guarded.read(&mut buffer).await.unwrap();
        assert_eq!(buffer[..taken], HEAD, "and not the end");
    }
}
