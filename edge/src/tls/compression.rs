//! Certificate compression (RFC 8879) that pays only where a certificate is seen again.
//!
//! rustls' own cache holds 4 entries and compresses at the highest level on each miss, under a lock. With many names that
//! is a millisecond in most handshakes (measured: the first 100 names of a run cost ten handshakes each). Here a
//! certificate is sent plain the first time, compressed once when it comes a second time (at the quick level: this happens
//! inside a handshake), and kept by the thread: names with traffic are compressed, a scan over all names costs nothing.

use std::{cell::RefCell, collections::HashMap};

use foldhash::fast::RandomState;
use rustls::{
    CertificateCompressionAlgorithm,
    compress::{BROTLI_COMPRESSOR, CertCompressor, CompressionFailed, CompressionLevel, ZLIB_COMPRESSOR},
};
use std::hash::BuildHasher;

/// Brotli before zlib: the order of our preference.
pub(super) fn compressors() -> Vec<&'static dyn CertCompressor> {
    vec![&BROTLI, &ZLIB]
}

static BROTLI: OnSecondSight = OnSecondSight { inner: BROTLI_COMPRESSOR };
static ZLIB: OnSecondSight = OnSecondSight { inner: ZLIB_COMPRESSOR };

#[derive(Debug)]
struct OnSecondSight {
    inner: &'static dyn CertCompressor,
}

/// Per thread: entries, about 1 KiB each. When it is full it is emptied and fills again with what is in use.
const ENTRIES_MAX: usize = 4096;

#[derive(Default)]
struct Seen {
    hasher: RandomState,
    /// By hash of algorithm and certificate; `None`: seen once.
    entries: HashMap<u64, Option<Compressed>, RandomState>,
}

struct Compressed {
    original: Box<[u8]>,
    compressed: Box<[u8]>,
}

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::new(Seen::default());
}

impl CertCompressor for OnSecondSight {
    /// Fails the first time: rustls then sends the certificate as it is.
    fn compress(&self, input: Vec<u8>, _: CompressionLevel) -> Result<Vec<u8>, CompressionFailed> {
        SEEN.with_borrow_mut(|seen| {
            let key = seen.hasher.hash_one((u16::from(self.algorithm()), &input));
            match seen.entries.get(&key) {
                Some(Some(known)) if *known.original == *input => return Ok(known.compressed.to_vec()),
                Some(None) => {}
                Some(Some(_)) | None => {
                    if seen.entries.len() >= ENTRIES_MAX {
                        seen.entries.clear();
                    }
                    seen.entries.insert(key, None);
                    return Err(CompressionFailed);
                }
            }
            let compressed = self.inner.compress(input.clone(), CompressionLevel::Interactive)?;
            let entry = Compressed { original: input.into(), compressed: compressed.clone().into() };
            seen.entries.insert(key, Some(entry));
            Ok(compressed)
        })
    }

    fn algorithm(&self) -> CertificateCompressionAlgorithm {
        self.inner.algorithm()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_from_the_second_time_on() {
        let certificate = vec![7; 1500];
        assert!(BROTLI.compress(certificate.clone(), CompressionLevel::Interactive).is_err());
        let second = BROTLI.compress(certificate.clone(), CompressionLevel::Interactive).expect("compressed");
        let third = BROTLI.compress(certificate.clone(), CompressionLevel::Interactive).expect("kept");
        assert_eq!(second, third);
        assert!(second.len() < certificate.len());
        assert!(
            ZLIB.compress(certificate, CompressionLevel::Interactive).is_err(),
            "each algorithm by itself"
        );
    }

    #[test]
    fn a_scan_over_many_names_stays_bounded() {
        for number in 0..3 * ENTRIES_MAX {
            let _ = ZLIB.compress(number.to_be_bytes().to_vec(), CompressionLevel::Interactive);
        }
        SEEN.with_borrow(|seen| assert!(seen.entries.len() <= ENTRIES_MAX));
    }
}
