//! How far a request has got on its way to an origin, and so for whom it waits.
//!
//! A client may take its time, as long as its body goes on: that is the body's own deadline ([`super::body::RequestBody`]).
//! An origin has one to take what was given for it, and one to answer from when it was given all. Whoever is not waited for
//! is not to blame.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use super::body::BodyFault;
use crate::clock;

/// Shared by a request's body and whoever waits for the answer.
#[derive(Debug)]
pub(crate) struct Upload {
    progress: Cell<Progress>,
    fault: Cell<Option<BodyFault>>,
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
    pub(super) fn new() -> Self {
        Self { progress: Cell::new(Progress::Offered(clock::now())), fault: Cell::default() }
    }

    /// The request is given to an origin.
    pub(crate) fn begin(&self, is_empty: bool) {
        self.gave(is_empty);
    }

    /// A piece was given for the origin, the last one or not.
    pub(super) fn gave(&self, is_last: bool) {
        let now = clock::now();
        self.progress.set(if is_last { Progress::Whole(now) } else { Progress::Offered(now) });
    }

    /// More is wanted and the client has sent nothing yet; `true` when that begins.
    pub(super) fn awaits_client(&self) -> bool {
        !matches!(self.progress.replace(Progress::Awaited), Progress::Awaited)
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
            let (deadline, overdue) = match self.progress.get() {
                Progress::Offered(since) => (since + taking, Some(Overdue::Taking)),
                Progress::Whole(since) => (since + answering, Some(Overdue::Answering)),
                // Nothing that begins meanwhile runs out before the next look.
                Progress::Awaited => (clock::now() + taking.min(answering), None),
            };
            if let Some(overdue) = overdue
                && deadline <= clock::now()
            {
                return overdue;
            }
            tokio::time::sleep_until(deadline.into()).await;
        }
    }
}
