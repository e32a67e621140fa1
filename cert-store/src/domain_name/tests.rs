use proptest::prelude::*;

use super::*;

fn refusal(text: &str) -> NameError {
    DomainName::parse(text).expect_err(text)
}

#[test]
fn all_spellings_of_a_name_are_one_name() {
    for (spelling, name) in [
        ("WWW.Example.ORG.", "www.example.org"),
        ("www.example.org", "www.example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.EXAMPLE", "xn--bcher-kva.example"),
        ("bu\u{308}cher.example", "xn--bcher-kva.example"),
        ("日本語。jp", "xn--wgv71a119e.jp"),
        ("ｗｗｗ．example．org", "www.example.org"),
        ("1.2.3.example.org", "1.2.3.example.org"),
        ("a-b--c.example", "a-b--c.example"),
    ] {
        assert_eq!(DomainName::parse(spelling).unwrap().as_str(), name, "{spelling}");
    }
    assert_eq!(DomainName::parse("xn--bcher-kva.example").unwrap().to_unicode(), "bücher.example");
}

#[test]
fn wrong_names_are_refused_with_what_to_do() {
    let long_label = format!("{}.example", "a".repeat(300));
    let long_name = format!("{}example", "abcdefgh.".repeat(30));
    type Case<'a> = (&'a str, fn(&NameError) -> bool, &'a str);
    let cases: &[Case<'_>] = &[
        ("", |e| matches!(e, NameError::Empty), "www.example.org"),
        (".", |e| matches!(e, NameError::Empty), "www.example.org"),
        ("localhost", |e| matches!(e, NameError::SingleLabel { .. }), "localhost.example.org"),
        ("a..example", |e| matches!(e, NameError::EmptyLabel { .. }), "extra dot"),
        (".example.org", |e| matches!(e, NameError::EmptyLabel { .. }), "extra dot"),
        ("example.org..", |e| matches!(e, NameError::EmptyLabel { .. }), "extra dot"),
        (&long_label, |e| matches!(e, NameError::LabelTooLong { octets: 300, .. }), "shorten"),
        (&long_name, |e| matches!(e, NameError::TooLong { .. }), "shorter name"),
        ("-a.example", |e| matches!(e, NameError::OuterHyphen { .. }), "remove it"),
        ("a-.example", |e| matches!(e, NameError::OuterHyphen { .. }), "remove it"),
        ("ab--cd.example", |e| matches!(e, NameError::ReservedLabel { .. }), "another label"),
        ("192.0.2.7", |e| matches!(e, NameError::IpAddress { .. }), "points to it"),
        ("192.0.2.7.", |e| matches!(e, NameError::IpAddress { .. }), "points to it"),
        ("１９２.0.2.7", |e| matches!(e, NameError::IpAddress { .. }), "points to it"),
        ("10.1", |e| matches!(e, NameError::IpAddress { .. }), "points to it"),
        ("1.2.3.0x4", |e| matches!(e, NameError::IpAddress { .. }), "points to it"),
        ("::1", |e| matches!(e, NameError::IpAddress { .. }), "points to it"),
        ("[2001:db8::1]", |e| matches!(e, NameError::IpAddress { .. }), "points to it"),
        ("a_b.example", |e| matches!(e, NameError::Character { character: '_', .. }), "hyphens"),
        ("_a.example", |e| matches!(e, NameError::Character { character: '_', .. }), "hyphens"),
        ("a b.example", |e| matches!(e, NameError::Character { character: ' ', .. }), "hyphens"),
        ("https://a.example", |e| matches!(e, NameError::Character { .. }), "scheme"),
        ("a.example:443", |e| matches!(e, NameError::Character { character: ':', .. }), "port"),
        ("a\0.example", |e| matches!(e, NameError::Character { .. }), "hyphens"),
        ("*.example.org", |e| matches!(e, NameError::WildcardNotAllowed { .. }), "leave out"),
        ("a.*.example.org", |e| matches!(e, NameError::WildcardPlace { .. }), "first label"),
        ("xn--a.example", |e| matches!(e, NameError::Idna { .. }), "spelling"),
        ("a\u{200e}b.example", |e| matches!(e, NameError::Idna { .. }), "spelling"),
    ];
    for (text, is_expected, hint) in cases {
        let error = refusal(text);
        assert!(is_expected(&error), "{text}: {error:?}");
        let message = error.to_string();
        assert!(message.contains(hint) && message.len() < 400, "{text}: {message}");
    }
}

#[test]
fn huge_input_is_refused_at_once() {
    assert!(matches!(refusal(&"a".repeat(10_000_000)), NameError::LabelTooLong { .. }));
    assert!(matches!(refusal(&"ü.".repeat(5_000_000)), NameError::TooLong { .. }));
}

#[test]
fn longest_names_fit() {
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    assert_eq!(name.len(), 253);
    assert!(DomainName::parse(&name).is_ok());
    assert!(DomainName::parse(&format!("{name}.")).is_ok());
    assert!(matches!(refusal(&format!("{name}b")), NameError::TooLong { octets: 254 }));
}

