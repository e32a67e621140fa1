//! The PROXY protocol, versions 1 and 2: what a load balancer in front says of a connection's ends, and what we say of them to
//! an origin (haproxy.org, proxy-protocol.txt, 2.1 and 2.2).
//!
//! On a listener that has it, every connection begins with it: one that may come from a listed network without it would
//! let whoever is behind the balancer say by it whatever he likes. From anywhere else nothing is read at all.
//!
//! Deliberately absent: what the type-length-values say (names, certificates, ids); they are read over, within a bound.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{limits, metrics::ProxyHeader, server::Edge};

/// What is spoken to an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    V1,
    V2,
}

/// The two ends of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Ends(Ends),
    /// The balancer's own connection (a health check), or one of which it knows nothing: the socket's ends hold.
    Nothing,
}

/// It is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Malformed;

/// Begins version 2; no other protocol does so.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
const STREAM_IPV4: u8 = 0x11;
const STREAM_IPV6: u8 = 0x21;

/// Reads the header of a connection from `peer` and gives its client's address. None: the connection is to be closed, and
/// that is counted.
pub(crate) async fn accept<S: AsyncRead + Unpin>(
    stream: &mut S,
    peer: SocketAddr,
    sources: &[IpNet],
    edge: &Edge,
) -> Option<SocketAddr> {
    let result = if holds(sources, peer.ip()) {
        match tokio::time::timeout(edge.deadlines.handshake, read(stream)).await {
            Ok(Ok(Said::Ends(ends))) => Ok((ends.source, ProxyHeader::Read)),
            Ok(Ok(Said::Nothing)) => Ok((peer, ProxyHeader::Local)),
            Ok(Err(Malformed)) => Err(ProxyHeader::Malformed),
            Err(_) => Err(ProxyHeader::TimedOut),
        }
    } else {
        Err(ProxyHeader::Untrusted)
    };
    let (Ok((_, counted)) | Err(counted)) = result;
    edge.metrics.proxy_header(counted);
    result.ok().map(|(client, _)| client)
}

/// Whether an address is in one of the networks; an IPv4 address is the same in its IPv6 form.
pub(crate) fn holds(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Takes the header's bytes and none beyond.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Said, Malformed> {
    let mut start = [0; 16];
    let (signature, head) = start.split_at_mut(SIGNATURE.len());
    stream.read_exact(signature).await.map_err(|_| Malformed)?;
    if *signature != SIGNATURE {
        return read_line(stream, signature).await;
    }
    stream.read_exact(head).await.map_err(|_| Malformed)?;
    let length = usize::from(u16::from_be_bytes([start[14], start[15]]));
    if length > limits::PROXY_HEADER_BYTES_MAX {
        return Err(Malformed);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await.map_err(|_| Malformed)?;
    parse_v2(start[12], start[13], &rest)
}

/// Version 1 has no length: it is read up to its end byte by byte, for what follows is the client's.
async fn read_line<S: AsyncRead + Unpin>(stream: &mut S, start: &[u8]) -> Result<Said, Malformed> {
    if !start.starts_with(b"PROXY ") || start.contains(&b'\n') {
        return Err(Malformed);
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_BYTES_MAX {
            return Err(Malformed);
        }
        line.push(stream.read_u8().await.map_err(|_| Malformed)?);
    }
    parse_v1(&line[..line.len() - 2])
}

fn parse_v1(line: &[u8]) -> Result<Said, Malformed> {
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let mut words = line.split(' ').skip(1);
    let family = words.next().ok_or(Malformed)?;
    if family == "UNKNOWN" {
        return Ok(Said::Nothing); // and whatever else the line has (section 2.1)
    }
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = words[..] else { return Err(Malformed) };
    let address = |text: &str| match family {
        "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| Malformed),
        "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::from).map_err(|_| Malformed),
        _ => Err(Malformed),
    };
    let port = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse::<u16>().ok().filter(|_| plain).ok_or(Malformed)
    };
    Ok(Said::Ends(Ends {
        source: SocketAddr::new(address(source)?, port(source_port)?),
        destination: SocketAddr::new(address(destination)?, port(destination_port)?),
    }))
}

