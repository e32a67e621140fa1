//! Looks along a request stream's frames without decoding them (RFC 9114 section 7.1).
//!
//! h3 holds a frame that is not DATA whole before it looks at it, whatever length it claims, and takes the end of a stream
//! inside a DATA frame for the end of the body. So the bytes pass by here first: large frames are refused by their
//! length, a stream that ends inside a frame is an error, and the payload bytes that h3 holds are counted, so that it is
//! given no more before they were taken.

use super::violation::Violation;

/// A frame that is not DATA, bytes: a header section of 32 KiB is less than that when encoded.
pub(super) const FRAME_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of one stream that are not a body.
pub(super) const OVERHEAD_BYTES_MAX: u64 = 1024 * 1024;

const DATA: u64 = 0;
const CANCEL_PUSH: u64 = 3;
const CONTROL_STREAM: u64 = 0;
const PUSH_STREAM: u64 = 1;

#[derive(Debug, Default)]
pub(super) struct FrameScanner {
    state: State,
    overhead_bytes: u64,
    body_bytes: u64,
}

#[derive(Debug)]
pub(super) enum State {
    Type(Varint),
    Length { kind: u64, length: Varint },
    Payload { is_data: bool, left: u64 },
}

/// A variable-length integer (RFC 9000 section 16), of which some bytes are there.
#[derive(Debug, Default)]
pub(super) struct Varint {
    value: u64,
    missing: Option<u8>,
}

/// The stream is not to be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameFault {
    #[error("a frame of {length} bytes")]
    TooLarge { length: u64 },
    #[error("more than {OVERHEAD_BYTES_MAX} bytes that are not a body")]
    Overhead,
}

impl FrameScanner {
    /// Takes note of the next bytes; says how many of them are payload of DATA frames.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<usize, FrameFault> {
        let mut data = 0;
        while !bytes.is_empty() {
            let (used, is_data) = self.step(bytes)?;
            if is_data {
                data += used;
                // A body pays for the heads of its own frames.
                self.body_bytes += used as u64;
            } else {
                self.overhead_bytes += used as u64;
            }
            bytes = &bytes[used..];
        }
        if self.overhead_bytes > OVERHEAD_BYTES_MAX + 2 * self.body_bytes {
            return Err(FrameFault::Overhead);
        }
        Ok(data)
    }

    /// A stream must not end now.
    pub(super) fn is_inside_frame(&self) -> bool {
        match &self.state {
            State::Type(kind) => kind.missing.is_some(),
            State::Length { .. } | State::Payload { .. } => true,
        }
    }

    /// Uses some bytes, at least one.
    fn step(&mut self, bytes: &[u8]) -> Result<(usize, bool), FrameFault> {
        match &mut self.state {
            State::Type(kind) => {
                if let Some(kind) = kind.push(bytes[0]) {
                    self.state = State::Length { kind, length: Varint::default() };
                }
                Ok((1, false))
            }
            State::Length { kind, length } => {
                let Some(length) = length.push(bytes[0]) else { return Ok((1, false)) };
                let is_data = *kind == DATA;
                if !is_data && length > FRAME_BYTES_MAX {
                    return Err(FrameFault::TooLarge { length });
                }
                self.state = after_head(is_data, length);
                Ok((1, false))
            }
            State::Payload { is_data, left } => {
                let is_data = *is_data;
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                let left = *left - used as u64;
                self.state = after_head(is_data, left);
                Ok((used, is_data))
            }
        }
    }
}

/// Looks along a stream of the client's own (RFC 9114 section 6.2) for what h3 takes in silence.
#[derive(Debug)]
pub(super) enum OwnStreamScanner {
    Type(Varint),
    Control(State),
    /// Nothing is looked for.
    Other,
}

impl OwnStreamScanner {
    /// Takes note of the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while let Some(&first) = bytes.first() {
            let used = match self {
                Self::Type(kind) => {
                    match kind.push(first) {
                        None => {}
                        Some(CONTROL_STREAM) => *self = Self::Control(State::default()),
                        Some(PUSH_STREAM) => return Err(Violation::PushStream),
                        Some(_) => *self = Self::Other,
                    }
                    1
                }
                Self::Control(state) => state.step_control(first, bytes.len())?,
                Self::Other => return Ok(()),
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }
}

impl Default for OwnStreamScanner {
    fn default() -> Self {
        Self::Type(Varint::default())
    }
}

impl State {
    /// Uses some of so many bytes of a control stream, at least one.
    fn step_control(&mut self, first: u8, bytes: usize) -> Result<usize, Violation> {
        match self {
            Self::Type(kind) => match kind.push(first) {
                None => {}
                Some(CANCEL_PUSH) => return Err(Violation::CancelPush),
                Some(kind) => *self = Self::Length { kind, length: Varint::default() },
            },
            Self::Length { length, .. } => {
                if let Some(length) = length.push(first) {
                    *self = after_head(false, length);
                }
            }
            Self::Payload { left, .. } => {
                let used = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes);
                *self = after_head(false, *left - used as u64);
                return Ok(used);
            }
        }
        Ok(1)
    }
}

