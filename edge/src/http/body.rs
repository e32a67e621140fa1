//! Bodies on their way through: bounded, with a deadline between pieces, never held whole.

use std::{
    fmt,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use portico_api::rule::{Changes, Side};

pub use super::origin_body::OriginBody;
use super::{
    budget::{AnswerShare, ConnectionBudget, HeadShare},
    forwarding,
    h2::SendWatch,
    leftover::Leftover,
    pacing::Held,
    stall::Stall,
    upload::Upload,
};
use crate::{
    cache::{GrowingReader, StoredReader},
    coding::CodedBody,
    exchange::{ExchangeEnd, Tally},
    limits,
};

/// What a body fails with, on either side.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body of any protocol.
pub type BoxedBody = Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>;

/// A request's body, as it is given to an origin.
pub struct RequestBody {
    source: RequestSource,
    bytes_left: u64,
    stall: Stall,
    upload: Rc<Upload>,
    tally: Option<Rc<Tally>>,
    /// Where what nobody has read is left.
    leftover: Option<Rc<Leftover>>,
    /// What the route sets or removes is not the client's to say behind the body either.
    changes: Option<Box<Changes>>,
}

pub(super) enum RequestSource {
    Empty,
    Hyper(Incoming),
    Boxed(BoxedBody),
}

/// How a request body went wrong; read after the origin's side has failed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    #[error("request_body_too_large")]
    TooLarge,
    #[error("request_body_stalled")]
    Stalled,
    #[error("request_body_broken")]
    Broken,
}

impl RequestBody {
    pub fn empty() -> Self {
        Self::new(RequestSource::Empty)
    }

    pub fn hyper(body: Incoming) -> Self {
        Self::new(RequestSource::Hyper(body))
    }

    /// For HTTP/3.
    pub fn boxed(body: BoxedBody) -> Self {
        Self::new(RequestSource::Boxed(body))
    }

    fn new(source: RequestSource) -> Self {
        Self {
            source,
            bytes_left: limits::REQUEST_BODY_BYTES_MAX,
            stall: Stall::new(limits::BODY_STALL_DEADLINE),
            upload: Rc::new(Upload::new()),
            tally: None,
            leftover: None,
            changes: None,
        }
    }

    /// The route changes these fields of the request.
    pub(crate) fn changed_by(&mut self, changes: &Changes) {
        self.changes = (!self.is_end_stream()).then(|| Box::new(changes.clone()));
    }

    /// The longest that the body may be.
    pub fn set_most(&mut self, bytes: u64) {
        self.bytes_left = bytes;
    }

    /// How much of it may still come.
    pub fn most(&self) -> u64 {
        self.bytes_left
    }

    /// Leaves there what its reader does not read.
    pub(super) fn leave_to(&mut self, leftover: Rc<Leftover>) {
        self.leftover = Some(leftover);
    }

    /// Counts what comes.
    pub(crate) fn measure(&mut self, tally: Rc<Tally>) {
        self.tally = Some(tally);
    }

    /// How long the client may pause.
    pub fn set_stall(&mut self, allowed: Duration) {
        self.stall = Stall::new(allowed);
    }

    /// How far it has got, and what went wrong with it.
    pub(crate) fn upload(&self) -> Rc<Upload> {
        Rc::clone(&self.upload)
    }

    /// Whether nothing comes, up to the end.
    pub(crate) async fn turns_out_empty(&mut self) -> bool {
        loop {
            match self.frame().await {
                None => return true,
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Some(_) => return false,
            }
        }
    }

