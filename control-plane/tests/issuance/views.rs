//! Servers of one zone that do not agree: BIND, three times over.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use portico_control_plane::store::sql;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::lab::{Lab, Options, ZONE as CHALLENGE_ZONE};

const ZONE: &str = "shops.test";
const NAMED: &str = "/usr/sbin/named";
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 21);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 22);
/// Nobody has granted that this one be asked.
const INTERNAL: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 23);

/// BIND as one server of [`ZONE`]; it ends with this value.
struct Server {
    _folder: TempDir,
    _child: Child,
}

impl Server {
    async fn start(address: Ipv4Addr, port: u16, records: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let configuration = format!(
            "options {{ directory \"{path}\"; listen-on port {port} {{ {address}; }}; listen-on-v6 {{ none; }}; recursion no; \
             pid-file \"{path}/pid\"; session-keyfile \"{path}/session\"; dnssec-validation no; }};\ncontrols {{ }};\n\
             zone \"{ZONE}\" {{ type primary; file \"{path}/zone\"; }};\n"
        );
        let zone = format!("$TTL 60\n@ SOA ns1 root 1 60 60 600 60\n@ NS ns1\nns1 A {FIRST}\n{records}");
        std::fs::write(folder.path().join("named.conf"), configuration).unwrap();
        std::fs::write(folder.path().join("zone"), zone).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(NAMED)
            .args(["-g", "-c"])
            .arg(folder.path().join("named.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect((address, port)).await.is_err() {
            let log = || std::fs::read_to_string(folder.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "named does not answer: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self { _folder: folder, _child: child }
    }
}

/// The resolvers have met the first server all along; a CA may meet the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_the_zone_that_is_behind_is_named_and_costs_no_order() {
    if !Path::new(NAMED).exists() {
        portico_skipping::skipped(&format!("{NAMED} is not on this machine (apt-get install bind9)"));
        return;
    }
    let port = portico_ports::reserve().port();
    let more = format!("[egress]\nallow = [{{ cidr = \"127.0.0.0/24\", ports = [{port}] }}]\n");
    let dns = format!("authoritative_port = {port}\n");
    let options = Options { more: Box::leak(more.into()), dns: Box::leak(dns.into()), ..Options::default() };
    let lab = Lab::start(&options).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let names = ["same", "old", "gone", "alias", "caa"].map(|label| format!("{label}.{ZONE}"));

    // What is right, and what the second server has in its place.
    let mut right = String::new();
    for name in &names {
        writeln!(right, "{name}. A 127.0.0.1").unwrap();
    }
    let behind = right
        .replace("old.shops.test. A 127.0.0.1", "old.shops.test. A 127.0.0.99")
        .replace("gone.shops.test. A 127.0.0.1\n", "")
        .replace("alias.shops.test. A 127.0.0.1", "alias.shops.test. CNAME elsewhere.test.")
        + "caa.shops.test. CAA 0 issue \"other-ca.test\"\n";
    let _first = Server::start(FIRST, port, &right).await;
    let second = Server::start(SECOND, port, &behind).await;
    let _internal = Server::start(INTERNAL, port, "same A 127.0.0.98\n").await;
    let servers = [("ns1", FIRST), ("ns2", SECOND), ("ns3", INTERNAL)];
    let host = |label: &str| format!("{label}.{ZONE}");
    let ns = servers.map(|(label, _)| host(label));
    lab.world.set_dns("/records", json!({ "name": ZONE, "type": "NS", "values": ns })).await;
    for (label, address) in servers {
        let record = json!({ "name": host(label), "type": "A", "values": [address] });
        lab.world.set_dns("/records", record).await;
    }
    lab.world
        .set_dns("/records", json!({ "name": "elsewhere.test", "type": "A", "values": ["127.0.0.97"] }))
        .await;

    let ids = lab.domains(tenant, &names).await;
    lab.until_covered(1).await;
    let [_, old, gone, alias, caa] = ids[..] else { panic!("{ids:?}") };
    for (domain, kind, words) in [
        (old, "ChallengeReachable", "ns2.shops.test (127.0.0.22), a server of its zone, has 127.0.0.99"),
        (old, "DnsPointsHere", "also resolves to 127.0.0.99, which is not ours"),
        (
            gone,
            "ChallengeReachable",
            "ns2.shops.test (127.0.0.22), a server of its zone, has no address of gone",
        ),
        (gone, "DnsPointsHere", "all of them must answer alike"),
        (alias, "ChallengeReachable", "has 127.0.0.97 for alias.shops.test, where others have 127.0.0.1"),
        (caa, "CaaPermits", "as ns2.shops.test (127.0.0.22) has it, a server of its zone"),
    ] {
        let condition = lab.until_condition(domain, kind, "false").await;
        assert!(condition[2].contains(words), "{words}: {condition:?}");
        assert!(!condition[2].contains("127.0.1.23"), "{condition:?}");
    }
    let stats = lab.world.stats().await;
    assert_eq!(stats["new_orders"].as_array().unwrap().len(), 1, "the one name that all agree on: {stats}");

    // One that is down is nothing against a name: resolvers go on to the next.
    drop(second);
    lab.world.advance_seconds(20).await;
    lab.until_covered(5).await;
}

/// What is delegated to us must be so at every server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegation_that_one_server_lacks_is_told() {
    if !Path::new(NAMED).exists() {
        portico_skipping::skipped(&format!("{NAMED} is not on this machine (apt-get install bind9)"));
        return;
    }
    let port = portico_ports::reserve().port();
    let more = format!("[egress]\nallow = [{{ cidr = \"127.0.0.0/24\", ports = [{port}] }}]\n");
    let dns = format!("authoritative_port = {port}\n");
    let options = Options { more: Box::leak(more.into()), dns: Box::leak(dns.into()), ..Options::default() };
    let lab = Lab::start(&options).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let wildcard = lab.domains(tenant, &[format!("*.{ZONE}")]).await[0];
    let label: String = {
        let mut read = lab.running.parts.store.read().await.unwrap();
        sql::query_scalar("SELECT challenge_label FROM domains WHERE id = ?")
            .bind(wildcard.to_string())
            .fetch_one(&mut read)
            .await
            .unwrap()
    };
    let target = format!("{label}.{CHALLENGE_ZONE}");
    let delegated = format!("_acme-challenge CNAME {target}.\n");
    let _first = Server::start(FIRST, port, &delegated).await;
    let second = Server::start(SECOND, port, "").await;
    for (label, address) in [("ns1", FIRST), ("ns2", SECOND)] {
        let record = json!({ "name": format!("{label}.{ZONE}"), "type": "A", "values": [address] });
        lab.world.set_dns("/records", record).await;
    }
    let ns = ["ns1", "ns2"].map(|label| format!("{label}.{ZONE}"));
    lab.world.set_dns("/records", json!({ "name": ZONE, "type": "NS", "values": ns })).await;
    let alias = json!({ "name": format!("_acme-challenge.{ZONE}"), "type": "CNAME", "values": [target] });
    lab.world.set_dns("/records", alias).await;
    lab.world.advance_seconds(20).await;
    let words =
        "ns2.shops.test (127.0.0.22), a server of the zone of _acme-challenge.shops.test, does not have it";
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let condition = lab.until_condition(wildcard, "ChallengeReachable", "false").await;
        if condition[2].contains(words) {
            break;
        }
        assert!(Instant::now() < deadline, "{condition:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(second);
    let _second = Server::start(SECOND, port, &delegated).await;
    lab.world.advance_seconds(20).await;
    lab.until_covered(1).await;
}
