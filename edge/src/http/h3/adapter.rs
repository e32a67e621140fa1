//! h3's `quic` traits over quinn.
//!
//! Each half of a stream is held directly, never moved into a future: so a stream can be stopped or reset at any moment,
//! a read under way included. What is dropped unfinished is reset, because quinn would end it politely and a cut body
//! would look whole. The same types serve a client (in tests).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::h3::error::Code;
use ::h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use bytes::{Buf, Bytes};
use quinn::{ReadError, VarInt, WriteError};

use super::frames::{FrameScanner, OwnStreamScanner};
use super::receive_window::Received;
use super::violation::Violation;

/// Largest piece taken from a stream at once.
const READ_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one control stream: settings, and some ten thousand priority updates.
const CONTROL_BYTES_MAX: usize = 1024 * 1024;

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, quinn::ConnectionError>>>>;

/// A QUIC connection as h3 wants it.
pub struct Connection {
    connection: quinn::Connection,
    accept_bidi: Pending<(quinn::SendStream, quinn::RecvStream)>,
    accept_uni: Pending<quinn::RecvStream>,
    open: Opener,
    shared: Rc<Accepting>,
}

/// Opens streams.
pub struct Opener {
    connection: quinn::Connection,
    open_bidi: Option<Pending<(quinn::SendStream, quinn::RecvStream)>>,
    open_uni: Option<Pending<quinn::SendStream>>,
}

/// What the server's loop and the adapter tell each other.
#[derive(Default)]
pub struct Accepting {
    /// Request streams from this id on are rejected: the client was told so and may send them elsewhere.
    rejected_from: Cell<Option<u64>>,
    last: RefCell<Option<Accepted>>,
    next_id: Cell<u64>,
    /// Hears of all that is read; none on a client's side.
    received: Option<Rc<Received>>,
}

/// The request stream that was accepted last.
pub struct Accepted {
    pub account: Rc<Account>,
    /// Ends when the client no longer wants the answer or is gone, or when it has all of it.
    pub settled: Pin<Box<dyn Future<Output = ()>>>,
}

/// Of one request stream.
#[derive(Debug, Default)]
pub struct Account {
    /// Body bytes that h3 has and its reader has not taken.
    held: Cell<usize>,
    /// The request's head is with us; what h3 answers before that is its own, and whole.
    has_head: Cell<bool>,
    /// What our side of the stream ends with, unless it is said otherwise: the client's makes no request.
    end: Cell<Option<Code>>,
}

pub struct SendStream<B> {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<B>>,
    ended: bool,
    has_sent: bool,
    /// Of a request's stream.
    account: Option<Rc<Account>>,
}

pub struct RecvStream {
    stream: quinn::RecvStream,
    watch: Watch,
    received: Option<Rc<Received>>,
    ended: bool,
}

/// What bounds a stream.
enum Watch {
    Request {
        scanner: FrameScanner,
        account: Rc<Account>,
    },
    /// Control and QPACK streams, whose frames are small and whose bytes in all are bounded.
    Control {
        scanner: OwnStreamScanner,
        bytes_left: usize,
    },
    /// Of a stream that we opened, as a client.
    Own,
}

pub struct BidiStream<B> {
    send: SendStream<B>,
    recv: RecvStream,
}

impl Connection {
    pub fn new(connection: quinn::Connection, shared: Rc<Accepting>) -> Self {
        Self {
            accept_bidi: accept_bidi(&connection),
            accept_uni: accept_uni(&connection),
            open: Opener { connection: connection.clone(), open_bidi: None, open_uni: None },
            connection,
            shared,
        }
    }
}

impl Accepting {
    pub(super) fn counting(received: Rc<Received>) -> Self {
        Self { received: Some(received), ..Self::default() }
    }

    /// Rejects every request stream that was not accepted yet.
    pub fn reject_the_rest(&self) {
        self.rejected_from.set(Some(self.next_id.get()));
    }

    /// Whether any request stream was accepted.
    pub fn has_accepted(&self) -> bool {
        self.next_id.get() > 0
    }

    pub fn take_last(&self) -> Option<Accepted> {
        self.last.take()
    }

