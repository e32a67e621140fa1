//! The egress guard, row by row: every kind of address that must not be reached on a tenant's behalf, and its
//! neighbours that may.

use std::net::{IpAddr, SocketAddr};

use portico_prober::egress::{EgressPolicy, EgressRefused};

const OPEN: &str = "open";

/// (address and port, `OPEN` or the word for the refusal)
const TABLE: &[(&str, &str)] = &[
    ("93.184.216.34:80", OPEN),
    ("93.184.216.34:443", OPEN),
    ("1.1.1.1:8080", OPEN),
    ("8.8.8.8:1024", OPEN),
    ("8.8.8.8:65535", OPEN),
    ("9.255.255.255:443", OPEN),
    ("11.0.0.0:443", OPEN),
    ("100.63.255.255:443", OPEN),
    ("100.128.0.0:443", OPEN),
    ("126.255.255.255:443", OPEN),
    ("128.0.0.0:443", OPEN),
    ("169.253.255.255:443", OPEN),
    ("169.255.0.0:443", OPEN),
    ("172.15.255.255:443", OPEN),
    ("172.32.0.0:443", OPEN),
    ("192.0.1.0:443", OPEN),
    ("192.167.255.255:443", OPEN),
    ("192.169.0.0:443", OPEN),
    ("198.17.255.255:443", OPEN),
    ("198.20.0.0:443", OPEN),
    ("223.255.255.255:443", OPEN),
    ("168.63.129.15:443", OPEN),
    ("168.63.129.17:443", OPEN),
    ("[2606:4700:4700::1111]:443", OPEN),
    ("[2a00:1450:4001::1]:8443", OPEN),
    ("[2003::1]:80", OPEN),
    ("[2001:200::1]:443", OPEN),
    ("[2001:db7::1]:443", OPEN),
    ("[3ffe::1]:443", OPEN),
    ("[65:ff9b::1]:443", OPEN),
    ("0.0.0.0:80", "this-network"),
    ("0.1.2.3:80", "this-network"),
    ("0.255.255.255:443", "this-network"),
    ("10.0.0.0:80", "private"),
    ("10.1.2.3:443", "private"),
    ("10.255.255.255:8080", "private"),
    ("172.16.0.0:80", "private"),
    ("172.20.1.1:443", "private"),
    ("172.31.255.255:443", "private"),
    ("192.168.0.0:80", "private"),
    ("192.168.255.255:443", "private"),
    ("127.0.0.1:80", "loopback"),
    ("127.0.0.1:443", "loopback"),
    ("127.0.0.11:8443", "loopback"),
    ("127.1.2.3:7070", "loopback"),
    ("127.255.255.255:80", "loopback"),
    ("100.64.0.0:80", "shared (CGNAT)"),
    ("100.100.100.200:80", "shared (CGNAT)"),
    ("100.127.255.255:443", "shared (CGNAT)"),
    ("169.254.0.0:80", "link-local (cloud metadata)"),
    ("169.254.169.254:80", "link-local (cloud metadata)"),
    ("169.254.169.254:443", "link-local (cloud metadata)"),
    ("169.254.170.2:80", "link-local (cloud metadata)"),
    ("169.254.255.255:80", "link-local (cloud metadata)"),
    ("168.63.129.16:80", "cloud metadata"),
    ("192.0.0.192:80", "protocol-assignment"),
    ("192.0.0.1:80", "protocol-assignment"),
    ("192.0.0.170:443", "protocol-assignment"),
    ("192.0.2.1:80", "documentation"),
    ("198.51.100.7:443", "documentation"),
    ("203.0.113.255:443", "documentation"),
    ("192.31.196.1:443", "AS112"),
    ("192.52.193.1:443", "AMT"),
    ("192.88.99.1:443", "6to4-relay"),
    ("192.175.48.1:443", "AS112"),
    ("198.18.0.1:443", "benchmark"),
    ("198.19.255.255:443", "benchmark"),
    ("224.0.0.1:80", "multicast"),
    ("239.255.255.250:1900", "multicast"),
    ("240.0.0.1:80", "reserved"),
    ("254.1.2.3:443", "reserved"),
    ("255.255.255.255:443", "reserved"),
    ("[::]:80", "unspecified"),
    ("[::1]:80", "loopback"),
    ("[::1]:443", "loopback"),
    ("[::2]:443", "IPv4-compatible"),
    ("[::7f00:1]:80", "IPv4-compatible"),
    ("[::8.8.8.8]:443", "IPv4-compatible"),
    ("[::ffff:127.0.0.1]:80", "loopback"),
    ("[::ffff:7f00:1]:443", "loopback"),
    ("[::ffff:10.0.0.1]:443", "private"),
    ("[::ffff:169.254.169.254]:80", "link-local (cloud metadata)"),
    ("[::ffff:8.8.8.8]:443", OPEN),
    ("[::ffff:0:127.0.0.1]:80", "IPv4-translated"),
    ("[64:ff9b::127.0.0.1]:80", "NAT64"),
    ("[64:ff9b::a9fe:a9fe]:80", "NAT64"),
    ("[64:ff9b::808:808]:443", "NAT64"),
    ("[64:ff9b:1::1]:443", "NAT64"),
    ("[64:ff9b:1:ffff:ffff:ffff:a9fe:a9fe]:443", "NAT64"),
    ("[100::1]:443", "discard"),
    ("[100:0:0:1::1]:443", "dummy"),
    ("[2001::1]:443", "protocol-assignment"),
    ("[2001:0:4136:e378:8000:63bf:3fff:fdd2]:443", "protocol-assignment"),
    ("[2001:10::1]:443", "protocol-assignment"),
    ("[2001:20::1]:443", "protocol-assignment"),
    ("[2001:1ff:ffff::1]:443", "protocol-assignment"),
    ("[2001:db8::1]:443", "documentation"),
    ("[2001:db8:ffff::1]:443", "documentation"),
    ("[2002:7f00:1::1]:80", "6to4"),
    ("[2002:a9fe:a9fe::1]:80", "6to4"),
    ("[2002:808:808::1]:443", "6to4"),
    ("[2620:4f:8000::1]:443", "AS112"),
    ("[3fff::1]:443", "documentation"),
    ("[3fff:fff::1]:443", "documentation"),
    ("[5f00::1]:443", "segment-routing"),
    ("[fc00::1]:443", "unique-local"),
    ("[fd00:ec2::254]:80", "unique-local"),
    ("[fd20:ce::254]:80", "unique-local"),
    ("[fdff:ffff::1]:443", "unique-local"),
    ("[fe80::1]:80", "link-local"),
    ("[fe80::a9fe:a9fe]:80", "link-local"),
    ("[febf::1]:443", "link-local"),
    ("[fec0::1]:443", "site-local"),
    ("[feff::1]:443", "site-local"),
    ("[ff02::1]:443", "multicast"),
    ("[ff0e::1]:443", "multicast"),
    ("93.184.216.34:0", "port 0"),
    ("93.184.216.34:1", "port 1"),
    ("93.184.216.34:21", "port 21"),
    ("93.184.216.34:22", "port 22"),
    ("93.184.216.34:23", "port 23"),
    ("93.184.216.34:25", "port 25"),
    ("93.184.216.34:53", "port 53"),
    ("93.184.216.34:79", "port 79"),
    ("93.184.216.34:81", "port 81"),
    ("93.184.216.34:110", "port 110"),
    ("93.184.216.34:442", "port 442"),
    ("93.184.216.34:444", "port 444"),
    ("93.184.216.34:465", "port 465"),
    ("93.184.216.34:587", "port 587"),
    ("93.184.216.34:1023", "port 1023"),
    ("93.184.216.34:2375", "port 2375"),
    ("93.184.216.34:2379", "port 2379"),
    ("93.184.216.34:3306", "port 3306"),
    ("93.184.216.34:5432", "port 5432"),
    ("93.184.216.34:6379", "port 6379"),
    ("93.184.216.34:9200", "port 9200"),
    ("93.184.216.34:10250", "port 10250"),
    ("93.184.216.34:11211", "port 11211"),
    ("93.184.216.34:27017", "port 27017"),
    ("[2606:4700:4700::1111]:6379", "port 6379"),
    ("[2606:4700:4700::1111]:22", "port 22"),
];

#[test]
fn every_row_of_the_table_holds() {
    assert!(TABLE.len() >= 140, "{}", TABLE.len());
    let policy = EgressPolicy::default();
    for &(target, expected) in TABLE {
        let found = match policy.check(target.parse().expect("an address and port"), []) {
            Ok(()) => OPEN.to_owned(),
            Err(EgressRefused::Special { range, .. }) => range.to_owned(),
            Err(EgressRefused::LowPort { port } | EgressRefused::ServicePort { port }) => {
                format!("port {port}")
            }
            Err(EgressRefused::Own { .. }) => "own".to_owned(),
        };
        assert_eq!(found, expected, "{target}");
    }
}

#[test]
fn other_spellings_of_loopback_never_become_an_address() {
    for text in
        ["2130706433", "0177.0.0.1", "127.1", "0x7f.1", "0x7f000001", "127.0.0.1.", "localhost", "::1%lo"]
    {
        assert!(text.parse::<IpAddr>().is_err(), "{text}");
        assert!(format!("{text}:80").parse::<SocketAddr>().is_err(), "{text}");
    }
}
