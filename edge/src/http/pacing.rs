//! Answers that come no faster than their tenant's bandwidth: each piece waits for its turn in the tenant's queue.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

/// A piece that waits; there is never more than one of an answer.
pub(super) struct Held {
    data: Bytes,
    turn: Pin<Box<Sleep>>,
}

impl Held {
    pub(super) fn new(data: Bytes, wait: Duration) -> Self {
        Self { data, turn: Box::pin(tokio::time::sleep(wait)) }
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        ready!(self.turn.as_mut().poll(context));
        Poll::Ready(Frame::data(std::mem::take(&mut self.data)))
    }

    /// What is held, and then what is left behind it.
    pub(super) fn before(&self, rest: &SizeHint) -> SizeHint {
        let own = self.data.len() as u64;
        let mut whole = SizeHint::new();
        whole.set_lower(rest.lower().saturating_add(own));
        if let Some(upper) = rest.upper() {
            whole.set_upper(upper.saturating_add(own));
        }
        whole
    }
}
