//! A request's body that nobody wants, read and dropped for a while behind its answer.
//!
//! Over HTTP/2 and 3 a client is told at once that its body is of no interest (RST_STREAM, STOP_SENDING). That is right (RFC
//! 9113 section 8.1, RFC 9114 section 4.1), but clients that are still sending lose the answer by it: curl 7.88 throws away
//! what it has not read yet, and a fetch of Chromium's never ends (seen with 156, over both). Whatever a route might have
//! taken is read, so that a browser is reset only when its upload takes very long. Over HTTP/1.1 it is
//! the connection that is read on ([`super::goodbye`]).

use std::{cell::RefCell, fmt, future::poll_fn, time::Duration};

use bytes::Bytes;
use tokio::sync::Notify;

use super::body::RequestSource;
use crate::limits;

/// Where a body goes when its reader lets go of it.
#[derive(Default)]
pub(super) struct Leftover {
    rest: RefCell<Option<RequestSource>>,
    let_go: Notify,
}

impl Leftover {
    /// Nobody reads the body any more. None: it has ended.
    pub(super) fn take_over(&self, rest: Option<RequestSource>) {
        *self.rest.borrow_mut() = rest;
        self.let_go.notify_one();
    }

    /// Reads what is left as soon as nobody else does, as much as the longest body may have, and no longer than `within`.
    pub(super) async fn discard(&self, within: Duration) {
        let reading = async {
            self.let_go.notified().await;
            let Some(mut rest) = self.rest.take() else { return };
            let mut left = limits::REQUEST_BODY_BYTES_MAX;
            while let Some(Ok(frame)) = poll_fn(|context| rest.poll_frame(context)).await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
                if left == 0 {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(within, reading).await;
    }
}

impl fmt::Debug for Leftover {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Leftover").finish_non_exhaustive()
    }
}