fn parse_v2(version_and_command: u8, family: u8, rest: &[u8]) -> Result<Said, Malformed> {
    match version_and_command {
        0x20 => return Ok(Said::Nothing), // LOCAL: whatever the family
        0x21 => {}
        _ => return Err(Malformed),
    }
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    match family {
        STREAM_IPV4 if rest.len() >= 12 => {
            let ip = |at: usize| Ipv4Addr::new(rest[at], rest[at + 1], rest[at + 2], rest[at + 3]).into();
            let (source, destination) = (SocketAddr::new(ip(0), port(8)), SocketAddr::new(ip(4), port(10)));
            Ok(Said::Ends(Ends { source, destination }))
        }
        STREAM_IPV6 if rest.len() >= 36 => {
            let ip = |at: usize| {
                let octets: [u8; 16] = rest[at..at + 16].try_into().expect("a slice of sixteen");
                IpAddr::from(octets)
            };
            let (source, destination) = (SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34)));
            Ok(Said::Ends(Ends { source, destination }))
        }
        STREAM_IPV4 | STREAM_IPV6 => Err(Malformed),
        // Unspecified, datagrams, sockets of a file system.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => Ok(Said::Nothing),
        _ => Err(Malformed),
    }
}

/// The header for a connection on behalf of a client; None: on our own (a health check).
pub(crate) fn header(version: Version, client: Option<Ends>) -> Vec<u8> {
    match version {
        Version::V1 => {
            let Some((source, destination)) = client.map(Ends::of_one_family) else {
                return b"PROXY UNKNOWN\r\n".to_vec();
            };
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
        }
        Version::V2 => {
            let mut out = SIGNATURE.to_vec();
            let Some((source, destination)) = client.map(Ends::of_one_family) else {
                out.extend([0x20, 0, 0, 0]);
                return out;
            };
            match (source.ip(), destination.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    out.extend([0x21, STREAM_IPV4, 0, 12]);
                    out.extend(from.octets());
                    out.extend(to.octets());
                }
                (from, to) => {
                    out.extend([0x21, STREAM_IPV6, 0, 36]);
                    out.extend(in_ipv6(from).octets());
                    out.extend(in_ipv6(to).octets());
                }
            }
            out.extend(source.port().to_be_bytes());
            out.extend(destination.port().to_be_bytes());
            out
        }
    }
}

impl Ends {
    /// A header has one family for both.
    fn of_one_family(self) -> (SocketAddr, SocketAddr) {
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (source, destination) = (canonical(self.source), canonical(self.destination));
        if source.is_ipv4() == destination.is_ipv4() {
            return (source, destination);
        }
        let wide = |end: SocketAddr| SocketAddr::new(in_ipv6(end.ip()).into(), end.port());
        (wide(source), wide(destination))
    }
}

