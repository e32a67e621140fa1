//! Interim answers (1xx): an origin may give some to a request, and not without end.
//!
//! They are dropped by the HTTP library before anybody sees them, and it reads on for as long as there are more: without a
//! bound here an origin that sends nothing else would keep a worker busy until the deadline of its first byte.

use std::{
    cell::Cell,
    fmt, io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

use hyper::Request;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

use super::connect::OriginStream;
use crate::{
    http::frame_heads::{FrameHead, FrameHeads},
    limits,
};

/// Those to one request over HTTP/1.1.
#[derive(Debug, Default)]
pub(super) struct Interim {
    count: AtomicU32,
    enough: Notify,
}

impl Interim {
    /// Counts what comes for `request`.
    pub(super) fn of<B>(request: &mut Request<B>) -> Arc<Self> {
        let interim = Arc::<Self>::default();
        let counting = Arc::clone(&interim);
        hyper::ext::on_informational(request, move |_| counting.came());
        interim
    }

    fn came(&self) {
        if self.count.fetch_add(1, Ordering::Relaxed) >= limits::ORIGIN_INTERIM_ANSWERS_MAX {
            self.enough.notify_one();
        }
    }

    /// Nothing more is to be read.
    pub(super) fn are_too_many(&self) -> bool {
        self.count.load(Ordering::Relaxed) > limits::ORIGIN_INTERIM_ANSWERS_MAX
    }

    /// Ends when there are.
    pub(super) async fn too_many(&self) {
        self.enough.notified().await;
    }
}

/// Heads that an origin of HTTP/2 may still send on one connection. Each request brings those that its answer may have.
#[derive(Debug, Default)]
pub(super) struct HeadCredit {
    left: Cell<usize>,
    spent: Cell<bool>,
}

/// Beside the interim ones: the answer's own, and its trailers.
const HEADS_PER_REQUEST: usize = limits::ORIGIN_INTERIM_ANSWERS_MAX as usize + 2;
/// Of requests that were given up something may come yet.
const HEADS_MAX: usize = HEADS_PER_REQUEST * limits::ORIGIN_H2_STREAMS_MAX;

impl HeadCredit {
    pub(super) fn request_begins(&self) {
        self.left.set(HEADS_MAX.min(self.left.get() + HEADS_PER_REQUEST));
    }

    /// The connection has ended by it.
    pub(super) fn is_spent(&self) -> bool {
        self.spent.get()
    }

    fn spend(&self) {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.spent.set(true),
        }
    }
}

/// A connection's stream of which heads are counted.
pub(super) struct CountedStream {
    inner: Box<dyn OriginStream>,
    heads: FrameHeads,
    credit: Rc<HeadCredit>,
}

impl CountedStream {
    pub(super) fn new(inner: Box<dyn OriginStream>, credit: &Rc<HeadCredit>) -> Self {
        Self { inner, heads: FrameHeads::default(), credit: Rc::clone(credit) }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        this.heads.feed(&buffer.filled()[before..], |head| {
            if head == FrameHead::Headers {
                this.credit.spend();
            }
        });
        if this.credit.is_spent() {
            let text = "the origin sends heads that belong to no request";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CountedStream {
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

impl fmt::Debug for CountedStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CountedStream").finish_non_exhaustive()
    }
}
