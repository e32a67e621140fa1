//! DNS identifiers: what a name in an order may look like, and which registered domain it belongs to.
//!
//! Names under top-level domains that the public suffix list does not know (`.test`, `.example`) are
//! taken, with the last label as the suffix: this CA exists for them. Absent: IP identifiers.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::problem::{Kind, Problem};

/// An identifier as sent in newOrder.
#[derive(Debug, Deserialize)]
pub(crate) struct RawIdentifier {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) value: String,
}

/// Checks a newOrder's identifiers as a whole and returns the sorted set of names.
///
/// # Errors
/// `malformed`, `unsupportedIdentifier`, or `rejectedIdentifier` with a subproblem for each refused name.
pub(crate) fn parse_names(raw: &[RawIdentifier], names_max: usize) -> Result<BTreeSet<String>, Problem> {
    if raw.is_empty() {
        return Err(Problem::malformed("an order needs at least one identifier"));
    }
    if raw.len() > names_max {
        return Err(Problem::malformed(format!("an order may have at most {names_max} identifiers")));
    }
    let mut names = BTreeSet::new();
    let mut refused = vec![];
    for identifier in raw {
        if identifier.kind != "dns" {
            let detail = format!("identifiers of type {:?} are not supported", identifier.kind);
            return Err(Problem::new(Kind::UnsupportedIdentifier, detail));
        }
        let name = identifier.value.to_ascii_lowercase();
        match refusal(&name) {
            None => drop(names.insert(name)),
            Some(reason) => refused.push((identifier.value.clone(), reason.kind, reason.text.to_owned())),
        }
    }
    if let Some((first, kind, text)) = refused.first() {
        let detail = format!("cannot issue for {first:?}: {text}");
        let mut problem = Problem::new(*kind, detail);
        problem.subproblems = refused;
        return Err(problem);
    }
    refuse_redundant(&names)?;
    Ok(names)
}

/// The registered domain that a limit is counted by. A public suffix itself stands for itself.
pub(crate) fn registered_domain(name: &str) -> &str {
    let base = base_name(name);
    psl::domain_str(base).unwrap_or(base)
}

/// The name without a leading `*.`.
pub(crate) fn base_name(name: &str) -> &str {
    name.strip_prefix("*.").unwrap_or(name)
}

struct Refusal {
    kind: Kind,
    text: &'static str,
}

fn refusal(name: &str) -> Option<Refusal> {
    let malformed = |text| Some(Refusal { kind: Kind::Malformed, text });
    let rejected = |text| Some(Refusal { kind: Kind::RejectedIdentifier, text });
    let base = base_name(name);
    if name.len() > 253 {
        return malformed("longer than 253 bytes");
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return malformed("an IP address is not a DNS name");
    }
    if base.contains('*') {
        return malformed("a wildcard is the whole first label, once");
    }
    if base.ends_with('.') {
        return malformed("a trailing dot");
    }
    for label in base.split('.') {
        if let Some(text) = label_fault(label) {
            return malformed(text);
        }
    }
    if !base.contains('.') {
        return malformed("a single label");
    }
    if base.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return malformed("the last label is a number");
    }
    if psl::suffix(base.as_bytes()).is_some_and(|s| s.is_known() && s.as_bytes() == base.as_bytes()) {
        return rejected("a public suffix");
    }
    None
}

fn label_fault(label: &str) -> Option<&'static str> {
    if label.is_empty() {
        return Some("an empty label");
    }
    if label.len() > 63 {
        return Some("a label longer than 63 bytes");
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Some("a label that begins or ends with a hyphen");
    }
    if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Some("a character that is not a letter, digit or hyphen");
    }
    if label.len() > 3 && &label.as_bytes()[2..4] == b"--" && !label.starts_with("xn--") {
        return Some("a reserved label with two hyphens");
    }
    None
}

/// A name that a wildcard of the same order covers is refused, as Boulder does.
fn refuse_redundant(names: &BTreeSet<String>) -> Result<(), Problem> {
    for name in names {
        let Some((_, parent)) = name.split_once('.') else { continue };
        if !name.starts_with("*.") && names.contains(&format!("*.{parent}")) {
            return Err(Problem::malformed(format!("{name} is already covered by *.{parent} in this order")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(names: &[&str]) -> Result<BTreeSet<String>, Problem> {
        let raw: Vec<RawIdentifier> =
            names.iter().map(|n| RawIdentifier { kind: "dns".to_owned(), value: (*n).to_owned() }).collect();
        parse_names(&raw, 3)
    }

    #[test]
    fn names_are_lower_cased_and_deduplicated() {
        let names = parse(&["WWW.Shop.test", "www.shop.test", "*.api.shop.test"]).unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["*.api.shop.test", "www.shop.test"]);
    }

    #[test]
    fn wrong_names_are_refused_with_their_kind() {
        let long = format!("{}.test", "a".repeat(64));
        for name in [
            "",
            "shop",
            "a..test",
            "-a.test",
            "a_b.test",
            "127.0.0.1",
            "a.123",
            "*.*.test",
            "shop.test.",
            "b.*.test",
            "zz--a.test",
            &long,
        ] {
            let problem = parse(&[name]).unwrap_err();
            assert_eq!(problem.kind, Kind::Malformed, "{name}");
        }
        for name in ["co.uk", "*.co.uk", "github.io"] {
            let problem = parse(&["ok.test", name]).unwrap_err();
            assert_eq!(problem.kind, Kind::RejectedIdentifier, "{name}");
            assert_eq!(problem.subproblems.len(), 1);
            assert_eq!(problem.subproblems[0].0, name);
        }
        assert_eq!(parse(&["www.shop.test", "*.shop.test"]).unwrap_err().kind, Kind::Malformed);
        assert_eq!(parse(&["a.test", "b.test", "c.test", "d.test"]).unwrap_err().kind, Kind::Malformed);
    }

    #[test]
    fn the_registered_domain_follows_the_public_suffix_list() {
        assert_eq!(registered_domain("*.a.shop.co.uk"), "shop.co.uk");
        assert_eq!(registered_domain("a.b.shop.test"), "shop.test");
        assert_eq!(registered_domain("me.github.io"), "me.github.io");
    }
}
