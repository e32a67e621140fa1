//! Reads from an origin no more than the client takes for whom it is.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::{interim::Interim, through::Reading};
use crate::http::budget::{AnswerShare, Room};

/// Of one HTTP/1.1 connection to an origin; open but for answers that count, and shut for good behind too many interim ones.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    share: RefCell<Option<Arc<AnswerShare>>>,
    /// To the request under way.
    interim: RefCell<Option<Arc<Interim>>>,
}

/// Read at once for an answer that has nothing while others hold all there is; below what the HTTP library's buffer starts
/// with, so that it becomes no larger.
const LEAST_BYTES: usize = 4 * 1024;

impl Gate {
    /// What is read from now on is for this answer.
    pub(crate) fn count_for(&self, share: &Arc<AnswerShare>) {
        *self.share.borrow_mut() = Some(Arc::clone(share));
    }

    /// The answer is over.
    pub(crate) fn open(&self) {
        if let Some(share) = self.share.take() {
            share.ends();
        }
    }

    /// A request begins, and these are its interim answers.
    pub(super) fn follow(&self, interim: &Arc<Interim>) {
        *self.interim.borrow_mut() = Some(Arc::clone(interim));
    }

    fn is_shut(&self) -> bool {
        self.interim.borrow().as_ref().is_some_and(|interim| interim.are_too_many())
    }
}

impl Reading for Rc<Gate> {
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        inner: &mut S,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_shut() {
            return Poll::Pending; // whoever waits for the answer ends the connection
        }
        let share = self.share.borrow();
        let Some(share) = &*share else { return Pin::new(&mut *inner).poll_read(context, buffer) };
        let room = ready!(share.poll_room(context));
        let before = buffer.filled().len();
        if room == Room::Free || buffer.remaining() <= LEAST_BYTES {
            ready!(Pin::new(&mut *inner).poll_read(context, buffer))?;
        } else {
            let mut space = [0; LEAST_BYTES];
            let mut least = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut *inner).poll_read(context, &mut least))?;
            buffer.put_slice(least.filled());
        }
        share.read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}
