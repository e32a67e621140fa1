//! A body on its way into the cache, read by clients while it grows.
//!
//! The origin's pieces are copied once, into memory of their own: what hyper gives is a part of a larger buffer that would
//! live as long. One task pulls them as fast as the origin sends, whatever the clients' pace, within what the ledger gives.
//! Where the body turns out not to fit, the rest is handed to the leader's reader and comes at that client's pace.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;

use super::{
    flight::Leading,
    freshness::Life,
    store::{Held, Store},
    stored::{Head, StoredBody, Variant},
};
use crate::http::body::{BodyError, OriginBody};

/// A body of unknown length takes room in steps of this.
const STEP_BYTES: u64 = 64 * 1024;
/// Bodies up to this are made one piece.
const ONE_PIECE_BYTES: u64 = 64 * 1024;

/// What is shared between the task that fills and those who read.
#[derive(Debug)]
pub(super) struct Filling {
    pub variant: Variant,
    pub head: Head,
    /// As the origin said; then it fits, and anybody may read along.
    pub length: Option<u64>,
    pub life: Life,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pieces: Vec<Bytes>,
    end: Option<End>,
    wakers: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
    /// It does not fit: the leader has the rest.
    HandedOver,
}

/// One client's place in a body that grows.
pub struct FillingReader {
    filling: Arc<Filling>,
    next: usize,
    rest: Rest,
}

enum Rest {
    /// Reads along.
    None,
    Awaited(oneshot::Receiver<OriginBody>),
    Here(Box<OriginBody>),
}

impl Filling {
    pub(super) fn new(variant: Variant, head: Head, length: Option<u64>, life: Life) -> Arc<Self> {
        let state = State { pieces: Vec::new(), end: None, wakers: Vec::new() };
        Arc::new(Self { variant, head, length, life, state: Mutex::new(state) })
    }

    /// For a client that came while the body was on its way.
    pub(super) fn read(self: &Arc<Self>) -> FillingReader {
        FillingReader { filling: Arc::clone(self), next: 0, rest: Rest::None }
    }

    fn push(&self, piece: Bytes) {
        self.change(|state| state.pieces.push(piece));
    }

    fn finish(&self, end: End) {
        self.change(|state| state.end = Some(end));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state();
            change(&mut state);
            std::mem::take(&mut state.wakers)
        };
        for waker in wakers {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the filling task needs, beside the body.
pub(super) struct FillJob {
    pub store: Arc<Store>,
    pub filling: Arc<Filling>,
    /// Room for the body: all of it if its length is known.
    pub held: Held,
    pub bytes_max: u64,
    pub leading: Leading,
}

/// The leader's reader, and the job that is to run on this thread.
pub(super) fn begin(
    job: FillJob,
    body: OriginBody,
    keep: impl FnOnce(Leading, Arc<StoredBody>) + 'static,
) -> FillingReader {
    let (rest, receiver) = oneshot::channel();
    let reader = FillingReader { filling: Arc::clone(&job.filling), next: 0, rest: Rest::Awaited(receiver) };
    let unfinished = Unfinished(Some(Arc::clone(&job.filling)));
    tokio::task::spawn_local(async move { fill(job, body, rest, unfinished, keep).await });
    reader
}

/// However the task ends, nobody goes on waiting for it.
struct Unfinished(Option<Arc<Filling>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(filling) = self.0.take() {
            filling.finish(End::Broken);
        }
    }
}

async fn fill(
    mut job: FillJob,
    mut body: OriginBody,
    rest: oneshot::Sender<OriginBody>,
    mut unfinished: Unfinished,
    keep: impl FnOnce(Leading, Arc<StoredBody>),
) {
    let mut bytes: u64 = 0;
    loop {
        let frame = std::future::poll_fn(|context| body.poll_frame(context)).await;
        let data = match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_trailers) => continue, // may be left out of what is kept (RFC 9110 section 6.5)
            },
            Some(Err(error)) => {
                tracing::debug!(error, "a body broke off on its way into the cache");
                return;
            }
            None => break,
        };
        if data.is_empty() {
            continue;
        }
        bytes += data.len() as u64;
        let fits = bytes <= job.bytes_max && make_room(&mut job, bytes);
        job.filling.push(Bytes::copy_from_slice(&data));
        if !fits {
            unfinished.0 = None;
            let _gone = rest.send(body);
            job.filling.finish(End::HandedOver);
            job.leading.uncacheable();
            return;
        }
    }
    let whole = job.filling.length.is_none_or(|length| length == bytes);
    if !whole {
        return;
    }
    unfinished.0 = None;
    job.held.shrink_to(bytes);
    let pieces = job.filling.state().pieces.clone();
    // Before those are told who wait for the kept answer, so that they find it.
    keep(job.leading, Arc::new(StoredBody::new(gathered(pieces, bytes), job.held)));
    job.filling.finish(End::Whole);
}

fn make_room(job: &mut FillJob, bytes: u64) -> bool {
    let lacking = bytes.saturating_sub(job.held.bytes());
    if lacking == 0 {
        return true;
    }
    let step = lacking.max(STEP_BYTES).min(job.bytes_max - job.held.bytes());
    let tenant = job.leading.key().tenant();
    job.store.grow(tenant, &mut job.held, step)
}

fn gathered(pieces: Vec<Bytes>, bytes: u64) -> Vec<Bytes> {
    if pieces.len() < 2 || bytes > ONE_PIECE_BYTES {
        return pieces;
    }
    vec![pieces.concat().into()]
}

impl FillingReader {
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Rest::Here(body) = &mut self.rest {
            return body.poll_frame(context);
        }
        let end = {
            let mut state = self.filling.state();
            if let Some(piece) = state.pieces.get(self.next) {
                self.next += 1;
                return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
            }
            let Some(end) = state.end else {
                if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    state.wakers.push(context.waker().clone());
                }
                return Poll::Pending;
            };
            end
        };
        let broken = || Poll::Ready(Some(Err("the origin's answer broke off".into())));
        match (end, &mut self.rest) {
            (End::Whole, _) => Poll::Ready(None),
            (End::HandedOver, Rest::Awaited(rest)) => match ready!(Pin::new(rest).poll(context)) {
                Ok(body) => {
                    self.rest = Rest::Here(Box::new(body));
                    self.poll_frame(context)
                }
                Err(_) => broken(),
            },
            (End::HandedOver | End::Broken, _) => broken(),
        }
    }

    /// Nobody has asked for more for a while, and that was not the origin's doing.
    pub(crate) fn go_on(&mut self) {
        if let Rest::Here(body) = &mut self.rest {
            body.go_on();
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let state = self.filling.state();
        state.end == Some(End::Whole) && state.pieces.len() == self.next
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let whole = self.filling.length.filter(|_| self.next == 0);
        whole.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl std::fmt::Debug for FillingReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FillingReader").field("next", &self.next).finish_non_exhaustive()
    }
}
