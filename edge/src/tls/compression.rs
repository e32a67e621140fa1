//! Certificate compression (RFC 8879) that pays only where a certificate is seen again, and once for the process.
//!
//! rustls' own cache holds 4 entries and compresses at the highest level on each miss. With many names that is a
//! millisecond in most handshakes (measured: the first 100 names of a run cost ten handshakes each). Here a certificate is
//! sent plain the first time, compressed once when it comes a second time (at the quick level: this happens inside a
//! handshake), and kept for all workers: names with traffic are compressed, a scan over all names costs nothing. A renewed
//! certificate is another one.
//!
//! Nobody waits (P1): where a lock is held just now, or another worker compresses this very certificate, it is sent plain.

use std::collections::HashMap;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use foldhash::fast::RandomState;
use rustls::CertificateCompressionAlgorithm;
use rustls::compress::{
    BROTLI_COMPRESSOR, CertCompressor, CompressionFailed, CompressionLevel, ZLIB_COMPRESSOR,
};

use crate::limits::CERTIFICATE_COMPRESSIONS_MAX;
use crate::metrics;

/// What is kept of both algorithms.
pub struct CertificateCompressions {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    /// By [`Algorithm`].
    made: [AtomicU64; 2],
}

/// Two workers seldom meet in one.
const SHARDS: usize = 64;
const GENERATION_MAX: usize = CERTIFICATE_COMPRESSIONS_MAX / SHARDS / 2;

/// Two generations: what is used moves to the young one, and the old one goes as a whole when that is full.
#[derive(Default)]
struct Shard {
    young: Entries,
    old: Entries,
}

/// By hash of algorithm and certificate.
type Entries = HashMap<u64, Arc<Entry>, RandomState>;

/// A certificate that was sent at least once.
#[derive(Default)]
struct Entry {
    /// Somebody compresses it, or has.
    taken: AtomicBool,
    compressed: OnceLock<Compressed>,
}

struct Compressed {
    original: Box<[u8]>,
    bytes: Box<[u8]>,
}

#[derive(Debug, Clone, Copy)]
enum Algorithm {
    Brotli,
    Zlib,
}

impl CertificateCompressions {
    /// Lives as long as the process: rustls takes compressors of static life only.
    pub(super) fn leaked() -> &'static Self {
        Box::leak(Box::new(Self {
            hasher: RandomState::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            made: [AtomicU64::new(0), AtomicU64::new(0)],
        }))
    }

    /// Brotli before zlib: the order of our preference.
    pub(super) fn compressors(&'static self) -> Vec<&'static dyn CertCompressor> {
        [Algorithm::Brotli, Algorithm::Zlib]
            .map(|algorithm| -> &'static dyn CertCompressor {
                Box::leak(Box::new(OnSecondSight { algorithm, kept: self }))
            })
            .to_vec()
    }

    /// How many certificates were compressed by brotli, and by zlib.
    pub fn made(&self) -> [u64; 2] {
        [Algorithm::Brotli, Algorithm::Zlib]
            .map(|algorithm| self.made[algorithm as usize].load(Ordering::Relaxed))
    }

    /// Entries, those of certificates that were seen once included.
    pub fn entries(&self) -> usize {
        self.shards
            .iter()
            .filter_map(|shard| shard.lock().ok())
            .map(|shard| shard.young.len() + shard.old.len())
            .sum()
    }

    /// What is known of a certificate; None the first time, and where another worker looks just now.
    fn seen(&self, hash: u64) -> Option<Arc<Entry>> {
        let index = usize::try_from(hash >> 32).unwrap_or_default() % SHARDS;
        let mut shard = self.shards[index].try_lock().ok()?;
        if let Some(entry) = shard.young.get(&hash) {
            return Some(Arc::clone(entry));
        }
        let known = shard.old.remove(&hash);
        let entry = known.clone().unwrap_or_default();
        if shard.young.len() >= GENERATION_MAX {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.insert(hash, entry);
        known
    }

    fn compress(&self, algorithm: Algorithm, input: Vec<u8>) -> Result<Vec<u8>, CompressionFailed> {
        let hash = self.hasher.hash_one((algorithm as u8, &input));
        let entry = self.seen(hash).ok_or(CompressionFailed)?;
        if let Some(known) = entry.compressed.get() {
            // Two of one hash are both right when the second is sent plain.
            return if *known.original == *input { Ok(known.bytes.to_vec()) } else { Err(CompressionFailed) };
        }
        if entry.taken.swap(true, Ordering::Relaxed) {
            return Err(CompressionFailed);
        }
        let bytes = algorithm.compressor().compress(input.clone(), CompressionLevel::Interactive)?;
        self.made[algorithm as usize].fetch_add(1, Ordering::Relaxed);
        metrics::certificate_compressed(algorithm.name());
        let compressed = Compressed { original: input.into(), bytes: bytes.clone().into() };
        let _first = entry.compressed.set(compressed);
        Ok(bytes)
    }
}

