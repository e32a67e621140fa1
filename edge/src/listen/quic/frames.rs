//! Looks along the frames of a decrypted packet (RFC 9000 section 19) without acting on them: how many there are, and what
//! of them quinn will have to hold. What cannot be followed is left to quinn, which closes the connection for it.

use crate::limits;

/// What a packet holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Neither PADDING nor STREAM nor CRYPTO; what cannot be followed is one.
    pub(super) frames: u32,
    /// STREAM and CRYPTO frames that cost more to hold than their bytes.
    pub(super) pieces: u32,
    /// STREAM frames that are worth their trouble, and the bytes in them.
    pub(super) large_pieces: u32,
    pub(super) large_bytes: u64,
    /// Request streams that there are now, as far as this packet tells.
    pub(super) requests: u64,
    /// Something of it is held until it is read.
    pub(super) is_held: bool,
    /// Up to the end of the last frame that is not PADDING.
    pub(super) length: usize,
}

const CRYPTO: u64 = 0x06;
const STREAM: std::ops::RangeInclusive<u64> = 0x08..=0x0f;
const STREAM_HAS_OFFSET: u64 = 4;
const STREAM_HAS_LENGTH: u64 = 2;
/// A stateless reset token (section 10.3), and what a path challenge asks (section 19.17).
const RESET_TOKEN_BYTES: u64 = 16;
const CHALLENGE_BYTES: u64 = 8;

pub(super) fn content(packet: &[u8]) -> Content {
    let mut content = Content::default();
    let mut rest = packet;
    while !rest.is_empty() {
        // Much of many packets.
        if rest[0] == 0 {
            let padding = rest.iter().position(|byte| *byte != 0).unwrap_or(rest.len());
            rest = &rest[padding..];
            continue;
        }
        let followed = frame(&mut rest, &mut content);
        if followed.is_none() {
            content.length = packet.len();
            return content;
        }
        content.length = packet.len() - rest.len();
    }
    content
}

/// Passes one frame; `None`: there is no such frame, or it is cut short.
fn frame(rest: &mut &[u8], content: &mut Content) -> Option<()> {
    let kind = varint(rest)?;
    if kind == CRYPTO {
        let (_offset, length) = (varint(rest)?, varint(rest)?);
        return held(rest, length, content);
    }
    if STREAM.contains(&kind) {
        let id = varint(rest)?;
        if id & 3 == 0 {
            // Client-initiated and bidirectional (section 2.1).
            content.requests = content.requests.max((id >> 2) + 1);
        }
        if kind & STREAM_HAS_OFFSET != 0 {
            varint(rest)?;
        }
        let length = if kind & STREAM_HAS_LENGTH == 0 { rest.len() as u64 } else { varint(rest)? };
        if length >= limits::QUIC_PIECE_BYTES {
            content.large_pieces += 1;
            content.large_bytes = content.large_bytes.saturating_add(length);
        }
        return held(rest, length, content);
    }
    content.frames += 1;
    other(kind, rest)
}

fn held(rest: &mut &[u8], length: u64, content: &mut Content) -> Option<()> {
    content.is_held = true;
    content.pieces += u32::from(length < limits::QUIC_PIECE_BYTES);
    skip(rest, length)
}

fn other(kind: u64, rest: &mut &[u8]) -> Option<()> {
    let numbers = |rest: &mut &[u8], count: u64| (0..count).try_for_each(|_| varint(rest).map(drop));
    match kind {
        // PADDING with more bytes than it needs, PING, HANDSHAKE_DONE, IMMEDIATE_ACK.
        0x00 | 0x01 | 0x1e | 0x1f => Some(()),
        // ACK, with the counts of ECN.
        0x02 | 0x03 => {
            numbers(rest, 2)?;
            let ranges = varint(rest)?;
            numbers(rest, ranges.checked_mul(2)?.checked_add(1)?)?;
            numbers(rest, if kind == 0x03 { 3 } else { 0 })
        }
        // RESET_STREAM.
        0x04 => numbers(rest, 3),
        // STOP_SENDING, MAX_STREAM_DATA, STREAM_DATA_BLOCKED.
        0x05 | 0x11 | 0x15 => numbers(rest, 2),
        // NEW_TOKEN.
        0x07 => {
            let length = varint(rest)?;
            skip(rest, length)
        }
        // MAX_DATA, MAX_STREAMS, DATA_BLOCKED, STREAMS_BLOCKED, RETIRE_CONNECTION_ID.
        0x10 | 0x12..=0x14 | 0x16 | 0x17 | 0x19 => numbers(rest, 1),
        // NEW_CONNECTION_ID.
        0x18 => {
            numbers(rest, 2)?;
            let (&length, behind) = rest.split_first()?;
            *rest = behind;
            skip(rest, u64::from(length) + RESET_TOKEN_BYTES)
        }
        // PATH_CHALLENGE, PATH_RESPONSE.
        0x1a | 0x1b => skip(rest, CHALLENGE_BYTES),
        // CONNECTION_CLOSE, and what quinn knows better.
        _ => None,
    }
}

