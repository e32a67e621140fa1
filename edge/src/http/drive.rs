//! Runs one connection to its end: hyper does the protocol, this loop adds the limits in time, and the drain.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Instant,
};

use super::clock::{ConnectionClock, Expired};
use crate::{clock, drain::LocalDrain};

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// hyper had nothing more to do: closed, or upgraded.
    Done,
    /// hyper gave up on the peer.
    Failed,
    Expired(Expired),
}

/// How a connection can be told that it is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// Only with an answer (`Connection: close`). One that ends without may cross the client's next request.
    WithAnswer,
    /// At any time, and nothing is lost: GOAWAY.
    AnyTime,
}

/// Polls a hyper connection; asks it to finish on drain, and gives up on it when a limit in time runs out.
pub(super) async fn drive<C, E: fmt::Display>(
    mut connection: Pin<&mut C>,
    clock: &ConnectionClock,
    (drain, farewell): (&LocalDrain, Farewell),
    mut poll: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<Result<(), E>>,
    mut finish: impl FnMut(Pin<&mut C>),
) -> Ended {
    let mut draining = pin!(drain.begun());
    let mut drained = false;
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
            drained = drained || draining.as_mut().poll(context).is_ready();
            if !drained || asked {
                break;
            }
            // The next answer will say `close` by itself.
            if clock.exchanges() == 0 || farewell == Farewell::WithAnswer {
                let Some(quiet_since) = clock.quiet_since() else { break };
                let patience_ends = drain.begun_at().unwrap_or(quiet_since).max(quiet_since)
                    + clock.deadlines().drain_patience;
                if clock::now() < patience_ends {
                    if armed > patience_ends {
                        armed = patience_ends;
                        timer.as_mut().reset(armed.into());
                    }
                    break;
                }
            }
            asked = true;
            finish(connection.as_mut());
        }
        loop {
            let wanted = if timer.as_mut().poll(context).is_ready() {
                match clock.check(clock::now()) {
                    Err(expired) => {
                        clock.expired(expired);
                        return Poll::Ready(Ended::Expired(expired));
                    }
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
            if drained && !asked {
                context.waker().wake_by_ref(); // the patience of a drain may be over
                return Poll::Pending;
            }
        }
    })
    .await
}
