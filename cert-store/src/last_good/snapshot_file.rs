//! One snapshot file: `magic || format version (u16) || epoch, sequence (u64) || frames || sha256 of all before it`.
//! Integers are little endian. The trailer proves that the file is whole and in order; the frames' own checksums
//! say early and cheaply where it is not.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::Range;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};

use super::Frames;
use super::frame::{Damage, check_frame, frame_bytes, read_array, write_frame};
use crate::ids::Generation;

const MAGIC: [u8; 8] = *b"PTCOSNAP";
const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 8 + 2 + 16;
const TRAILER_BYTES: usize = SHA256_OUTPUT_LEN;
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes a whole snapshot and gives its size in bytes. Does not sync.
pub(super) fn write<F: AsRef<[u8]>>(
    file: &File,
    generation: Generation,
    frames: impl IntoIterator<Item = F>,
) -> io::Result<u64> {
    let mut out =
        Hashing { inner: BufWriter::with_capacity(BUFFER_BYTES, file), sha256: Context::new(&SHA256) };
    out.write_all(&MAGIC)?;
    out.write_all(&FORMAT_VERSION.to_le_bytes())?;
    out.write_all(&generation.epoch.to_le_bytes())?;
    out.write_all(&generation.sequence.to_le_bytes())?;
    let mut bytes = (HEADER_BYTES + TRAILER_BYTES) as u64;
    for frame in frames {
        write_frame(&mut out, frame.as_ref())?;
        bytes += frame_bytes(frame.as_ref());
    }
    let Hashing { mut inner, sha256 } = out;
    inner.write_all(sha256.finish().as_ref())?;
    inner.flush()?;
    Ok(bytes)
}

/// Reads a snapshot of `generation`: once into memory, hashed on one core while its frames are checked on another.
pub(super) fn read(mut file: &File, generation: Generation) -> Result<Frames, Damage> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length < HEADER_BYTES + TRAILER_BYTES {
        return Err(Damage::Torn);
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|error| Damage::Io(io::Error::other(error)))?;
    // A file that grows meanwhile is not read for ever.
    (&mut file).take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(Damage::Torn);
    }
    let (hashed, trailer) = bytes.split_at(length - TRAILER_BYTES);
    let ranges = std::thread::scope(|scope| {
        let hash = scope.spawn(|| digest(&SHA256, hashed));
        let ranges = check_header(hashed, generation).and_then(|()| check_frames(hashed));
        let hash = hash.join().map_err(|_| Damage::Wrong("hashing it".into()))?;
        // Frames come first: their checksums say where it is.
        let ranges = ranges?;
        if hash.as_ref() == trailer { Ok(ranges) } else { Err(Damage::Wrong("the file's sha256".into())) }
    })?;
    Ok(Frames { bytes, ranges })
}

fn check_frames(hashed: &[u8]) -> Result<Vec<Range<usize>>, Damage> {
    let mut ranges = Vec::new();
    let mut at = HEADER_BYTES;
    while at < hashed.len() {
        let frame = check_frame(&hashed[at..])?;
        ranges.push(at + frame.start..at + frame.end);
        at += frame.end;
    }
    Ok(ranges)
}

fn check_header(bytes: &[u8], generation: Generation) -> Result<(), Damage> {
    let mut input = bytes;
    if read_array(&mut input)? != MAGIC {
        return Err(Damage::Wrong("the file's magic".into()));
    }
    let version = u16::from_le_bytes(read_array(&mut input)?);
    if version != FORMAT_VERSION {
        return Err(Damage::Wrong(format!(
            "format version {version}, and this build reads {FORMAT_VERSION}"
        )));
    }
    let mut number = || read_array(&mut input).map(u64::from_le_bytes);
    let found = Generation::new(number()?, number()?);
    if found != generation {
        return Err(Damage::Wrong(format!("it holds generation {found}")));
    }
    Ok(())
}

/// Passes bytes through and hashes them.
struct Hashing<T> {
    inner: T,
    sha256: Context,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sha256.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
