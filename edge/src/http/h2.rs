//! HTTP/2 on one connection, with bounds on everything that a client's frames can make us hold or do (promise P14).

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::{
    Request,
    body::{Body as _, Incoming},
    rt::Executor,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Sleep,
};

use super::{
    body::{BodyError, RequestBody},
    drive::{Ended, Farewell, drive},
    extended_connect,
    frame_budget::UndecidedHeads,
    gathered_io::GatheredIo,
    guarded_io::GuardedIo,
    leftover::Leftover,
};
use crate::{
    clock,
    exchange::{ConnectionContext, Protocol, Refused, serve_exchange},
    limits,
};

/// Serves exchanges until the connection ends.
pub async fn serve<S>(stream: S, context: Rc<ConnectionContext>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let heads = UndecidedHeads::default();
    let (clock, drain) = (Rc::clone(&context.clock), context.worker.drain.clone());
    let gathered = GatheredIo::new(GuardedIo::http2(stream, clock, drain, heads.clone()));
    let io = TokioIo::new(gathered.share());
    let streams = Streams { context: Rc::clone(&context), newest: Rc::default() };
    let newest = Rc::clone(&streams.newest);
    let service = service_fn(|request: Request<Incoming>| {
        heads.go();
        let context = Rc::clone(&context);
        let watch = Rc::<SendWatch>::default();
        let (parts, body) = request.into_parts();
        // Now, and not when the task runs: all that came at once would be held until then.
        let admitted = context.admit(&parts).map(move |head| (head, parts, body));
        let has_body = admitted.as_ref().is_some_and(|(_, _, body)| !body.is_end_stream());
        let leftover = has_body.then(Rc::<Leftover>::default);
        *newest.borrow_mut() = Some(Begun { watch: Rc::clone(&watch), leftover: leftover.clone() });
        // Boxed: hyper and the task queue move a stream's future several times, and this one is large.
        Box::pin(async move {
            let Some((head, mut parts, body)) = admitted else {
                return Err(BodyError::from(::h2::Error::from(::h2::Reason::REFUSED_STREAM)));
            };
            let tunnel = extended_connect::translate(&mut parts, &context);
            let mut body = if tunnel.is_some() { RequestBody::empty() } else { RequestBody::hyper(body) };
            if let Some(leftover) = leftover {
                body.leave_to(leftover);
            }
            let mut answer = serve_exchange(Request::from_parts(parts, body), &context).await?;
            if let Some(client) = tunnel {
                client.conclude(&mut answer, &context);
            }
            answer.body_mut().watch(watch, head);
            Ok::<_, BodyError>(answer)
        })
    });
    let connection = pin!(builder(streams).serve_connection(io, service));
    drive(
        connection,
        &context.clock,
        (&context.worker.drain, Farewell::AnyTime),
        |connection, task| {
            heads.all_go();
            let polled = connection.poll(task);
            let refused = gathered.take_refusals();
            for _ in 0..refused.malformed {
                Refused::malformed(Protocol::Http2).note(&context);
            }
            for _ in 0..refused.too_large {
                Refused::TOO_LARGE.note(&context);
                context.clock.head_too_large();
            }
            if let Poll::Ready(Err(error)) = &polled
                && let Some(refused) = Refused::by_http2(error)
            {
                refused.note(&context);
            }
            let polled = polled.map_err(BodyError::from);
            match gathered.poll_send(task) {
                Poll::Ready(Err(error)) if polled.is_pending() => Poll::Ready(Err(error.into())),
                // A client that takes no more: the socket wakes us, and what h2 has beyond this waits with h2.
                Poll::Pending | Poll::Ready(_) => polled,
            }
        },
        |connection| connection.graceful_shutdown(),
    )
    .await
}

fn builder<E>(executor: E) -> http2::Builder<E> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(limits::H2_LOCAL_RESETS_MAX)
        .max_header_list_size(u32::try_from(limits::HEADER_BYTES_MAX).expect("32 KiB fits"))
        .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
        .max_frame_size(limits::H2_FRAME_BYTES_MAX)
        .header_table_size(limits::H2_HEADER_TABLE_BYTES)
        .enable_connect_protocol()
        .initial_stream_window_size(limits::H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW_BYTES);
    builder
}

/// Whether a stream's client takes its answer: hyper asks for the next piece when the last one has found room.
#[derive(Debug, Default)]
pub struct SendWatch {
    waiting_since: Cell<Option<Instant>>,
    /// Nothing more is read for the answer while so much of it is held, and since when that is so much.
    held: Cell<Option<(usize, Instant)>>,
    stalled: Cell<bool>,
}

impl SendWatch {
    /// hyper wants a piece.
    pub(super) fn wanted(&self) {
        self.waiting_since.set(None);
    }

    /// A piece was given to hyper.
    pub(super) fn given(&self) {
        self.held.set(None);
        self.waiting_since.set(Some(clock::now()));
    }

