//! One DNS query to one server: UDP with retries, TCP when the answer is truncated or TCP is asked for.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const TRIES: u32 = 3;
const TRY_DEADLINE: Duration = Duration::from_secs(2);
const TCP_DEADLINE: Duration = Duration::from_secs(5);
/// The size that fits an unfragmented packet (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1_232;

/// A recursive query with a random id.
pub(crate) fn query_message(name: Name, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    message.set_edns(edns);
    message
}

/// Asks by UDP; a truncated answer is asked for again by TCP.
///
/// # Errors
/// No answer in time, or one that is not understood.
pub(crate) async fn query(server: SocketAddr, message: &Message) -> io::Result<Message> {
    let wire = message.to_vec().map_err(io::Error::other)?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..TRIES {
        match timeout(TRY_DEADLINE, udp_once(server, message, &wire)).await {
            Ok(Ok(answer)) if answer.metadata.truncation => return query_tcp(server, message).await,
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => return Err(error),
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        }
    }
    Err(last)
}

/// Asks by TCP.
///
/// # Errors
/// No connection, no answer in time, or one that is not understood.
pub(crate) async fn query_tcp(server: SocketAddr, message: &Message) -> io::Result<Message> {
    let wire = message.to_vec().map_err(io::Error::other)?;
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let length = u16::try_from(wire.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &wire].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
        if is_answer_to(&answer, message) { Ok(answer) } else { Err(io::Error::other("not our answer")) }
    };
    timeout(TCP_DEADLINE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn udp_once(server: SocketAddr, message: &Message, wire: &[u8]) -> io::Result<Message> {
    let local: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    socket.send(wire).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything that is not our answer is noise: wait on.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && is_answer_to(&answer, message)
        {
            return Ok(answer);
        }
    }
}

/// The target of the CNAME record of `name`, if there is one.
pub(crate) fn cname_of(answers: &[Record], name: &Name) -> Option<Name> {
    answers.iter().filter(|record| record.name == *name).find_map(|record| {
        let RData::CNAME(target) = &record.data else { return None };
        Some(target.0.clone())
    })
}

fn is_answer_to(answer: &Message, message: &Message) -> bool {
    answer.metadata.id == message.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries.iter().zip(&message.queries).all(|(got, sent)| got.name == sent.name)
}
