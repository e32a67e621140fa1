//! The DNS stub, asked over UDP and TCP by a client made of plain messages.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use http::{Method, StatusCode};
use portico_acme_ca::{DnsArgs, DnsHandle};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::web;

async fn stub(default_a: &[Ipv4Addr]) -> DnsHandle {
    portico_acme_ca::dns::start(DnsArgs::in_process(default_a.to_vec())).await.unwrap()
}

async fn call(stub: &DnsHandle, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    web::json(method, stub.addresses.management, path, &body).await
}

async fn set(stub: &DnsHandle, sets: Value) {
    let (status, answer) = call(stub, Method::POST, "/records", sets).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message
}

async fn udp(server: SocketAddr, name: &str, kind: RecordType) -> Option<Message> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&question(name, kind).to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let length = timeout(Duration::from_secs(3), socket.recv(&mut buffer)).await.ok()?.unwrap();
    Some(Message::from_vec(&buffer[..length]).unwrap())
}

async fn tcp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let wire = question(name, kind).to_vec().unwrap();
    stream.write_u16(u16::try_from(wire.len()).unwrap()).await.unwrap();
    stream.write_all(&wire).await.unwrap();
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn shown(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| format!("{} {} {}", r.name, r.record_type(), r.data)).collect()
}

#[tokio::test]
async fn records_are_set_replaced_shown_and_removed() {
    let stub = stub(&[Ipv4Addr::new(127, 0, 0, 11), Ipv4Addr::new(127, 0, 0, 12)]).await;
    let server = stub.addresses.dns;
    let default = udp(server, "any.test", RecordType::A).await.unwrap();
    assert_eq!(shown(&default), ["any.test. A 127.0.0.11", "any.test. A 127.0.0.12"]);
    assert!(default.metadata.authoritative && default.metadata.recursion_available);
    set(&stub, json!({ "name": "any.test", "type": "A", "values": ["127.0.0.1"] })).await;
    set(&stub, json!({ "name": "any.test", "type": "A", "values": ["127.0.0.2"] })).await;
    set(&stub, json!({ "name": "any.test", "type": "CAA", "values": ["0 issue \"ca.test\""] })).await;
    assert_eq!(shown(&udp(server, "ANY.test", RecordType::A).await.unwrap()), ["ANY.test. A 127.0.0.2"]);
    let caa = udp(server, "any.test", RecordType::CAA).await.unwrap();
    assert_eq!(shown(&caa), ["any.test. CAA 0 issue \"ca.test\""]);
    let aaaa = udp(server, "any.test", RecordType::AAAA).await.unwrap();
    assert_eq!((aaaa.metadata.response_code, aaaa.answers.len()), (ResponseCode::NoError, 0));
    let (_, sets) = call(&stub, Method::GET, "/records?name=any.test", json!(null)).await;
    assert_eq!(sets.as_array().unwrap().len(), 2);
    call(&stub, Method::DELETE, "/records", json!({ "name": "any.test", "type": "A" })).await;
    assert_eq!(shown(&udp(server, "any.test", RecordType::A).await.unwrap()).len(), 2, "the default again");
    call(&stub, Method::POST, "/nxdomain", json!({ "names": ["gone.test"] })).await;
    let gone = udp(server, "gone.test", RecordType::A).await.unwrap();
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn five_thousand_record_sets_in_one_call_all_or_none() {
    let stub = stub(&[]).await;
    let sets = |count: usize| {
        let list =
            (0..count).map(|i| json!({ "name": format!("n{i}.test"), "type": "TXT", "values": ["x"] }));
        Value::Array(list.collect())
    };
    set(&stub, sets(5_000)).await;
    let found = tcp(stub.addresses.dns, "n4999.test", RecordType::TXT).await;
    assert_eq!(found.answers.len(), 1);
    assert_eq!(call(&stub, Method::POST, "/records", sets(5_001)).await.0, StatusCode::BAD_REQUEST);
    let mixed = json!([
        { "name": "new.test", "type": "A", "values": ["127.0.0.1"] },
        { "name": "bad.test", "type": "A", "values": ["nonsense"] },
    ]);
    let (status, answer) = call(&stub, Method::POST, "/records", mixed).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"].as_str().unwrap().contains("record set 1: bad.test"), "{answer}");
    let new = udp(stub.addresses.dns, "new.test", RecordType::A).await.unwrap();
    assert_eq!(new.metadata.response_code, ResponseCode::NXDomain, "all or none");
}

#[tokio::test]
async fn aliases_are_chased_through_own_records_and_a_forwarded_zone() {
    let provider = stub(&[]).await;
    set(
        &provider,
        json!([
            { "name": "x1.acme.provider.test", "type": "TXT", "values": ["proof"] },
            { "name": "out.acme.provider.test", "type": "CNAME", "values": ["back.test"] },
        ]),
    )
    .await;
    let stub = stub(&[]).await;
    let forward = json!({ "zone": "acme.provider.test", "address": provider.addresses.dns });
    call(&stub, Method::POST, "/forward", forward).await;
    set(
        &stub,
        json!([
            { "name": "_acme-challenge.shop.test", "type": "CNAME", "values": ["x1.acme.provider.test"] },
            { "name": "a.test", "type": "CNAME", "values": ["out.acme.provider.test"] },
            { "name": "back.test", "type": "A", "values": ["127.0.0.7"] },
            { "name": "l1.test", "type": "CNAME", "values": ["l2.test"] },
            { "name": "l2.test", "type": "CNAME", "values": ["l1.test"] },
        ]),
    )
    .await;
    let server = stub.addresses.dns;
    let wanted =
        ["_acme-challenge.shop.test. CNAME x1.acme.provider.test.", "x1.acme.provider.test. TXT proof"];
    assert_eq!(shown(&udp(server, "_acme-challenge.shop.test", RecordType::TXT).await.unwrap()), wanted);
    assert_eq!(shown(&tcp(server, "_acme-challenge.shop.test", RecordType::TXT).await), wanted);
    let there_and_back = udp(server, "a.test", RecordType::A).await.unwrap();
    assert_eq!(shown(&there_and_back).last().unwrap(), "back.test. A 127.0.0.7");
    let missing = udp(server, "nobody.acme.provider.test", RecordType::TXT).await.unwrap();
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    let looped = udp(server, "l1.test", RecordType::A).await.unwrap();
    assert_eq!(looped.metadata.response_code, ResponseCode::ServFail);
    let direct = udp(server, "a.test", RecordType::CNAME).await.unwrap();
    assert_eq!(shown(&direct), ["a.test. CNAME out.acme.provider.test."]);
    let (_, stats) = call(&provider, Method::GET, "/stats", json!(null)).await;
    assert_eq!(stats["by_name"]["x1.acme.provider.test"]["TXT"], 2, "{stats}");
    assert_eq!(stats["over_tcp"], 1, "a query by TCP is forwarded by TCP");
}

#[tokio::test]
async fn a_long_answer_is_truncated_by_udp_and_whole_by_tcp() {
    let stub = stub(&[]).await;
    let values: Vec<String> = (0..20).map(|i| format!("{i}-{}", "v".repeat(100))).collect();
    set(&stub, json!({ "name": "long.test", "type": "TXT", "values": values })).await;
    let short = udp(stub.addresses.dns, "long.test", RecordType::TXT).await.unwrap();
    assert!(short.metadata.truncation);
    let whole = tcp(stub.addresses.dns, "long.test", RecordType::TXT).await;
    assert_eq!(whole.answers.len(), 20);
    let very_long = "t".repeat(600);
    set(&stub, json!({ "name": "text.test", "type": "TXT", "values": [very_long] })).await;
    let text = tcp(stub.addresses.dns, "text.test", RecordType::TXT).await;
    let RData::TXT(txt) = &text.answers[0].data else { panic!("{text:?}") };
    assert_eq!(txt.txt_data.iter().map(|part| part.len()).collect::<Vec<_>>(), [255, 255, 90]);
}

#[tokio::test]
async fn names_fail_on_demand_and_queries_are_counted() {
    let stub = stub(&[Ipv4Addr::LOCALHOST]).await;
    let server = stub.addresses.dns;
    for (name, fault) in [("s.test", "servfail"), ("r.test", "refused"), ("t.test", "timeout")] {
        call(&stub, Method::POST, "/faults", json!({ "name": name, "fault": fault })).await;
    }
    let code = |message: Option<Message>| message.map(|m| m.metadata.response_code);
    assert_eq!(code(udp(server, "s.test", RecordType::A).await), Some(ResponseCode::ServFail));
    assert_eq!(code(udp(server, "r.test", RecordType::A).await), Some(ResponseCode::Refused));
    assert_eq!(code(udp(server, "t.test", RecordType::A).await), None);
    call(&stub, Method::DELETE, "/faults", json!({ "name": "t.test" })).await;
    assert_eq!(code(udp(server, "t.test", RecordType::A).await), Some(ResponseCode::NoError));
    let (_, stats) = call(&stub, Method::GET, "/stats", json!(null)).await;
    assert_eq!(stats["queries"], 4);
    assert_eq!(stats["unanswered"], 1);
    assert_eq!(stats["by_code"], json!({ "NOERROR": 1, "REFUSED": 1, "SERVFAIL": 1 }));
    for (path, body) in [
        ("/faults", json!({ "name": "s.test", "fault": "typo" })),
        ("/forward", json!({ "zone": "z.test", "address": "localhost" })),
        ("/records", json!({ "name": "a.test", "type": "MX", "values": ["x"] })),
        ("/records", json!({ "name": "a.test", "kind": "A" })),
    ] {
        let (status, _) = call(&stub, Method::POST, path, body.clone()).await;
        assert!(status.is_client_error(), "{path} {body}: {status}");
    }
}
