//! Challenges: exact, bounded, and gone at their deadline.

use portico_edge::challenge::{ChallengePublisher, is_token};
use portico_edge::live::limits;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

const HOST: &str = "www.shop.example";

fn token(number: usize) -> String {
    format!("{number:043}")
}

fn set(
    publisher: &mut ChallengePublisher,
    host: &str,
    number: usize,
    expires: i64,
    now: i64,
) -> Result<(), String> {
    let token = token(number);
    publisher
        .set_http01(host, &token, &format!("{token}.thumb-print_1"), expires, now)
        .map_err(|fault| fault.code.to_owned())
}

#[test]
fn only_the_exact_host_and_token_are_answered() {
    let mut publisher = ChallengePublisher::new();
    let challenges = publisher.reader();
    set(&mut publisher, HOST, 1, 1000, 0).unwrap();
    assert_eq!(
        challenges.http01(HOST, &token(1), 500).as_deref(),
        Some(&*format!("{}.thumb-print_1", token(1)))
    );
    for (host, token) in [
        ("shop.example", token(1)),
        ("x.www.shop.example", token(1)),
        (HOST, token(2)),
        (HOST, token(1)[..42].to_owned()),
        (HOST, String::new()),
    ] {
        assert_eq!(challenges.http01(host, &token, 500), None, "{host} {token}");
    }
    // Expired for readers at once, and for good when swept.
    assert_eq!(challenges.http01(HOST, &token(1), 1000), None);
    publisher.sweep(1000);
    assert!(publisher.is_empty());
    assert_eq!(challenges.http01(HOST, &token(1), 500), None);
}

#[test]
fn two_issuers_validate_one_name_at_once() {
    let mut publisher = ChallengePublisher::new();
    let challenges = publisher.reader();
    set(&mut publisher, HOST, 1, 1000, 0).unwrap();
    set(&mut publisher, HOST, 2, 1000, 0).unwrap();
    publisher.set_tls_alpn01(HOST, &[7; 32], 1000, 0).unwrap();
    publisher.clear(HOST, &token(1), 0).unwrap();
    assert!(challenges.http01(HOST, &token(1), 1).is_none());
    assert!(challenges.http01(HOST, &token(2), 1).is_some());
    assert!(challenges.tls_alpn01(HOST, 1).is_some());
    publisher.clear(HOST, "", 0).unwrap();
    assert!(challenges.tls_alpn01(HOST, 1).is_none());
    assert!(challenges.http01(HOST, &token(2), 1).is_some());
    publisher.clear("never.example", "", 0).unwrap();
    assert_eq!(publisher.len(), 1);
}

#[test]
fn the_challenge_certificate_is_as_rfc_8737_has_it() {
    let mut publisher = ChallengePublisher::new();
    let challenges = publisher.reader();
    let digest = [0xa5; 32];
    publisher.set_tls_alpn01(HOST, &digest, 1000, 0).unwrap();
    let certified = challenges.tls_alpn01(HOST, 1).unwrap();
    assert_eq!(certified.cert.len(), 1);
    let (_, certificate) = X509Certificate::from_der(&certified.cert[0]).unwrap();
    certificate.verify_signature(None).unwrap();
    let public = certified.key.public_key().unwrap();
    assert_eq!(certificate.public_key().raw, public.as_ref(), "the key is that of the certificate");
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(*names, [GeneralName::DNSName(HOST)]);
    let identifier = certificate
        .extensions()
        .iter()
        .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
        .expect("the acmeIdentifier extension");
    assert!(identifier.critical);
    assert_eq!(identifier.value, [&[4, 32][..], &digest[..]].concat(), "an OCTET STRING of the digest");
    assert!(challenges.tls_alpn01(HOST, 1000).is_none());
}

#[test]
fn wrong_values_are_refused() {
    let mut publisher = ChallengePublisher::new();
    let good = token(1);
    let cases: [(&str, &str, String, i64); 6] = [
        ("not a host", &good, format!("{good}.t"), 9),
        (HOST, "short", "short.t".into(), 9),
        (HOST, &"t".repeat(129), format!("{}.t", "t".repeat(129)), 9),
        (HOST, &good, format!("{}.t", token(2)), 9),
        (HOST, &good, format!("{good}."), 9),
        (HOST, &good, format!("{good}.t\r\nx: y"), 9),
    ];
    for (host, token, key_authorization, expires) in cases {
        let refused = publisher.set_http01(host, token, &key_authorization, expires, 0);
        assert!(refused.is_err(), "{host} {token} {key_authorization} {expires}");
    }
    assert!(publisher.set_tls_alpn01(HOST, &[1; 31], 9, 0).is_err());
    assert!(publisher.is_empty());
    assert!(is_token(&good) && !is_token("../../../../etc/passwd-and-more"));
}

#[test]
fn a_sender_whose_clock_is_behind_is_not_refused() {
    let mut publisher = ChallengePublisher::new();
    let day = 24 * 3600 * 1000;
    let challenges = publisher.reader();
    set(&mut publisher, HOST, 1, day, 2 * day).unwrap();
    publisher.set_tls_alpn01(HOST, &[7; 32], day, 2 * day).unwrap();
    let last = 2 * day + limits::CHALLENGE_LIFE_APART_MS - 1;
    assert!(
        challenges.http01(HOST, &token(1), last).is_some() && challenges.tls_alpn01(HOST, last).is_some()
    );
    assert!(challenges.http01(HOST, &token(1), last + 1).is_none());
    publisher.sweep(last + 1);
    assert!(publisher.is_empty());
}

#[test]
fn the_store_is_bounded_by_host_and_in_all() {
    let mut publisher = ChallengePublisher::new();
    for number in 0..limits::CHALLENGES_PER_HOST_MAX {
        set(&mut publisher, HOST, number, 1000, 0).unwrap();
    }
    assert_eq!(set(&mut publisher, HOST, 99, 1000, 0), Err("TooManyChallenges".into()));
    // The same token again replaces, and expired ones make room.
    set(&mut publisher, HOST, 0, 1000, 0).unwrap();
    set(&mut publisher, HOST, 99, 3000, 2000).unwrap();
    assert_eq!(publisher.len(), 1);
    let mut count = 1;
    while count < limits::CHALLENGES_MAX {
        set(&mut publisher, &format!("h{count}.example"), 1, 9000, 2000).unwrap();
        count += 1;
    }
    assert_eq!(set(&mut publisher, "one-more.example", 1, 9000, 2000), Err("TooManyChallenges".into()));
    publisher.sweep(9000);
    assert!(publisher.is_empty());
    // Nothing lives longer than a day, whatever its sender says.
    set(&mut publisher, HOST, 1, i64::MAX, 0).unwrap();
    assert!(publisher.reader().http01(HOST, &token(1), limits::CHALLENGE_LIFE_MS_MAX).is_none());
}
