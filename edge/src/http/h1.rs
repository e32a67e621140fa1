//! HTTP/1.1 (and 1.0) on one connection.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    body::{RequestBody, ResponseBody},
    clock::Expired,
    drive::{Ended, Farewell, drive},
    goodbye,
    guarded_io::GuardedIo,
};
use crate::{
    clock,
    exchange::{ConnectionContext, Dropped, Refused, serve_exchange},
    limits,
    upstream::tunnel::{self, TunnelOffer},
};

/// Serves exchanges until the connection ends. The stream is TLS or plain.
///
/// Most connections are idle most of the time, and what hyper holds for one (two buffers of 8 KiB, its state) is more
/// than all else. So hyper is put away when nothing has been under way for a moment, and made anew with the next bytes;
/// requests that follow each other quickly notice nothing of that.
pub async fn serve<S>(stream: S, context: Rc<ConnectionContext>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut io = GuardedIo::http1(stream, Rc::clone(&context.clock));
    let tunnel: Rc<RefCell<Option<TunnelOffer>>> = Rc::default();
    let (ended, early, malformed) = loop {
        let before = context.clock.exchanges();
        let Talk { ended, io: left, unread, malformed } = Box::pin(converse(io, &context, &tunnel)).await;
        io = left;
        if ended != Ended::Expired(Expired::Quiet) {
            break (ended, unread, malformed);
        }
        if !unread.is_empty() {
            if context.clock.exchanges() == before {
                // No message is under way, and hyper made no request of them: nothing is to be made of them.
                break (Ended::Failed, unread, None);
            }
            // Pipelined requests. hyper rests between them, and the whole process may have been stopped meanwhile.
            io.put_back(unread);
            continue;
        }
        drop(unread); // empty, and it would keep hyper's buffer
        if let Some(ended) = Box::pin(doze(&mut io, &context)).await {
            break (ended, Bytes::new(), None);
        }
    };
    // Behind an answer that has not left whole it would be taken for a part of that.
    let timed_out = ended == Ended::Expired(Expired::SlowHead) && context.clock.has_sent_all();
    let refused = io.refused().map(Refused::from).or(malformed).or(timed_out.then_some(Refused::SLOW_HEAD));
    if let Some(refused) = refused {
        refused.note(&context);
    }
    let mut stream = io.into_inner();
    if let Some(offer) = tunnel.take() {
        context.clock.tunnel_begins();
        Box::pin(tunnel::run(stream, early, offer, &context.worker)).await;
        context.clock.tunnel_ends();
    } else if timed_out || !matches!(ended, Ended::Expired(_)) {
        let deadlines = &context.worker.edge.deadlines;
        let last_words = if timed_out { head_timeout() } else { String::new() };
        goodbye::say(&mut stream, last_words.as_bytes(), deadlines.goodbye).await;
        Box::pin(goodbye::discard(stream, context.linger())).await;
    }
    ended
}

/// For a client whose head has begun and does not end (RFC 9110 section 15.5.9): hyper has no answer to it.
fn head_timeout() -> String {
    let date = httpdate::fmt_http_date(std::time::UNIX_EPOCH + clock::unix_elapsed());
    format!("HTTP/1.1 408 Request Timeout\r\ndate: {date}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
}

/// What is left when hyper has been put away.
struct Talk<S> {
    ended: Ended,
    io: GuardedIo<S>,
    unread: Bytes,
    /// Of what came last hyper could make no request.
    malformed: Option<Refused>,
}

/// Serves exchanges until the connection ends or nothing is under way.
async fn converse<S>(
    io: GuardedIo<S>,
    context: &Rc<ConnectionContext>,
    tunnel: &Rc<RefCell<Option<TunnelOffer>>>,
) -> Talk<S>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    context.clock.may_doze(true);
    let service =
        service_fn(|request: Request<Incoming>| answer(request, Rc::clone(context), Rc::clone(tunnel)));
    let malformed = Cell::new(None);
    let mut connection = pin!(Some(builder().serve_connection(TokioIo::new(io), service)));
    let ended = drive(
        connection.as_mut(),
        &context.clock,
        (&context.worker.drain, Farewell::WithAnswer),
        |connection, task| {
            let connection = connection.get_mut().as_mut().expect("taken only after the loop");
            let polled = connection.poll_without_shutdown(task);
            if let Poll::Ready(Err(error)) = &polled {
                malformed.set(Refused::by_hyper(error));
            }
            polled
        },
        |connection| {
            if let Some(connection) = connection.get_mut().as_mut() {
                Pin::new(connection).graceful_shutdown();
            }
        },
    )
    .await;
    context.clock.may_doze(false);
    let parts = connection.get_mut().take().expect("taken only here").into_parts();
    Talk { ended, io: parts.io.into_inner(), unread: parts.read_buf, malformed: malformed.get() }
}

/// Waits for the next request with nothing but the stream. `None`: bytes have come.
async fn doze<S>(io: &mut GuardedIo<S>, context: &Rc<ConnectionContext>) -> Option<Ended>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let closing = Cell::new(false);
    let ended = drive(
        Pin::new(&mut *io),
        &context.clock,
        (&context.worker.drain, Farewell::WithAnswer),
        |io, task| if closing.get() { Poll::Ready(Ok(())) } else { io.get_mut().poll_ahead(task) },
        |_| closing.set(true),
    )
    .await;
    if ended == Ended::Done && io.has_ahead() { None } else { Some(ended) }
}

fn answer(
    request: Request<Incoming>,
    context: Rc<ConnectionContext>,
    tunnel: Rc<RefCell<Option<TunnelOffer>>>,
) -> Pin<Box<dyn Future<Output = Result<http::Response<ResponseBody>, Dropped>>>> {
    let (parts, body) = request.into_parts();
    let asked_for_upgrade =
        parts.headers.contains_key(http::header::UPGRADE) || parts.method == http::Method::CONNECT;
    // Boxed: hyper wants it so for connections that may be upgraded, and an idle connection then holds no room for it.
    Box::pin(async move {
        let request = Request::from_parts(parts, RequestBody::hyper(body));
        let mut answer = serve_exchange(request, &context).await?;
        if asked_for_upgrade {
            let offer = answer.extensions_mut().remove::<TunnelOffer>();
            context.clock.decide_upgrade(offer.is_some());
            *tunnel.borrow_mut() = offer;
        }
        Ok(answer)
    })
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(limits::HEADER_BYTES_MAX)
        // hyper's floor is 8 KiB; while a head is incomplete this is its bound, and it also bounds held answer bytes.
        .max_buf_size(limits::HEADER_BYTES_MAX + 8 * 1024)
        .max_headers(limits::HEADER_FIELDS_MAX)
        // The connection's clock has the deadlines: hyper's header timer also runs while a connection is idle.
        .header_read_timeout(None)
        .half_close(false)
        .keep_alive(true);
    builder
}
