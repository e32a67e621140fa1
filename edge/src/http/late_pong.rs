//! Gives the requests that cross a GOAWAY their chance.
//!
//! hyper ends an HTTP/2 connection in two steps (RFC 9113 section 6.8): a GOAWAY that names no last request and a PING, then,
//! with the answer to that PING, a GOAWAY that names the last one that was seen. But clients put that answer before the
//! requests that they have queued, and those then came too late: 2 in 93,000 in a restart under load. So the answer is
//! held back for a moment, behind what the client had begun.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{io::ReadBuf, time::Sleep};

use super::frame_budget::FrameBudget;
use crate::{drain::LocalDrain, limits};

pub(super) struct LatePong {
    drain: LocalDrain,
    held: Held,
}

enum Held {
    NotSeen,
    Until(Pin<Box<Sleep>>),
    Given,
}

/// The answer to the PING that h2 ends a connection with; no other PING is sent to clients.
const PONG: [u8; 17] = [0, 0, 8, 6, 1, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

impl LatePong {
    pub(super) fn new(drain: LocalDrain) -> Self {
        Self { drain, held: Held::NotSeen }
    }

    /// Takes the answer out of the bytes from `before` on, which `budget` has just followed.
    pub(super) fn take_out(&mut self, buffer: &mut ReadBuf<'_>, before: usize, budget: &FrameBudget) {
        if !self.drain.is_begun() || !matches!(self.held, Held::NotSeen) {
            return;
        }
        let Some(at) = budget.pong_at().map(|at| before + at) else { return };
        let filled = buffer.filled_mut();
        if filled.get(at..at + PONG.len()) != Some(&PONG[..]) {
            return;
        }
        filled.copy_within(at + PONG.len().., at);
        let left = filled.len() - PONG.len();
        buffer.set_filled(left);
        self.held = Held::Until(Box::pin(tokio::time::sleep(limits::H2_LATE_REQUESTS)));
    }

    /// Puts it back when its time has come; `true` when it is in the buffer.
    pub(super) fn put_back(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        budget: &FrameBudget,
    ) -> bool {
        let Held::Until(time) = &mut self.held else { return false };
        let is_due = time.as_mut().poll(context) == Poll::Ready(());
        if !is_due || !budget.is_between_frames() || buffer.remaining() < PONG.len() {
            return false;
        }
        buffer.put_slice(&PONG);
        self.held = Held::Given;
        true
    }
}
