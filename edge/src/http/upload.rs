//! How far a request has got on its way to an origin, and so for whom it waits.
//!
//! A client may take its time, as long as its body goes on: that is the body's own deadline ([`super::body::RequestBody`]).
//! An origin has one to take what was given for it, and one to answer from when it was given all. Whoever is not waited for
//! is not to blame.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use super::{body::BodyFault, clock::ConnectionClock};
use crate::clock;

/// Shared by a request's body and whoever waits for the answer.
#[derive(Debug)]
pub(crate) struct Upload {
    progress: Cell<Progress>,
    fault: Cell<Option<BodyFault>>,
    /// Of the client's connection, until the answer begins.
    clock: RefCell<Option<Rc<ConnectionClock>>>,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    /// The origin is to take what it was given at that time; whoever sends asks for more when there is room.
    Offered(Instant),
    /// The client is to send more.
    Awaited,
    /// The origin is to answer: it was given all at that time.
    Whole(Instant),
}

/// What an origin did not do in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overdue {
    Taking,
    Answering,
}

impl Upload {
    pub(crate) fn new() -> Self {
        let progress = Cell::new(Progress::Offered(clock::now()));
        Self { progress, fault: Cell::default(), clock: RefCell::default() }
    }

    /// Tells the client's connection how it goes, until the answer begins.
    pub(crate) fn tell(&self, clock: &Rc<ConnectionClock>) {
        *self.clock.borrow_mut() = Some(Rc::clone(clock));
    }

    /// The request is given to an origin.
    pub(crate) fn begin(&self, is_empty: bool) {
        self.gave(0, is_empty);
    }

    /// A piece was given for the origin, the last one or not.
    pub(crate) fn gave(&self, bytes: usize, is_last: bool) {
        let now = clock::now();
        let before =
            self.progress.replace(if is_last { Progress::Whole(now) } else { Progress::Offered(now) });
        if let Some(clock) = &*self.clock.borrow() {
            clock.body_came(bytes);
            if matches!(before, Progress::Awaited) {
                clock.body_awaited(false);
            }
        }
    }

    /// More is wanted and the client has sent nothing yet; `true` when that begins.
    pub(crate) fn awaits_client(&self) -> bool {
        let begins = !matches!(self.progress.replace(Progress::Awaited), Progress::Awaited);
        if begins && let Some(clock) = &*self.clock.borrow() {
            clock.body_awaited(true);
        }
        begins
    }

    /// From now on the client is not only waited for, but served.
    pub(crate) fn answered(&self) {
        let clock = self.clock.take();
        if let Some(clock) = clock.filter(|_| matches!(self.progress.get(), Progress::Awaited)) {
            clock.body_awaited(false);
        }
    }

    /// Since when the origin has been given all.
    pub(crate) fn whole_since(&self) -> Option<Instant> {
        match self.progress.get() {
            Progress::Whole(since) => Some(since),
            Progress::Offered(_) | Progress::Awaited => None,
        }
    }

    pub(super) fn fail(&self, fault: BodyFault) {
        self.fault.set(Some(fault));
    }

    /// How the client's side of it went wrong.
    pub(crate) fn fault(&self) -> Option<BodyFault> {
        self.fault.get()
    }

    /// Ends when the origin was waited for too long: `taking` for a piece, `answering` for the first byte of its answer. Never
    /// while the client is waited for.
    pub(crate) async fn overdue(&self, taking: Duration, answering: Duration) -> Overdue {
        loop {
            let now = clock::now();
            // Nothing that begins meanwhile runs out before then.
            let next_look = now + taking.min(answering);
            let (deadline, overdue) = match self.progress.get() {
                Progress::Offered(since) => (since + taking, Overdue::Taking),
                Progress::Whole(since) => (since + answering, Overdue::Answering),
                Progress::Awaited => (next_look, Overdue::Taking),
            };
            if deadline <= now {
                return overdue;
            }
            tokio::time::sleep_until(deadline.min(next_look).into()).await;
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.answered();
    }
}
