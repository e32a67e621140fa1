//! HTTP/2 on one connection, with bounds on everything that a client's frames can make us hold or do (promise P14).

use std::{future::Future, pin::pin, rc::Rc};

use hyper::{Request, body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    body::RequestBody,
    drive::{Ended, drive},
    guarded_io::GuardedIo,
};
use crate::{
    exchange::{ConnectionContext, serve_exchange},
    limits,
};

/// Serves exchanges until the connection ends.
pub async fn serve<S>(stream: S, context: Rc<ConnectionContext>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = TokioIo::new(GuardedIo::http2(stream, Rc::clone(&context.clock)));
    let service = service_fn(|request: Request<Incoming>| {
        let context = Rc::clone(&context);
        // Boxed: hyper and the task queue move a stream's future several times, and this one is large.
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            serve_exchange(Request::from_parts(parts, RequestBody::hyper(body)), &context).await
        })
    });
    let connection = pin!(builder().serve_connection(io, service));
    drive(connection, &context.clock, &context.worker.drain, Future::poll, |connection| {
        connection.graceful_shutdown();
    })
    .await
}

fn builder() -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(limits::H2_LOCAL_RESETS_MAX)
        .max_header_list_size(u32::try_from(limits::HEADER_BYTES_MAX).expect("32 KiB fits"))
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .max_frame_size(limits::H2_FRAME_BYTES_MAX)
        .header_table_size(limits::H2_HEADER_TABLE_BYTES)
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES);
    builder
}

/// Streams run on the connection's own worker.
#[derive(Debug, Clone, Copy)]
struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