    /// What has ended the connection, if it was that.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.received.as_ref()?.violation()
    }
}

impl Account {
    pub fn head_has_come(&self) {
        self.has_head.set(true);
    }

    /// What the client sends will make no request.
    fn fail(&self, code: Code) {
        if self.end.get().is_none() {
            self.end.set(Some(code));
        }
    }

    /// What is owed to a client whose side has ended as it must not, or as it wished.
    pub fn end(&self) -> Option<Code> {
        self.end.get()
    }

    /// The reader has taken body bytes.
    pub fn taken(&self, bytes: usize) {
        self.held.set(self.held.get().saturating_sub(bytes));
    }
}

impl<B: Buf> quic::Connection<B> for Connection {
    type RecvStream = RecvStream;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        let stream = ready!(self.accept_uni.as_mut().poll(context)).map_err(connection_error)?;
        self.accept_uni = accept_uni(&self.connection);
        let watch = Watch::Control { scanner: OwnStreamScanner::default(), bytes_left: CONTROL_BYTES_MAX };
        let received = self.shared.received.clone();
        Poll::Ready(Ok(RecvStream { stream, watch, received, ended: false }))
    }

    fn poll_accept_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, ConnectionErrorIncoming>> {
        loop {
            let (send, recv) = ready!(self.accept_bidi.as_mut().poll(context)).map_err(connection_error)?;
            self.accept_bidi = accept_bidi(&self.connection);
            let id = u64::from(VarInt::from(send.id()));
            let mut stream = BidiStream::<B>::requested(send, recv, self.shared.received.clone());
            if self.shared.rejected_from.get().is_some_and(|from| id >= from) {
                quic::SendStream::<B>::reset(&mut stream, Code::H3_REQUEST_REJECTED.value());
                quic::RecvStream::stop_sending(&mut stream, Code::H3_REQUEST_REJECTED.value());
                continue;
            }
            // Client-initiated bidirectional streams are numbered in fours (RFC 9000 section 2.1).
            self.shared.next_id.set(self.shared.next_id.get().max(id + 4));
            *self.shared.last.borrow_mut() = Some(stream.accepted());
            return Poll::Ready(Ok(stream));
        }
    }

    fn opener(&self) -> Opener {
        Opener { connection: self.connection.clone(), open_bidi: None, open_uni: None }
    }
}

impl<B: Buf> quic::OpenStreams<B> for Connection {
    type BidiStream = BidiStream<B>;
    type SendStream = SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, StreamErrorIncoming>> {
        self.open.poll_open_bidi(context)
    }

    fn poll_open_send(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<SendStream<B>, StreamErrorIncoming>> {
        self.open.poll_open_send(context)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(varint(code.value()), reason);
    }
}

impl<B: Buf> quic::OpenStreams<B> for Opener {
    type BidiStream = BidiStream<B>;
    type SendStream = SendStream<B>;

    fn poll_open_bidi(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<BidiStream<B>, StreamErrorIncoming>> {
        let connection = &self.connection;
        let opening = self.open_bidi.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.open_bi().await })
        });
        let opened = ready!(opening.as_mut().poll(context));
        self.open_bidi = None;
        let (send, recv) = opened.map_err(lost_with_connection)?;
        let recv = RecvStream { stream: recv, watch: Watch::Own, received: None, ended: false };
        Poll::Ready(Ok(BidiStream { send: SendStream::new(send), recv }))
    }

    fn poll_open_send(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<SendStream<B>, StreamErrorIncoming>> {
        let connection = &self.connection;
        let opening = self.open_uni.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let opened = ready!(opening.as_mut().poll(context));
        self.open_uni = None;
        Poll::Ready(Ok(SendStream::new(opened.map_err(lost_with_connection)?)))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(varint(code.value()), reason);
    }
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self { connection: self.connection.clone(), open_bidi: None, open_uni: None }
    }
}

impl<B: Buf> BidiStream<B> {
    fn requested(send: quinn::SendStream, recv: quinn::RecvStream, received: Option<Rc<Received>>) -> Self {
        let account = Rc::<Account>::default();
        let mut send = SendStream::new(send);
        send.account = Some(Rc::clone(&account));
        let watch = Watch::Request { scanner: FrameScanner::default(), account };
        Self { send, recv: RecvStream { stream: recv, watch, received, ended: false } }
    }

