//! How much memory an edge's index needs, and how long it takes to fill it.
//!
//!     cargo run --release -p portico-cert-store --example memory -- NAMES NAMES_PER_CERTIFICATE
//!
//! Certificates have the size of a public CA's (a leaf of about 1.05 KB for one name), a name and a sealed key each of
//! their own, and one intermediate. They are made by putting names into one signed leaf, so signatures do not verify;
//! nothing here checks them. Memory is the growth of the resident set, with the allocator that the product uses; times
//! are CPU times.

use std::time::Duration;

use portico_cert_store::{
    CellId, CellKey, CellKeys, CertificateChain, ChainInterner, ClientCapabilities, Credential, CredentialId,
    CredentialParts, DomainId, DomainName, GroupId, KeyCache, KeyType, LineageId, NamePattern, PrivateKey,
    SealContext, SniEntryInput, SniPublisher, TenantId, TlsPolicy, UnixTime,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let names = arguments.next().unwrap_or(100_000);
    let per_certificate = arguments.next().unwrap_or(1).clamp(1, 100);
    let fleet = Fleet::new(per_certificate);
    let certificates = names.div_ceil(per_certificate);
    println!(
        "{certificates} certificates of {per_certificate} names, leaf of {} bytes",
        fleet.template.len()
    );

    let before = resident_bytes();
    let mut publisher = SniPublisher::new(names);
    let interner = ChainInterner::new();
    let mut parsing = Duration::ZERO;
    let mut credentials = Vec::with_capacity(certificates);
    for first in (0..certificates).step_by(20) {
        let batch = first..certificates.min(first + 20);
        let parts: Vec<CredentialParts> = batch.map(|certificate| fleet.parts(certificate)).collect();
        let ((), took) =
            timed(|| credentials.extend(parts.into_iter().map(|parts| fleet.credential(parts, &interner))));
        parsing += took;
    }
    let ((), publishing) = timed(|| publish_all(&mut publisher, credentials, per_certificate));
    let growth = resident_bytes() - before;
    let index = publisher.reader();
    println!(
        "memory: {} MB, {} B a name, {} B a certificate",
        growth >> 20,
        growth / names,
        growth / certificates
    );
    println!("parse, check and store: {:?} a certificate, {parsing:?} all", parsing / count(certificates));
    println!("publish all: {publishing:?}");
    change_one_by_one(&mut publisher, &fleet, &interner, certificates);
    look_up(&index, &fleet, certificates * per_certificate);
}

fn publish_all(publisher: &mut SniPublisher, credentials: Vec<Credential>, per_certificate: usize) {
    let lineages: Vec<LineageId> = credentials.iter().map(Credential::lineage).collect();
    let names = (0..lineages.len() * per_certificate)
        .map(|n| (domain(n), entry(std::slice::from_ref(&lineages[n / per_certificate]))));
    publisher.publish_all(credentials, names).expect("one lineage a name");
}

/// New certificates, each with its names, into the full index.
fn change_one_by_one(
    publisher: &mut SniPublisher,
    fleet: &Fleet,
    interner: &ChainInterner,
    certificates: usize,
) {
    const CHANGES: usize = 2_000;
    let parts: Vec<CredentialParts> =
        (certificates..certificates + CHANGES).map(|n| fleet.parts(n)).collect();
    let (credentials, storing) = timed(|| {
        let credentials = parts.into_iter().map(|parts| fleet.credential(parts, interner));
        credentials.map(|credential| (credential.facts().names, credential)).collect::<Vec<_>>()
    });
    let ((), publishing) = timed(|| {
        for (names, credential) in credentials {
            let lineage = credential.lineage();
            publisher.publish_credential(credential);
            for name in names {
                publisher.publish_name(name, &entry(&[lineage])).expect("one lineage");
            }
        }
    });
    println!(
        "one more certificate: {:?} to parse and store, {:?} to publish with its names",
        storing / count(CHANGES),
        publishing / count(CHANGES),
    );
}

fn entry(lineages: &[LineageId]) -> SniEntryInput<'_> {
    SniEntryInput {
        tenant: TenantId::from_ulid(1.into()),
        domain: DomainId::from_ulid(1.into()),
        policy: TlsPolicy::default(),
        lineages,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("fewer than 2^32")
}

