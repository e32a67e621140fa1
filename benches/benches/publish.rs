//! What does one change cost the publisher, at 1k, 100k and 1M names: a renewed credential, an added and removed name?

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use portico_benches::{CredentialSource, POLICY, index_of};
use portico_cert_store::{DomainId, DomainName, NamePattern, SniEntryInput, TenantId};

const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];

fn publish(c: &mut Criterion) {
    let source = CredentialSource::new();
    for size in SIZES {
        let (mut publisher, lineages) = index_of(size, &source);
        let mut group = c.benchmark_group("publish");
        let mut at = 0;
        group.bench_function(BenchmarkId::new("renewed credential of 25 names", size), |b| {
            b.iter_batched(
                || {
                    at = (at + 1) % lineages.len();
                    source.credential(lineages[at])
                },
                |credential| black_box(publisher.publish_credential(credential)),
                BatchSize::SmallInput,
            );
        });
        let (tenant, domain) = (TenantId::generate(), DomainId::generate());
        let mut added = 0;
        group.bench_function(BenchmarkId::new("one name added and removed", size), |b| {
            b.iter_batched(
                || {
                    added += 1;
                    let name = DomainName::parse(&format!("added-{added}.bench.test")).expect("a valid name");
                    NamePattern::Exact(name)
                },
                |name| {
                    let input = SniEntryInput { tenant, domain, policy: POLICY, lineages: &lineages[..1] };
                    publisher.publish_name(name.clone(), &input).expect("one lineage");
                    publisher.remove_name(&name)
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3));
    targets = publish
}
criterion_main!(benches);
