//! HTTP/2 connections to an origin: few, each with many exchanges.
//!
//! The receive window of a connection is as large as those of all its streams together: a client that reads slowly holds up
//! its own exchange and no other's.

use std::{cell::Cell, future::poll_fn, net::SocketAddr, pin::pin, rc::Rc, time::Instant};

use hyper::{
    client::conn::http2::{Builder, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::{
    OriginError,
    connect::OriginStream,
    interim::{CountedHeads, HeadCredit},
    last_word::Said,
    through::Through,
};
use crate::{
    clock,
    http::body::RequestBody,
    limits::{self, Deadlines},
};

/// One connection and what is under way on it.
pub(super) struct Http2Connection {
    sender: SendRequest<RequestBody>,
    pub address: SocketAddr,
    said: Said,
    heads: Rc<HeadCredit>,
    streams: Cell<usize>,
    /// As the origin allows; it may change.
    streams_max: Rc<Cell<usize>>,
    idle_since: Cell<Instant>,
    /// Its endpoint's: told of each stream that ends.
    stream_ended: Rc<Notify>,
    /// Takes no further exchange.
    retired: Cell<bool>,
}

/// One exchange's place on a connection.
pub(super) struct Http2Stream {
    connection: Rc<Http2Connection>,
}

/// Speaks first: settings and windows. What the origin allows is known with its first frame.
pub(super) async fn handshake(
    stream: Box<dyn OriginStream>,
    address: SocketAddr,
    said: Said,
    stream_ended: &Rc<Notify>,
    deadlines: &Deadlines,
) -> Result<Rc<Http2Connection>, OriginError> {
    let heads = Rc::default();
    let stream = TokioIo::new(Through::new(stream, CountedHeads::new(&heads)));
    let (sender, connection) = builder(deadlines).handshake(stream).await.map_err(OriginError::of_hyper)?;
    let streams_max = Rc::new(Cell::new(limits::ORIGIN_H2_STREAMS_BEFORE_SETTINGS));
    let allowed = Rc::clone(&streams_max);
    tokio::task::spawn_local(async move {
        let mut connection = pin!(connection);
        let ended = poll_fn(|context| {
            let polled = connection.as_mut().poll(context);
            allowed.set(connection.current_max_send_streams());
            polled
        });
        if let Err(error) = ended.await {
            tracing::trace!(%error, "an HTTP/2 connection to an origin ended");
        }
    });
    Ok(Rc::new(Http2Connection {
        sender,
        address,
        said,
        heads,
        streams: Cell::new(0),
        streams_max,
        idle_since: Cell::new(clock::now()),
        stream_ended: Rc::clone(stream_ended),
        retired: Cell::new(false),
    }))
}

fn builder(deadlines: &Deadlines) -> Builder<Local> {
    let stream_window = limits::ORIGIN_H2_STREAM_WINDOW_BYTES;
    let streams = u32::try_from(limits::ORIGIN_H2_STREAMS_MAX).expect("a small constant");
    let mut builder = Builder::new(Local);
    builder
        .timer(TokioTimer::new())
        .initial_max_send_streams(limits::ORIGIN_H2_STREAMS_BEFORE_SETTINGS)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(stream_window * streams)
        .max_header_list_size(u32::try_from(limits::ORIGIN_HEADER_BYTES_MAX).expect("32 KiB fits"))
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .header_table_size(limits::H2_HEADER_TABLE_BYTES)
        .keep_alive_interval(deadlines.origin_h2_ping_interval)
        .keep_alive_timeout(deadlines.origin_h2_ping);
    builder
}

impl Http2Connection {
    /// A further exchange may begin at once, or as soon as the origin has said how many it takes: a burst waits for that
    /// on one connection instead of making several.
    pub(super) fn has_room(&self) -> bool {
        let max = match self.streams_max.get() {
            limits::ORIGIN_H2_STREAMS_BEFORE_SETTINGS => limits::ORIGIN_H2_STREAMS_MAX,
            said => said.min(limits::ORIGIN_H2_STREAMS_MAX),
        };
        self.is_open() && self.streams.get() < max
    }

    pub(super) fn is_open(&self) -> bool {
        !self.retired.get() && !self.sender.is_closed()
    }

    /// Why there is no answer: the connection's own end, where the origin has named it.
    pub(super) fn reason(&self, error: hyper::Error) -> OriginError {
        if self.heads.is_spent() {
            return OriginError::BadAnswer;
        }
        self.said.get().and_then(OriginError::of_alert).unwrap_or_else(|| OriginError::of_hyper(error))
    }

    /// Lets what is under way end and takes nothing new.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }

    /// Since when nothing is under way.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }
}

impl Http2Stream {
    pub(super) fn begin(connection: &Rc<Http2Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        connection.heads.request_begins();
        Self { connection: Rc::clone(connection) }
    }

    pub(super) fn connection(&self) -> &Http2Connection {
        &self.connection
    }

    pub(super) fn sender(&self) -> SendRequest<RequestBody> {
        self.connection.sender.clone()
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        self.connection.streams.set(self.connection.streams.get() - 1);
        self.connection.idle_since.set(clock::now());
        self.connection.stream_ended.notify_one();
    }
}

/// Runs a connection's tasks on its own worker.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F> Executor<F> for Local
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
