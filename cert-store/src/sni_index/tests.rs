use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use rustls::SignatureScheme;
use ulid::Ulid;

use super::*;
use crate::certificate::CertificateChain;
use crate::fixture::{self, CA, DAY, ED25519, NOW_SECONDS, P256, RSA, cell, now};
use crate::ids::CredentialId;
use crate::key::PrivateKey;
use crate::seal::CellKey;

static CELL_KEY: LazyLock<CellKey> = LazyLock::new(|| CellKey::generate(cell(), 1));

fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

fn pattern(text: &str) -> NamePattern {
    NamePattern::parse(text).unwrap()
}

fn lineage(number: u128) -> LineageId {
    LineageId::from_ulid(Ulid(number))
}

fn tenant(number: u128) -> TenantId {
    TenantId::from_ulid(Ulid(number))
}

fn input(tenant_number: u128, lineages: &[LineageId]) -> SniEntryInput<'_> {
    SniEntryInput {
        tenant: tenant(tenant_number),
        domain: DomainId::from_ulid(Ulid(tenant_number)),
        policy: TlsPolicy::default(),
        lineages,
    }
}

fn credential(chain: CertificateChain, key: &PrivateKey, lineage: LineageId) -> Credential {
    fixture::credential(chain, key, &CELL_KEY, lineage)
}

/// A credential for `names` that expires `days` from now.
fn expiring(names: &[&str], key: &PrivateKey, lineage: LineageId, days: i64) -> Credential {
    let not_after = NOW_SECONDS.checked_add_signed(days * DAY.cast_signed()).unwrap();
    credential(CA.chain(names, key, NOW_SECONDS - 90 * DAY, not_after), key, lineage)
}

fn shown(index: &SniIndex, text: &str) -> Option<CredentialId> {
    index.lookup(&name(text), now(), ClientCapabilities::ALL).map(|hit| hit.credential.id())
}

#[test]
fn a_name_published_before_its_credential_is_a_miss_until_it_arrives() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    publisher.publish_name(pattern("a.example.org"), &input(1, &[lineage(1)])).unwrap();
    assert!(shown(&index, "a.example.org").is_none());
    assert_eq!(index.entry(&name("a.example.org")).unwrap().tenant, tenant(1));

    publisher.publish_credential(expiring(&["a.example.org"], &P256, lineage(1), 30));
    let hit = index.lookup(&name("a.example.org"), now(), ClientCapabilities::ALL).unwrap();
    assert_eq!((hit.tenant, hit.credential.lineage()), (tenant(1), lineage(1)));
}

#[test]
fn renewing_a_group_of_25_names_touches_no_name() {
    let mut publisher = SniPublisher::new(100);
    let index = publisher.reader();
    let names: Vec<String> = (0..25).map(|n| format!("n{n}.example.org")).collect();
    let texts: Vec<&str> = names.iter().map(String::as_str).collect();
    publisher.publish_credential(expiring(&texts, &P256, lineage(1), 10));
    for text in &texts {
        publisher.publish_name(pattern(text), &input(1, &[lineage(1)])).unwrap();
    }
    publisher.publish_name(pattern("joins-later.example.org"), &input(1, &[lineage(1)])).unwrap();
    assert!(shown(&index, "joins-later.example.org").is_none(), "its certificate has not come yet");
    let before = publisher.entries_cloned();
    let renewed = expiring(&texts, &P256, lineage(1), 60);
    let id = renewed.id();
    let replaced = publisher.publish_credential(renewed).unwrap();
    assert_ne!(replaced.id(), id);
    assert!(texts.iter().all(|text| shown(&index, text) == Some(id)));
    assert_eq!(publisher.entries_cloned(), before);
}