impl Algorithm {
    fn compressor(self) -> &'static dyn CertCompressor {
        match self {
            Self::Brotli => BROTLI_COMPRESSOR,
            Self::Zlib => ZLIB_COMPRESSOR,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Brotli => "brotli",
            Self::Zlib => "zlib",
        }
    }
}

struct OnSecondSight {
    algorithm: Algorithm,
    kept: &'static CertificateCompressions,
}

impl CertCompressor for OnSecondSight {
    /// Fails the first time: rustls then sends the certificate as it is.
    fn compress(&self, input: Vec<u8>, _: CompressionLevel) -> Result<Vec<u8>, CompressionFailed> {
        self.kept.compress(self.algorithm, input)
    }

    fn algorithm(&self) -> CertificateCompressionAlgorithm {
        self.algorithm.compressor().algorithm()
    }
}

impl fmt::Debug for OnSecondSight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnSecondSight").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl fmt::Debug for CertificateCompressions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateCompressions").field("made", &self.made()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(number: usize) -> Vec<u8> {
        let mut bytes = vec![7; 1500];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        bytes
    }

    #[test]
    fn compressed_once_from_the_second_time_on() {
        let kept = CertificateCompressions::leaked();
        let [brotli, zlib] = kept.compressors()[..] else { panic!("two algorithms") };
        let compress =
            |with: &dyn CertCompressor| with.compress(certificate(1), CompressionLevel::Interactive);
        assert!(compress(brotli).is_err(), "plain the first time");
        let second = compress(brotli).expect("compressed");
        for _ in 0..10 {
            assert_eq!(compress(brotli).expect("kept"), second);
        }
        assert!(second.len() < 1500);
        assert_eq!(kept.made(), [1, 0]);
        assert!(compress(zlib).is_err(), "each algorithm by itself");
        assert!(compress(zlib).is_ok_and(|bytes| bytes != second));
        assert_eq!(kept.made(), [1, 1]);
    }

    #[test]
    fn workers_that_meet_compress_once_and_none_waits() {
        let kept = CertificateCompressions::leaked();
        let start = std::sync::Barrier::new(8);
        let sent: usize = std::thread::scope(|scope| {
            let worker = || {
                start.wait();
                (0..200).filter(|_| kept.compress(Algorithm::Brotli, certificate(1)).is_ok()).count()
            };
            let workers: Vec<_> = (0..8).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
        });
        assert_eq!(kept.made(), [1, 0]);
        assert!(sent > 0, "it is sent compressed in the end");
    }

    #[test]
    fn a_scan_over_many_names_stays_bounded_and_pushes_nothing_in_use_out() {
        let kept = CertificateCompressions::leaked();
        let used = || kept.compress(Algorithm::Zlib, certificate(usize::MAX));
        assert!(used().is_err() && used().is_ok());
        for number in 0..3 * CERTIFICATE_COMPRESSIONS_MAX {
            let _plain = kept.compress(Algorithm::Zlib, certificate(number));
            if number % 1000 == 0 {
                assert!(used().is_ok(), "{number}");
            }
        }
        assert!(kept.entries() <= CERTIFICATE_COMPRESSIONS_MAX, "{}", kept.entries());
        assert_eq!(kept.made(), [0, 1]);
    }
}
