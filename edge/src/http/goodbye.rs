//! How a connection is closed so that the peer hears what was said last, and so that a peer who does not care holds nothing.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::limits;

/// The last words, if there are some, and close_notify or FIN; the peer may be gone or take no byte, and is waited for no longer
/// than `within`.
pub(crate) async fn say<S: AsyncWrite + Unpin>(stream: &mut S, last_words: &[u8], within: Duration) {
    let saying = async {
        stream.write_all(last_words).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(within, saying).await;
}

/// Reads until the peer closes, within the bounds of [`limits::LINGER_BYTES_MAX`] and `within`. A socket closed over unread
/// bytes is reset, and the reset overtakes our last answer.
pub(crate) async fn discard<S: AsyncRead + Unpin>(mut stream: S, within: Duration) {
    let reading = async {
        let mut buffer = [0; 4096];
        let mut left = limits::LINGER_BYTES_MAX;
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            left = left.saturating_sub(count);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(within, reading).await;
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use super::*;
    use crate::limits::Deadlines;

    /// What only a failure takes.
    const LONG: Duration = Duration::from_secs(60);

    /// A peer whose window is closed.
    struct TakesNothing;

    impl AsyncWrite for TakesNothing {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_no_goodbye_is_not_waited_for() {
        let soon = Deadlines { goodbye: Duration::from_millis(1), ..Deadlines::default() };
        for last_words in [&b""[..], b"HTTP/1.1 408 Request Timeout\r\n\r\n"] {
            let saying = async { say(&mut TakesNothing, last_words, soon.goodbye).await };
            assert!(tokio::time::timeout(LONG, saying).await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_peer_that_goes_on_and_on_is_read_up_to_the_bound() {
        let sent = 10 * limits::LINGER_BYTES_MAX as u64;
        let mut endless = tokio::io::repeat(7).take(sent);
        discard(&mut endless, LONG).await;
        let read = sent - endless.limit();
        let bound = limits::LINGER_BYTES_MAX as u64;
        assert!((bound..bound + 4096).contains(&read), "{read} bytes");
    }

    #[tokio::test]
    async fn a_peer_that_neither_speaks_nor_closes_is_read_for_as_long_as_was_said() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let reading = discard(ours, Duration::from_millis(1));
        assert!(tokio::time::timeout(LONG, reading).await.is_ok());
    }
}