fn look_up(index: &portico_cert_store::SniIndex, fleet: &Fleet, names: usize) {
    const LOOKUPS: usize = 1_000_000;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));
    let wanted: Vec<DomainName> =
        (0..LOOKUPS).map(|n| domain(n.wrapping_mul(7_919) % names).base().clone()).collect();
    let (found, took) = timed(|| {
        wanted.iter().filter(|name| index.lookup(name, now, ClientCapabilities::ALL).is_some()).count()
    });
    println!("lookup of random names: {:?}, {found} of {LOOKUPS} found", took / 1_000_000);
    let cache = KeyCache::new(64 << 20, fleet.cell_keys.clone());
    let hits: Vec<_> = wanted
        .iter()
        .take(20_000)
        .filter_map(|name| index.lookup(name, now, ClientCapabilities::ALL))
        .collect();
    let (_, cold) = timed(|| hits.iter().filter(|hit| cache.certified_key(&hit.credential).is_ok()).count());
    let hot = &hits[hits.len() - 1].credential;
    let (_, warm) = timed(|| (0..100_000).filter(|_| cache.certified_key(hot).is_ok()).count());
    println!("key: {:?} cold, {:?} from the cache", cold / 20_000, warm / 100_000);
}

/// What all certificates share.
struct Fleet {
    key: PrivateKey,
    cell_key: CellKey,
    cell_keys: CellKeys,
    template: Vec<u8>,
    intermediate: CertificateDer<'static>,
    /// Where the names are in the template.
    offsets: Vec<usize>,
}

/// All names have the same length, so that one leaf can be turned into another.
fn domain(number: usize) -> NamePattern {
    NamePattern::parse(&format!("www.customer-{number:08}.example")).expect("a valid name")
}

impl Fleet {
    fn new(per_certificate: usize) -> Self {
        let key = PrivateKey::generate(KeyType::EcdsaP256).expect("a key");
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.secret_der())).expect("a key");
        let placeholders: Vec<String> = (0..per_certificate).map(|n| domain(n).to_string()).collect();
        let mut parameters = CertificateParams::new(placeholders.clone()).expect("names");
        parameters.not_before = rcgen::date_time_ymd(2025, 12, 1);
        parameters.not_after = rcgen::date_time_ymd(2026, 3, 1);
        // In the place of what public CAs add: two SCTs, policies, URLs of issuer and CRL.
        let extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2], vec![5; 620]);
        parameters.custom_extensions.push(extension);
        let template = parameters.self_signed(&pair).expect("a certificate").der().to_vec();
        let find = |text: &String| {
            template
                .windows(text.len())
                .position(|window| window == text.as_bytes())
                .expect("the name is there")
        };
        let offsets = placeholders.iter().map(find).collect();
        let mut ca = CertificateParams::new(Vec::new()).expect("no names");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let intermediate = ca.self_signed(&pair).expect("a certificate").der().clone();
        let cell_keys = CellKeys::new();
        let cell_key = || CellKey::from_bytes(CellId::parse("eu-1").expect("a name"), 1, &[7; 32]);
        cell_keys.add(cell_key());
        Self { key, cell_key: cell_key(), cell_keys, template, intermediate, offsets }
    }

    fn parts(&self, certificate: usize) -> CredentialParts {
        let mut leaf = self.template.clone();
        for (n, &offset) in self.offsets.iter().enumerate() {
            let name = domain(certificate * self.offsets.len() + n).to_string();
            leaf[offset..offset + name.len()].copy_from_slice(name.as_bytes());
        }
        let id = CredentialId::generate();
        let key_tenant = TenantId::from_ulid((certificate as u128).into()).to_string();
        let context = SealContext {
            cell: self.cell_key.cell(),
            epoch: 1,
            key_tenant: &key_tenant,
            credential: id,
            spki_sha256: self.key.spki_sha256(),
        };
        CredentialParts {
            id,
            lineage: LineageId::generate(),
            group: GroupId::generate(),
            cell: self.cell_key.cell().clone(),
            cell_key_epoch: 1,
            sealed_key: self.cell_key.seal(&self.key, &context).expect("sealed"),
            spki_sha256: self.key.spki_sha256(),
            key_tenant: key_tenant.into(),
            chain: CertificateChain::parse_der(vec![leaf.into(), self.intermediate.clone()])
                .expect("a chain"),
        }
    }

    /// What an edge does with a resource: parse the chain, check, store.
    fn credential(&self, parts: CredentialParts, interner: &ChainInterner) -> Credential {
        let chain = CertificateChain::parse_der(parts.chain.to_vec()).expect("a chain");
        Credential::new(CredentialParts { chain, ..parts }, interner).expect("a credential")
    }
}

/// With the time that this thread has run, whatever else the machine does.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = cpu_time();
    let result = work();
    (result, cpu_time() - started)
}

/// First field of schedstat, in nanoseconds.
fn cpu_time() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("proc is mounted");
    let nanoseconds = schedstat.split(' ').next().and_then(|field| field.parse().ok());
    Duration::from_nanos(nanoseconds.expect("schedstat begins with a number"))
}

/// Second field of statm (proc_pid_statm(5)), in pages of 4 KiB.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc is mounted");
    let pages =
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("statm has two fields");
    pages * 4096
}
