//! HTTP/3 on one connection: h3 does the framing and QPACK, [`adapter`] connects it to quinn, each request ends at
//! [`serve_exchange`](crate::exchange::serve_exchange) as those of the other versions do.
//!
//! h3 0.0.8 is young: what it leaves to its caller is done here, in [`frames`] and in [`pseudo`] (bounds on frames, bodies
//! cut short, fields that belong to a connection, content-length, repeated pseudo-header fields, push streams of a client). Deliberately absent:
//! server push, datagrams, WebTransport, extended CONNECT and a dynamic QPACK table.

pub mod adapter;
mod body;
mod exchange;
mod frames;
mod pseudo;
mod receive_window;
mod send_window;
mod violation;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::h3::error::{Code, ConnectionError};
use ::h3::server;
use bytes::Bytes;
use quinn::VarInt;
use tokio::sync::Notify;

use self::adapter::Accepting;
use self::receive_window::Received;
use self::send_window::SendWindow;
use super::clock::Expired;
use super::drive::Ended;
use crate::exchange::{ConnectionContext, Refused};
use crate::listen::quic::FrameBudget;
use crate::{clock, limits};

type H3Connection = server::Connection<adapter::Connection, Bytes>;

/// What the exchanges of one connection have in common.
struct Exchanges {
    open: Cell<usize>,
    ended: Notify,
    /// Told when an answer has been acknowledged.
    arrived: Notify,
    window: SendWindow,
}

/// Serves exchanges until the connection ends.
pub async fn serve(
    connection: quinn::Connection,
    budget: Arc<FrameBudget>,
    context: Rc<ConnectionContext>,
) -> Ended {
    let received = Received::new(connection.clone(), Arc::clone(&budget));
    let shared = Rc::new(Accepting::counting(Rc::new(received)));
    let adapter = adapter::Connection::new(connection.clone(), Rc::clone(&shared));
    let mut builder = server::builder();
    builder.max_field_section_size(limits::HEADER_BYTES_MAX as u64).send_grease(false);
    let built = tokio::time::timeout(context.clock.deadlines().handshake, builder.build(adapter));
    let mut h3 = match built.await {
        Ok(Ok(h3)) => h3,
        Ok(Err(error)) => {
            tracing::trace!(%error, "an HTTP/3 connection did not begin");
            note(&error, &context);
            return Ended::Failed;
        }
        Err(_) => return Ended::Expired(Expired::SlowHead),
    };
    let window = SendWindow::new(connection.clone());
    let (open, ended, arrived) = (Cell::new(0), Notify::new(), Notify::new());
    let exchanges = Rc::new(Exchanges { open, ended, arrived, window });
    let ended = tokio::select! {
        biased;
        () = budget.flood() => {
            context.clock.abuse();
            Next::Ended(Ended::Failed)
        }
        ended = accept(&mut h3, &shared, &exchanges, &context) => ended,
    };
    let ended = match ended {
        Next::Finish => finish(&mut h3, &connection, &shared, &exchanges, &context).await,
        Next::Expired(expired) => {
            // Politely: a request may be on its way.
            let _how = finish(&mut h3, &connection, &shared, &exchanges, &context).await;
            Ended::Expired(expired)
        }
        Next::Ended(ended) => ended,
    };
    if let Some(violation) = shared.violation() {
        tracing::trace!(%violation, "an HTTP/3 connection was ended");
        violation.refused().note(&context);
    }
    if context.clock.is_abusive() {
        context.worker.edge.metrics.connections_abusive.increment(1);
    }
    connection.close(VarInt::from_u32(close_code(&context)), b"");
    ended
}

/// Counts and logs a connection that broke the protocol.
fn note(error: &ConnectionError, context: &ConnectionContext) {
    if let Some(refused) = Refused::by_http3(error) {
        refused.note(context);
    }
}

/// Why no more requests are taken.
enum Next {
    /// Those under way are finished, then the connection is closed.
    Finish,
    Expired(Expired),
    Ended(Ended),
}

