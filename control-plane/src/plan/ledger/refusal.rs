//! Which limit a CA's refusal is about. The type of the problem is the same for all (RFC 8555 section 6.6), so the words
//! decide: Let's Encrypt's, or a limit's name in its address there.

use super::{LimitName, registered_domains};

/// The limits that `detail` tells of, with their subjects among these names; empty when the words say nothing that is known.
pub fn told(detail: &str, names: &[String], name_set: &str) -> Vec<(LimitName, String)> {
    let detail = detail.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| detail.contains(words));
    if says(&["too many new orders", "new-orders"]) {
        vec![(LimitName::Orders, String::new())]
    } else if says(&["new registrations", "new accounts", "new-accounts", "new-registrations"]) {
        vec![(LimitName::NewAccounts, String::new())]
    } else if says(&["exact set", "exact-set"]) {
        vec![(LimitName::ExactSet, name_set.to_owned())]
    } else if says(&["temporarily prevented", "consecutive", "paused"]) {
        of(LimitName::ConsecutiveFailures, &detail, names.to_vec())
    } else if says(&["failed authorizations", "failed-authorizations", "authorization-failures"]) {
        of(LimitName::FailedAuthorizations, &detail, names.to_vec())
    } else if says(&["already issued for", "certificates-per-domain", "per-registered-domain"]) {
        of(LimitName::RegisteredDomain, &detail, registered_domains(names))
    } else {
        Vec::new()
    }
}

/// Those of the subjects that the text names, or the only one there is.
fn of(limit: LimitName, detail: &str, mut subjects: Vec<String>) -> Vec<(LimitName, String)> {
    if subjects.len() > 1 {
        subjects.retain(|subject| is_named(detail, subject));
    }
    subjects.into_iter().map(|subject| (limit, subject)).collect()
}

/// Whether a name stands in a text by itself, not as a part of another.
fn is_named(text: &str, name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'*' | b'_');
    let bytes = text.as_bytes();
    text.match_indices(name).any(|(start, _)| {
        let before = start.checked_sub(1).map(|at| bytes[at]);
        let mut after = bytes[start + name.len()..].iter().copied();
        let ends = match (after.next(), after.next()) {
            // The dot of a sentence, or of a longer name.
            (Some(b'.'), next) => !next.is_some_and(is_of_name),
            (next, _) => !next.is_some_and(is_of_name),
        };
        ends && !before.is_some_and(|byte| is_of_name(byte) || byte == b'.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(detail: &str, names: &[&str]) -> Vec<(LimitName, String)> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        told(detail, &names, "set")
    }

    #[test]
    fn lets_encrypts_words_are_understood() {
        let names = ["a.shop.test", "shop.test", "www.else.test"];
        let one = |limit, subject: &str| vec![(limit, subject.to_owned())];
        for (detail, expected) in [
            (
                "too many new orders (300) from this account in the last 3h0m0s, retry after 2026-01-01 00:00:00 UTC: see \
                 https://letsencrypt.org/docs/rate-limits/#new-orders-per-account",
                one(LimitName::Orders, ""),
            ),
            (
                "too many certificates (50) already issued for \"else.test\" in the last 168h0m0s, retry after ..: see \
                 https://letsencrypt.org/docs/rate-limits/#new-certificates-per-registered-domain",
                one(LimitName::RegisteredDomain, "else.test"),
            ),
            (
                "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s",
                one(LimitName::ExactSet, "set"),
            ),
            (
                "too many failed authorizations (5) for \"shop.test\" in the last 1h0m0s: see \
                 https://letsencrypt.org/docs/rate-limits/#authorization-failures-per-hostname-per-account",
                one(LimitName::FailedAuthorizations, "shop.test"),
            ),
            (
                "Your account is temporarily prevented from requesting certificates for A.shop.test and possibly others. \
                 Please visit: https://portal.test/unpause",
                one(LimitName::ConsecutiveFailures, "a.shop.test"),
            ),
            (
                "too many new registrations (10) from this IP address in the last 3h0m0s",
                one(LimitName::NewAccounts, ""),
            ),
            ("slow down", Vec::new()),
            ("too many certificates (50) already issued for \"another.test\"", Vec::new()),
        ] {
            assert_eq!(read(detail, &names), expected, "{detail}");
        }
    }

    #[test]
    fn the_only_subject_need_not_be_named_and_a_longer_name_is_not_it() {
        let sole = read("limit certificates-per-domain reached", &["a.shop.test", "b.shop.test"]);
        assert_eq!(sole, [(LimitName::RegisteredDomain, "shop.test".to_owned())]);
        let names = ["shop.test", "hop.test", "shop.test.else.test"];
        let named = read("too many failed authorizations for shop.test.", &names);
        assert_eq!(named, [(LimitName::FailedAuthorizations, "shop.test".to_owned())]);
    }
}
