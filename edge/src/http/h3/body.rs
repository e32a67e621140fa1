//! A request's body over HTTP/3: DATA frames as they come, then trailers; as long as the request said, or an error.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ::h3::server::RequestStream;
use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use super::adapter::{Account, RecvStream};
use crate::http::body::BodyError;

pub(super) struct H3Body {
    stream: RequestStream<RecvStream, Bytes>,
    account: Rc<Account>,
    /// What content-length still promises.
    promised: Option<u64>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    Ended,
}

/// The request's length is not what it said (RFC 9114 section 4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LengthFault {
    #[error("the body is longer than its content-length")]
    TooLong,
    #[error("the body is shorter than its content-length")]
    TooShort,
}

impl H3Body {
    pub(super) fn new(
        stream: RequestStream<RecvStream, Bytes>,
        account: Rc<Account>,
        promised: Option<u64>,
    ) -> Self {
        Self { stream, account, promised, state: State::Data }
    }

    /// Whether the body has ended with what was there already: a request without a body is one packet.
    pub(super) fn is_empty_already(&mut self, first: &mut Option<Frame<Bytes>>) -> Result<bool, BodyError> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(self).poll_frame(&mut context) {
            Poll::Ready(None) => Ok(true),
            Poll::Ready(Some(frame)) => {
                *first = Some(frame?);
                Ok(false)
            }
            Poll::Pending => Ok(false),
        }
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyError>> {
        let Some(mut data) = ready!(self.stream.poll_recv_data(context))? else {
            return Poll::Ready(Ok(None));
        };
        let bytes = data.copy_to_bytes(data.remaining());
        self.account.taken(bytes.len());
        if let Some(promised) = &mut self.promised {
            *promised = promised.checked_sub(bytes.len() as u64).ok_or(LengthFault::TooLong)?;
        }
        Poll::Ready(Ok(Some(bytes)))
    }
}

impl Body for H3Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.state == State::Data {
            match ready!(this.poll_data(context)) {
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Ok(None) => this.state = State::Trailers,
                Err(error) => {
                    this.state = State::Ended;
                    return Poll::Ready(Some(Err(error)));
                }
            }
            if this.promised.is_some_and(|left| left > 0) {
                this.state = State::Ended;
                return Poll::Ready(Some(Err(LengthFault::TooShort.into())));
            }
        }
        if this.state == State::Trailers {
            let trailers = ready!(this.stream.poll_recv_trailers(context));
            this.state = State::Ended;
            return Poll::Ready(match trailers {
                Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                Err(error) => Some(Err(error.into())),
            });
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.promised {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

/// A body whose first frame was looked for already.
pub(super) struct Begun {
    pub(super) first: Option<Frame<Bytes>>,
    pub(super) rest: H3Body,
    /// Told once, when somebody wants more than has come.
    pub(super) wanted: Option<Rc<Notify>>,
}

impl Body for Begun {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this.first.take() {
            Some(frame) => {
                this.wanted = None; // it comes unasked
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                let polled = Pin::new(&mut this.rest).poll_frame(context);
                if let (Poll::Pending, Some(wanted)) = (&polled, this.wanted.take()) {
                    wanted.notify_one();
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        match self.rest.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + first),
            None => SizeHint::default(),
        }
    }
}

impl fmt::Debug for H3Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H3Body")
            .field("promised", &self.promised)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