async fn accept(
    h3: &mut H3Connection,
    shared: &Rc<Accepting>,
    exchanges: &Rc<Exchanges>,
    context: &Rc<ConnectionContext>,
) -> Next {
    let drain = &context.worker.drain;
    loop {
        let look_at =
            context.clock.earliest().unwrap_or_else(|| clock::now() + context.clock.deadlines().idle);
        // A connection without an exchange yet is about to bring its first one.
        let patience_ends = drain.begun_at().filter(|_| context.clock.exchanges() == 0).map(|begun_at| {
            let quiet_since = context.clock.quiet_since().map_or(begun_at, |since| begun_at.max(since));
            quiet_since + context.clock.deadlines().drain_patience
        });
        let draining = async {
            match patience_ends {
                Some(ends) => tokio::time::sleep_until(ends.into()).await,
                None => drain.begun().await,
            }
        };
        tokio::select! {
            biased;
            accepted = h3.accept() => match accepted {
                Ok(Some(resolver)) => {
                    let Some(accepted) = shared.take_last() else { return Next::Ended(Ended::Failed) };
                    exchange::start(resolver, accepted, exchanges, context);
                    if context.clock.is_abusive() {
                        return Next::Ended(Ended::Failed);
                    }
                    if context.clock.has_had_enough() {
                        return Next::Finish;
                    }
                }
                Ok(None) => return Next::Finish,
                Err(error) => {
                    let ended = if error.is_h3_no_error() { Ended::Done } else { Ended::Failed };
                    tracing::trace!(%error, "an HTTP/3 connection ended");
                    // Else it has heard of it from us.
                    if shared.violation().is_none() {
                        note(&error, context);
                    }
                    return Next::Ended(ended);
                }
            },
            () = draining => if patience_ends.is_some() || context.clock.exchanges() > 0 {
                return Next::Finish;
            },
            // A request counts from when its head is read, so its connection is looked at again.
            () = exchanges.ended.notified() => {
                if context.clock.is_abusive() {
                    return Next::Ended(Ended::Failed);
                }
                if context.clock.has_had_enough() {
                    return Next::Finish;
                }
            },
            () = tokio::time::sleep_until(look_at.into()) => {
                if let Err(expired) = context.clock.check(clock::now()) {
                    return Next::Expired(expired);
                }
            }
        }
    }
}

/// Says GOAWAY twice (RFC 9114 section 5.2): first that the end is near, so that what the client has sent by then is still
/// served; then, when that has had time to arrive, where the end is. Requests before it are served to their end, those behind
/// it are rejected as long as the connection lives, so that their client knows that it may send them elsewhere.
async fn finish(
    h3: &mut H3Connection,
    connection: &quinn::Connection,
    shared: &Rc<Accepting>,
    exchanges: &Rc<Exchanges>,
    context: &Rc<ConnectionContext>,
) -> Ended {
    if !shared.has_accepted() {
        // h3 has no number to name then but that of the first request.
        shared.reject_the_rest();
    }
    if h3.shutdown(REQUESTS_UNDER_WAY_MAX).await.is_err() {
        return Ended::Failed;
    }
    let ends = clock::now() + goaway_wait(connection.rtt());
    loop {
        tokio::select! {
            biased;
            accepted = h3.accept() => match accepted {
                Ok(Some(resolver)) => {
                    let Some(accepted) = shared.take_last() else { return Ended::Failed };
                    exchange::start(resolver, accepted, exchanges, context);
                }
                // The client says GOAWAY too, or is gone.
                Ok(None) | Err(_) => break,
            },
            () = tokio::time::sleep_until(ends.into()) => break,
        }
    }
    shared.reject_the_rest();
    if h3.shutdown(1).await.is_err() {
        return Ended::Failed;
    }
    tokio::select! {
        () = reject_late(h3, connection) => {}
        () = linger(exchanges, context) => tracing::trace!("a client keeps its connection after GOAWAY"),
    }
    Ended::Done
}

/// Rejects what comes behind the end, and keeps the connection's own streams moving. Ends when the client has closed the
/// connection, or is gone; what is left of the exchanges sees that too.
async fn reject_late(h3: &mut H3Connection, connection: &quinn::Connection) {
    // The adapter rejects request streams before h3 sees them.
    while let Ok(Some(_)) = h3.accept().await {}
    connection.closed().await;
}

/// Until the last answer has arrived, and then the client's time to close first: closing at once would drop bytes that were not
/// acknowledged yet.
async fn linger(exchanges: &Exchanges, context: &ConnectionContext) {
    while exchanges.open.get() > 0 {
        exchanges.ended.notified().await;
    }
    let arrived = async {
        while context.clock.answers_travel() {
            exchanges.arrived.notified().await;
        }
    };
    // As for an answer that its client does not take.
    let _in_time = tokio::time::timeout(context.clock.deadlines().write_stall, arrived).await;
    tokio::time::sleep(context.worker.edge.deadlines.h3_close_linger).await;
}

/// For what the client has sent before it hears of the end: three round trips, within bounds.
fn goaway_wait(round_trip: Duration) -> Duration {
    (3 * round_trip).clamp(limits::H3_GOAWAY_WAIT_MIN, limits::H3_GOAWAY_WAIT_MAX)
}

/// Beyond what a client can have sent before it hears of the end.
const REQUESTS_UNDER_WAY_MAX: usize = 1 << 20;

fn close_code(context: &ConnectionContext) -> u32 {
    let code = if context.clock.is_abusive() { Code::H3_EXCESSIVE_LOAD } else { Code::H3_NO_ERROR };
    u32::try_from(code.value()).unwrap_or(0x102)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_after_goaway_follows_the_round_trip_within_its_bounds() {
        assert_eq!(goaway_wait(Duration::ZERO), limits::H3_GOAWAY_WAIT_MIN);
        assert_eq!(goaway_wait(Duration::from_millis(500)), Duration::from_millis(1500));
        assert_eq!(goaway_wait(Duration::from_secs(3600)), limits::H3_GOAWAY_WAIT_MAX);
        assert!(limits::H3_GOAWAY_WAIT_MAX < Duration::from_secs(10), "a drain waits for it");
    }
}
