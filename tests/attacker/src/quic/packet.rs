//! Packets of QUIC version 1 (RFC 9000 section 17, RFC 9001 section 5), made and opened by hand.

use rustls::quic::{DirectionalKeys, HeaderProtectionKey, PacketKey};

/// Where a datagram with an Initial may end (RFC 9000 section 14.1).
pub(crate) const DATAGRAM_BYTES: usize = 1200;
pub(crate) const VERSION: u32 = 1;

/// Kinds of packets that carry frames, with the first byte of their header, packet number of four bytes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Initial,
    Handshake,
    Short,
}

/// Whom a packet is for, from whom it is, the token of an Initial, and the key phase of an established connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addressing {
    pub(crate) to: Vec<u8>,
    pub(crate) from: Vec<u8>,
    pub(crate) token: Vec<u8>,
    pub(crate) phase: bool,
}

const PACKET_NUMBER_BYTES: usize = 4;
/// In the first byte of a short header.
const KEY_PHASE: u8 = 0x04;
const SAMPLE_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// A packet with these frames; `least` is what it is filled up to.
pub(crate) fn seal(
    kind: Kind,
    addressing: &Addressing,
    number: u32,
    frames: &[u8],
    (keys, least): (&DirectionalKeys, usize),
) -> Vec<u8> {
    let first = match kind {
        Kind::Initial => 0xc3,
        Kind::Handshake => 0xe3,
        Kind::Short if addressing.phase => 0x43 | KEY_PHASE,
        Kind::Short => 0x43,
    };
    let mut header = vec![first];
    if kind != Kind::Short {
        header.extend(VERSION.to_be_bytes());
        header.push(length_byte(&addressing.to));
    }
    header.extend(&addressing.to);
    if kind != Kind::Short {
        header.push(length_byte(&addressing.from));
        header.extend(&addressing.from);
    }
    if kind == Kind::Initial {
        header.extend(varint(addressing.token.len() as u64));
        header.extend(&addressing.token);
    }
    let length_bytes = if kind == Kind::Short { 0 } else { 2 };
    let outside = header.len() + length_bytes + PACKET_NUMBER_BYTES + TAG_BYTES;
    let mut payload = frames.to_vec();
    // PADDING is zeroes; the sample needs four bytes in any case.
    payload.resize(frames.len().max(least.saturating_sub(outside)).max(PACKET_NUMBER_BYTES), 0);
    if kind != Kind::Short {
        let length = u16::try_from(PACKET_NUMBER_BYTES + payload.len() + TAG_BYTES).unwrap_or(0x3fff);
        header.extend((0x4000 | length).to_be_bytes());
    }
    let number_at = header.len();
    header.extend(number.to_be_bytes());
    let Ok(tag) = keys.packet.encrypt_in_place(number.into(), &header, &mut payload) else {
        return Vec::new();
    };
    let mut packet = [&header[..], &payload, tag.as_ref()].concat();
    let (head, rest) = packet.split_at_mut(number_at + PACKET_NUMBER_BYTES);
    let (first, head) = head.split_at_mut(1);
    let number = &mut head[number_at - 1..];
    let _protected = keys.header.encrypt_in_place(&rest[..SAMPLE_BYTES], &mut first[0], number);
    packet
}

/// One packet of a datagram that came.
pub(crate) struct Received {
    pub(crate) kind: Kind,
    /// The sender's own id; none in a short header.
    pub(crate) from: Vec<u8>,
    pub(crate) whole: Vec<u8>,
    number_at: usize,
}

/// Whether the first packet of a datagram is for the connection with this id.
pub(crate) fn is_for(datagram: &[u8], own_id: &[u8]) -> bool {
    // Behind the version and a length, where the header is a long one.
    let at = if datagram.first().is_some_and(|first| first & 0x80 == 0) { 1 } else { 6 };
    datagram.get(at..).is_some_and(|rest| rest.starts_with(own_id))
}

/// What stands in a datagram; ids of short headers are as long as ours.
pub(crate) enum Seen {
    Packet(Received),
    Retry { from: Vec<u8>, token: Vec<u8> },
    Nothing,
}

/// Splits the first packet off.
pub(crate) fn next(datagram: &mut &[u8], own_id_bytes: usize) -> Seen {
    let Some((seen, used)) = split(datagram, own_id_bytes) else {
        *datagram = &[];
        return Seen::Nothing;
    };
    *datagram = datagram.get(used..).unwrap_or_default();
    seen
}