#[test]
fn expired_exact_does_not_shadow_valid_wildcard_of_the_same_tenant() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    let (exact, wildcard) = (
        expiring(&["a.example.org"], &P256, lineage(1), -1),
        expiring(&["*.example.org"], &P256, lineage(2), 30),
    );
    let (exact_id, wildcard_id) = (exact.id(), wildcard.id());
    publisher.publish_credential(exact);
    publisher.publish_credential(wildcard);
    publisher.publish_name(pattern("a.example.org"), &input(1, &[lineage(1)])).unwrap();
    publisher.publish_name(pattern("*.example.org"), &input(1, &[lineage(2)])).unwrap();
    assert_eq!(shown(&index, "a.example.org"), Some(wildcard_id));

    // A stranger's wildcard never answers for a name that another tenant owns.
    publisher.publish_name(pattern("*.example.org"), &input(2, &[lineage(2)])).unwrap();
    assert_eq!(shown(&index, "a.example.org"), Some(exact_id));
    let hit = index.lookup(&name("a.example.org"), now(), ClientCapabilities::ALL).unwrap();
    assert_eq!(hit.tenant, tenant(1));
    publisher.remove_lineage(lineage(1));
    assert_eq!(shown(&index, "a.example.org"), None);
    assert_eq!(shown(&index, "b.example.org"), Some(wildcard_id));
}

#[test]
fn a_client_gets_what_it_can_verify_and_else_what_there_is() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    let names = ["a.example.org"];
    let (ecdsa, rsa) = (expiring(&names, &P256, lineage(1), 10), expiring(&names, &RSA, lineage(2), 60));
    let (ecdsa_id, rsa_id) = (ecdsa.id(), rsa.id());
    publisher.publish_name(pattern("a.example.org"), &input(1, &[lineage(2), lineage(1)])).unwrap();
    publisher.publish_credential(ecdsa);
    publisher.publish_credential(rsa);
    let shown_to = |schemes: &[SignatureScheme]| {
        let capabilities = ClientCapabilities::of_tls13(schemes);
        index.lookup(&name("a.example.org"), now(), capabilities).unwrap().credential.id()
    };
    use SignatureScheme as S;
    assert_eq!(shown_to(&[S::RSA_PSS_SHA256, S::ECDSA_NISTP256_SHA256]), ecdsa_id, "ECDSA first");
    assert_eq!(shown_to(&[S::RSA_PSS_SHA256]), rsa_id);
    assert_eq!(shown_to(&[S::ED25519]), ecdsa_id);
    publisher.remove_lineage(lineage(1));
    assert_eq!(shown_to(&[S::ECDSA_NISTP256_SHA256]), rsa_id);
}

#[test]
fn an_uploaded_certificate_goes_first_until_its_last_hour() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    let names = ["a.example.org"];
    let issued = expiring(&names, &P256, lineage(1), 60);
    let uploaded = expiring(&["*.example.org"], &RSA, lineage(2), 10).in_custody(Custody::Uploaded);
    let (issued_id, uploaded_id) = (issued.id(), uploaded.id());
    publisher.publish_name(pattern("a.example.org"), &input(1, &[lineage(1), lineage(2)])).unwrap();
    publisher.publish_credential(issued);
    publisher.publish_credential(uploaded);
    let shown_at = |seconds: u64, client: ClientCapabilities| {
        index.lookup(&name("a.example.org"), fixture::at(seconds), client).unwrap().credential.id()
    };
    let ends = NOW_SECONDS + 10 * DAY;
    for (at, expected) in [
        (NOW_SECONDS, uploaded_id),
        (ends - 3601, uploaded_id),
        (ends - 3600, issued_id),
        (ends, issued_id),
        (ends + 1, issued_id),
    ] {
        assert_eq!(shown_at(at, ClientCapabilities::ALL), expected, "{at}");
    }
    let ecdsa = ClientCapabilities { ecdsa_p256: Support::Yes, ..ClientCapabilities::NONE };
    assert_eq!(shown_at(NOW_SECONDS, ecdsa), issued_id, "to who cannot use it");
    publisher.remove_lineage(lineage(1));
    assert_eq!(shown_at(ends, ClientCapabilities::ALL), uploaded_id, "alone to its end");
}

