//! Tables for single decisions, and a model: three tenants, six hosts, a world of DNS zones whose holders change.

use std::collections::{BTreeMap, BTreeSet};

use portico_cert_store::DomainId;
use proptest::prelude::*;

use super::*;

fn pattern(text: &str) -> NamePattern {
    text.parse().unwrap()
}

#[test]
fn what_each_proof_does_to_each_owner() {
    use Decision::{Confirm, Displace, Refuse, Replace, Serve};
    use ProofMethod::{Attestation, Cname, Http, Txt};
    let (mine, other) = (DomainId::generate(), DomainId::generate());
    let none = None;
    let own = |method| Some(Standing { domain: mine, method });
    let foreign = |method| Some(Standing { domain: other, method });
    let table = [
        ("a.test.example", Txt, none, Serve),
        ("a.test.example", Cname, none, Serve),
        ("a.test.example", Http, none, Serve),
        ("a.test.example", Attestation, none, Serve),
        ("a.test.example", Txt, own(Txt), Confirm),
        ("a.test.example", Cname, own(Txt), Confirm),
        ("a.test.example", Attestation, own(Txt), Confirm),
        ("a.test.example", Txt, own(Attestation), Replace),
        ("a.test.example", Attestation, own(Attestation), Confirm),
        ("a.test.example", Txt, foreign(Txt), Displace(other)),
        ("a.test.example", Cname, foreign(Cname), Displace(other)),
        ("a.test.example", Txt, foreign(Attestation), Displace(other)),
        ("a.test.example", Http, foreign(Txt), Refuse(Refusal::OwnedByAnother)),
        ("a.test.example", Http, foreign(Attestation), Refuse(Refusal::OwnedByAnother)),
        ("a.test.example", Attestation, foreign(Txt), Refuse(Refusal::OwnedByAnother)),
        ("a.test.example", Attestation, foreign(Http), Refuse(Refusal::OwnedByAnother)),
        ("a.test.example", Attestation, foreign(Attestation), Refuse(Refusal::OwnedByAnother)),
        ("*.test.example", Txt, none, Serve),
        ("*.test.example", Attestation, none, Serve),
        ("*.test.example", Cname, none, Refuse(Refusal::WildcardNeedsTxt)),
        ("*.test.example", Http, none, Refuse(Refusal::WildcardNeedsTxt)),
        ("*.test.example", Txt, foreign(Txt), Displace(other)),
    ];
    for (name, method, served, expected) in table {
        assert_eq!(decide(mine, &pattern(name), method, served), expected, "{name} {method:?} {served:?}");
    }
}

#[test]
fn records_are_compared_whole() {
    let values = ["v=spf1 -all".to_owned(), " portico-abc ".to_owned()];
    assert!(txt_proves(&values, "portico-abc"));
    assert!(!txt_proves(&values, "portico-ab"));
    assert!(!txt_proves(&[], "portico-abc"));
    assert!(cname_proves(&["X1.Edge.Test.".to_owned()], "x1.edge.test"));
    assert!(!cname_proves(&["y.x1.edge.test".to_owned()], "x1.edge.test"));
    assert_eq!(txt_name(&pattern("*.shop.example")), "_portico.shop.example");
    assert_eq!(cname_target(&pattern("*.shop.example"), "l", Some("z.test")), None);
    assert_eq!(cname_target(&pattern("shop.example"), "l", Some("z.test")).unwrap(), "l.z.test");
}

#[test]
fn a_name_that_points_at_us_even_in_part_is_not_proved_by_http() {
    let ours: IpAddr = "192.0.2.1".parse().unwrap();
    let theirs: IpAddr = "198.51.100.1".parse().unwrap();
    let is_ours = |address| address == ours;
    assert!(http_may_be_fetched(&[theirs], is_ours));
    for refused in [&[][..], &[ours], &[theirs, ours]] {
        assert!(!http_may_be_fetched(refused, is_ours), "{refused:?}");
    }
}

#[test]
fn a_proof_file_is_of_one_tenant_one_host_and_one_token() {
    let (tenant, other) = (TenantId::generate(), TenantId::generate());
    let content = http_content("t", tenant, &pattern("shop.example"));
    assert_eq!(content.len(), 64);
    assert_ne!(content, http_content("t", other, &pattern("shop.example")));
    assert_ne!(content, http_content("t", tenant, &pattern("www.shop.example")));
    assert_ne!(content, http_content("u", tenant, &pattern("shop.example")));
}

