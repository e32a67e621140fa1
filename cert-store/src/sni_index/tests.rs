use super::*;
use crate::fixture::{self, P256, cell, now};
use crate::seal::CellKey;

#[test]
fn a_name_published_before_its_credential_is_a_miss_until_it_arrives() {
    let mut publisher = SniPublisher::new(10);
    let index = publisher.reader();
    let lineage = LineageId::generate();
    let name = DomainName::parse("a.example.org").unwrap();
    let input = SniEntryInput {
        tenant: TenantId::generate(),
        domain: DomainId::generate(),
        policy: TlsPolicy::default(),
        lineages: &[lineage],
    };
    publisher.publish_name(NamePattern::Exact(name.clone()), &input).unwrap();
    assert!(index.lookup(&name, now(), ClientCapabilities::ALL).is_none());
    assert_eq!(index.entry(&name).unwrap().tenant, input.tenant);

    let cell_key = CellKey::generate(cell(), 1);
    let chain = fixture::chain(&["a.example.org"], &P256);
    publisher.publish_credential(fixture::credential(chain, &P256, &cell_key, lineage));
    let hit = index.lookup(&name, now(), ClientCapabilities::ALL).unwrap();
    assert_eq!((hit.tenant, hit.domain, hit.credential.lineage()), (input.tenant, input.domain, lineage));
}