#[test]
fn the_public_suffix_list_tells_registered_domains() {
    for (name, registered) in [
        ("www.example.co.uk", Some("example.co.uk")),
        ("example.co.uk", Some("example.co.uk")),
        ("co.uk", None),
        ("github.io", None),
        ("me.github.io", Some("me.github.io")),
        ("a.b.unknown-tld-zz", Some("b.unknown-tld-zz")),
        ("www.食狮.公司.cn", Some("xn--85x722f.xn--55qx5d.cn")),
        ("公司.cn", None),
    ] {
        let name = DomainName::parse(name).unwrap();
        assert_eq!(name.registered_domain(), registered, "{name}");
        assert_eq!(name.is_public_suffix(), registered.is_none(), "{name}");
    }
}

#[test]
fn a_pattern_refuses_public_suffixes_and_misplaced_stars() {
    let pattern = NamePattern::parse("*.Example.org.").unwrap();
    assert_eq!(pattern.to_string(), "*.example.org");
    assert!(pattern.is_wildcard());
    for suffix in ["co.uk", "*.co.uk", "*.github.io", "github.io", "公司.cn"] {
        let error = NamePattern::parse(suffix).unwrap_err();
        assert!(matches!(error, NameError::PublicSuffix { .. }), "{suffix}: {error:?}");
    }
    for wrong in
        ["a.*.example.org", "*a.example.org", "a*.example.org", "*.*.example.org", "www.*", "＊.example.org"]
    {
        let error = NamePattern::parse(wrong).unwrap_err();
        assert!(matches!(&error, NameError::WildcardPlace { name } if name == wrong), "{wrong}: {error:?}");
    }
    assert!(NamePattern::parse("*").is_err());
    assert!(NamePattern::parse("*.").is_err());
    assert!(matches!(NamePattern::parse("*.org"), Err(NameError::SingleLabel { .. })));
}

#[test]
fn a_wildcard_stands_for_exactly_one_label() {
    let wildcard = NamePattern::parse("*.example.org").unwrap();
    let name = |text| DomainName::parse(text).unwrap();
    assert!(wildcard.matches(&name("a.example.org")));
    assert!(!wildcard.matches(&name("example.org")));
    assert!(!wildcard.matches(&name("a.b.example.org")));
    assert!(!wildcard.matches(&name("aexample.org")));
    assert!(wildcard.covers(&wildcard) && wildcard.covers(&NamePattern::parse("b.example.org").unwrap()));
    assert!(!NamePattern::parse("b.example.org").unwrap().covers(&wildcard));
}

#[test]
fn parents_end_at_two_labels() {
    let name = DomainName::parse("a.b.example.org").unwrap();
    let parent = name.parent().unwrap();
    assert_eq!(parent.as_str(), "b.example.org");
    assert_eq!(parent.parent().unwrap().parent(), None);
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9]([a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?",
        "[äöüßéñ漢字かな]{1,8}",
        "[a-z]{1,5}[äöüé]{1,3}[a-z]{0,4}",
    ]
}

fn name_text() -> impl Strategy<Value = String> {
    (prop::collection::vec(label(), 1..5), "[a-z]{2,6}", prop::bool::ANY)
        .prop_map(|(labels, tld, dot)| format!("{}.{tld}{}", labels.join("."), if dot { "." } else { "" }))
}

proptest! {
    #[test]
    fn parsing_is_idempotent_and_unicode_reads_back(text in name_text()) {
        let Ok(name) = DomainName::parse(&text) else { return Ok(()) };
        prop_assert_eq!(&DomainName::parse(name.as_str()).unwrap(), &name);
        prop_assert_eq!(&DomainName::parse(&name.to_unicode()).unwrap(), &name);
        prop_assert_eq!(&DomainName::parse(&text.to_ascii_uppercase()).unwrap(), &name);
        // Sharp s has no upper case of its own: it becomes SS, which is another name.
        if !text.contains('ß') {
            prop_assert_eq!(&DomainName::parse(&text.to_uppercase()).unwrap(), &name);
        }
        prop_assert!(name.as_str().len() <= NAME_BYTES_MAX);
        // What passes here is a DNS name for the TLS stack too.
        prop_assert!(rustls_pki_types::DnsName::try_from(name.as_str()).is_ok());
    }

    #[test]
    fn names_that_need_no_mapping_come_out_as_the_mapping_would_have_them(text in "[a-zA-Z0-9.-]{0,60}") {
        if !text.to_ascii_lowercase().split('.').any(|label| label.starts_with("xn--")) {
            prop_assert_eq!(a_labels(&text).unwrap(), map_labels(&text).unwrap());
        }
    }

    #[test]
    fn any_text_gives_a_name_or_a_short_error(text in "\\PC{0,120}|[a-z0-9.*_\\-:\\[\\]%/ ]{0,60}") {
        match NamePattern::parse(&text) {
            Ok(pattern) => prop_assert_eq!(NamePattern::parse(&pattern.to_string()).unwrap(), pattern),
            Err(error) => prop_assert!(error.to_string().len() < 800),
        }
    }

    #[test]
    fn a_wildcard_matches_what_a_label_before_its_base_makes(first in "[a-z0-9]{1,9}", text in name_text()) {
        let Ok(base) = DomainName::parse(&text) else { return Ok(()) };
        let Ok(name) = DomainName::parse(&format!("{first}.{base}")) else { return Ok(()) };
        prop_assert!(NamePattern::Wildcard(base.clone()).matches(&name));
        prop_assert_eq!(name.parent(), Some(base));
    }
}