#[test]
fn the_default_follows_its_lineage() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    assert!(index.default_credential().is_none());
    publisher.set_default(Some(lineage(1)));
    assert!(index.default_credential().is_none());
    publisher.publish_credential(expiring(&["a.example.org"], &P256, lineage(1), 10));
    let first = index.default_credential().unwrap().id();
    publisher.publish_credential(expiring(&["a.example.org"], &P256, lineage(1), 20));
    assert_ne!(index.default_credential().unwrap().id(), first);
    publisher.publish_all([expiring(&["b.example.org"], &P256, lineage(2), 20)], []).unwrap();
    assert!(index.default_credential().is_none(), "the snapshot does not hold it");
    publisher.publish_credential(expiring(&["a.example.org"], &P256, lineage(1), 20));
    assert!(index.default_credential().is_some());
    publisher.set_default(None);
    assert!(index.default_credential().is_none());
    assert!(index.credential_of(lineage(1)).is_some());
}

#[test]
fn too_many_lineages_are_refused_and_change_nothing() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    let five: Vec<_> = (0..5).map(lineage).collect();
    publisher.publish_name(pattern("a.example.org"), &input(1, &five[..4])).unwrap();
    assert!(publisher.publish_name(pattern("a.example.org"), &input(2, &five)).is_err());
    let all = [(pattern("b.example.org"), input(2, &five))];
    assert!(publisher.publish_all([], all).is_err());
    assert_eq!(index.entry(&name("a.example.org")).unwrap().lineages().count(), 4);
    assert_eq!((index.len(), index.lineages()), (1, 4));
}

#[test]
fn a_slot_goes_with_its_last_name_and_its_credential() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    publisher.publish_name(pattern("a.example.org"), &input(1, &[lineage(1)])).unwrap();
    publisher.publish_name(pattern("b.example.org"), &input(1, &[lineage(1)])).unwrap();
    publisher.publish_credential(expiring(&["a.example.org"], &P256, lineage(1), 10));
    assert!(shown(&index, "a.example.org").is_some() && publisher.remove_lineage(lineage(1)).is_some());
    assert_eq!(index.lineages(), 1, "names still point to it, and a later credential must reach them");
    publisher.publish_credential(expiring(&["b.example.org"], &P256, lineage(1), 10));
    assert!(shown(&index, "b.example.org").is_some());
    assert!(publisher.remove_name(&pattern("a.example.org")));
    assert!(!publisher.remove_name(&pattern("a.example.org")));
    publisher.publish_name(pattern("b.example.org"), &input(1, &[lineage(2)])).unwrap();
    assert_eq!(index.lineages(), 2);
    publisher.remove_lineage(lineage(1));
    assert_eq!(index.lineages(), 1);
    publisher.remove_name(&pattern("b.example.org"));
    assert_eq!((index.lineages(), index.len()), (0, 0));
}

#[test]
fn a_million_names_are_published_and_one_more_copies_few_entries() {
    const NAMES: u128 = 1_000_000;
    let mut publisher = SniPublisher::new(1_000);
    let index = publisher.reader();
    let lineages: Vec<[LineageId; 1]> = (0..NAMES / 25).map(|group| [lineage(group)]).collect();
    let of_group = |n: u128| input(n % 1_000, &lineages[usize::try_from(n / 25).unwrap() % lineages.len()]);
    publisher
        .publish_all([], (0..NAMES).map(|n| (pattern(&format!("n{n}.example.org")), of_group(n))))
        .unwrap();
    assert_eq!((index.len(), index.lineages()), (1_000_000, 40_000));
    let mut most = 0;
    for n in NAMES..NAMES + 60_000 {
        let before = publisher.entries_cloned();
        publisher.publish_name(pattern(&format!("n{n}.example.org")), &of_group(n)).unwrap();
        most = most.max(publisher.entries_cloned() - before);
    }
    // The table has doubled on the way (at 2^20 names), and not even that shows.
    assert!((1..=1_024).contains(&most), "{most} entries copied for one name");
    let mean = publisher.entries_cloned() / 60_000;
    assert!(mean <= 128, "{mean} entries copied for the mean name");
    for n in [0, 7, NAMES - 1, NAMES + 59_999] {
        assert_eq!(index.entry(&name(&format!("n{n}.example.org"))).unwrap().tenant, tenant(n % 1_000));
    }
}

