//! Which addresses may be reached on a tenant's behalf: origins, proof fetches, spot checks.
//!
//! Pure: no resolver, no socket. The rule only holds if it is asked about the address of the *connect* itself, after
//! every resolution, because a name can resolve to a public address when it is checked and to 127.0.0.1 when it is used
//! (DNS rebinding). Whoever connects must connect to exactly the address that was checked.
//!
//! Deliberately absent: names. `localhost`, `2130706433` and `0177.0.0.1` are the resolver's and the URL parser's business;
//! here they are addresses already.

use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use ipnet::IpNet;

/// What nobody's grant can open, besides the table of special ranges that a grant can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    denied_networks: Box<[IpNet]>,
    denied_sockets: Box<[SocketAddr]>,
}

/// The operator's permission to reach a range that is refused otherwise. Without ports it grants nothing.
#[derive(Debug, Clone, Copy)]
pub struct Grant<'a> {
    pub net: IpNet,
    pub ports: &'a [u16],
}

/// Why a connect is refused. The text is for the operator; a tenant learns only that the origin cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EgressRefused {
    #[error("{address} belongs to Portico itself; no grant opens it")]
    Own { address: SocketAddr },
    #[error("{address} is in a {range} range; an operator may grant it to the tenant, with the port")]
    Special { address: SocketAddr, range: &'static str },
    #[error("port {port} is below 1024, where only 80 and 443 are open to origins; an operator may grant it")]
    LowPort { port: u16 },
    #[error(
        "port {port} is that of another service (databases, caches, mail and the like), not open to origins; an operator may \
         grant it, or let the origin listen on 443, 80, 8080 or 8443"
    )]
    ServicePort { port: u16 },
}

impl EgressPolicy {
    /// `denied_networks` and `denied_sockets` are those of the edges and the control plane. A socket on an unspecified
    /// address (0.0.0.0, ::) stands for that port on every loopback address.
    pub fn new(denied_networks: Vec<IpNet>, denied_sockets: Vec<SocketAddr>) -> Self {
        Self { denied_networks: denied_networks.into(), denied_sockets: denied_sockets.into() }
    }

    /// Asks about one connect.
    ///
    /// # Errors
    /// [`EgressRefused`]: do not connect.
    pub fn check<'a>(
        &self,
        address: SocketAddr,
        grants: impl IntoIterator<Item = Grant<'a>>,
    ) -> Result<(), EgressRefused> {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        if self.is_own(ip, port) {
            return Err(EgressRefused::Own { address });
        }
        let granted =
            || grants.into_iter().any(|grant| grant.ports.contains(&port) && grant.net.contains(&ip));
        let refusal = match special_range(ip) {
            Some(range) => EgressRefused::Special { address, range },
            None if DENIED_PORTS.binary_search(&port).is_ok() => EgressRefused::ServicePort { port },
            None if !matches!(port, 80 | 443 | 1024..) => EgressRefused::LowPort { port },
            None => return Ok(()),
        };
        if granted() { Ok(()) } else { Err(refusal) }
    }

    fn is_own(&self, ip: IpAddr, port: u16) -> bool {
        let socket = |denied: &SocketAddr| {
            let denied_ip = denied.ip().to_canonical();
            denied.port() == port && (denied_ip == ip || (denied_ip.is_unspecified() && ip.is_loopback()))
        };
        self.denied_networks.iter().any(|net| net.contains(&ip)) || self.denied_sockets.iter().any(socket)
    }
}

/// Ports from 1024 up of services that act on what an HTTP request can be made to say, or that hand out data without
/// asking for a password: databases, caches, queues, cluster and container control, remote shells, mail, IRC. Sorted.
const DENIED_PORTS: [u16; 75] = [
    1080, 1099, 1433, 1521, 1719, 1720, 1723, 2049, 2181, 2375, 2376, 2377, 2379, 2380, 3128, 3268, 3269,
    3306, 3389, 3632, 4045, 4190, 4505, 4506, 4646, 5060, 5061, 5432, 5555, 5672, 5900, 5901, 5984, 5985,
    5986, 6000, 6379, 6443, 6566, 6665, 6666, 6667, 6668, 6669, 6697, 7199, 8300, 8301, 8302, 8500, 8600,
    9042, 9092, 9160, 9200, 9300, 9418, 10050, 10051, 10080, 10250, 10255, 10256, 11211, 15672, 16379, 25672,
    26257, 26379, 27017, 27018, 27019, 28015, 50070, 61616,
];

/// The special range that an address is in (IANA special-purpose registries, RFC 6890), by name.
pub fn special_range(ip: IpAddr) -> Option<&'static str> {
    static RANGES: LazyLock<Vec<(IpNet, &'static str)>> = LazyLock::new(|| {
        let parsed =
            |&(net, range): &(&str, &'static str)| (net.parse().expect("the tables hold ranges"), range);
        SPECIAL_V4.iter().chain(SPECIAL_V6).map(parsed).collect()
    });
    RANGES.iter().find(|(net, _)| net.contains(&ip)).map(|(_, range)| *range)
}

