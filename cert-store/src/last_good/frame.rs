//! Frames: how bytes are delimited and checked in every last-good file.
//!
//! `length (u32, little endian) || crc32c of length and payload (u32) || payload`. A length is believed only up to
//! [`FRAME_BYTES_MAX`] and to what the file still holds, so a damaged one cannot ask for memory.

use std::io::{self, Read, Write};
use std::ops::Range;

/// Largest payload in bytes. A resource on the wire is at most 1 MiB.
pub const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes before the payload.
pub(super) const FRAME_HEADER_BYTES: usize = 8;

/// Why bytes are not what was written.
#[derive(Debug)]
pub(super) enum Damage {
    /// They end too early.
    Torn,
    /// A checksum, a count or a field does not fit; the text says which.
    Wrong(String),
    /// Reading itself failed: the bytes may be fine.
    Io(io::Error),
}

/// Appends a frame to memory.
///
/// # Errors
/// `InvalidInput` for a payload over [`FRAME_BYTES_MAX`].
pub(super) fn write_frame(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= FRAME_BYTES_MAX)
        .ok_or_else(|| too_large(payload.len()))?
        .to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&checksum(length, payload).to_le_bytes())?;
    out.write_all(payload)
}

/// Reads a frame from a file that has `remaining` more bytes.
pub(super) fn read_frame(input: &mut impl Read, remaining: u64) -> Result<Vec<u8>, Damage> {
    let header_bytes = FRAME_HEADER_BYTES as u64;
    if remaining < header_bytes {
        return Err(Damage::Torn);
    }
    let (length, crc) = (read_array(input)?, u32::from_le_bytes(read_array(input)?));
    let bytes = u32::from_le_bytes(length) as usize;
    if bytes > FRAME_BYTES_MAX {
        return Err(Damage::Wrong(format!("a frame claims {bytes} bytes")));
    }
    if bytes as u64 > remaining - header_bytes {
        return Err(Damage::Torn);
    }
    let mut payload = vec![0; bytes];
    input.read_exact(&mut payload)?;
    if checksum(length, &payload) == crc {
        Ok(payload)
    } else {
        Err(Damage::Wrong("a frame's checksum".into()))
    }
}

/// Checks the frame that `bytes` begin with, and gives where its payload is.
pub(super) fn check_frame(bytes: &[u8]) -> Result<Range<usize>, Damage> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(Damage::Torn)?;
    let (crc, rest) = rest.split_first_chunk::<4>().ok_or(Damage::Torn)?;
    let payload_bytes = u32::from_le_bytes(*length) as usize;
    if payload_bytes > FRAME_BYTES_MAX {
        return Err(Damage::Wrong(format!("a frame claims {payload_bytes} bytes")));
    }
    let payload = rest.get(..payload_bytes).ok_or(Damage::Torn)?;
    if checksum(*length, payload) != u32::from_le_bytes(*crc) {
        return Err(Damage::Wrong("a frame's checksum".into()));
    }
    Ok(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload_bytes)
}

pub(super) fn read_array<const N: usize>(input: &mut impl Read) -> Result<[u8; N], Damage> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn frame_bytes(payload: &[u8]) -> u64 {
    (FRAME_HEADER_BYTES + payload.len()) as u64
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), payload)
}

fn too_large(bytes: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("a frame of {bytes} bytes; {FRAME_BYTES_MAX} are allowed"),
    )
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Torn } else { Self::Io(error) }
    }
}
