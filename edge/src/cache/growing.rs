//! A body that grows, and is read meanwhile by as many as like to.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;

use super::{coded::Whole, store::Held};
use crate::{
    clock,
    http::body::{BodyError, OriginBody},
    live::Host,
};

/// What is shared between the task that brings a body and those who read it.
#[derive(Debug)]
pub(super) struct Growing {
    state: Mutex<State>,
    /// What the pieces take, for as long as anybody reads them, whether the body is kept or not.
    held: Arc<Held>,
}

#[derive(Debug, Default)]
struct State {
    pieces: Vec<Bytes>,
    /// All pieces in one, which has taken their place.
    one: Option<Bytes>,
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
    source: Source,
    /// As far as it is known.
    length: Option<u64>,
    /// Pieces and bytes that were read.
    next: usize,
    read: usize,
    /// Of a body that will be kept as it is.
    whole: Option<Whole>,
    /// A suspension ends answers that are under way.
    host: Arc<Host>,
}

enum Source {
    /// Who leads has the rest where the body does not fit.
    Growing(Arc<Growing>, Option<oneshot::Receiver<OriginBody>>),
    /// Such a rest. Nothing is kept of what came before it: a download may take hours, and others want the room.
    Rest(Box<OriginBody>),
}

impl Growing {
    /// A body that takes what is `held`.
    pub(super) fn new(held: Arc<Held>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), held })
    }

    pub(super) fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// For a client that reads along; `length` of the whole where it is known.
    pub(super) fn read(self: &Arc<Self>, length: Option<u64>, host: &Arc<Host>) -> GrowingReader {
        let (source, host) = (Source::Growing(Arc::clone(self), None), Arc::clone(host));
        GrowingReader { source, length, next: 0, read: 0, whole: None, host }
    }

    pub(super) fn push(&self, piece: Bytes) {
        self.change(|state| state.pieces.push(piece));
    }

    /// `one` is what all pieces are together: it is kept, and who still reads goes on in it, so that it is not held twice.
    pub(super) fn becomes(&self, one: &Bytes) {
        self.change(|state| (state.pieces, state.one) = (Vec::new(), Some(one.clone())));
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

impl State {
    /// What comes after so many pieces and so many bytes.
    fn after(&self, pieces: usize, bytes: usize) -> Option<Bytes> {
        match &self.one {
            None => self.pieces.get(pieces).cloned(),
            Some(one) => (bytes < one.len()).then(|| one.slice(bytes..)),
        }
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
        if let Source::Growing(_, awaited) = &mut self.source {
            *awaited = Some(rest);
        }
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
    pub(crate) fn along(&self) -> Option<Self> {
        let Source::Growing(growing, _) = &self.source else { return None };
        Some(growing.read(self.length, &self.host))
    }

    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (growing, rest) = match &mut self.source {
            Source::Growing(growing, rest) => (growing, rest),
            Source::Rest(body) => return body.poll_frame(context),
        };
        if self.host.suspended(clock::unix_ms()).is_some() {
            return Poll::Ready(Some(Err("suspended".into())));
        }
        let end = {
            let mut state = growing.state();
            if let Some(piece) = state.after(self.next, self.read) {
                self.next += 1;
                self.read += piece.len();
                return Poll::Ready(Some(Ok(Frame::data(piece))));
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
        match (end, rest) {
            (End::Whole, _) => Poll::Ready(None),
            (End::HandedOver, Some(rest)) => match ready!(Pin::new(rest).poll(context)) {
                Ok(body) => {
                    self.source = Source::Rest(Box::new(body));
                    self.poll_frame(context)
                }
                Err(_) => broken(),
            },
            (End::HandedOver | End::Broken, _) => broken(),
        }
    }

    /// Nobody has asked for more for a while, and that was not the origin's doing.
    pub(crate) fn go_on(&mut self) {
        if let Source::Rest(body) = &mut self.source {
            body.go_on();
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let Source::Growing(growing, _) = &self.source else { return false };
        let state = growing.state();
        state.end == Some(End::Whole) && state.after(self.next, self.read).is_none()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_along_goes_on_where_it_was_when_the_pieces_become_one() {
        let mut state = State { pieces: vec!["ab".into(), "cde".into()], ..State::default() };
        assert_eq!((state.after(0, 0), state.after(1, 2)), (Some("ab".into()), Some("cde".into())));
        (state.pieces, state.one) = (Vec::new(), Some("abcde".into()));
        assert_eq!((state.after(0, 0), state.after(1, 2)), (Some("abcde".into()), Some("cde".into())));
        assert_eq!(state.after(2, 5), None);
    }
}