#[test]
fn a_renewed_slot_never_yields_a_missing_credential() {
    let mut publisher = SniPublisher::new(10);
    publisher.publish_credential(expiring(&["a.example.org"], &P256, lineage(1), 10));
    publisher.publish_name(pattern("a.example.org"), &input(1, &[lineage(1)])).unwrap();
    publisher.set_default(Some(lineage(1)));
    let mut prepared: Vec<_> =
        (0..2_000).map(|n| expiring(&["a.example.org"], &P256, lineage(1), 10 + n % 50)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (index, done) = (publisher.reader(), &done);
                scope.spawn(move || {
                    let wanted = name("a.example.org");
                    let mut lookups = 0_u64;
                    while !done.load(Ordering::Relaxed) {
                        let hit =
                            index.lookup(&wanted, now(), ClientCapabilities::ALL).expect("never missing");
                        assert_eq!((hit.tenant, hit.credential.lineage()), (tenant(1), lineage(1)));
                        assert!(index.default_credential().is_some());
                        assert!(index.credential_of(lineage(1)).is_some());
                        lookups += 1;
                    }
                    lookups
                })
            })
            .collect();
        // Renewals, between names that come and go, and whole snapshots.
        while let Some(renewed) = prepared.pop() {
            let round = prepared.len();
            for n in 0..20 {
                let other = pattern(&format!("n{n}.r{}.example.org", round % 100));
                publisher.publish_name(other.clone(), &input(2, &[lineage(2)])).unwrap();
                if n % 2 == 0 {
                    publisher.remove_name(&other);
                }
            }
            if round % 100 == 0 {
                let lineages = [lineage(1)];
                let names = [(pattern("a.example.org"), input(1, &lineages))];
                publisher.publish_all([renewed], names).unwrap();
            } else {
                publisher.publish_credential(renewed);
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 100));
    });
}

// ---- against a naive model: plain lists, and the rules applied one after the other ----

const NAME_SETS: [&[&str]; 5] = [
    &["a.example.org"],
    &["*.example.org"],
    &["a.example.org", "*.example.org"],
    &["b.example.org", "*.b.example.org"],
    &["a.example.org", "b.example.org", "example.org"],
];
const PATTERNS: [&str; 6] =
    ["a.example.org", "b.example.org", "example.org", "*.example.org", "*.b.example.org", "x.b.example.org"];
const ASKED: [&str; 7] = [
    "a.example.org",
    "b.example.org",
    "c.example.org",
    "example.org",
    "x.b.example.org",
    "y.b.example.org",
    "z.y.b.example.org",
];
/// Days from now: first and last of validity.
const DATES: [(i64, i64); 5] = [(-90, -10), (-90, -5), (-10, 20), (-10, 80), (5, 90)];

/// Every name set with every date, for each of three keys.
static CHAINS: LazyLock<Vec<(CertificateChain, &'static PrivateKey)>> = LazyLock::new(|| {
    let seconds = |days: i64| NOW_SECONDS.checked_add_signed(days * DAY.cast_signed()).unwrap();
    let keys: [&'static PrivateKey; 3] = [&P256, &RSA, &ED25519];
    let of_key = |key: &'static PrivateKey| {
        NAME_SETS.iter().flat_map(move |names| {
            DATES.iter().map(move |&(from, to)| (CA.chain(names, key, seconds(from), seconds(to)), key))
        })
    };
    keys.into_iter().flat_map(of_key).collect()
});

#[derive(Debug, Clone)]
enum Change {
    Credential(u128, usize),
    RemoveLineage(u128),
    Name(usize, u128, Vec<u128>),
    RemoveName(usize),
    Default(Option<u128>),
    All(Vec<(u128, usize)>, Vec<(usize, u128, Vec<u128>)>),
}

