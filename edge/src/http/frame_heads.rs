//! The heads of HTTP/2 frames within a stream of bytes, whatever the sizes of the reads or writes that it comes in.

/// Follows one direction of one connection, behind the client's preface.
#[derive(Debug, Default)]
pub(crate) struct FrameHeads {
    /// Bytes of a payload that are to be passed over.
    skip: usize,
    head: [u8; HEAD_BYTES + CODE_BYTES],
    filled: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameHead {
    Headers {
        stream: u32,
        length: usize,
        ends_stream: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    /// DATA, and nothing behind it.
    LastData {
        stream: u32,
    },
    Other,
}

/// RFC 9113 sections 4.1 and 6.4.
const HEAD_BYTES: usize = 9;
const CODE_BYTES: usize = 4;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

impl FrameHeads {
    /// Follows `bytes`, which came next, and shows each frame whose head has come.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (self.wanted() - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == self.wanted() {
                each(self.kind());
                self.skip = self.length() - (self.filled - HEAD_BYTES);
                self.filled = 0;
            }
        }
    }

    /// A reset's code is looked at with its head.
    fn wanted(&self) -> usize {
        let is_reset = self.filled >= HEAD_BYTES && self.head[3] == RST_STREAM && self.length() >= CODE_BYTES;
        if is_reset { HEAD_BYTES + CODE_BYTES } else { HEAD_BYTES }
    }

    fn kind(&self) -> FrameHead {
        let [_, _, _, kind, flags, stream @ .., a, b, c, d] = self.head;
        let stream = u32::from_be_bytes(stream);
        match (kind, self.filled) {
            (HEADERS, _) => {
                let ends_stream = flags & END_STREAM != 0;
                FrameHead::Headers { stream, length: self.length(), ends_stream }
            }
            (DATA, _) if flags & END_STREAM != 0 => FrameHead::LastData { stream },
            (RST_STREAM, 13) => FrameHead::Reset { stream, code: u32::from_be_bytes([a, b, c, d]) },
            _ => FrameHead::Other,
        }
    }

    fn length(&self) -> usize {
        usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_seen_in_any_pieces() {
        let frame = |kind: u8, payload: &[u8]| {
            let length = u8::try_from(payload.len()).unwrap();
            [&[0, 0, length, kind, 0, 0, 0, 0, 1], payload].concat()
        };
        let bytes = [
            frame(4, &[]),
            frame(HEADERS, &[0x88; 40]),
            frame(RST_STREAM, &[0, 0, 0, 8]),
            frame(0, &[RST_STREAM; 30]),
            frame(RST_STREAM, &[0, 0, 1, 1]),
            frame(HEADERS, &[]),
        ]
        .concat();
        let expected = [
            FrameHead::Other,
            FrameHead::Headers { stream: 1, length: 40, ends_stream: false },
            FrameHead::Reset { stream: 1, code: 8 },
            FrameHead::Other,
            FrameHead::Reset { stream: 1, code: 0x101 },
            FrameHead::Headers { stream: 1, length: 0, ends_stream: false },
        ];
        for size in 1..=bytes.len() {
            let (mut heads, mut seen) = (FrameHeads::default(), Vec::new());
            for piece in bytes.chunks(size) {
                heads.feed(piece, |head| seen.push(head));
            }
            assert_eq!(seen, expected, "{size}");
        }
    }
}
