//! Frames of HTTP/2 (RFC 9113) and header blocks (RFC 7541), as bytes.

use std::io::{self, Read};

/// What opens a connection (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One as it came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// Length, kind, flags, stream (RFC 9113 section 4.1).
const HEAD_BYTES: usize = 9;

impl Frame {
    /// The first of `bytes` and its length with its head; `None`: it is not whole yet.
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let (head, rest) = bytes.split_first_chunk()?;
        let payload = rest.get(..length(head))?;
        let frame = Self::read(&mut (&head[..]).chain(payload)).ok()?;
        Some((frame, HEAD_BYTES + length(head)))
    }

    /// # Errors
    /// What reading fails with.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head)?;
        let mut payload = vec![0; length(&head)];
        from.read_exact(&mut payload)?;
        let [_, _, _, kind, flags, stream @ ..] = head;
        Ok(Self { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }
}

fn length(head: &[u8; HEAD_BYTES]) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

/// # Panics
/// If the payload is longer than a frame can be.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The identifier of a connection's request by its number, from 0.
pub fn stream(number: u32) -> u32 {
    2 * number + 1
}

/// GET, https, `/` and the authority.
pub fn get_block(host: &str) -> Vec<u8> {
    block(0x82, host)
}

/// The same with POST.
pub fn post_block(host: &str) -> Vec<u8> {
    block(0x83, host)
}

/// By the static table: `method`, `:scheme` https, `:path` `/`; a literal `:authority`.
fn block(method: u8, host: &str) -> Vec<u8> {
    let mut block = vec![method, 0x87, 0x84, 0x41];
    block.extend(string(host.as_bytes()));
    block
}

/// A literal field that no table takes up.
pub fn literal(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0x00][..], &string(name.as_bytes()), &string(value)].concat()
}

/// A literal field that the dynamic table takes up.
pub fn indexed_literal(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0x40][..], &string(name.as_bytes()), &string(value)].concat()
}

/// Without Huffman code (RFC 7541 section 5.2).
fn string(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    match bytes.len() {
        length @ 0..127 => text.extend(u8::try_from(length)),
        length => {
            text.push(127);
            let mut rest = length - 127;
            while rest >= 128 {
                text.push(u8::try_from(rest % 128).unwrap_or(0) | 0x80);
                rest /= 128;
            }
            text.extend(u8::try_from(rest));
        }
    }
    text.extend_from_slice(bytes);
    text
}

/// A whole request without a body.
pub fn get(stream: u32, host: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &get_block(host))
}

/// The beginning of a request whose body is to follow.
pub fn post(stream: u32, host: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &post_block(host))
}

/// With CANCEL.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// One setting.
pub fn setting(identifier: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 section 6.5.2).
pub const INITIAL_WINDOW_SIZE: u16 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_made_and_not_before_it_is_whole() {
        let made = [frame(HEADERS, END_HEADERS, 3, &[9; 300]), vec![1, 2]].concat();
        let (read, length) = Frame::parse(&made).unwrap();
        assert_eq!((read.kind, read.flags, read.stream, length), (HEADERS, END_HEADERS, 3, made.len() - 2));
        assert_eq!(read.payload, [9; 300]);
        for whole in [0, 8, 9, 308] {
            assert!(Frame::parse(&made[..whole]).is_none(), "{whole}");
        }
    }

    #[test]
    fn frames_and_strings_are_those_of_the_standards() {
        assert_eq!(frame(PING, 0, 0, &[7; 8]), [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat());
        // RFC 7541 section 5.1: 1337 is 127 and 1210, and that is 58 and 9 times 128.
        assert_eq!(string(&[b'x'; 1337])[..3], [127, 0x80 | 58, 9]);
        assert_eq!(string(b"abc"), [3, b'a', b'b', b'c']);
        assert_eq!((stream(0), stream(1)), (1, 3));
    }
}
