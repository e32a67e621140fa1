//! Runs one connection to its end: hyper does the protocol, this loop adds the limits in time, and the drain.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Instant,
};

use super::clock::{ConnectionClock, Expired};
use crate::{clock, drain::LocalDrain, limits};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// hyper had nothing more to do: closed, or upgraded.
    Done,
    /// hyper gave up on the peer.
    Failed,
    Expired(Expired),
}

/// Polls a hyper connection; asks it to finish on drain, and gives up on it when a limit in time runs out.
pub(super) async fn drive<C, E: fmt::Display>(
    mut connection: Pin<&mut C>,
    clock: &ConnectionClock,
    drain: &LocalDrain,
    mut poll: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<Result<(), E>>,
    mut finish: impl FnMut(Pin<&mut C>),
) -> Ended {
    let mut draining = pin!(drain.begun());
    let mut drained_at = None;
    let mut asked = false;
    let mut armed: Instant = clock::now() + clock.deadlines().header;
    let mut timer = pin!(tokio::time::sleep_until(armed.into()));
    poll_fn(|context| {
        loop {
            // First, so that a request which waits in the socket is seen before anything is ended.
            if let Poll::Ready(result) = poll(connection.as_mut(), context) {
                if let Err(error) = &result {
                    tracing::trace!(%error, "a connection failed");
                }
                return Poll::Ready(result.map_or(Ended::Failed, |()| Ended::Done));
            }
            if clock.has_had_enough() && !asked {
                asked = true;
                finish(connection.as_mut());
                continue;
            }
            if drained_at.is_none() && draining.as_mut().poll(context).is_ready() {
                drained_at = Some(clock::now());
            }
            let Some(drained_at) = drained_at.filter(|_| !asked) else { break };
            // A new connection is about to bring its first request; an answer to that will say `close` by itself.
            let fresh = clock.exchanges() == 0;
            let patience_ends = drained_at + limits::DRAIN_PATIENCE;
            if fresh && clock::now() < patience_ends {
                if armed > patience_ends {
                    armed = patience_ends;
                    timer.as_mut().reset(armed.into());
                }
                break;
            }
            asked = true;
            finish(connection.as_mut());
        }
        loop {
            let wanted = if timer.as_mut().poll(context).is_ready() {
                match clock.check(clock::now()) {
                    Err(expired) => return Poll::Ready(Ended::Expired(expired)),
                    Ok(next) => next.unwrap_or_else(|| clock::now() + clock.deadlines().idle),
                }
            } else {
                match clock.earliest() {
                    // Something began that may run out earlier than the next look.
                    Some(next) if next < armed => next,
                    _ => return Poll::Pending,
                }
            };
            armed = wanted;
            timer.as_mut().reset(wanted.into());
            if drained_at.is_some() && !asked {
                context.waker().wake_by_ref(); // the patience of a drain may be over
                return Poll::Pending;
            }
        }
    })
    .await
}
