//! The log of deltas after one snapshot: `magic || format version (u16)`, then for each delta one frame that announces
//! it (its generation and how many frames follow) and those frames. The first announcement also names the snapshot's
//! generation, so a log can never be read onto another base.
//!
//! A delta counts only if it is whole. What follows the first damaged byte is not read: later deltas build on it.

use std::fs::File;
use std::io::{BufReader, Read};

use super::LoggedDelta;
use super::frame::{Damage, frame_bytes, read_array, read_frame, write_frame};
use crate::ids::Generation;

const MAGIC: [u8; 8] = *b"PTCODLTA";
const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: u64 = 8 + 2;
const ANNOUNCEMENT_BYTES: usize = 16 + 16 + 4;

/// What a log holds.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) deltas: Vec<LoggedDelta>,
    /// Bytes up to the end of the last whole delta; what is written next goes there.
    pub(super) good_bytes: u64,
    /// Why the rest was not read.
    pub(super) damage: Option<Damage>,
}

pub(super) fn header() -> Vec<u8> {
    [MAGIC.as_slice(), &FORMAT_VERSION.to_le_bytes()].concat()
}

/// One delta as it is appended.
///
/// # Errors
/// `InvalidInput` for a frame that is too large, or too many of them.
pub(super) fn encode<F: AsRef<[u8]>>(
    base: Generation,
    generation: Generation,
    frames: &[F],
) -> std::io::Result<Vec<u8>> {
    let count = u32::try_from(frames.len()).map_err(|_| {
        std::io::Error::new(std::io::ErrorKind::InvalidInput, "more than 2^32 frames in a delta")
    })?;
    let numbers = [base.epoch, base.sequence, generation.epoch, generation.sequence];
    let mut announcement: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    announcement.extend_from_slice(&count.to_le_bytes());
    let mut out = Vec::new();
    write_frame(&mut out, &announcement)?;
    for frame in frames {
        write_frame(&mut out, frame.as_ref())?;
    }
    Ok(out)
}

/// Reads all whole deltas of the log after the snapshot of generation `base`.
pub(super) fn read(file: &File, base: Generation) -> Log {
    let mut log = Log::default();
    if let Err(damage) = read_deltas(file, base, &mut log) {
        log.damage = Some(damage);
    }
    log
}

fn read_deltas(file: &File, base: Generation, log: &mut Log) -> Result<(), Damage> {
    let bytes = file.metadata()?.len();
    let mut input = BufReader::with_capacity(64 * 1024, file);
    read_header(&mut input)?;
    log.good_bytes = HEADER_BYTES;
    let mut last = base;
    while log.good_bytes < bytes {
        let (delta, delta_bytes) = read_delta(&mut input, bytes - log.good_bytes, base, last)?;
        last = delta.generation;
        log.good_bytes += delta_bytes;
        log.deltas.push(delta);
    }
    Ok(())
}

fn read_header(input: &mut impl Read) -> Result<(), Damage> {
    if read_array(input)? != MAGIC {
        return Err(Damage::Wrong("the file's magic".into()));
    }
    let version = u16::from_le_bytes(read_array(input)?);
    if version == FORMAT_VERSION { Ok(()) } else { Err(Damage::Wrong(format!("format version {version}"))) }
}

fn read_delta(
    input: &mut impl Read,
    mut remaining: u64,
    base: Generation,
    last: Generation,
) -> Result<(LoggedDelta, u64), Damage> {
    let available = remaining;
    let announcement = read_frame(input, remaining)?;
    remaining -= frame_bytes(&announcement);
    let (named_base, generation, count) = parse_announcement(&announcement)?;
    if named_base != base || generation <= last {
        return Err(Damage::Wrong(format!(
            "delta {generation} on {named_base} does not follow {last} on {base}"
        )));
    }
    let mut frames = Vec::new();
    for _ in 0..count {
        let frame = read_frame(input, remaining)?;
        remaining -= frame_bytes(&frame);
        frames.push(frame);
    }
    Ok((LoggedDelta { generation, frames }, available - remaining))
}

fn parse_announcement(bytes: &[u8]) -> Result<(Generation, Generation, u32), Damage> {
    if bytes.len() != ANNOUNCEMENT_BYTES {
        return Err(Damage::Wrong("a delta's announcement".into()));
    }
    let mut input = bytes;
    let mut number = || read_array(&mut input).map(u64::from_le_bytes);
    let base = Generation::new(number()?, number()?);
    let generation = Generation::new(number()?, number()?);
    Ok((base, generation, u32::from_le_bytes(read_array(&mut input)?)))
}
