//! HTTP/1.1 (and 1.0) on one connection.

use std::{
    cell::RefCell,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    body::{RequestBody, ResponseBody},
    drive::{Ended, drive},
    guarded_io::GuardedIo,
};
use crate::{
    exchange::{ConnectionContext, Dropped, serve_exchange},
    limits,
    upstream::tunnel::{self, TunnelOffer},
};

/// Serves exchanges until the connection ends. The stream is TLS or plain.
pub async fn serve<S>(stream: S, context: Rc<ConnectionContext>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = TokioIo::new(GuardedIo::http1(stream, Rc::clone(&context.clock)));
    let tunnel: Rc<RefCell<Option<TunnelOffer>>> = Rc::default();
    let service =
        service_fn(|request: Request<Incoming>| answer(request, Rc::clone(&context), Rc::clone(&tunnel)));
    let mut connection = pin!(Some(builder().serve_connection(io, service)));
    let ended = drive(
        connection.as_mut(),
        &context.clock,
        &context.worker.drain,
        |connection, task| {
            let connection = connection.get_mut().as_mut().expect("taken only after the loop");
            connection.poll_without_shutdown(task)
        },
        |connection| {
            if let Some(connection) = connection.get_mut().as_mut() {
                Pin::new(connection).graceful_shutdown();
            }
        },
    )
    .await;
    if context.clock.refused().is_some() {
        context.worker.edge.metrics.requests_refused.increment(1);
    }
    let parts = connection.get_mut().take().expect("taken only here").into_parts();
    let mut stream = parts.io.into_inner().into_inner();
    if let Some(offer) = tunnel.take() {
        tunnel::run(stream, parts.read_buf, offer, &context.worker).await;
    } else if !matches!(ended, Ended::Expired(_)) {
        // close_notify or FIN; the peer may be gone, and nobody waits for it.
        let _ = tokio::time::timeout(limits::CLOSE_DEADLINE, stream.shutdown()).await;
        let draining = context.worker.drain.is_begun();
        let patience = if draining { limits::LINGER_DEADLINE_DRAINING } else { limits::LINGER_DEADLINE };
        let _ = tokio::time::timeout(patience, Box::pin(discard(stream))).await;
    }
    ended
}

/// Reads until the client closes. A socket closed over unread bytes is reset, and the reset overtakes our last answer.
async fn discard<S: AsyncRead + Unpin>(mut stream: S) {
    let mut buffer = [0; 4096];
    let mut left = limits::LINGER_BYTES_MAX;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        left = left.saturating_sub(count);
        if left == 0 {
            return;
        }
    }
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
