//! One request stream, from its head to the end of its answer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use ::h3::error::{Code, StreamError};
use ::h3::proto::frame::Frame;
use ::h3::server::{RequestResolver, RequestStream};
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::sync::Notify;

use super::adapter::{Accepted, BidiStream, Connection, RecvStream, SendStream};
use super::body::{Begun, H3Body};
use super::pseudo::PseudoFault;
use super::send_window::SendWindow;
use super::{Exchanges, pseudo};
use crate::clock;
use crate::exchange::{ConnectionContext, Dropped, Protocol, Refused, serve_exchange};
use crate::http::body::{BodyError, RequestBody, ResponseBody};
use crate::http::framing;
use crate::http::leftover::Leftover;

type Resolver = RequestResolver<Connection, Bytes>;
type Stream = RequestStream<BidiStream<Bytes>, Bytes>;
type Send = RequestStream<SendStream<Bytes>, Bytes>;
type Recv = RequestStream<RecvStream, Bytes>;

/// A request with its stream, and what is wrong with its pseudo-header fields.
type Head = (Request<()>, Stream, Result<(), PseudoFault>);

/// Ends when the client has all of the answer, or is gone.
type Settled = Pin<Box<dyn Future<Output = ()>>>;

/// An exchange whose answer was sent.
struct Answered {
    settled: Settled,
    /// Of the request's body, if it had one.
    leftover: Option<Rc<Leftover>>,
}

