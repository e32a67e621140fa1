//! Interim answers (1xx): an origin may give some to a request, and not without end.
//!
//! They are dropped by the HTTP library before anybody sees them, and it reads on for as long as there are more: without a
//! bound here an origin that sends nothing else would keep a worker busy until the deadline of its first byte.

use std::{
    cell::Cell,
    io,
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
    io::{AsyncRead, ReadBuf},
    sync::Notify,
};

use super::through::Reading;
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

/// Counts the heads that a connection brings.
pub(super) struct CountedHeads {
    heads: FrameHeads,
    credit: Rc<HeadCredit>,
}

impl CountedHeads {
    pub(super) fn new(credit: &Rc<HeadCredit>) -> Self {
        Self { heads: FrameHeads::default(), credit: Rc::clone(credit) }
    }
}

impl Reading for CountedHeads {
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        inner: &mut S,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(inner).poll_read(context, buffer))?;
        self.heads.feed(&buffer.filled()[before..], |head| {
            if matches!(head, FrameHead::Headers { .. }) {
                self.credit.spend();
            }
        });
        if self.credit.is_spent() {
            let text = "the origin sends heads that belong to no request";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Poll::Ready(Ok(()))
    }
}
