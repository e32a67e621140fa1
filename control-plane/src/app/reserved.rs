//! Names that nobody can bring: those that no public DNS or CA knows, and the provider's own zones.
//!
//! Deliberately absent: `.test` and `.example` (RFC 6761), with which everything is tried out; public CAs refuse them
//! themselves, and a private CA may issue for them.

use portico_cert_store::NamePattern;

use crate::config::DnsConfig;

/// Why no tenant can bring the name; `None`: it can.
pub(crate) fn refusal(name: &NamePattern, dns: &DnsConfig) -> Option<String> {
    let base = name.base().as_str();
    let top = base.rsplit('.').next().unwrap_or(base);
    let reserved = match top {
        "onion" => Some("Tor's hidden services, which are not in DNS (RFC 7686)"),
        "local" => Some("multicast DNS on one link (RFC 6762)"),
        "localhost" => Some("the machine itself (RFC 6761)"),
        "invalid" => Some("names that do not exist (RFC 6761)"),
        "internal" => Some("private networks (ICANN, 2024)"),
        "alt" => Some("names outside of DNS (RFC 9476)"),
        "arpa" => Some("the Internet's own infrastructure (RFC 3172)"),
        _ => None,
    };
    if let Some(reserved) = reserved {
        return Some(format!("names below .{top} are reserved for {reserved}; no public CA issues for them"));
    }
    let zones = [("cname_zone", &dns.cname_zone), ("challenge_zone", &dns.challenge_zone)];
    zones.into_iter().find_map(|(key, zone)| {
        let zone = zone.as_deref()?.trim_end_matches('.').to_ascii_lowercase();
        let within = base == zone || base.strip_suffix(&zone).is_some_and(|before| before.ends_with('.'));
        within.then(|| {
            format!("{zone} is the provider's own zone ({key} of [dns]), which tenants' records point into")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_and_own_zones_are_nobodys_and_test_names_are_anybodys() {
        let dns = DnsConfig {
            challenge_zone: Some("acme.provider.test".to_owned()),
            cname_zone: Some("Edge.Provider.test.".to_owned()),
            ..DnsConfig::default()
        };
        let refused = |name: &str| refusal(&NamePattern::parse(name).unwrap(), &dns);
        for (name, words) in [
            ("shop.onion", "RFC 7686"),
            ("nas.local", "RFC 6762"),
            ("shop.invalid", "RFC 6761"),
            ("db.internal", "private networks"),
            ("*.db.internal", "private networks"),
            ("1.0.0.127.in-addr.arpa", "RFC 3172"),
            ("a.localhost", "RFC 6761"),
            ("abc.edge.provider.test", "cname_zone"),
            ("*.edge.provider.test", "cname_zone"),
            ("edge.provider.test", "cname_zone"),
            ("abc.acme.provider.test", "challenge_zone"),
        ] {
            assert!(refused(name).is_some_and(|text| text.contains(words)), "{name}: {:?}", refused(name));
        }
        for name in
            ["shop.test", "shop.example", "www.provider.test", "myedge.provider.test", "internal.shop.test"]
        {
            assert_eq!(refused(name), None, "{name}");
        }
    }
}
