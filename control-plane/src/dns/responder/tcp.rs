//! The responder over TCP (RFC 7766): questions one after the other, each answered before the next is read.
//!
//! In the place of the library's own loop, which bounds neither connections nor the length of a question, and spins when
//! descriptors run out.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use hickory_proto::op::MessageType;
use hickory_server::net::BufDnsStreamHandle;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler as _, ResponseHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Handler;
use crate::admission::{Admission, Bounds};
use crate::limits::{DNS_CONNECTIONS_MAX, DNS_CONNECTIONS_OF_ADDRESS_MAX, DNS_QUESTION_BYTES_MAX};

/// A connection whose next question is not whole by then is closed, and one that has not taken its answer.
const IDLE: Duration = Duration::from_secs(5);

/// Answers until `shutdown`, which ends all connections.
pub(super) async fn serve(listener: TcpListener, handler: Handler, shutdown: CancellationToken) {
    let bounds = Bounds { in_all: DNS_CONNECTIONS_MAX, of_address: DNS_CONNECTIONS_OF_ADDRESS_MAX };
    let mut admission = Admission::new(listener, "dns", bounds);
    let mut connections = JoinSet::new();
    loop {
        let (stream, from, stranger) = tokio::select! {
            () = shutdown.cancelled() => return,
            admitted = admission.next() => admitted,
        };
        while connections.try_join_next().is_some() {}
        let handler = handler.clone();
        connections.spawn(async move {
            tokio::select! {
                () = stranger.pushed_out() => {}
                ended = converse(&handler, stream, from) => {
                    tracing::debug!(%from, ?ended, "a connection for DNS ended");
                }
            }
        });
    }
}

/// Ends with the error that ends the connection; that its peer has closed it is one, too.
async fn converse(handler: &Handler, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, read(&mut stream)).await??;
        let answer = answer(handler, question, from).await.ok_or(io::ErrorKind::InvalidData)?;
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        // In one packet: some resolvers take the first for all.
        let framed = [length.to_be_bytes().as_slice(), answer.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > DNS_QUESTION_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut question = vec![0; length];
    stream.read_exact(&mut question).await?;
    Ok(question)
}

/// `None`: what came is no question.
async fn answer(handler: &Handler, question: Vec<u8>, from: SocketAddr) -> Option<Vec<u8>> {
    let request = Request::from_bytes(question, from, Protocol::Tcp).ok()?;
    if request.metadata.message_type == MessageType::Response {
        return None;
    }
    let (sender, mut answers) = BufDnsStreamHandle::new(from);
    let response = ResponseHandle::new(from, sender, Protocol::Tcp);
    handler.handle_request::<_, TokioTime>(&request, response).await;
    answers.next().await.map(|answer| answer.into_parts().0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::op::{Message, Query, ResponseCode};
    use hickory_proto::rr::{Name, RecordType};
    use tokio::net::TcpSocket;

    use super::super::{ChallengeZone, Responder, serve as serve_both};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn responder() -> (Responder, CancellationToken) {
        let zone = ChallengeZone::new("acme.provider.test").unwrap();
        zone.add("k3jd", "value");
        let shutdown = CancellationToken::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        (serve_both(any, zone, shutdown.clone()).await.unwrap(), shutdown)
    }

    /// From an address of its own on loopback, the `n`th.
    async fn connect(responder: &Responder, n: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 7, n), 0))).unwrap();
        socket.connect(responder.address).await.unwrap()
    }

    fn question() -> Vec<u8> {
        let mut message = Message::query();
        let name = Name::from_ascii("k3jd.acme.provider.test.").unwrap();
        message.add_query(Query::query(name, RecordType::TXT));
        message.to_vec().unwrap()
    }

    async fn send(stream: &mut TcpStream, question: &[u8]) {
        let length = u16::try_from(question.len()).unwrap();
        let framed = [length.to_be_bytes().as_slice(), question].concat();
        stream.write_all(&framed).await.unwrap();
    }

    async fn receive(stream: &mut TcpStream) -> Message {
        let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    /// Before it would be for its silence; a reset is an end, too.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        matches!(timeout(IDLE / 2, stream.read_u8()).await, Ok(Err(_)))
    }

    #[tokio::test]
    async fn questions_on_one_connection_are_answered_in_their_order() {
        let (responder, _shutdown) = responder().await;
        let mut stream = connect(&responder, 1).await;
        for _ in 0..3 {
            send(&mut stream, &question()).await;
        }
        for _ in 0..3 {
            let answer = receive(&mut stream).await;
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 1));
        }
    }

    #[tokio::test]
    async fn what_is_no_question_closes_the_connection() {
        let (responder, _shutdown) = responder().await;
        let mut response = question();
        response[2] |= 0x80; // QR: an answer
        let long = vec![0; DNS_QUESTION_BYTES_MAX + 1];
        let no_questions =
            [("nothing", Vec::new()), ("noise", vec![7; 40]), ("an answer", response), ("too long", long)];
        for (what, bytes) in no_questions {
            let mut stream = connect(&responder, 1).await;
            send(&mut stream, &bytes).await;
            assert!(is_closed(&mut stream).await, "{what}");
        }
    }

    #[tokio::test]
    async fn silent_connections_take_no_place_from_another_address() {
        let (responder, shutdown) = responder().await;
        let mut early = connect(&responder, 1).await;
        let mut silent = Vec::new();
        for _ in 0..=DNS_CONNECTIONS_OF_ADDRESS_MAX {
            silent.push(connect(&responder, 2).await);
        }
        assert!(is_closed(&mut silent[0]).await, "its address has one too many");
        send(&mut early, &question()).await;
        assert_eq!(receive(&mut early).await.answers.len(), 1, "older, and of another address");
        let mut last = connect(&responder, 2).await;
        send(&mut last, &question()).await;
        assert_eq!(receive(&mut last).await.answers.len(), 1);
        shutdown.cancel();
        timeout(PATIENCE, responder.ended()).await.expect("ends although connections stand");
    }

    #[tokio::test]
    async fn beyond_all_places_the_oldest_connection_of_whoever_has_most_goes() {
        crate::process::raise_descriptor_limit();
        let (responder, _shutdown) = responder().await;
        let mut alone = connect(&responder, 1).await;
        let addresses = u8::try_from(DNS_CONNECTIONS_MAX / DNS_CONNECTIONS_OF_ADDRESS_MAX).unwrap();
        let mut silent = Vec::new();
        for n in 0..addresses {
            for _ in 0..DNS_CONNECTIONS_OF_ADDRESS_MAX {
                silent.push(connect(&responder, 10 + n).await);
            }
        }
        assert!(is_closed(&mut silent[0]).await);
        send(&mut alone, &question()).await;
        assert_eq!(receive(&mut alone).await.answers.len(), 1);
    }
}