/// How a stream ended before its answer was whole.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the head did not come within its deadline")]
    SlowHead,
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    #[error("the connection's other requests leave no room for its head")]
    Refused,
    #[error("the client gave the request up")]
    GivenUp,
    #[error(transparent)]
    Dropped(#[from] Dropped),
    #[error("the client takes no bytes")]
    Stalled,
    #[error("the answer's body broke off: {0}")]
    Body(BodyError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl Broken {
    /// What a client hears of it whose own side has ended well.
    fn code(&self) -> Code {
        match self {
            // It wants no more of the answer (RFC 9114 section 4.1.1).
            Self::GivenUp | Self::Stream(StreamError::RemoteTerminate { .. }) => Code::H3_REQUEST_CANCELLED,
            Self::SlowHead
            | Self::Malformed(_)
            | Self::Refused
            | Self::Dropped(_)
            | Self::Stalled
            | Self::Body(_)
            | Self::Stream(_) => Code::H3_INTERNAL_ERROR,
        }
    }
}

/// Serves one request on its own task.
pub(super) fn start(
    resolver: Resolver,
    accepted: Accepted,
    exchanges: &Rc<Exchanges>,
    context: &Rc<ConnectionContext>,
) {
    let open = Open::new(exchanges);
    let context = Rc::clone(context);
    let exchanges = Rc::clone(exchanges);
    tokio::task::spawn_local(async move {
        // A head that does not come is waited for without room for the rest: a client may have a hundred of them.
        let resolving = Box::pin(tokio::time::timeout(context.clock.deadlines().header, resolve(resolver)));
        let ended = match resolving.await {
            Ok(Ok(head)) => {
                accepted.account.head_has_come();
                Box::pin(exchange(head, accepted, &exchanges.window, &context)).await
            }
            Ok(Err(error)) => {
                if let Some(refused) = Refused::by_http3_stream(&error, accepted.account.end()) {
                    refused.note(&context);
                }
                if matches!(error, StreamError::HeaderTooBig { .. }) {
                    context.clock.head_too_large();
                }
                Err(error.into())
            }
            Err(_) => Err(Broken::SlowHead),
        };
        let broken = match ended {
            Ok(Answered { settled, leftover }) => {
                context.clock.answer_travels();
                if let Some(leftover) = leftover {
                    leftover.discard(context.leftover()).await;
                }
                drop(open);
                settled.await;
                context.clock.answer_arrives();
                exchanges.arrived.notify_waiters();
                return;
            }
            Err(broken) => broken,
        };
        tracing::trace!(%broken, "an HTTP/3 exchange broke off");
        match broken {
            Broken::GivenUp | Broken::Stream(_) => context.clock.request_given_up(),
            Broken::Stalled => context.worker.edge.metrics.streams_stalled.increment(1),
            Broken::Malformed(_) => Refused::malformed(Protocol::Http3).note(&context),
            Broken::SlowHead | Broken::Refused | Broken::Dropped(_) | Broken::Body(_) => {}
        }
        drop(open); // tells the connection, which looks whether it was one too many
    });
}

/// An exchange under way, also when its task panics.
struct Open(Rc<Exchanges>);

impl Open {
    fn new(exchanges: &Rc<Exchanges>) -> Self {
        exchanges.open.set(exchanges.open.get() + 1);
        Self(Rc::clone(exchanges))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.ended.notify_waiters();
    }
}

async fn exchange(
    (request, stream, pseudo): Head,
    accepted: Accepted,
    window: &SendWindow,
    context: &Rc<ConnectionContext>,
) -> Result<Answered, Broken> {
    let Accepted { account, mut settled } = accepted;
    let (mut send, recv) = stream.split();
    if let Err(fault) = pseudo {
        tracing::trace!(%fault, "an HTTP/3 request is malformed");
        send.stop_stream(Code::H3_MESSAGE_ERROR);
        return Err(Broken::Malformed("pseudo-header fields"));
    }
    let (head, ()) = request.into_parts();
    let Some(_share) = context.admit(&head) else {
        send.stop_stream(Code::H3_REQUEST_REJECTED);
        return Err(Broken::Refused);
    };
    let mut wanted = waits_to_be_asked(&head.headers).then(Rc::<Notify>::default);
    let request = Request::from_parts(head, ());
    let (request, leftover) = match read_request(request, recv, Rc::clone(&account), wanted.clone()) {
        Ok(read) => read,
        Err(why) => {
            let end = account.end();
            send.stop_stream(end.unwrap_or(Code::H3_MESSAGE_ERROR));
            return Err(end.map_or(Broken::Malformed(why), |_| Broken::GivenUp));
        }
    };
    let stall = context.clock.deadlines().write_stall;
    // Boxed: what is sent for a long time needs no room for how it was come by.
    let mut serving = Box::pin(serve_exchange(request, context));
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut serving => break answer,
            () = &mut settled => {
                send.stop_stream(Code::H3_REQUEST_CANCELLED);
                return Err(Broken::GivenUp);
            }
            () = told(wanted.as_deref()) => {
                wanted = None;
                let mut head = Response::new(());
                *head.status_mut() = StatusCode::CONTINUE;
                within(stall, send.send_response(head)).await?;
            }
        }
    };
    drop(serving);
    match answer {
        Ok(response) => {
            let sent = send_response(&mut send, response, window, stall).await;
            if let Err(broken) = &sent {
                send.stop_stream(account.end().unwrap_or(broken.code()));
            }
            sent.map(|()| Answered { settled, leftover })
        }
        Err(dropped) => {
            send.stop_stream(Code::H3_REQUEST_REJECTED);
            Err(dropped.into())
        }
    }
}

