use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn pattern(text: &str) -> NamePattern {
    NamePattern::parse(text).unwrap()
}

fn name(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

#[test]
fn exact_is_found_before_wildcard_and_a_wildcard_is_one_label_deep() {
    let mut publisher = NameTablePublisher::new(0);
    let table = publisher.reader();
    publisher.insert(pattern("*.example.org"), Arc::new(1));
    publisher.insert(pattern("a.example.org"), Arc::new(2));
    let find = |text| table.find(&name(text)).map(|(how, value)| (how, *value));
    assert_eq!(find("a.example.org"), Some((Match::Exact, 2)));
    assert_eq!(find("b.example.org"), Some((Match::Wildcard, 1)));
    assert_eq!(find("example.org"), None);
    assert_eq!(find("b.a.example.org"), None);
    assert_eq!(table.len(), 2);
    publisher.remove(&pattern("a.example.org"));
    assert_eq!(find("a.example.org"), Some((Match::Wildcard, 1)));
}

#[derive(Debug, Clone)]
enum Change {
    Insert(u16, bool, u32),
    Remove(u16, bool),
    ReplaceAll(Vec<(u16, bool, u32)>),
}

fn numbered(number: u16, wildcard: bool) -> NamePattern {
    pattern(&format!("{}n{number}.example.org", if wildcard { "*." } else { "" }))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        20 => (0..600_u16, any::<bool>(), any::<u32>()).prop_map(|(n, w, v)| Change::Insert(n, w, v)),
        10 => (0..600_u16, any::<bool>()).prop_map(|(n, w)| Change::Remove(n, w)),
        1 => prop::collection::vec((0..600_u16, any::<bool>(), any::<u32>()), 0..300).prop_map(Change::ReplaceAll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn the_table_agrees_with_a_plain_map(expected in 0..2_000_usize, changes in prop::collection::vec(change(), 0..1_500)) {
        let mut publisher = NameTablePublisher::new(expected);
        let table = publisher.reader();
        let mut model = HashMap::new();
        for change in changes {
            match change {
                Change::Insert(n, w, value) => {
                    let replaced = publisher.insert(numbered(n, w), Arc::new(value));
                    prop_assert_eq!(replaced.as_deref().copied(), model.insert(numbered(n, w), value));
                }
                Change::Remove(n, w) => {
                    let removed = publisher.remove(&numbered(n, w));
                    prop_assert_eq!(removed.as_deref().copied(), model.remove(&numbered(n, w)));
                }
                Change::ReplaceAll(entries) => {
                    model = entries.iter().map(|&(n, w, value)| (numbered(n, w), value)).collect();
                    publisher.replace_all(entries.into_iter().map(|(n, w, value)| (numbered(n, w), Arc::new(value))));
                }
            }
        }
        prop_assert_eq!(table.len(), model.len());
        for n in 0..600 {
            for w in [false, true] {
                let pattern = numbered(n, w);
                prop_assert_eq!(table.get(&pattern).as_deref().copied(), model.get(&pattern).copied());
            }
        }
    }
}