fn change() -> impl Strategy<Value = Change> {
    let lineage = || 0..6_u128;
    let chain = || 0..NAME_SETS.len() * DATES.len() * 3;
    let lineages = || prop::collection::vec(0..6_u128, 0..=SLOTS_PER_NAME_MAX);
    let names = || (0..PATTERNS.len(), 0..2_u128, lineages());
    prop_oneof![
        8 => (lineage(), chain()).prop_map(|(l, c)| Change::Credential(l, c)),
        2 => lineage().prop_map(Change::RemoveLineage),
        8 => names().prop_map(|(p, t, l)| Change::Name(p, t, l)),
        2 => (0..PATTERNS.len()).prop_map(Change::RemoveName),
        1 => prop::option::of(lineage()).prop_map(Change::Default),
        1 => (prop::collection::vec((lineage(), chain()), 0..6), prop::collection::vec(names(), 0..6))
            .prop_map(|(credentials, names)| Change::All(credentials, names)),
    ]
}

/// Whether it is of the exact entry, and the credential.
type Candidate = (bool, Arc<Credential>);

/// The last entry of a key counts.
#[derive(Default)]
struct Model {
    credentials: Vec<(LineageId, Arc<Credential>)>,
    names: Vec<(NamePattern, u128, Vec<LineageId>)>,
    default: Option<LineageId>,
}

impl Model {
    fn credential(&self, lineage: LineageId) -> Option<Arc<Credential>> {
        self.credentials.iter().rev().find(|(l, _)| *l == lineage).map(|(_, c)| Arc::clone(c))
    }

    fn entry(&self, pattern: &NamePattern) -> Option<(u128, Vec<LineageId>)> {
        self.names.iter().rev().find(|(p, _, _)| p == pattern).map(|(_, t, l)| (*t, l.clone()))
    }

    fn lookup(&self, name: &DomainName, client: ClientCapabilities) -> Option<(u128, CredentialId)> {
        let exact = self.entry(&NamePattern::Exact(name.clone()));
        let wildcard = name.parent().and_then(|base| self.entry(&NamePattern::Wildcard(base)));
        let owner = exact.as_ref().or(wildcard.as_ref())?.0;
        let mut candidates: Vec<Candidate> = Vec::new();
        for (is_exact, entry) in [(true, exact), (false, wildcard)] {
            let lineages = entry.filter(|(tenant, _)| *tenant == owner).map(|(_, l)| l).unwrap_or_default();
            let credentials = lineages.into_iter().filter_map(|l| self.credential(l));
            candidates.extend(credentials.filter(|c| c.facts().covers(name)).map(|c| (is_exact, c)));
        }
        // Each rule keeps the candidates that it prefers, if there are any.
        let mut prefer = |rule: &dyn Fn(&Candidate) -> bool| {
            if candidates.iter().any(rule) {
                candidates.retain(rule);
            }
        };
        let valid = |c: &Candidate| c.1.not_before() <= now() && now() <= c.1.not_after();
        prefer(&|c| client.supports(c.1.key_type()) == Support::Yes);
        prefer(&|c| client.supports(c.1.key_type()) == Support::Perhaps);
        prefer(&valid);
        prefer(&|c| valid(c) && c.0);
        prefer(&|c| valid(c) && c.1.custody() == Custody::Uploaded);
        prefer(&|c| valid(c) && c.1.facts().names.contains(&NamePattern::Exact(name.clone())));
        prefer(&|c| valid(c) && !c.1.key_type().is_rsa());
        let latest = candidates.iter().map(|c| c.1.not_after()).max()?;
        candidates.iter().find(|c| c.1.not_after() == latest).map(|c| (owner, c.1.id()))
    }
}