    /// What comes next; of trailers, what a client may say there.
    fn poll_source(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.source.poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
        let mut trailers = match frame.into_trailers() {
            Ok(trailers) => trailers,
            Err(data) => return Poll::Ready(Some(Ok(data))),
        };
        forwarding::clean_trailers(&mut trailers, Side::Request);
        if let Some(changes) = &self.changes {
            changes.remove_all(&mut trailers);
        }
        // Nothing comes behind them.
        Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))))
    }

    fn fail(&self, fault: BodyFault) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.fail(fault);
        Poll::Ready(Some(Err(fault.into())))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this.poll_source(context) {
            Poll::Pending => {
                // While the origin took the last piece nobody waited for the client.
                if this.upload.awaits_client() {
                    this.stall.progress();
                }
                ready!(this.stall.poll(context));
                this.fail(BodyFault::Stalled)
            }
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                if let Some(tally) = &this.tally {
                    tally.received(bytes);
                }
                match this.bytes_left.checked_sub(bytes as u64) {
                    Some(left) => this.bytes_left = left,
                    None => return this.fail(BodyFault::TooLarge),
                }
                let is_last =
                    frame.is_trailers() || this.is_end_stream() || this.size_hint().exact() == Some(0);
                this.upload.gave(bytes, is_last);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::trace!(%error, "a request body broke off");
                this.fail(BodyFault::Broken)
            }
            Poll::Ready(None) => {
                this.upload.gave(0, true);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            RequestSource::Empty => SizeHint::with_exact(0),
            RequestSource::Hyper(body) => body.size_hint(),
            RequestSource::Boxed(body) => body.size_hint(),
        }
    }
}

impl RequestSource {
    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Hyper(body) => {
                Pin::new(body).poll_frame(context).map_err(|error| Box::new(error) as BodyError)
            }
            Self::Boxed(body) => body.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Hyper(body) => body.is_end_stream(),
            Self::Boxed(body) => body.is_end_stream(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(leftover) = self.leftover.take() else { return };
        let rest = std::mem::replace(&mut self.source, RequestSource::Empty);
        leftover.take_over((!rest.is_end_stream()).then_some(rest));
    }
}

/// An answer's body. Dropping it, finished or not, is the end of the exchange.
pub struct ResponseBody {
    source: ResponseSource,
    end: Option<Box<ExchangeEnd>>,
    /// Came from the source, and waits for its turn.
    held: Option<Held>,
    /// Its trailers have gone: nothing comes behind them, and nobody asks.
    has_ended: bool,
    /// On HTTP/2, where the client takes each answer at its own pace.
    watch: Option<(Rc<SendWatch>, HeadShare)>,
    /// On HTTP/2 and 3, where it is one answer of many: what is held of it.
    share: Option<Arc<AnswerShare>>,
}

/// Where an answer's bytes come from.
pub enum ResponseSource {
    Empty,
    Full(Bytes),
    Origin(Box<OriginBody>),
    /// Kept.
    Stored(StoredReader),
    /// On its way into the cache.
    Growing(Box<GrowingReader>),
    /// One of these, compressed.
    Coded(Box<CodedBody>),
}

impl ResponseBody {
    pub(crate) fn new(mut source: ResponseSource, end: Box<ExchangeEnd>) -> Self {
        let share = end.budget().and_then(|budget| source.count_for(budget));
        Self { source, end: Some(end), held: None, has_ended: false, watch: None, share }
    }

    /// Tells `watch` when pieces are wanted and given; keeps the request's `head` counted to the end.
    pub(super) fn watch(&mut self, watch: Rc<SendWatch>, head: HeadShare) {
        self.watch = Some((watch, head));
    }

    /// The client takes no more of it: its exchange ends so.
    pub(super) fn give_up(&mut self) {
        if let Some(mut end) = self.end.take() {
            end.stalled();
        }
    }

