//! Packets of connections that are no more, and answers to the answers.

use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::client::QuicClient;
use super::packet::DATAGRAM_BYTES;
use crate::attack::{Outcome, now};
use crate::client::Target;

/// Packets that begin a loop.
const BEGUN: usize = 100;
/// Of each loop: every answer is shorter than what it answers (RFC 9000 section 10.3.3), and none is below 21 bytes.
const ANSWERS_MAX: usize = DATAGRAM_BYTES;
/// For what a server says on loopback.
const WAIT: Duration = Duration::from_millis(50);
/// A server may remember a connection for three of its probe timeouts, and says nothing of it for so long.
const FORGOTTEN: Duration = Duration::from_secs(3);
/// APPLICATION_CLOSE with H3_NO_ERROR.
const CLOSE: [u8; 4] = [0x1d, 0x41, 0x00, 0x00];

/// Sends what only a reset can answer, and gives each reset back, as another server would that knows the connection as little.
/// Ended well: each answer is shorter than what it answers, so that the loop ends, and there is not more of them than of that.
pub(super) fn reset_loop(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = QuicClient::connect(target)?;
    let id = client.server_id().to_vec();
    client.send_frames(&CLOSE);
    std::thread::sleep(FORGOTTEN);
    let socket = UdpSocket::bind(if target.address.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" })?;
    socket.connect(target.address)?;
    socket.set_read_timeout(Some(WAIT))?;
    let (mut sent, mut received, mut ends) = (0, 0, true);
    for number in 0..BEGUN {
        if now() > until {
            break;
        }
        let filling = u8::try_from(number % 256).unwrap_or(0);
        let mut packet = [&[0x43], &id[..]].concat();
        packet.resize(DATAGRAM_BYTES, filling);
        for _ in 0..ANSWERS_MAX {
            sent += socket.send(&packet)?;
            let mut answer = [0; 2048];
            let Ok(length) = socket.recv(&mut answer) else { break };
            received += length;
            ends &= length < packet.len();
            packet = answer[..length].to_vec();
        }
    }
    Ok(Outcome { requests: 0, ended: ends && received < sent })
}
