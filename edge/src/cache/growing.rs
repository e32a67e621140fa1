//! A body that grows, and is read meanwhile by as many as like to.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;

use super::coded::Whole;
use crate::{
    clock,
    http::body::{BodyError, OriginBody},
    live::Host,
};

/// What is shared between the task that brings a body and those who read it.
#[derive(Debug, Default)]
pub(super) struct Growing {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pieces: Vec<Bytes>,
    end: Option<End>,
    wakers: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    Broken,
    /// It does not fit: one reader has the rest.
    HandedOver,
}

/// One client's place in a body that grows.
pub struct GrowingReader {
    growing: Arc<Growing>,
    /// As far as it is known.
    length: Option<u64>,
    next: usize,
    rest: Rest,
    /// Of a body that will be kept as it is.
    whole: Option<Whole>,
    /// A suspension ends answers that are under way.
    host: Arc<Host>,
}

enum Rest {
    /// Reads along.
    None,
    Awaited(oneshot::Receiver<OriginBody>),
    Here(Box<OriginBody>),
}

impl Growing {
    /// For a client that reads along; `length` of the whole where it is known.
    pub(super) fn read(self: &Arc<Self>, length: Option<u64>, host: &Arc<Host>) -> GrowingReader {
        let (growing, host) = (Arc::clone(self), Arc::clone(host));
        GrowingReader { growing, length, next: 0, rest: Rest::None, whole: None, host }
    }

    pub(super) fn push(&self, piece: Bytes) {
        self.change(|state| state.pieces.push(piece));
    }

    pub(super) fn finish(&self, end: End) {
        self.change(|state| state.end = Some(end));
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state().end == Some(End::Broken)
    }

    pub(super) fn pieces(&self) -> Vec<Bytes> {
        self.state().pieces.clone()
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

/// However the task ends that brings a body, nobody goes on waiting for it.
pub(super) struct Unfinished(pub Option<Arc<Growing>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(growing) = self.0.take() {
            growing.finish(End::Broken);
        }
    }
}

impl GrowingReader {
    /// The reader who takes the rest where the body does not fit.
    pub(super) fn with_rest(mut self, rest: oneshot::Receiver<OriginBody>) -> Self {
        self.rest = Rest::Awaited(rest);
        self
    }

    /// Others may have it in the same coding.
    pub(super) fn of_whole(mut self, whole: Whole) -> Self {
        self.whole = Some(whole);
        self
    }

    pub(crate) fn whole(&self) -> Option<&Whole> {
        self.whole.as_ref()
    }

    pub(crate) fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// From the beginning, for whoever reads along.
    pub(crate) fn along(&self) -> Self {
        self.growing.read(self.length, &self.host)
    }

    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Rest::Here(body) = &mut self.rest {
            return body.poll_frame(context);
        }
        if self.host.suspended(clock::unix_ms()).is_some() {
            return Poll::Ready(Some(Err("suspended".into())));
        }
        let end = {
            let mut state = self.growing.state();
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
        let broken = || Poll::Ready(Some(Err("the body broke off".into())));
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
        let state = self.growing.state();
        state.end == Some(End::Whole) && state.pieces.len() == self.next
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let whole = self.length.filter(|_| self.next == 0);
        whole.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl std::fmt::Debug for GrowingReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("GrowingReader").field("next", &self.next).finish_non_exhaustive()
    }
}
