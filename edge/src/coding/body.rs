//! A body that is compressed as it passes.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use http_body::Frame;
use tokio::time::Sleep;

use super::{
    CodingPlace,
    encoder::{Encoder, SLICE_BYTES},
};
use crate::{
    http::{
        body::{BodyError, ResponseSource},
        budget::AnswerShare,
    },
    limits,
};

/// Asks for more of the plain body only when its own client takes more. Work in one turn is bounded, also where much plain
/// text makes few bytes; when the origin pauses, all that it has sent is made readable.
pub struct CodedBody {
    source: ResponseSource,
    encoder: Option<Encoder>,
    /// Of the source's last piece, what the encoder has not had.
    plain: Bytes,
    /// The encoder has had something that its client cannot read yet.
    withheld: bool,
    pause: Option<Pin<Box<Sleep>>>,
    /// Each makes the output longer.
    flushes_left: u32,
    /// To follow the last piece.
    trailers: Option<Frame<Bytes>>,
    _place: CodingPlace,
}

/// One turn of the worker for one body.
const PLAIN_BYTES_PER_TURN: usize = 4 * SLICE_BYTES;
/// Pieces for the client are as long, or what there is at a pause or at the end.
const PIECE_BYTES: usize = 8 * 1024;

type Turn = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl CodedBody {
    pub(crate) fn new(source: ResponseSource, encoder: Encoder, place: CodingPlace) -> Self {
        Self {
            source,
            encoder: Some(encoder),
            plain: Bytes::new(),
            withheld: false,
            pause: None,
            flushes_left: u32::MAX,
            trailers: None,
            _place: place,
        }
    }

    /// Then pauses of the source make nothing readable any more.
    pub(crate) fn flushed_at_most(self, times: u32) -> Self {
        Self { flushes_left: times, ..self }
    }

    pub(crate) fn poll_frame(&mut self, context: &mut Context<'_>) -> Turn {
        let mut left = PLAIN_BYTES_PER_TURN;
        loop {
            let Some(encoder) = &mut self.encoder else { return Poll::Ready(self.trailers.take().map(Ok)) };
            if encoder.output().len() >= PIECE_BYTES {
                return Poll::Ready(Some(Ok(piece(encoder))));
            }
            if !self.plain.is_empty() {
                if left == 0 {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let count = self.plain.len().min(SLICE_BYTES).min(left);
                encoder.write(&self.plain[..count])?;
                self.plain.advance(count);
                self.withheld = true;
                left -= count;
                continue;
            }
            match self.source.poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.pause = None;
                    match frame.into_data() {
                        Ok(data) => self.plain = data,
                        Err(trailers) => return self.finish(Some(trailers)),
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return self.finish(None),
                Poll::Pending => return self.paused(context),
            }
        }
    }

    /// The source has nothing now. A flush costs bytes, so it is not done between two packets of one answer.
    fn paused(&mut self, context: &mut Context<'_>) -> Turn {
        let may_flush = self.withheld && self.flushes_left > 0;
        let Some(encoder) = self.encoder.as_mut().filter(|_| may_flush) else { return Poll::Pending };
        let pause =
            self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::CODING_FLUSH_AFTER)));
        if pause.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.pause = None;
        self.withheld = false;
        self.flushes_left -= 1;
        encoder.flush()?;
        if encoder.output().is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(piece(encoder)))) }
    }

    fn finish(&mut self, trailers: Option<Frame<Bytes>>) -> Turn {
        self.trailers = trailers;
        let Some(encoder) = self.encoder.take() else { return Poll::Ready(None) };
        Poll::Ready(Some(Ok(Frame::data(encoder.finish()?.into()))))
    }

    /// What is read for it from now on counts for `share`.
    pub(crate) fn count_for(&mut self, share: &Arc<AnswerShare>) {
        if let ResponseSource::Origin(body) = &mut self.source {
            body.count_for(share);
        }
    }

    /// See [`ResponseSource::go_on`].
    pub(crate) fn go_on(&mut self) {
        self.source.go_on();
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }
}

fn piece(encoder: &mut Encoder) -> Frame<Bytes> {
    Frame::data(std::mem::take(encoder.output()).into())
}

impl fmt::Debug for CodedBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CodedBody").field("encoder", &self.encoder).finish_non_exhaustive()
    }
}