fn skip(rest: &mut &[u8], bytes: u64) -> Option<()> {
    *rest = rest.get(usize::try_from(bytes).ok()?..)?;
    Some(())
}

/// RFC 9000 section 16.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let first = *rest.first()?;
    let (bytes, behind) = rest.split_at_checked(1 << (first >> 6))?;
    *rest = behind;
    Some(bytes[1..].iter().fold(u64::from(first & 0x3f), |all, byte| all << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each frame of the RFC that a client may send, and whether it is held.
    const FRAMES: [(&[u8], bool); 21] = [
        (&[1], false),
        (&[2, 9, 0, 1, 2, 3, 4], false),
        (&[3, 9, 0, 0, 2, 7, 8, 9], false),
        (&[4, 0, 5, 6], false),
        (&[5, 0, 5], false),
        (&[6, 0, 3, 1, 2, 3], true),
        (&[7, 2, 8, 8], false),
        (&[0x0a, 0, 2, 1, 1], true),
        (&[0x0e, 4, 0x40, 9, 1, 1], true),
        (&[0x0f, 8, 0, 0], true),
        (&[0x10, 1], false),
        (&[0x11, 0, 1], false),
        (&[0x12, 1], false),
        (&[0x13, 1], false),
        (&[0x14, 1], false),
        (&[0x15, 0, 1], false),
        (&[0x16, 1], false),
        (&[0x17, 1], false),
        (&[0x18, 1, 0, 2, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], false),
        (&[0x19, 1], false),
        (&[0x1a, 1, 2, 3, 4, 5, 6, 7, 8], false),
    ];

    #[test]
    fn each_frame_is_passed_and_counted() {
        for (frame, is_held) in FRAMES {
            let packet = [frame, &[0, 0], frame, &[0; 5]].concat();
            let found = content(&packet);
            assert_eq!(found.length, packet.len() - 5, "{frame:?}");
            assert_eq!(found.is_held, is_held, "{frame:?}");
            let expected = if is_held { (0, 2) } else { (2, 0) };
            assert_eq!((found.frames, found.pieces), expected, "{frame:?}");
        }
        let all: Vec<u8> = FRAMES.iter().flat_map(|(frame, _)| frame.to_vec()).collect();
        let found = content(&all);
        assert_eq!((found.frames, found.pieces, found.requests), (17, 4, 3));
    }

    #[test]
    fn a_large_piece_costs_nothing_and_a_stream_may_go_to_the_end() {
        let bytes = usize::try_from(limits::QUIC_PIECE_BYTES).unwrap();
        let large = [&[8, 0][..], &vec![0; bytes]].concat();
        let found = content(&large);
        assert_eq!((found.pieces, found.is_held, found.length), (0, true, large.len()), "zeros of a stream");
        let small = content(&large[..large.len() - 1]);
        assert_eq!(small.pieces, 1);
    }

    #[test]
    fn what_cannot_be_followed_is_left_as_it_is() {
        for packet in [&[0x1c, 0, 0, 0, 0][..], &[0x40, 0x52, 0, 0], &[6, 0, 0x7f, 0xff, 0], &[2, 1, 0, 0xff]]
        {
            assert_eq!(content(packet).length, packet.len(), "{packet:?}");
        }
        assert_eq!(content(&[0; 40]), Content::default());
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for length in 0..2000 {
            let packet: Vec<u8> = (0..length % 97)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    random.to_be_bytes()[3] >> (random.to_be_bytes()[1] % 8)
                })
                .collect();
            assert!(content(&packet).length <= packet.len());
        }
    }
}