    /// The next piece, when it is its turn.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.held.is_none() {
            let frame = match ready!(self.source.poll_frame(context)) {
                Some(Ok(frame)) => frame,
                ended => return Poll::Ready(ended),
            };
            let frame = match &self.share {
                Some(share) => frame.map_data(|piece| share.queue(piece)),
                None => frame,
            };
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let wait = self.end.as_ref().map_or(Duration::ZERO, |end| end.queue(bytes));
            match frame.into_data() {
                Ok(data) if !wait.is_zero() => self.held = Some(Held::new(data, wait)),
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let Some(held) = &mut self.held else { return Poll::Ready(None) };
        let frame = ready!(held.poll(context));
        self.held = None;
        self.source.go_on();
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some((watch, _)) = &this.watch {
            watch.wanted();
        }
        let Poll::Ready(frame) = this.poll_turn(context) else {
            let waiting = this.share.as_ref().filter(|share| share.waits());
            if let (Some((watch, _)), Some(share)) = (&this.watch, waiting) {
                watch.waits_with(share.held());
            }
            return Poll::Pending;
        };
        if let Some(end) = &mut this.end {
            match &frame {
                Some(Ok(frame)) => {
                    end.sent(frame.data_ref().map_or(0, Bytes::len));
                    this.has_ended = frame.is_trailers();
                }
                Some(Err(_)) => end.broken("origin_body"),
                None => end.complete(),
            }
        }
        if let (Some((watch, _)), Some(_)) = (&this.watch, &frame) {
            watch.given();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.source.size_hint();
        match &self.held {
            Some(held) => held.before(&rest),
            None => rest,
        }
    }
}

impl ResponseSource {
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Origin(body) => body.poll_frame(context),
            Self::Stored(body) => body.poll_frame(context),
            Self::Growing(body) => body.poll_frame(context),
            Self::Coded(body) => body.poll_frame(context),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Origin(body) => body.is_end_stream(),
            Self::Stored(body) => body.left() == 0,
            Self::Growing(body) => body.is_end_stream(),
            Self::Coded(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Origin(body) => body.size_hint(),
            Self::Stored(body) => SizeHint::with_exact(body.left()),
            Self::Growing(body) => body.size_hint(),
            Self::Coded(_) => SizeHint::default(),
        }
    }

    /// Counts what is held of a body that no other client shares.
    fn count_for(&mut self, budget: &ConnectionBudget) -> Option<Arc<AnswerShare>> {
        match self {
            Self::Empty | Self::Full(_) | Self::Stored(_) | Self::Growing(_) => None,
            Self::Origin(body) => {
                let share = budget.answer();
                body.count_for(&share);
                Some(share)
            }
            Self::Coded(body) => {
                let share = budget.answer();
                body.count_for(&share);
                Some(share)
            }
        }
    }

    /// Nobody has asked for more for a while, and that was not the origin's doing.
    pub(crate) fn go_on(&mut self) {
        match self {
            Self::Origin(body) => body.go_on(),
            Self::Growing(body) => body.go_on(),
            Self::Coded(body) => body.go_on(),
            Self::Empty | Self::Full(_) | Self::Stored(_) => {}
        }
    }
}

/// hyper asks `is_end_stream`, or takes trailers, and then may never poll for the end: what was sent whole is complete all the
/// same.
impl Drop for ResponseBody {
    fn drop(&mut self) {
        let stalled = self.watch.as_ref().is_some_and(|(watch, _)| watch.is_stalled());
        if let Some(end) = self.end.as_mut().filter(|_| stalled) {
            end.stalled();
        }
        let whole = !stalled && (self.has_ended || self.is_end_stream());
        if let Some(end) = self.end.as_mut().filter(|_| whole) {
            end.complete();
        }
        if whole && let ResponseSource::Origin(body) = &mut self.source {
            body.give_back();
        }
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RequestBody").field("bytes_left", &self.bytes_left).finish_non_exhaustive()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ResponseBody").field("source", &self.source).finish_non_exhaustive()
    }
}

impl fmt::Debug for ResponseSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "Empty",
            Self::Full(_) => "Full",
            Self::Origin(_) => "Origin",
            Self::Stored(_) => "Stored",
            Self::Growing(_) => "Growing",
            Self::Coded(_) => "Coded",
        })
    }
}
