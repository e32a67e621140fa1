//! What needs no handshake, or only its beginning.

use std::io;
use std::time::{Duration, Instant};

use super::QuicAttack;
use super::client::{QuicClient, crypto, parameter, sound_parameters};
use super::packet::{DATAGRAM_BYTES, varint};
use crate::attack::{Outcome, now};
use crate::client::Target;

/// Of one attacker of a kind that opens many.
const HANDSHAKES: usize = 200;
/// The same where each is answered.
const ANSWERED: usize = 16;
/// How long a server may say the same again without an answer.
const REPEATED: Duration = Duration::from_secs(3);
/// Longer than a server takes a token for fresh.
const LATE: Duration = Duration::from_secs(20);
/// RFC 9000 section 20.1.
const INVALID_TOKEN: u64 = 0x0b;

pub(super) fn run(attack: QuicAttack, target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut ended = true;
    let mut listening = Vec::new();
    let count = if is_answered(attack) { ANSWERED } else { HANDSHAKES };
    for number in 0..count {
        if now() > until {
            break;
        }
        let mut client = if attack == QuicAttack::BadParameters {
            QuicClient::new(target, |own| bad_parameters(number, own))?
        } else {
            QuicClient::new(target, sound_parameters)?
        };
        client.answers = is_answered(attack);
        begin(attack, number, &mut client);
        // Some are listened to, so that what comes back can be measured and the flood stays one.
        if is_answered(attack) || number.is_multiple_of(10) {
            client.receive();
        }
        // A Retry is an answer, too; and a datagram may be lost.
        while is_answered(attack) && !client.closed && client.retries == 0 && now() < until {
            begin(attack, number, &mut client);
            client.receive();
        }
        ended &= !is_answered(attack) || client.closed || client.retries > 0;
        if number.is_multiple_of(10) {
            listening.push(client);
        }
    }
    let repeated = (now() + REPEATED).min(until);
    while now() < repeated {
        listening.iter_mut().for_each(QuicClient::receive);
    }
    // Three times as much (RFC 9000 section 8.1), and what quinn goes beyond that: it begins a datagram as long as one byte of
    // it is within the bound, and sends that whole (quinn-proto 0.11.19, `Connection::poll_transmit`, which asks for the bytes
    // of the datagrams before and one more; quinn's issue 1082). It is seen where a flight that ends with a short datagram is
    // sent again. So less than one datagram, and before the path is probed they have no more than 1200 bytes.
    let is_too_much = |client: &QuicClient| {
        client.bytes_received >= 3 * client.bytes_sent + DATAGRAM_BYTES
            || attack == QuicAttack::ShortInitials && client.bytes_received > 0
    };
    let unknown = |client: &&QuicClient| !client.answers || client.retries == 0;
    ended &= !listening.iter().filter(unknown).any(is_too_much);
    Ok(Outcome { requests: 0, ended })
}

/// Whether the server says that it takes no more of it.
fn is_answered(attack: QuicAttack) -> bool {
    matches!(attack, QuicAttack::BadParameters | QuicAttack::CryptoBeyond)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others begin as a handshake does")]
fn begin(attack: QuicAttack, number: usize, client: &mut QuicClient) {
    let hello = client.hello().to_vec();
    let datagram = match attack {
        QuicAttack::ShortInitials => client.seal_short_initial(&crypto(0, &hello)),
        QuicAttack::CoalescedGarbage => {
            let initial = client.seal_initial(&crypto(0, &hello));
            // A Handshake packet's header, and more of the same connection that is no packet.
            [&initial[..], &[0xe3, 0, 0, 0, 1, 0, 0, 0x41, 0], &initial[..7], &[0x5a; 200]].concat()
        }
        QuicAttack::ForgedTokens => {
            let length = 1 + number % 200;
            client.set_token(vec![u8::try_from(number % 256).unwrap_or(0); length]);
            client.seal_initial(&crypto(0, &hello))
        }
        QuicAttack::CryptoGaps => {
            let pieces = hello.iter().enumerate().filter(|(at, _)| at % 2 == 1);
            let pieces = pieces.map(|(at, byte)| crypto(at as u64, &[*byte]));
            client.seal_initial(&pieces.take(200).flatten().collect::<Vec<_>>())
        }
        QuicAttack::CryptoBeyond => client.seal_initial(&crypto(1 << 20, b"x")),
        _ => client.seal_initial(&crypto(0, &hello)),
    };
    client.send(&datagram);
}

/// Begins handshakes until the server wants addresses to be shown, and uses what it gives then where or when it must not be.
pub(super) fn tokens(attack: QuicAttack, target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut ended = false;
    while !ended && now() < until {
        let mut client = QuicClient::new(target, sound_parameters)?;
        client.answers = false;
        client.begin();
        client.receive();
        if client.token().is_empty() {
            (0..ANSWERED)
                .try_for_each(|_| QuicClient::new(target, sound_parameters).map(|mut c| c.begin()))?;
            continue;
        }
        if attack == QuicAttack::LateTokens {
            std::thread::sleep(LATE);
        } else {
            client.move_elsewhere()?;
        }
        while !client.closed && now() < until {
            client.begin();
            client.receive();
        }
        ended = client.code == Some(INVALID_TOKEN);
        if client.closed && !ended {
            break;
        }
    }
    Ok(Outcome { requests: 0, ended })
}

/// RFC 9000 section 18.2: what each value may be.
fn bad_parameters(number: usize, own: &[u8]) -> Vec<u8> {
    let sound = sound_parameters(own);
    let bad = match number % 8 {
        0 => parameter(0x0a, &varint(21)),        // ack_delay_exponent
        1 => parameter(0x03, &varint(1199)),      // max_udp_payload_size
        2 => parameter(0x0e, &varint(1)),         // active_connection_id_limit
        3 => parameter(0x0b, &varint(1 << 14)),   // max_ack_delay
        4 => parameter(0x02, &[0; 16]),           // a server's stateless_reset_token
        5 => parameter(0x08, &varint(1 << 61)),   // initial_max_streams_bidi, and twice
        6 => return parameter(0x0f, b"other id"), // initial_source_connection_id of somebody else
        _ => vec![0x04, 0x08, 0xff],              // cut short
    };
    [sound, bad].concat()
}