fn apply(change: Change, publisher: &mut SniPublisher, model: &mut Model) {
    let ids = |numbers: Vec<u128>| numbers.into_iter().map(lineage).collect::<Vec<_>>();
    // Every third lineage is an uploaded one.
    let made = |l: u128, chain: usize| {
        let (chain, key) = &CHAINS[chain];
        let custody = if l.is_multiple_of(3) { Custody::Uploaded } else { Custody::Cell };
        credential(chain.clone(), key, lineage(l)).in_custody(custody)
    };
    match change {
        Change::Credential(l, chain) => {
            let credential = made(l, chain);
            let id = credential.id();
            publisher.publish_credential(credential);
            let published = publisher.reader().credential_of(lineage(l)).unwrap();
            assert_eq!(published.id(), id);
            model.credentials.push((lineage(l), published));
        }
        Change::RemoveLineage(l) => {
            publisher.remove_lineage(lineage(l));
            model.credentials.retain(|(present, _)| *present != lineage(l));
        }
        Change::Name(p, t, l) => {
            let lineages = ids(l);
            publisher.publish_name(pattern(PATTERNS[p]), &input(t, &lineages)).unwrap();
            model.names.push((pattern(PATTERNS[p]), t, lineages));
        }
        Change::RemoveName(p) => {
            let known = model.entry(&pattern(PATTERNS[p])).is_some();
            assert_eq!(publisher.remove_name(&pattern(PATTERNS[p])), known);
            model.names.retain(|(present, _, _)| *present != pattern(PATTERNS[p]));
        }
        Change::Default(l) => {
            model.default = l.map(lineage);
            publisher.set_default(model.default);
        }
        Change::All(credentials, names) => {
            let names: Vec<_> =
                names.into_iter().map(|(p, t, l)| (pattern(PATTERNS[p]), t, ids(l))).collect();
            let made: Vec<_> = credentials.iter().map(|&(l, chain)| made(l, chain)).collect();
            let entries = names.iter().map(|(p, t, l)| (p.clone(), input(*t, l)));
            publisher.publish_all(made, entries).unwrap();
            let index = publisher.reader();
            model.credentials = credentials
                .iter()
                .map(|&(l, _)| (lineage(l), index.credential_of(lineage(l)).unwrap()))
                .collect();
            model.names = names;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn the_index_agrees_with_plain_lists(changes in prop::collection::vec(change(), 1..60)) {
        let mut publisher = SniPublisher::new(0);
        let index = publisher.reader();
        let mut model = Model::default();
        let clients = [
            ClientCapabilities::ALL,
            ClientCapabilities::RSA,
            ClientCapabilities { ecdsa_p256: Support::Yes, ..ClientCapabilities::NONE },
            ClientCapabilities { rsa: Support::Perhaps, ..ClientCapabilities::NONE },
            ClientCapabilities::NONE,
        ];
        for change in changes {
            apply(change, &mut publisher, &mut model);
            for (asked, client) in ASKED.iter().flat_map(|asked| clients.map(|client| (name(asked), client))) {
                let hit = index.lookup(&asked, now(), client).map(|hit| (hit.tenant, hit.credential.id()));
                let expected = model.lookup(&asked, client).map(|(t, credential)| (tenant(t), credential));
                prop_assert_eq!(hit, expected, "{} for {:?}", asked, client);
            }
            let default = model.default.and_then(|l| model.credential(l));
            prop_assert_eq!(index.default_credential().map(|c| c.id()), default.map(|c| c.id()));
        }
    }
}

#[test]
fn what_was_switched_to_goes_first_as_long_as_it_is_valid() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    let text = "a.example.org";
    let own = |days| expiring(&[text], &P256, lineage(1), days);
    let other = |days| expiring(&[text], &P256, lineage(2), days).going_first(true);
    publisher.publish_name(pattern(text), &input(1, &[lineage(1), lineage(2)])).unwrap();
    let mut show = |first: Credential, second: Credential| {
        let ids = (first.id(), second.id());
        publisher.publish_credential(first);
        publisher.publish_credential(second);
        (shown(&index, text).unwrap(), ids)
    };
    let (found, (_, switched)) = show(own(60), other(30));
    assert_eq!(found, switched, "although it ends sooner");
    let (found, (serving, _)) = show(own(60), other(30).going_first(false));
    assert_eq!(found, serving);
    let (found, (serving, _)) = show(own(60), other(-1));
    assert_eq!(found, serving, "it is over");
    let (found, (uploaded, _)) = show(own(60).in_custody(Custody::Uploaded), other(90));
    assert_eq!(found, uploaded, "a tenant's own is before it");
}
