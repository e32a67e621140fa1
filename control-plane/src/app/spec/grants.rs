//! What an operator may grant to a tenant's origins: a range that is meant, not one that was mistyped.

use std::net::SocketAddr;

use ipnet::IpNet;
use portico_api::v1::{EgressGrant, FieldError};

use crate::http::fault::field;

const PORTS_MAX: usize = 64;

/// A wider range takes in most of what the guard is for; 10.0.0.0/8 and fc00::/7 are the widest that somebody owns.
const PREFIX_V4_MIN: u8 = 8;
const PREFIX_V6_MIN: u8 = 7;

/// Where clouds hand out the credentials of a machine to whoever asks from it.
const METADATA: [&str; 4] = ["169.254.0.0/16", "168.63.129.16/32", "fe80::/10", "fd00:ec2::254/128"];

/// Where Portico itself is: no grant is for that.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnAddresses {
    pub(crate) networks: Vec<IpNet>,
    /// A socket on an unspecified address stands for that port on every loopback address.
    pub(crate) sockets: Vec<SocketAddr>,
}

impl OwnAddresses {
    /// What of a grant would be for Portico itself: all of it, or a socket in its range.
    fn part_of(&self, net: IpNet, ports: &[u16]) -> Option<String> {
        if let Some(own) = self.networks.iter().find(|own| own.contains(&net)) {
            return Some(own.to_string());
        }
        let socket = |own: &&SocketAddr| {
            let ip = own.ip().to_canonical();
            let reached = net.contains(&ip) || (ip.is_unspecified() && net.network().is_loopback());
            reached && ports.contains(&own.port())
        };
        self.sockets.iter().find(socket).map(ToString::to_string)
    }
}

/// One grant; `at` is its pointer.
pub(super) fn check(at: &str, grant: &EgressGrant, own: &OwnAddresses) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match grant.cidr.parse::<IpNet>() {
        Ok(net) => errors.extend(range(&format!("{at}/cidr"), net, &grant.ports, own)),
        Err(_) => {
            let message = "must be an address range such as 10.1.0.0/16 or fd00:1::/32";
            errors.push(field(format!("{at}/cidr"), "invalid_cidr", message));
        }
    }
    if !(1..=PORTS_MAX).contains(&grant.ports.len()) || grant.ports.contains(&0) {
        let message = "must name 1 to 64 ports from 1 to 65535";
        errors.push(field(format!("{at}/ports"), "invalid_ports", message));
    }
    errors
}

fn range(at: &str, net: IpNet, ports: &[u16], own: &OwnAddresses) -> Option<FieldError> {
    let refused = |code: &str, message: String| Some(field(at, code, message));
    let whole = net.trunc();
    if whole != net {
        let host = IpNet::from(net.addr());
        return refused(
            "host_bits",
            format!("{net} is an address within {whole}; write {whole}, or {host} for it alone"),
        );
    }
    let widest = if matches!(net, IpNet::V4(_)) { PREFIX_V4_MIN } else { PREFIX_V6_MIN };
    if net.prefix_len() < widest {
        return refused(
            "too_wide",
            format!("{net} is wider than a /{widest}; grant the ranges that the origins are in"),
        );
    }
    let metadata = METADATA
        .iter()
        .find(|range| range.parse().is_ok_and(|range: IpNet| range.contains(&net) || net.contains(&range)));
    if let Some(range) = metadata {
        let text = format!(
            "{net} reaches {range}, where clouds answer with a machine's credentials; no grant opens it"
        );
        return refused("metadata", text);
    }
    let part = own.part_of(net, ports)?;
    refused(
        "own_address",
        format!("{net} reaches {part}, which belongs to Portico itself; no grant opens it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(cidr: &str, ports: &[u16]) -> Vec<String> {
        let own = OwnAddresses {
            networks: vec!["127.0.0.11/32".parse().unwrap()],
            sockets: vec!["127.0.0.1:7070".parse().unwrap()],
        };
        let grant = EgressGrant { cidr: cidr.to_owned(), ports: ports.to_vec() };
        check("", &grant, &own).into_iter().map(|error| error.code).collect()
    }

    #[test]
    fn a_grant_opens_neither_everything_nor_metadata_nor_portico_itself() {
        for (cidr, code) in [
            ("0.0.0.0/0", "too_wide"),
            ("::/0", "too_wide"),
            ("64.0.0.0/2", "too_wide"),
            ("169.254.0.0/16", "metadata"),
            ("169.254.169.254/32", "metadata"),
            ("169.0.0.0/8", "metadata"),
            ("fe80::/64", "metadata"),
            ("fd00::/8", "metadata"),
            ("10.1.2.3/8", "host_bits"),
            ("127.0.0.0/8", "own_address"),
            ("127.0.0.1/32", "own_address"),
            ("127.0.0.11/32", "own_address"),
            ("10.0.0.0", "invalid_cidr"),
        ] {
            assert_eq!(codes(cidr, &[7070]), [code], "{cidr}");
        }
        for cidr in
            ["10.0.0.0/8", "10.1.2.3/32", "192.168.4.0/24", "fc00:1::/32", "198.51.100.0/24", "127.0.0.21/32"]
        {
            assert_eq!(codes(cidr, &[80, 7070]), Vec::<String>::new(), "{cidr}");
        }
        assert_eq!(
            codes("127.0.0.0/8", &[9000]),
            Vec::<String>::new(),
            "the guard refuses the rest at each connect"
        );
        assert_eq!(codes("10.0.0.0/8", &[0]), ["invalid_ports"]);
    }
}
