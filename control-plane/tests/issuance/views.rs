//! Servers of one zone that do not agree.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CAA, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use portico_control_plane::store::sql;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::lab::{Lab, Options, ZONE as CHALLENGE_ZONE};

const ZONE: &str = "shops.test";
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 21);
const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 22);
/// Nobody has granted that this one be asked.
const INTERNAL: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 23);

type Records = BTreeMap<(String, RecordType), RData>;

/// One server of [`ZONE`], over UDP, until it is dropped. Not BIND, which takes no address that no interface has.
struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    async fn start(address: Ipv4Addr, port: u16, records: Records) -> Self {
        let socket = UdpSocket::bind((address, port)).await.unwrap();
        Self(tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let asked = Message::from_vec(&buffer[..length]).unwrap();
                let answer = answer(&asked, &records).to_vec().unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        }))
    }
}

fn answer(asked: &Message, records: &Records) -> Message {
    let question = &asked.queries[0];
    let name = question.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.authoritative = true;
    answer.queries.clone_from(&asked.queries);
    let of = |kind| records.get(&(name.clone(), kind));
    if let Some(data) = of(question.query_type).or_else(|| of(RecordType::CNAME)) {
        answer.add_answer(Record::from_rdata(question.name.clone(), 60, data.clone()));
        return answer;
    }
    if !records.keys().any(|(owner, _)| *owner == name) {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    let zone = absolute(ZONE);
    let soa = SOA::new(absolute("ns1.shops.test"), absolute("root.shops.test"), 1, 60, 60, 600, 60);
    answer.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
    answer
}

fn absolute(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

fn address(name: &str, address: [u8; 4]) -> ((String, RecordType), RData) {
    ((name.to_owned(), RecordType::A), RData::A(A(Ipv4Addr::from(address))))
}

fn alias(name: &str, target: &str) -> ((String, RecordType), RData) {
    ((name.to_owned(), RecordType::CNAME), RData::CNAME(CNAME(absolute(target))))
}

/// The resolvers have met the first server all along; a CA may meet the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_the_zone_that_is_behind_is_named_and_costs_no_order() {
    let port = portico_ports::reserve().port();
    let more = format!("[egress]\nallow = [{{ cidr = \"127.0.0.0/24\", ports = [{port}] }}]\n");
    let dns = format!("authoritative_port = {port}\n");
    let options = Options { more: Box::leak(more.into()), dns: Box::leak(dns.into()), ..Options::default() };
    let lab = Lab::start(&options).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let names = ["same", "old", "gone", "alias", "caa"].map(|label| format!("{label}.{ZONE}"));

    // What is right, and what the second server has in its place.
    let right: Records = names.iter().map(|name| address(name, [127, 0, 0, 1])).collect();
    let mut behind = right.clone();
    behind.extend([address("old.shops.test", [127, 0, 0, 99]), alias("alias.shops.test", "elsewhere.test")]);
    behind.remove(&("gone.shops.test".to_owned(), RecordType::A));
    behind.remove(&("alias.shops.test".to_owned(), RecordType::A));
    let caa = CAA::new_issue(false, Some(absolute("other-ca.test")), Vec::new());
    behind.insert(("caa.shops.test".to_owned(), RecordType::CAA), RData::CAA(caa));
    let _first = Server::start(FIRST, port, right).await;
    let second = Server::start(SECOND, port, behind).await;
    let lies = Records::from([address("same.shops.test", [127, 0, 0, 98])]);
    let _internal = Server::start(INTERNAL, port, lies).await;
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
    let delegated = Records::from([alias(&format!("_acme-challenge.{ZONE}"), &target)]);
    let _first = Server::start(FIRST, port, delegated.clone()).await;
    let second = Server::start(SECOND, port, Records::new()).await;
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
    second.0.abort();
    while !second.0.is_finished() {
        tokio::task::yield_now().await;
    }
    let _second = Server::start(SECOND, port, delegated).await;
    lab.world.advance_seconds(20).await;
    lab.until_covered(1).await;
}