fn in_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is read, and what is left for the protocol behind it.
    fn read_all(bytes: &[u8]) -> (Result<Said, Malformed>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut stream = bytes;
        let said = runtime.block_on(read(&mut stream));
        (said, stream.to_vec())
    }

    fn ends(source: &str, destination: &str) -> Ends {
        Ends { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn lines_are_read_to_their_end_and_no_further() {
        let table: &[(&str, Result<Said, Malformed>)] = &[
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
                Ok(Said::Ends(ends("192.0.2.1:56324", "198.51.100.2:443"))),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 0\r\n",
                Ok(Said::Ends(ends("[2001:db8::1]:1", "[2001:db8::2]:0"))),
            ),
            ("PROXY UNKNOWN\r\n", Ok(Said::Nothing)),
            ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", Ok(Said::Nothing)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n", Err(Malformed)),
            ("PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", Err(Malformed)),
            ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", Err(Malformed)),
            ("PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", Err(Malformed)),
            ("PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n", Err(Malformed)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(Malformed)),
            ("PROXY \r\nGET / HTTP/1.1\r\n\r\n", Err(Malformed)),
        ];
        for (text, wanted) in table {
            let (said, rest) = read_all(format!("{text}behind").as_bytes());
            assert_eq!(said, *wanted, "{text:?}");
            assert!(said.is_err() || rest == b"behind", "{text:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(read_all(long.as_bytes()).0, Err(Malformed));
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX - 16));
        assert_eq!(read_all(longest.as_bytes()).0, Ok(Said::Nothing));
    }

    #[test]
    fn binary_headers_are_read_over_what_they_carry() {
        let of = |command: u8, family: u8, rest: &[u8]| {
            let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
            [&SIGNATURE[..], &[command, family], &length, rest, b"behind"].concat()
        };
        let ipv4 = [192, 0, 2, 1, 198, 51, 100, 2, 0, 7, 1, 187];
        let with_values = [&ipv4[..], &[4; 200]].concat();
        let said = Ok(Said::Ends(ends("192.0.2.1:7", "198.51.100.2:443")));
        let too_long = vec![0; limits::PROXY_HEADER_BYTES_MAX + 1];
        let table: &[(Vec<u8>, Result<Said, Malformed>)] = &[
            (of(0x21, 0x11, &ipv4), said),
            (of(0x21, 0x11, &with_values), said),
            (of(0x20, 0x11, &ipv4), Ok(Said::Nothing)),
            (of(0x20, 0x00, &[]), Ok(Said::Nothing)),
            (of(0x21, 0x00, &[]), Ok(Said::Nothing)),
            (of(0x21, 0x31, &[0; 216]), Ok(Said::Nothing)),
            (of(0x21, 0x11, &ipv4[..11]), Err(Malformed)),
            (of(0x21, 0x21, &[0; 35]), Err(Malformed)),
            (of(0x22, 0x11, &ipv4), Err(Malformed)),
            (of(0x11, 0x11, &ipv4), Err(Malformed)),
            (of(0x21, 0x41, &ipv4), Err(Malformed)),
            (of(0x20, 0x00, &too_long), Err(Malformed)),
            (SIGNATURE.to_vec(), Err(Malformed)),
        ];
        for (bytes, wanted) in table {
            let (said, rest) = read_all(bytes);
            assert_eq!(said, *wanted, "{}", bytes.escape_ascii());
            assert!(said.is_err() || rest == b"behind");
        }
    }

    #[test]
    fn an_address_is_the_same_in_both_families() {
        let networks = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        for (address, wanted) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("11.0.0.1", false), ("2001:db8::1", true)]
        {
            assert_eq!(holds(&networks, address.parse().unwrap()), wanted, "{address}");
        }
        let mixed = ends("192.0.2.1:1", "[2001:db8::2]:2");
        let (said, _) = read_all(&header(Version::V2, Some(mixed)));
        assert_eq!(said, Ok(Said::Ends(ends("[::ffff:192.0.2.1]:1", "[2001:db8::2]:2"))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v4: bool, from: u128, to: u128, ports: (u16, u16), second: bool) {
            let ip = |bits: u128| match v4 {
                true => IpAddr::from(Ipv4Addr::from_bits(u32::try_from(bits >> 96).unwrap())),
                false => IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical(),
            };
            let ends = Ends {
                source: SocketAddr::new(ip(from), ports.0),
                destination: SocketAddr::new(ip(to), ports.1),
            };
            let version = if second { Version::V2 } else { Version::V1 };
            prop_assert_eq!(read_all(&header(version, Some(ends))).0, Ok(Said::Ends(ends)));
            prop_assert_eq!(read_all(&header(version, None)).0, Ok(Said::Nothing));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), signed: bool) {
            let start = if signed { &SIGNATURE[..] } else { b"PROXY " };
            let _ = read_all(&[start, &bytes].concat());
        }
    }
}