    /// hyper is given nothing, because the client has not taken so many bytes.
    pub(super) fn waits_with(&self, held: usize) {
        let before = self.held.get().filter(|(before, _)| *before == held);
        let (_, since) = before.unwrap_or_else(|| (held, clock::now()));
        self.held.set(Some((held, since)));
        self.waiting_since.set(Some(since));
    }

    /// The client took nothing until the deadline.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// Ready when the piece given last has waited for longer than `allowed`.
    fn poll_stalled(
        &self,
        allowed: Duration,
        timer: &mut Option<Pin<Box<Sleep>>>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(since) = self.waiting_since.get() else { return Poll::Pending };
        let deadline = (since + allowed).into();
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(context)
    }
}

/// Runs streams on the connection's own worker, and drops those whose client has stopped reading: hyper would keep them, and
/// the origin's connection with them, for as long as the client speaks on any other stream.
#[derive(Debug, Clone)]
struct Streams {
    context: Rc<ConnectionContext>,
    /// Of the request that the service was called with last: hyper runs its stream next.
    newest: Rc<RefCell<Option<Begun>>>,
}

/// A stream whose request has come.
#[derive(Debug)]
struct Begun {
    watch: Rc<SendWatch>,
    /// Of its body, if it has one.
    leftover: Option<Rc<Leftover>>,
}

impl<F> Executor<F> for Streams
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        let Some(Begun { watch, leftover }) = self.newest.borrow_mut().take() else {
            tokio::task::spawn_local(future);
            return;
        };
        let context = Rc::clone(&self.context);
        tokio::task::spawn_local(async move {
            let allowed = context.clock.deadlines().write_stall;
            {
                let mut stream = pin!(future);
                let mut timer = None;
                poll_fn(|task| {
                    if stream.as_mut().poll(task).is_ready() {
                        return Poll::Ready(());
                    }
                    std::task::ready!(watch.poll_stalled(allowed, &mut timer, task));
                    watch.stalled.set(true);
                    context.worker.edge.metrics.streams_stalled.increment(1);
                    Poll::Ready(()) // dropped unfinished: h2 resets it (CANCEL)
                })
                .await;
            }
            if let Some(leftover) = leftover.filter(|_| !watch.stalled.get()) {
                leftover.discard(context.leftover()).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::{Body, Frame};
    use hyper::Response;
    use tokio::task::LocalSet;

    use super::*;

    /// Brings pieces for as long as they are asked for, and counts their bytes.
    struct Endless(Rc<Cell<usize>>);

    const PIECE: usize = 1024;
    const PIPE: usize = 1024;

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.set(self.0.get() + PIECE);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; PIECE])))))
        }
    }

    #[derive(Clone)]
    struct OnThisThread;

    impl<F: Future + 'static> Executor<F> for OnThisThread {
        fn execute(&self, future: F) {
            tokio::task::spawn_local(async move {
                future.await;
            });
        }
    }

    /// What is read of an answer for a client that takes its head and nothing more, and whose windows are wide open.
    async fn given(builder: http2::Builder<OnThisThread>) -> usize {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let given = Rc::<Cell<usize>>::default();
        let counts = Rc::clone(&given);
        let service = service_fn(move |_| {
            std::future::ready(Ok::<_, Infallible>(Response::new(Endless(Rc::clone(&counts)))))
        });
        let server = builder.serve_connection(TokioIo::new(ours), service);
        tokio::task::spawn_local(async move {
            let _cut = server.await;
        });
        let (mut sender, mut connection) = ::h2::client::Builder::new()
            .initial_window_size(1 << 30)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, Bytes>(theirs)
            .await
            .unwrap();
        let request = Request::get("https://shop.example/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        tokio::select! {
            answer = answer => assert_eq!(answer.unwrap().status(), 200),
            ended = &mut connection => panic!("{ended:?}"),
        }
        // Now nobody reads. It settles when all tasks have had their turns.
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        given.get()
    }

    #[tokio::test]
    async fn of_an_answer_that_is_not_taken_so_much_is_held_whatever_the_windows_are() {
        let bound = limits::H2_SEND_BUFFER_BYTES;
        // On their way: a frame that is being written, what is in the pipe, and what was read with the head.
        let under_way = limits::H2_FRAME_BYTES_MAX as usize + PIPE + 16 * 1024;
        LocalSet::new()
            .run_until(async {
                let bytes = given(builder(OnThisThread)).await;
                assert!((bound..=bound + under_way).contains(&bytes), "{bytes} bytes");
                let mut lax = builder(OnThisThread);
                lax.max_send_buf_size(4 * bound);
                let bytes = given(lax).await;
                assert!(bytes >= 4 * bound, "it is this bound that holds: {bytes} bytes");
            })
            .await;
    }
}