const SPECIAL_V4: &[(&str, &str)] = &[
    ("0.0.0.0/8", "this-network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared (CGNAT)"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "cloud metadata"),
    ("169.254.0.0/16", "link-local (cloud metadata)"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol-assignment"),
    ("192.0.2.0/24", "documentation"),
    ("192.31.196.0/24", "AS112"),
    ("192.52.193.0/24", "AMT"),
    ("192.88.99.0/24", "6to4-relay"),
    ("192.168.0.0/16", "private"),
    ("192.175.48.0/24", "AS112"),
    ("198.18.0.0/15", "benchmark"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
];

const SPECIAL_V6: &[(&str, &str)] = &[
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::/96", "IPv4-compatible"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("::ffff:0:0:0/96", "IPv4-translated"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "NAT64"),
    ("100::/64", "discard"),
    ("100:0:0:1::/64", "dummy"),
    ("2001::/23", "protocol-assignment"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4"),
    ("2620:4f:8000::/48", "AS112"),
    ("3fff::/20", "documentation"),
    ("5f00::/16", "segment-routing"),
    ("fc00::/7", "unique-local"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str) -> Result<(), EgressRefused> {
        EgressPolicy::default().check(address.parse().expect("an address"), [])
    }

    #[test]
    fn special_ranges_are_refused_and_public_addresses_pass() {
        let refused = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.1.2.3",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::2]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[fc00::1]",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
        ];
        for address in refused {
            let answer = check(&format!("{address}:443"));
            assert!(matches!(answer, Err(EgressRefused::Special { .. })), "{address} gave {answer:?}");
        }
        let passed = [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "[2606:4700::1111]",
            "[::ffff:8.8.8.8]",
        ];
        for address in passed {
            assert_eq!(check(&format!("{address}:443")), Ok(()), "{address}");
        }
    }

    #[test]
    fn ports_of_other_services_are_refused() {
        for port in [1, 22, 25, 53, 79, 81, 442, 444, 1023] {
            assert_eq!(check(&format!("1.1.1.1:{port}")), Err(EgressRefused::LowPort { port }), "{port}");
        }
        for port in [2375, 3306, 5432, 6379, 9200, 11211, 27017] {
            let refused = check(&format!("1.1.1.1:{port}")).unwrap_err();
            assert_eq!(refused, EgressRefused::ServicePort { port });
            assert!(!refused.to_string().contains("1024 upwards"), "{refused}");
        }
        for port in [80, 443, 1024, 3000, 8080, 8443, 65535] {
            assert_eq!(check(&format!("1.1.1.1:{port}")), Ok(()), "{port}");
        }
    }

    #[test]
    fn a_grant_opens_its_range_and_ports_and_nothing_else() {
        let policy = EgressPolicy::default();
        let grant = Grant { net: "127.0.0.0/8".parse().expect("a range"), ports: &[8081] };
        let check = |address: &str| policy.check(address.parse().expect("an address"), [grant]);
        assert_eq!(check("127.0.0.1:8081"), Ok(()));
        assert_eq!(check("[::ffff:127.0.0.1]:8081"), Ok(()), "the same address in another spelling");
        assert!(check("127.0.0.1:8082").is_err());
        assert!(check("[::1]:8081").is_err());
        assert!(check("10.0.0.1:8081").is_err());
        let empty = Grant { net: "127.0.0.0/8".parse().expect("a range"), ports: &[] };
        assert!(policy.check("127.0.0.1:8081".parse().expect("an address"), [empty]).is_err());
    }

    #[test]
    fn no_grant_opens_what_is_our_own() {
        let policy = EgressPolicy::new(
            vec!["127.0.0.11/32".parse().expect("a range")],
            vec!["127.0.0.1:9109".parse().expect("an address"), "0.0.0.0:8443".parse().expect("an address")],
        );
        let grant = Grant { net: "127.0.0.0/8".parse().expect("a range"), ports: &[8081, 8443, 9109] };
        let check = |address: &str| policy.check(address.parse().expect("an address"), [grant]);
        assert!(matches!(check("127.0.0.11:8081"), Err(EgressRefused::Own { .. })));
        assert!(matches!(check("127.0.0.1:9109"), Err(EgressRefused::Own { .. })));
        assert!(matches!(check("127.0.0.5:8443"), Err(EgressRefused::Own { .. })));
        assert!(matches!(check("[::ffff:127.0.0.1]:9109"), Err(EgressRefused::Own { .. })));
        assert_eq!(check("127.0.0.1:8081"), Ok(()));
    }
}
