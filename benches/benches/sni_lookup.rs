//! What does it cost to find the credential of a name, at 1k, 100k and 1M names, with and without a writer beside?

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use portico_benches::{CredentialSource, index_of, name};
use portico_cert_store::{ClientCapabilities, DomainName, SniIndex, UnixTime};

const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
const ALL: ClientCapabilities = ClientCapabilities::ALL;

fn lookup(c: &mut Criterion) {
    let source = CredentialSource::new();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    for size in SIZES {
        let (mut publisher, lineages) = index_of(size, &source);
        let index = publisher.reader();
        let mut group = c.benchmark_group("sni_lookup");
        let hits: Vec<DomainName> = spread(size).map(name).collect();
        let wild: Vec<DomainName> = (0..1024).map(|at| parse(&format!("host-{at}.wild.test"))).collect();
        let misses: Vec<DomainName> =
            (0..1024).map(|at| parse(&format!("unknown-{at}.elsewhere.test"))).collect();
        for (case, names) in [("hit", &hits), ("wildcard", &wild), ("miss", &misses)] {
            group.bench_function(BenchmarkId::new(case, size), |b| each(b, &index, names, now));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let source = CredentialSource::new();
                let mut at = 0;
                while !stop.load(Ordering::Relaxed) {
                    publisher.publish_credential(source.credential(lineages[at % lineages.len()]));
                    at += 1;
                }
            })
        };
        group.bench_function(BenchmarkId::new("hit, writer beside", size), |b| each(b, &index, &hits, now));
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer ends");
        group.finish();
    }
}

fn each(b: &mut criterion::Bencher<'_>, index: &SniIndex, names: &[DomainName], now: UnixTime) {
    let mut at = 0;
    b.iter(|| {
        at = (at + 1) % names.len();
        black_box(index.lookup(&names[at], now, ALL))
    });
}

/// 64 Ki indices all over `0..size`, so that the table does not fit the processor's cache.
fn spread(size: usize) -> impl Iterator<Item = usize> {
    (0..65_536usize).map(move |n| n.wrapping_mul(0x9E37_79B1) % size)
}

fn parse(text: &str) -> DomainName {
    DomainName::parse(text).expect("a valid name")
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3));
    targets = lookup
}
criterion_main!(benches);
