//! A ClientHello, read until it is whole.
//!
//! tokio-rustls could do it, but for one kind of client: one of TLS 1.0 or 1.1 sends no signature algorithms, and rustls misses
//! those before it looks at the version. It would be told that there is nothing in common; whoever reads its error has to
//! know that it is too old (RFC 5246 appendix E.1). So the version is looked for in the first bytes.

use std::{
    future::poll_fn,
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{
    AlertDescription, Error,
    server::{AcceptedAlert, Acceptor},
};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio_rustls::StartHandshake;

use super::{failed, failure, refuse};
use crate::{io::Stream, metrics::HandshakeEnd};

/// Reads the hello of a client. What makes none is told so, where that is owed.
pub(super) async fn read_hello(mut stream: Stream) -> Result<StartHandshake<Stream>, HandshakeEnd> {
    let (mut acceptor, mut opening) = (Acceptor::default(), Opening::default());
    loop {
        let reading = poll_fn(|context| {
            let mut reader = Reader { stream: &mut stream, context, opening: &mut opening };
            match acceptor.read_tls(&mut reader) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                outcome => Poll::Ready(outcome),
            }
        });
        if reading.await.map_err(failed)? == 0 {
            return Err(HandshakeEnd::Aborted);
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(StartHandshake::from_parts(accepted, stream)),
            Ok(None) => {}
            Err((error, alert)) => return Err(refuse_hello(stream, &error, alert, &opening).await),
        }
    }
}

async fn refuse_hello(
    mut stream: Stream,
    error: &Error,
    mut alert: AcceptedAlert,
    opening: &Opening,
) -> HandshakeEnd {
    tracing::trace!(%error, "a ClientHello is refused");
    if matches!(error, Error::PeerIncompatible(_)) && opening.is_of_old_version() {
        refuse(stream, AlertDescription::ProtocolVersion).await;
        return HandshakeEnd::Version;
    }
    let mut record = Vec::new();
    // A vector takes all of it.
    let _ = alert.write_all(&mut record);
    if stream.write_all(&record).await.is_ok() {
        let _ = stream.shutdown().await;
    }
    failure::of_tls(error)
}

/// Head of a record, head of a handshake message, and the version that a ClientHello begins with (RFC 8446 sections 5.1, 4,
/// and 4.1.2).
const OPENING_BYTES: usize = 5 + 4 + 2;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const TLS_1_2: u16 = 0x0303;

/// The first bytes of a connection.
#[derive(Debug, Default)]
struct Opening {
    bytes: [u8; OPENING_BYTES],
    length: usize,
}

impl Opening {
    fn push(&mut self, bytes: &[u8]) {
        let room = &mut self.bytes[self.length..];
        let taken = room.len().min(bytes.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.length += taken;
    }

    /// A hello that offers nothing from TLS 1.2 on. One whose version is not within its first record is not known for it.
    fn is_of_old_version(&self) -> bool {
        let [kind, _, _, high, low, message, _, _, _, version @ ..] = self.bytes;
        let record_bytes = usize::from(u16::from_be_bytes([high, low]));
        self.length == OPENING_BYTES
            && kind == HANDSHAKE_RECORD
            && message == CLIENT_HELLO
            && record_bytes >= OPENING_BYTES - 5
            && u16::from_be_bytes(version) < TLS_1_2
    }
}

/// The stream as rustls reads: at once, or not yet.
struct Reader<'a, 'b> {
    stream: &'a mut Stream,
    context: &'a mut Context<'b>,
    opening: &'a mut Opening,
}

impl Read for Reader<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(into);
        match Pin::new(&mut *self.stream).poll_read(self.context, &mut buffer) {
            Poll::Ready(Ok(())) => {
                self.opening.push(buffer.filled());
                Ok(buffer.filled().len())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_old(bytes: &[u8]) -> bool {
        let mut opening = Opening::default();
        for byte in bytes {
            opening.push(std::slice::from_ref(byte));
        }
        opening.is_of_old_version()
    }

    #[test]
    fn a_hello_is_old_by_its_own_version_and_not_by_that_of_its_record() {
        assert!(is_old(&[22, 3, 1, 0, 43, 1, 0, 0, 39, 3, 2, 9, 9, 9]));
        assert!(is_old(&[22, 3, 0, 0, 43, 1, 0, 0, 39, 3, 0]));
        assert!(!is_old(&[22, 3, 1, 0, 43, 1, 0, 0, 39, 3, 3]));
        assert!(!is_old(&[22, 3, 1, 0, 43, 1, 0, 0, 39, 3]), "not all of it is there");
        assert!(!is_old(&[22, 3, 1, 0, 4, 1, 0, 0, 39, 22, 3]), "the head of the next record");
        assert!(!is_old(&[23, 3, 1, 0, 43, 1, 0, 0, 39, 3, 2]));
    }
}
