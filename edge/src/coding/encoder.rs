//! The three encoders behind one face: bytes in, and what there is of bytes out.

use std::{fmt, io, io::Write as _};

use brotli::CompressorWriter;
use flate2::{Compression, write::GzEncoder};
use portico_api::v1::ContentCoding;
use zstd::stream::raw::CParameter;

/// Bytes given to an encoder at a time. brotli works when it has 64 KiB, zstd when it has 128: 2 to 5 ms at the levels below.
pub(super) const SLICE_BYTES: usize = 16 * 1024;

/// Back-references reach this far, as a power of two: 128 KiB hold what repeats in most pages, and bound what a stream costs.
const WINDOW_BITS: u32 = 17;
/// brotli finds less at level 5 than at level 4 where the window is small.
const KEPT_WINDOW_BITS: u32 = 20;
/// brotli's own buffer for what comes out.
const BROTLI_BUFFER_BYTES: usize = 8 * 1024;

/// How much work a body is worth.
///
/// Measured on a page of 942 KB, JSON of 140 KB and a style sheet of 70 KB (part of the bytes left, MB/s of one core): quick:
/// zstd 3 13 %, 14 %, 23 % at 130 to 170; br 4 12 %, 13 %, 22 % at 23 to 39; gzip 5 11 %, 12 %, 21 % at 50 to 117. Kept:
/// zstd 9 10 %, 11 %, 21 % at 18 to 38; br 5 9 %, 11 %, 20 % at 17 to 26. Higher levels cost twice as much for 2 % less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// For one client, as it comes.
    Quick,
    /// For all who will ask for it.
    Kept,
}

/// One body on its way into a coding.
pub(crate) enum Encoder {
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    Gzip(GzEncoder<Vec<u8>>),
}

impl Encoder {
    /// # Errors
    /// When zstd has no memory.
    pub(crate) fn new(coding: ContentCoding, effort: Effort) -> io::Result<Self> {
        let kept = effort == Effort::Kept;
        let out = Vec::new();
        Ok(match coding {
            ContentCoding::Br => {
                let (level, window) = if kept { (5, KEPT_WINDOW_BITS) } else { (4, WINDOW_BITS) };
                let writer = CompressorWriter::new(out, BROTLI_BUFFER_BYTES, level, window);
                Self::Brotli(Box::new(writer))
            }
            ContentCoding::Zstd => {
                let level = if kept { 9 } else { 3 };
                let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW_BITS))?;
                Self::Zstd(encoder)
            }
            ContentCoding::Gzip => {
                Self::Gzip(GzEncoder::new(out, Compression::new(if kept { 6 } else { 5 })))
            }
        })
    }

    /// # Errors
    /// None that a body could bring about: the output is memory.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Brotli(encoder) => encoder.write_all(bytes),
            Self::Zstd(encoder) => encoder.write_all(bytes),
            Self::Gzip(encoder) => encoder.write_all(bytes),
        }
    }

    /// Makes all that was written readable to the client.
    ///
    /// # Errors
    /// As [`Encoder::write`].
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Brotli(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
        }
    }

    /// The rest of the output.
    ///
    /// # Errors
    /// As [`Encoder::write`].
    pub(crate) fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(encoder) => encoder.finish(),
        }
    }

    /// What has come out and was not taken yet.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        match self {
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
            Self::Gzip(encoder) => encoder.get_mut(),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Brotli(_) => "Brotli",
            Self::Zstd(_) => "Zstd",
            Self::Gzip(_) => "Gzip",
        })
    }
}