const TENANTS: usize = 3;
const HOSTS: [&str; 6] =
    ["a.one.example", "b.one.example", "one.example", "*.one.example", "two.example", "*.b.one.example"];

#[derive(Clone, Copy, Debug)]
enum Operation {
    Claim {
        tenant: usize,
        host: usize,
    },
    Prove {
        tenant: usize,
        host: usize,
        method: ProofMethod,
    },
    Delete {
        tenant: usize,
        host: usize,
    },
    /// Another tenant gets the DNS zone of a host; what stands in the zone stays until its new holder changes it.
    Transfer {
        tenant: usize,
        host: usize,
    },
    /// The zone's holder writes its own claim's texts, and points the host at us or at its own server.
    WriteZone {
        host: usize,
        to_us: bool,
    },
    /// The zone's holder removes everything it can remove; a dangling address stays.
    ClearZone {
        host: usize,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let (tenant, host) = (0..TENANTS, 0..HOSTS.len());
    let method = prop_oneof![
        Just(ProofMethod::Txt),
        Just(ProofMethod::Cname),
        Just(ProofMethod::Http),
        Just(ProofMethod::Attestation)
    ];
    prop_oneof![
        3 => (tenant.clone(), host.clone()).prop_map(|(tenant, host)| Operation::Claim { tenant, host }),
        6 => (tenant.clone(), host.clone(), method)
            .prop_map(|(tenant, host, method)| Operation::Prove { tenant, host, method }),
        1 => (tenant.clone(), host.clone()).prop_map(|(tenant, host)| Operation::Delete { tenant, host }),
        1 => (tenant, host.clone()).prop_map(|(tenant, host)| Operation::Transfer { tenant, host }),
        3 => (host.clone(), any::<bool>()).prop_map(|(host, to_us)| Operation::WriteZone { host, to_us }),
        1 => host.prop_map(|host| Operation::ClearZone { host }),
    ]
}

#[derive(Clone, Debug)]
struct Claim {
    domain: DomainId,
    text: String,
    standing: Option<ProofMethod>,
}

/// What DNS says for one host. The texts of TXT and CNAME are modelled by one token a claim.
#[derive(Clone, Debug, Default)]
struct Zone {
    holder: usize,
    texts: BTreeSet<String>,
    cname: Option<String>,
    points_at_us: bool,
}

#[derive(Debug, Default)]
struct World {
    claims: BTreeMap<(usize, usize), Claim>,
    zones: [Zone; HOSTS.len()],
    /// Every text ever handed out.
    used: BTreeSet<String>,
    next_text: u64,
    /// The oracle: whose proof of the host was the last valid one.
    last_valid: BTreeMap<usize, usize>,
    /// Texts that the zone's holder wrote, ever: (host, text).
    written: BTreeSet<(usize, String)>,
}

impl World {
    fn new_text(&mut self) -> String {
        self.next_text += 1;
        let text = format!("t{}", self.next_text);
        assert!(self.used.insert(text.clone()), "a text was handed out twice");
        text
    }

    fn served(&self, host: usize) -> Option<(usize, &Claim)> {
        let mut served = self
            .claims
            .iter()
            .filter(|((_, of), claim)| *of == host && claim.standing.is_some())
            .map(|((tenant, _), claim)| (*tenant, claim));
        let first = served.next();
        assert!(served.next().is_none(), "two claims are served for {}", HOSTS[host]);
        first
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Claim { tenant, host } => {
                if !self.claims.contains_key(&(tenant, host)) {
                    let text = self.new_text();
                    let claim = Claim { domain: DomainId::generate(), text, standing: None };
                    self.claims.insert((tenant, host), claim);
                }
            }
            Operation::Prove { tenant, host, method } => self.prove(tenant, host, method),
            Operation::Delete { tenant, host } => {
                self.claims.remove(&(tenant, host));
            }
            Operation::Transfer { tenant, host } => self.zones[host].holder = tenant,
            Operation::WriteZone { host, to_us } => {
                let holder = self.zones[host].holder;
                let text = self.claims.get(&(holder, host)).map(|claim| claim.text.clone());
                let zone = &mut self.zones[host];
                zone.points_at_us = to_us;
                if let Some(text) = text {
                    self.written.insert((host, text.clone()));
                    zone.texts.insert(text.clone());
                    zone.cname = to_us.then_some(text);
                }
            }
            Operation::ClearZone { host } => {
                self.zones[host].texts.clear();
                self.zones[host].cname = None;
            }
        }
    }

