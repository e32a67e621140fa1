//! An answer's body as it comes from its origin.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use portico_api::rule::Side;

use super::{body::BodyError, budget::AnswerShare, forwarding, stall::Stall};
use crate::{
    live::Suspension,
    upstream::{Gate, Lease},
};

/// An origin's body with the connection that it comes over.
pub struct OriginBody {
    incoming: Incoming,
    /// Before the lease: opened when the answer is over, before another exchange has its connection.
    counted: Option<Counted>,
    lease: Option<Lease>,
    stall: Stall,
    /// Its end is said by its framing, and not by the connection's.
    framed: bool,
    /// Resolves when the host is suspended while the answer is under way.
    cut: Pin<Box<dyn Future<Output = Arc<Suspension>>>>,
}

/// What is read of an answer counts for a client's connection.
struct Counted {
    share: Arc<AnswerShare>,
    gate: Option<Rc<Gate>>,
}

impl Counted {
    /// Whether the client's connection holds so much that nothing more is to be taken from the origin's HTTP/2 connection.
    fn is_full(&self, context: &Context<'_>) -> bool {
        self.gate.is_none() && self.share.poll_room(context).is_pending()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.open();
        }
    }
}

impl OriginBody {
    pub(crate) fn new(
        incoming: Incoming,
        lease: Lease,
        cut: Pin<Box<dyn Future<Output = Arc<Suspension>>>>,
        stall: Duration,
        framed: bool,
    ) -> Self {
        Self { incoming, counted: None, lease: Some(lease), stall: Stall::new(stall), framed, cut }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    pub(crate) fn is_framed(&self) -> bool {
        self.framed
    }

    /// What is read from now on counts for `share`.
    pub(crate) fn count_for(&mut self, share: &Arc<AnswerShare>) {
        let gate = self.lease.as_ref().and_then(Lease::gate).map(Rc::clone);
        if let Some(gate) = &gate {
            gate.count_for(share);
        }
        self.counted = Some(Counted { share: Arc::clone(share), gate });
    }

    /// See [`ResponseSource::go_on`](super::body::ResponseSource::go_on).
    pub(crate) fn go_on(&mut self) {
        self.stall.progress();
    }

    /// Ends an answer whose body nobody reads; its connection serves on if there is none.
    pub(crate) fn release(mut self) {
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.cut.as_mut().poll(context).is_ready() {
            self.lease = None;
            return Poll::Ready(Some(Err("suspended".into())));
        }
        if self.counted.as_ref().is_some_and(|counted| counted.is_full(context)) {
            self.stall.progress();
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.incoming).poll_frame(context);
        if let Some(Counted { share, .. }) = &self.counted {
            match &polled {
                Poll::Pending => {
                    share.nothing_left(context);
                    if share.waits() {
                        self.stall.progress(); // not the origin's doing
                        return Poll::Pending;
                    }
                }
                Poll::Ready(Some(Ok(frame))) => share.taken(frame.data_ref().map_or(0, Bytes::len)),
                Poll::Ready(_) => {}
            }
        }
        match polled {
            Poll::Pending if self.stall.poll(context).is_ready() => {
                self.lease = None;
                Poll::Ready(Some(Err("the origin stalled".into())))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.give_back();
                Poll::Ready(None)
            }
            Poll::Ready(Some(result)) => {
                self.stall.progress();
                let frame = match result {
                    Ok(frame) => frame,
                    Err(error) => {
                        self.lease = None;
                        return Poll::Ready(Some(Err(Box::new(error) as BodyError)));
                    }
                };
                let mut trailers = match frame.into_trailers() {
                    Ok(trailers) => trailers,
                    Err(data) => return Poll::Ready(Some(Ok(data))),
                };
                forwarding::clean_trailers(&mut trailers, Side::Response);
                if trailers.is_empty() {
                    return self.poll_frame(context); // the end
                }
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    /// The whole answer was taken: the connection may serve again.
    pub(super) fn give_back(&mut self) {
        self.counted = None;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl fmt::Debug for OriginBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OriginBody").finish_non_exhaustive()
    }
}