    fn accepted(&self) -> Accepted {
        let stopped = self.send.stream.stopped();
        let account = match &self.recv.watch {
            Watch::Request { account, .. } => Rc::clone(account),
            Watch::Control { .. } | Watch::Own => Rc::default(),
        };
        let settled = Box::pin(async move {
            // Stopped, lost with the connection, or all acknowledged: the caller knows what it has sent.
            let _how = stopped.await;
        });
        Accepted { account, settled }
    }
}

impl<B: Buf> SendStream<B> {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, writing: None, ended: false, has_sent: false, account: None }
    }
}

impl<B> SendStream<B> {
    /// h3 has answered by itself, and does not end the stream (its 431 of RFC 9114 section 4.2.2).
    fn is_answered_by_h3(&self) -> bool {
        let has_no_head = self.account.as_ref().is_some_and(|account| !account.has_head.get());
        has_no_head && self.has_sent && self.writing.is_none()
    }
}

impl<B: Buf> quic::SendStream<B> for SendStream<B> {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while let Some(data) = self.writing.as_mut().filter(|data| data.has_remaining()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, data.chunk()));
            data.advance(written.map_err(write_error)?);
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            return Err(StreamErrorIncoming::ConnectionErrorIncoming {
                connection_error: ConnectionErrorIncoming::InternalError(
                    "data was given before the stream was ready".to_owned(),
                ),
            });
        }
        self.writing = Some(data.into());
        self.has_sent = true;
        Ok(())
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        ready!(quic::SendStream::<B>::poll_ready(self, context))?;
        self.ended = true;
        Poll::Ready(self.stream.finish().map_err(|closed| StreamErrorIncoming::Unknown(closed.into())))
    }

    fn reset(&mut self, code: u64) {
        self.ended = true;
        // Closed already: nothing is left to reset.
        let _closed = self.stream.reset(varint(code));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl<B> Drop for SendStream<B> {
    fn drop(&mut self) {
        if !self.ended && self.is_answered_by_h3() {
            let _closed = self.stream.finish();
        } else if !self.ended {
            let owed = self.account.as_ref().and_then(|account| account.end());
            // The connection may be gone; then there is nobody to tell.
            let _closed = self.stream.reset(varint(owed.unwrap_or(Code::H3_INTERNAL_ERROR).value()));
        }
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let wanted = match &self.watch {
            // h3 has bytes that its reader did not take yet, and gives it those instead: nobody waits for this.
            Watch::Request { account, .. } if account.held.get() > 0 => return Poll::Pending,
            Watch::Request { .. } | Watch::Own => READ_BYTES_MAX,
            Watch::Control { bytes_left: 0, .. } => return Poll::Ready(Err(self.refuse("too many bytes"))),
            Watch::Control { bytes_left, .. } => (*bytes_left).min(READ_BYTES_MAX),
        };
        // Nothing of a read is kept between two polls: quinn remembers whom to wake.
        let read = ready!(pin!(self.stream.read_chunk(wanted, true)).poll(context));
        let Some(chunk) = read.map_err(|error| self.broken_off(error))? else {
            return Poll::Ready(self.end_of_stream().map(|()| None));
        };
        if let Some(received) = &self.received {
            received.read(chunk.bytes.len());
        }
        match &mut self.watch {
            Watch::Control { scanner, bytes_left } => {
                *bytes_left -= chunk.bytes.len();
                if let Err(violation) = scanner.feed(&chunk.bytes) {
                    return Poll::Ready(Err(self.violated(violation)));
                }
            }
            Watch::Own => {}
            Watch::Request { scanner, account } => match scanner.feed(&chunk.bytes) {
                Ok(body) => account.held.set(body),
                Err(fault) => {
                    account.fail(Code::H3_EXCESSIVE_LOAD);
                    return Poll::Ready(Err(self.refuse(fault)));
                }
            },
        }
        Poll::Ready(Ok(Some(chunk.bytes)))
    }

    fn stop_sending(&mut self, code: u64) {
        self.ended = true;
        // Ended already: nothing is left to stop.
        let _closed = self.stream.stop(varint(code));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl RecvStream {
    /// The client has sent all that it sends.
    fn end_of_stream(&mut self) -> Result<(), StreamErrorIncoming> {
        self.ended = true;
        match &self.watch {
            Watch::Request { scanner, account } if scanner.is_inside_frame() => {
                account.fail(Violation::Truncated.code());
                Err(self.violated(Violation::Truncated))
            }
            Watch::Request { .. } | Watch::Control { .. } | Watch::Own => Ok(()),
        }
    }

    /// The client has reset its side, or the connection is gone.
    fn broken_off(&mut self, error: ReadError) -> StreamErrorIncoming {
        self.ended = true;
        if let (ReadError::Reset(_), Watch::Request { account, .. }) = (&error, &self.watch) {
            // RFC 9114 section 4.1.1.
            account.fail(Code::H3_REQUEST_CANCELLED);
        }
        read_error(error)
    }

    /// The connection ends by it.
    fn violated(&self, violation: Violation) -> StreamErrorIncoming {
        if let Some(received) = &self.received {
            received.violated(violation);
        }
        StreamErrorIncoming::Unknown(violation.into())
    }

    fn refuse(&mut self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StreamErrorIncoming {
        quic::RecvStream::stop_sending(self, Code::H3_EXCESSIVE_LOAD.value());
        StreamErrorIncoming::Unknown(why.into())
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if !self.ended {
            // RFC 9114 section 4.1: an answer is complete before the request is; that is no error.
            let _closed = self.stream.stop(varint(Code::H3_NO_ERROR.value()));
        }
    }
}

impl<B: Buf> quic::SendStream<B> for BidiStream<B> {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(context)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(context)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

impl<B: Buf> quic::RecvStream for BidiStream<B> {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(context)
    }

    fn stop_sending(&mut self, code: u64) {
        self.recv.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl<B: Buf> quic::BidiStream<B> for BidiStream<B> {
    type SendStream = SendStream<B>;
    type RecvStream = RecvStream;

    fn split(self) -> (SendStream<B>, RecvStream) {
        (self.send, self.recv)
    }
}

fn accept_bidi(connection: &quinn::Connection) -> Pending<(quinn::SendStream, quinn::RecvStream)> {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_bi().await })
}

fn accept_uni(connection: &quinn::Connection) -> Pending<quinn::RecvStream> {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_uni().await })
}

fn stream_id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(u64::from(VarInt::from(id))).expect("both sides number streams below 2^62")
}

/// Codes of HTTP/3 are small; what is not a variable-length integer cannot be one of them.
pub(super) fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::from_u32(0x102))
}