fn after_head(is_data: bool, left: u64) -> State {
    if left == 0 { State::default() } else { State::Payload { is_data, left } }
}

impl Default for State {
    fn default() -> Self {
        Self::Type(Varint::default())
    }
}

impl Varint {
    /// The value, with its last byte.
    fn push(&mut self, byte: u8) -> Option<u64> {
        let missing = match self.missing {
            None => {
                self.value = u64::from(byte & 0x3f);
                (1_u8 << (byte >> 6)) - 1
            }
            Some(missing) => {
                self.value = self.value << 8 | u64::from(byte);
                missing - 1
            }
        };
        self.missing = Some(missing);
        (missing == 0).then_some(self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HEADERS of 3 bytes, DATA of 5, an unknown frame of 2, DATA of 0, HEADERS of 1; lengths in each form.
    const STREAM: &[u8] = &[
        1, 3, b'h', b'h', b'h', 0, 0x40, 5, b'd', b'd', b'd', b'd', b'd', 0x80, 0, 0x77, 0x77, 0xc0, 0, 0, 0,
        0, 0, 0, 2, b'u', b'u', 0, 0, 1, 1, b't',
    ];

    #[test]
    fn payload_is_counted_however_the_stream_is_cut() {
        for size in 1..STREAM.len() {
            let mut scanner = FrameScanner::default();
            let data: usize = STREAM.chunks(size).map(|chunk| scanner.feed(chunk).unwrap()).sum();
            assert_eq!(data, 5, "in pieces of {size}");
            assert!(!scanner.is_inside_frame());
        }
    }

    #[test]
    fn an_end_inside_a_frame_is_truncation() {
        let boundaries = [0, 5, 13, 27, 29, 32];
        for cut in 0..=STREAM.len() {
            let mut scanner = FrameScanner::default();
            scanner.feed(&STREAM[..cut]).unwrap();
            assert_eq!(scanner.is_inside_frame(), !boundaries.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn a_push_stream_and_cancel_push_are_found_however_they_are_cut() {
        let fed = |bytes: &[u8]| {
            let mut whole = OwnStreamScanner::default();
            let told = whole.feed(bytes);
            let mut cut = OwnStreamScanner::default();
            assert_eq!(bytes.chunks(1).try_for_each(|byte| cut.feed(byte)), told, "{bytes:?}");
            told
        };
        assert_eq!(fed(&[1]), Err(Violation::PushStream));
        assert_eq!(fed(&[0x40, 1, 0]), Err(Violation::PushStream));
        // SETTINGS with a value whose bytes look like it, GOAWAY, MAX_PUSH_ID.
        let settings: &[u8] = &[0, 4, 2, 3, 3, 7, 1, 0, 13, 1, 3];
        assert_eq!(fed(settings), Ok(()));
        assert_eq!(fed(&[settings, &[3, 1, 0]].concat()), Err(Violation::CancelPush));
        assert_eq!(fed(&[settings, &[0x40, 3]].concat()), Err(Violation::CancelPush));
        // QPACK's, and one of a type that nobody knows.
        assert_eq!(fed(&[2, 1, 3]), Ok(()));
        assert_eq!(fed(&[3, 3, 1, 0]), Ok(()));
        assert_eq!(fed(&[0x21, 3, 1, 0]), Ok(()));
    }

    #[test]
    fn only_data_may_be_large() {
        let claim = |kind| [kind, 0xbf, 0xff, 0xff, 0xff];
        assert_eq!(FrameScanner::default().feed(&claim(0)), Ok(0));
        let length = 0x3fff_ffff;
        assert_eq!(FrameScanner::default().feed(&claim(1)), Err(FrameFault::TooLarge { length }));
        assert_eq!(FrameScanner::default().feed(&claim(0x21)), Err(FrameFault::TooLarge { length }));
    }

    #[test]
    fn frames_without_a_body_have_a_bound_and_one_byte_frames_pay_their_way() {
        let unknown = [&[0x21, 0x7f, 0xff][..], &[0; 0x3fff][..]].concat();
        let mut scanner = FrameScanner::default();
        let fed = (0..1000).take_while(|_| scanner.feed(&unknown).is_ok()).count();
        assert_eq!(fed as u64, OVERHEAD_BYTES_MAX / unknown.len() as u64);
        let mut scanner = FrameScanner::default();
        for _ in 0..1_000_000 {
            assert_eq!(scanner.feed(&[0, 1, b'x']), Ok(1));
        }
    }
}
