//! What a server says before it closes is heard, also by who is just writing.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A TLS stream to an origin. With TLS 1.3 a server looks at a client's certificate when the client has begun to send: it
/// answers with an alert and closes, and a write may fail for the close before the alert has been read. The alert is the
/// reason, so it is returned in the place of the write's error. HTTP/2 loses the errors of its connection on the way to its
/// streams; for it the alert is kept.
pub(super) struct LastWord<S> {
    stream: S,
    said: Said,
    /// A write has failed, and the server's word is waited for.
    reset: Option<io::Error>,
}

/// The alert by which a connection ended, once it has.
pub(super) type Said = Rc<Cell<Option<AlertDescription>>>;

impl<S: AsyncRead + Unpin> LastWord<S> {
    pub(super) fn new(stream: S) -> (Self, Said) {
        let said = Said::default();
        (Self { stream, said: Rc::clone(&said), reset: None }, said)
    }

    /// A write's result, or what the server had to say. A connection that was reset can be read, to its end: that is waited
    /// for, since the word may have come a moment after the reset was noticed.
    fn heard<T>(&mut self, written: Poll<io::Result<T>>, task: &mut Context<'_>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error)) if is_reset(&error) => {
                self.reset = Some(error);
                self.listen(task).map(Err)
            }
            Poll::Ready(_) | Poll::Pending => written,
        }
    }

    fn listen(&mut self, task: &mut Context<'_>) -> Poll<io::Error> {
        let mut room = [0; 1024];
        // Whatever else comes is of no use any more: no message can be ended on this connection.
        let read = ready!(Pin::new(&mut *self).poll_read(task, &mut ReadBuf::new(&mut room)));
        let reset = self.reset.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
        Poll::Ready(match read {
            Err(said) if self.said.get().is_some() => said,
            Ok(()) | Err(_) => reset,
        })
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

impl<S: AsyncRead + Unpin> AsyncRead for LastWord<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(task, room));
        if let Err(error) = &read
            && let Some(rustls::Error::AlertReceived(alert)) =
                error.get_ref().and_then(|error| error.downcast_ref())
        {
            self.said.set(Some(*alert));
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LastWord<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.reset.is_some() {
            return self.listen(task).map(Err);
        }
        let written = Pin::new(&mut self.stream).poll_write(task, bytes);
        self.heard(written, task)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.reset.is_some() {
            return self.listen(task).map(Err);
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(task, pieces);
        self.heard(written, task)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.is_some() {
            return self.listen(task).map(Err);
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(task);
        self.heard(flushed, task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}
