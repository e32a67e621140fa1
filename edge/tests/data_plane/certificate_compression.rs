//! Certificate compression (RFC 8879): once for each certificate and algorithm, whichever worker a client meets.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::CertificateCompressionAlgorithm;
use rustls::compress::{BROTLI_DECOMPRESSOR, CertDecompressor, DecompressionFailed, ZLIB_DECOMPRESSOR};

use crate::client::{config, try_https};
use crate::fleet;
use crate::harness::{Setup, TestEdge, on_each_backend};

/// A client's decompressor that counts what it was sent.
struct Counting {
    inner: &'static dyn CertDecompressor,
    received: AtomicUsize,
}

impl CertDecompressor for Counting {
    fn decompress(&self, input: &[u8], output: &mut [u8]) -> Result<(), DecompressionFailed> {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.inner.decompress(input, output)
    }

    fn algorithm(&self) -> CertificateCompressionAlgorithm {
        self.inner.algorithm()
    }
}

impl std::fmt::Debug for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counting")
    }
}

impl Counting {
    fn of(inner: &'static dyn CertDecompressor) -> &'static Self {
        Box::leak(Box::new(Self { inner, received: AtomicUsize::new(0) }))
    }

    fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }
}

/// A full handshake that offers these algorithms; the leaf is that of the edge.
fn handshake(edge: &TestEdge, decompressors: &[&'static Counting]) {
    let mut config = config(&["http/1.1"], &[&rustls::version::TLS13]);
    config.cert_decompressors =
        decompressors.iter().map(|counting| *counting as &'static dyn CertDecompressor).collect();
    let mut client = try_https(edge.https, Some("shop.example"), config).unwrap();
    assert_eq!(client.get("shop.example", "/").text(), "shop.example");
    let shown = client.stream.conn.peer_certificates().unwrap();
    assert_eq!(shown[0].as_ref(), edge.bench.served("shop.example").unwrap());
}

#[test]
fn a_certificate_is_compressed_once_and_its_successor_anew() {
    const HANDSHAKES: usize = 24;
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, Setup { workers: 2, ..Setup::default() });
        let served = edge.serve(&["shop.example"]);
        let compressions = edge.edge.tls.compressions();
        let (brotli, zlib) = (Counting::of(BROTLI_DECOMPRESSOR), Counting::of(ZLIB_DECOMPRESSOR));
        for _ in 0..HANDSHAKES {
            handshake(&edge, &[brotli]);
            handshake(&edge, &[zlib]);
            handshake(&edge, &[]);
        }
        assert_eq!(compressions.made(), [1, 1]);
        assert_eq!(
            (brotli.received(), zlib.received()),
            (HANDSHAKES - 1, HANDSHAKES - 1),
            "all but the first"
        );
        for _ in 0..HANDSHAKES {
            handshake(&edge, &[zlib, brotli]);
        }
        assert_eq!(brotli.received(), 2 * HANDSHAKES - 1, "brotli where both are offered");
        assert_eq!(compressions.made(), [1, 1]);

        let renewed = fleet::mint(served.tenant, &["shop.example"]);
        edge.apply(vec![fleet::credential(served.lineage, 2, served.tenant, &renewed.body)]);
        for _ in 0..HANDSHAKES {
            handshake(&edge, &[brotli]);
        }
        assert_eq!(compressions.made(), [2, 1]);
        assert_eq!(brotli.received(), 3 * HANDSHAKES - 2);
        assert!(edge.metric("portico_edge_certificate_compressions_total{algorithm=\"brotli\"}") >= 2.0);
    });
}
