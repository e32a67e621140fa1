//! One snapshot file: `magic || format version (u16) || epoch, sequence (u64) || frames || sha256 of all before it`.
//! Integers are little endian. The trailer proves that the file is whole and in order; the frames' own checksums
//! say early and cheaply where it is not.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::frame::{Damage, frame_bytes, read_array, read_frame, write_frame};
use crate::ids::Generation;

const MAGIC: [u8; 8] = *b"PTCOSNAP";
const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: u64 = 8 + 2 + 16;
const TRAILER_BYTES: u64 = SHA256_OUTPUT_LEN as u64;
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
    let mut bytes = HEADER_BYTES + TRAILER_BYTES;
    for frame in frames {
        write_frame(&mut out, frame.as_ref())?;
        bytes += frame_bytes(frame.as_ref());
    }
    let Hashing { mut inner, sha256 } = out;
    inner.write_all(sha256.finish().as_ref())?;
    inner.flush()?;
    Ok(bytes)
}

/// Reads the frames of a snapshot of `generation`, once through the file.
pub(super) fn read(file: &File, generation: Generation) -> Result<Vec<Vec<u8>>, Damage> {
    let bytes = file.metadata()?.len();
    let Some(mut remaining) = bytes.checked_sub(HEADER_BYTES + TRAILER_BYTES) else {
        return Err(Damage::Torn);
    };
    let mut input =
        Hashing { inner: BufReader::with_capacity(BUFFER_BYTES, file), sha256: Context::new(&SHA256) };
    read_header(&mut input, generation)?;
    let mut frames = Vec::new();
    while remaining > 0 {
        let frame = read_frame(&mut input, remaining)?;
        remaining -= frame_bytes(&frame);
        frames.push(frame);
    }
    let Hashing { mut inner, sha256 } = input;
    let trailer: [u8; SHA256_OUTPUT_LEN] = read_array(&mut inner)?;
    if sha256.finish().as_ref() == trailer {
        Ok(frames)
    } else {
        Err(Damage::Wrong("the file's sha256".into()))
    }
}

fn read_header(input: &mut impl Read, generation: Generation) -> Result<(), Damage> {
    if read_array(input)? != MAGIC {
        return Err(Damage::Wrong("the file's magic".into()));
    }
    let version = u16::from_le_bytes(read_array(input)?);
    if version != FORMAT_VERSION {
        return Err(Damage::Wrong(format!(
            "format version {version}, and this build reads {FORMAT_VERSION}"
        )));
    }
    let found =
        Generation::new(u64::from_le_bytes(read_array(input)?), u64::from_le_bytes(read_array(input)?));
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

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.sha256.update(&bytes[..read]);
        Ok(read)
    }
}