    /// What the checks of the real thing see, then the rule, then what the store does with its decision.
    fn prove(&mut self, tenant: usize, host: usize, method: ProofMethod) {
        let Some(claim) = self.claims.get(&(tenant, host)).cloned() else { return };
        let zone = &self.zones[host];
        let holds = match method {
            ProofMethod::Txt => txt_proves(&zone.texts.iter().cloned().collect::<Vec<_>>(), &claim.text),
            ProofMethod::Cname => {
                zone.cname.as_ref().is_some_and(|at| cname_proves(std::slice::from_ref(at), &claim.text))
            }
            ProofMethod::Http => {
                let address: IpAddr =
                    if zone.points_at_us { [192, 0, 2, 1] } else { [198, 51, 100, 1] }.into();
                let ours: IpAddr = [192, 0, 2, 1].into();
                // Away from us, the server behind the name is its holder's, who puts only its own token there.
                http_may_be_fetched(&[address], |found| found == ours) && zone.holder == tenant
            }
            ProofMethod::Attestation => true,
        };
        if !holds {
            return;
        }
        let served = self.served(host).map(|(of, claim)| (of, claim.clone()));
        let standing = served
            .as_ref()
            .and_then(|(_, claim)| claim.standing.map(|method| Standing { domain: claim.domain, method }));
        let decision = decide(claim.domain, &pattern(HOSTS[host]), method, standing);
        match decision {
            Decision::Serve | Decision::Replace => {}
            Decision::Confirm | Decision::Refuse(_) => return,
            Decision::Displace(loser) => {
                let (of, before) = served.expect("somebody is displaced");
                assert_eq!(before.domain, loser);
                assert_ne!(method, ProofMethod::Attestation, "the operator's word displaced somebody");
                assert_ne!(method, ProofMethod::Http, "a file displaced somebody");
                let text = self.new_text();
                let loser = self.claims.get_mut(&(of, host)).expect("the loser has a claim");
                (loser.standing, loser.text) = (None, text);
            }
        }
        if matches!(method, ProofMethod::Txt | ProofMethod::Cname) {
            let known = self.written.contains(&(host, claim.text));
            assert!(known, "proved by a text that no holder of the zone ever wrote");
        }
        self.claims.get_mut(&(tenant, host)).expect("the claim exists").standing = Some(method);
        self.last_valid.insert(host, tenant);
    }

    fn check(&self) {
        for (host, name) in HOSTS.iter().enumerate() {
            if let Some((tenant, claim)) = self.served(host) {
                assert_eq!(self.last_valid.get(&host), Some(&tenant), "{} is served for another", name);
                let wildcard = pattern(name).is_wildcard();
                let method = claim.standing.expect("a served claim stands on a proof");
                assert!(!wildcard || matches!(method, ProofMethod::Txt | ProofMethod::Attestation));
            }
        }
    }
}

proptest! {
    // 600 histories of 200 operations: 120,000.
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn a_host_is_served_only_for_whoever_proved_it_last(history in prop::collection::vec(operation(), 200)) {
        let mut world = World::default();
        for operation in history {
            world.apply(operation);
            world.check();
        }
    }
}

#[test]
fn a_record_left_behind_proves_nothing_after_delete_or_displacement() {
    let mut world = World::default();
    let txt = ProofMethod::Txt;
    world.apply(Operation::Claim { tenant: 0, host: 0 });
    world.apply(Operation::WriteZone { host: 0, to_us: true });
    world.apply(Operation::Prove { tenant: 0, host: 0, method: txt });
    assert_eq!(world.served(0).unwrap().0, 0);

    // The zone moves; the records of tenant 0 still stand in it when tenant 1 proves.
    world.apply(Operation::Transfer { tenant: 1, host: 0 });
    world.apply(Operation::Claim { tenant: 1, host: 0 });
    world.apply(Operation::WriteZone { host: 0, to_us: true });
    world.apply(Operation::Prove { tenant: 1, host: 0, method: txt });
    assert_eq!(world.served(0).unwrap().0, 1);
    world.apply(Operation::Prove { tenant: 0, host: 0, method: txt });
    assert_eq!(world.served(0).unwrap().0, 1, "the left-behind record took the name back");

    // Deleted and claimed again, by the same tenant or another: old records and the dangling address prove nothing.
    world.apply(Operation::Delete { tenant: 1, host: 0 });
    for tenant in 0..TENANTS {
        world.apply(Operation::Claim { tenant, host: 0 });
        for method in [txt, ProofMethod::Cname, ProofMethod::Http] {
            world.apply(Operation::Prove { tenant, host: 0, method });
        }
    }
    assert!(world.served(0).is_none());
}