fn connection_error(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into() }
        }
        quinn::ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other @ (quinn::ConnectionError::VersionMismatch
        | quinn::ConnectionError::TransportError(_)
        | quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::LocallyClosed
        | quinn::ConnectionError::CidsExhausted) => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn lost_with_connection(error: quinn::ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: connection_error(error) }
}

fn read_error(error: ReadError) -> StreamErrorIncoming {
    match error {
        ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        ReadError::ConnectionLost(error) => lost_with_connection(error),
        other @ (ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected) => {
            StreamErrorIncoming::Unknown(Box::new(other))
        }
    }
}

fn write_error(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into() },
        WriteError::ConnectionLost(error) => lost_with_connection(error),
        other @ (WriteError::ClosedStream | WriteError::ZeroRttRejected) => {
            StreamErrorIncoming::Unknown(Box::new(other))
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.connection.remote_address()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

impl fmt::Debug for Accepting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepting").field("rejected_from", &self.rejected_from).finish_non_exhaustive()
    }
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("account", &self.account).finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for SendStream<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendStream").field("id", &self.stream.id()).finish_non_exhaustive()
    }
}

impl fmt::Debug for RecvStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvStream").field("id", &self.stream.id()).finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for BidiStream<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BidiStream").field("id", &self.recv.stream.id()).finish_non_exhaustive()
    }
}
