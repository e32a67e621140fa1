//! What does a plan of 1k and 100k names cost, from nothing and from today's groups?

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use portico_benches::POLICY;
use portico_cert_store::{
    DomainId, GroupId, NamePattern, PlanGroup, PlanInput, PlanLimits, PlanName, Sharing, TenantId, plan,
};

fn planner(c: &mut Criterion) {
    for size in [1_000, 100_000] {
        let mut group = c.benchmark_group("plan");
        let fresh = input(size);
        group.bench_function(BenchmarkId::new("from nothing", size), |b| b.iter(|| black_box(plan(&fresh))));
        let today = PlanInput { groups: groups_of(&fresh), ..input(size) };
        group.bench_function(BenchmarkId::new("from today's groups", size), |b| {
            b.iter(|| black_box(plan(&today)))
        });
        group.finish();
    }
}

/// Apex and `www` of half as many registered domains, each of a tenant of its own.
fn input(size: usize) -> PlanInput {
    let names = (0..size / 2).flat_map(|at| {
        let tenant = TenantId::generate();
        ["", "www."].map(|host| PlanName {
            name: NamePattern::parse(&format!("{host}site-{at}.test")).expect("a valid name"),
            domain: DomainId::generate(),
            tenant,
            policy: POLICY,
            sharing: Sharing::RegisteredDomain,
            ready: true,
            failed_before: false,
            part: 0,
        })
    });
    PlanInput {
        names: names.collect(),
        groups: Vec::new(),
        limits: PlanLimits { names_per_certificate_max: 25, orders_available: 300, orders_per_hour: 100 },
    }
}

fn groups_of(input: &PlanInput) -> Vec<PlanGroup> {
    plan(input).groups.into_iter().map(|g| PlanGroup { id: GroupId::generate(), names: g.names }).collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = planner
}
criterion_main!(benches);