/// Whether the client sends its body when it is asked for it (RFC 9110 section 10.1.1). Whatever else it expects is refused.
fn waits_to_be_asked(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn told(wanted: Option<&Notify>) {
    match wanted {
        Some(wanted) => wanted.notified().await,
        None => std::future::pending().await,
    }
}

/// The request's head, and what h3 does not say about its pseudo-header fields.
async fn resolve(mut resolver: Resolver) -> Result<Head, StreamError> {
    let frame = poll_fn(|context| resolver.frame_stream.poll_next(context)).await;
    let pseudo = match &frame {
        Ok(Some(Frame::Headers(section))) => pseudo::check(section),
        // Refused below.
        Ok(_) | Err(_) => Ok(()),
    };
    let (request, stream) = resolver.accept_with_frame(frame)?.resolve().await?;
    Ok((request, stream, pseudo))
}

fn read_request(
    request: Request<()>,
    recv: Recv,
    account: Rc<super::adapter::Account>,
    wanted: Option<Rc<Notify>>,
) -> Result<(Request<RequestBody>, Option<Rc<Leftover>>), &'static str> {
    check_fields(request.headers())?;
    let promised = framing::length_of(request.headers()).map_err(|_| "content-length")?;
    let mut rest = H3Body::new(recv, account, promised);
    let mut first = None;
    let empty = rest.is_empty_already(&mut first).map_err(|_| "body")?;
    if empty {
        return Ok((request.map(|()| RequestBody::empty()), None));
    }
    let leftover = Rc::<Leftover>::default();
    let mut body = RequestBody::boxed(Box::pin(Begun { first, rest, wanted }));
    body.leave_to(Rc::clone(&leftover));
    Ok((request.map(|()| body), Some(leftover)))
}

/// Of a connection, not of a message (RFC 9114 section 4.2).
const CONNECTION_FIELDS: [&str; 5] =
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Fields that belong to a connection have no place in a message (RFC 9114 section 4.2); with them an origin that speaks
/// HTTP/1.1 could be told another length than we were.
fn check_fields(headers: &HeaderMap) -> Result<(), &'static str> {
    if CONNECTION_FIELDS.iter().any(|name| headers.contains_key(*name)) {
        return Err("a field that belongs to a connection");
    }
    let te_fits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"trailers");
    if !headers.get_all(header::TE).iter().all(te_fits) {
        return Err("te");
    }
    Ok(())
}

async fn send_response(
    send: &mut Send,
    response: Response<ResponseBody>,
    window: &SendWindow,
    stall: Duration,
) -> Result<(), Broken> {
    let (parts, mut body) = response.into_parts();
    let mut head = Response::from_parts(parts, ());
    finish_head(&mut head, &body);
    let sent = send_all(send, head, &mut body, window, stall).await;
    if matches!(sent, Err(Broken::Stalled)) {
        body.give_up();
    }
    sent
}

async fn send_all(
    send: &mut Send,
    head: Response<()>,
    body: &mut ResponseBody,
    window: &SendWindow,
    stall: Duration,
) -> Result<(), Broken> {
    within(stall, send.send_response(head)).await?;
    while let Some(frame) = next_frame(body).await {
        let frame = frame.map_err(Broken::Body)?;
        match frame.into_data() {
            Ok(data) if data.has_remaining() => {
                let bytes = data.len();
                within(stall, send.send_data(data)).await?;
                window.sent(bytes);
            }
            Ok(_) => {}
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    within(stall, send.send_trailers(trailers)).await?;
                }
            }
        }
    }
    within(stall, send.finish()).await
}

async fn next_frame(body: &mut ResponseBody) -> Option<Result<http_body::Frame<Bytes>, BodyError>> {
    poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

/// What hyper adds to the answers of the other versions, and what it takes off.
fn finish_head(head: &mut Response<()>, body: &ResponseBody) {
    let status = head.status();
    let headers = head.headers_mut();
    for name in CONNECTION_FIELDS {
        headers.remove(name);
    }
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 && !bodiless) {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    headers.entry(header::DATE).or_insert_with(date);
}

/// The time as a field's value, written once a second on each thread.
fn date() -> HeaderValue {
    thread_local! {
        static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let now = clock::unix_elapsed().as_secs();
    WRITTEN.with_borrow_mut(|(at, value)| {
        if *at != now {
            let text = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(now));
            (*at, *value) = (now, HeaderValue::try_from(text).expect("a date is a header value"));
        }
        value.clone()
    })
}

/// A client that takes nothing for a while is cut (the window is full, or it is gone).
async fn within<E>(stall: Duration, sending: impl Future<Output = Result<(), E>>) -> Result<(), Broken>
where
    Broken: From<E>,
{
    match tokio::time::timeout(stall, sending).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(Broken::Stalled),
    }
}