fn split(datagram: &[u8], own_id_bytes: usize) -> Option<(Seen, usize)> {
    let first = *datagram.first()?;
    if first & 0x80 == 0 {
        let received = Received {
            kind: Kind::Short,
            from: Vec::new(),
            whole: datagram.to_vec(),
            number_at: 1 + own_id_bytes,
        };
        return Some((Seen::Packet(received), datagram.len()));
    }
    let mut at = 5;
    let to = id(datagram, &mut at)?;
    let from = id(datagram, &mut at)?;
    debug_assert!(to.len() <= 20);
    if first & 0x30 == 0x30 {
        // An integrity tag of 16 bytes ends it.
        let token = datagram.get(at..datagram.len().checked_sub(TAG_BYTES)?)?.to_vec();
        return Some((Seen::Retry { from, token }, datagram.len()));
    }
    let kind = match first & 0x30 {
        0x00 => Kind::Initial,
        0x20 => Kind::Handshake,
        _ => return None,
    };
    if kind == Kind::Initial {
        let token = read_varint(datagram, &mut at)?;
        at += usize::try_from(token).ok()?;
    }
    let length = usize::try_from(read_varint(datagram, &mut at)?).ok()?;
    let whole = datagram.get(..at + length)?.to_vec();
    Some((Seen::Packet(Received { kind, from, whole, number_at: at }), at + length))
}

/// A packet whose header has no protection any more.
pub(crate) struct Unprotected {
    pub(crate) number: u64,
    /// Of a short header.
    pub(crate) phase: bool,
    whole: Vec<u8>,
    payload_at: usize,
}

impl Received {
    /// `expected` is the number behind the largest one so far.
    pub(crate) fn unprotect(mut self, key: &dyn HeaderProtectionKey, expected: u64) -> Option<Unprotected> {
        let sample_at = self.number_at + PACKET_NUMBER_BYTES;
        let sample = self.whole.get(sample_at..sample_at + SAMPLE_BYTES)?.to_vec();
        let (head, _) = self.whole.split_at_mut(sample_at);
        let (first, head) = head.split_at_mut(1);
        key.decrypt_in_place(&sample, &mut first[0], &mut head[self.number_at - 1..]).ok()?;
        let (number_bytes, phase) = (usize::from(first[0] & 3) + 1, first[0] & KEY_PHASE != 0);
        let payload_at = self.number_at + number_bytes;
        let number = self.whole[self.number_at..payload_at].iter();
        let cut = number.fold(0, |all, byte| all << 8 | u64::from(*byte));
        let number = whole_number(cut, 8 * number_bytes, expected);
        Some(Unprotected { number, phase, whole: self.whole, payload_at })
    }
}

impl Unprotected {
    /// The frames inside.
    pub(crate) fn open(mut self, key: &dyn PacketKey) -> Option<Vec<u8>> {
        let (header, payload) = self.whole.split_at_mut(self.payload_at);
        key.decrypt_in_place(self.number, header, payload).ok().map(<[u8]>::to_vec)
    }
}

/// The number nearest to the expected one that ends in these bits (RFC 9000 appendix A.3).
fn whole_number(cut: u64, bits: usize, expected: u64) -> u64 {
    let window = 1_u64 << bits;
    let candidate = expected & !(window - 1) | cut;
    if candidate + window / 2 <= expected {
        candidate + window
    } else if candidate > expected + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

fn id(bytes: &[u8], at: &mut usize) -> Option<Vec<u8>> {
    let length = usize::from(*bytes.get(*at)?);
    let id = bytes.get(*at + 1..*at + 1 + length)?.to_vec();
    *at += 1 + length;
    Some(id)
}

fn length_byte(id: &[u8]) -> u8 {
    u8::try_from(id.len()).unwrap_or(u8::MAX)
}

/// RFC 9000 section 16.
pub(crate) fn varint(value: u64) -> Vec<u8> {
    match value {
        0..0x40 => vec![u8::try_from(value).unwrap_or(0)],
        0x40..0x4000 => (0x4000 | u16::try_from(value).unwrap_or(0)).to_be_bytes().to_vec(),
        0x4000..0x4000_0000 => (0x8000_0000 | u32::try_from(value).unwrap_or(0)).to_be_bytes().to_vec(),
        _ => (0xc000_0000_0000_0000 | value).to_be_bytes().to_vec(),
    }
}

pub(crate) fn read_varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let first = *bytes.get(*at)?;
    let length = 1 << (first >> 6);
    let rest = bytes.get(*at + 1..*at + length)?;
    *at += length;
    Some(rest.iter().fold(u64::from(first & 0x3f), |all, byte| all << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_standard_and_come_back() {
        // RFC 9000 appendix A.1.
        assert_eq!(varint(37), [0x25]);
        assert_eq!(varint(15_293), [0x7b, 0xbd]);
        assert_eq!(varint(494_878_333), [0x9d, 0x7f, 0x3e, 0x7d]);
        for value in [0, 63, 64, 16_383, 16_384, 1 << 29, 1 << 30, 1 << 50] {
            assert_eq!(read_varint(&varint(value), &mut 0), Some(value));
        }
        // Appendix A.3.
        assert_eq!(whole_number(0x9b32, 16, 0xa82f_30ea + 1), 0xa82f_9b32);
        assert_eq!(
            (whole_number(3, 8, 2), whole_number(1, 8, 300), whole_number(0xff, 8, 256)),
            (3, 257, 255)
        );
    }
}
