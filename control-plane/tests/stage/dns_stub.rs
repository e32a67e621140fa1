//! A DNS server on loopback UDP: answers from a table, NXDOMAIN otherwise, or nothing useful at all when told so.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

#[derive(Clone)]
pub struct DnsStub {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

#[derive(Default)]
struct Zone {
    records: HashMap<(String, RecordType), Vec<RData>>,
    is_failing: bool,
    asked: Vec<String>,
}

impl DnsStub {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let served = zone.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                if let Ok(question) = Message::from_vec(&buffer[..length]) {
                    let answer = answer(&question, &mut served.lock().unwrap());
                    let _gone = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { address, zone }
    }

    pub fn set_txt(&self, name: &str, values: &[&str]) {
        let data = values.iter().map(|value| RData::TXT(TXT::new(vec![(*value).to_owned()]))).collect();
        self.set(name, RecordType::TXT, data);
    }

    pub fn set_cname(&self, name: &str, target: &str) {
        let target = Name::from_str(&format!("{target}.")).unwrap();
        self.set(name, RecordType::CNAME, vec![RData::CNAME(CNAME(target))]);
    }

    pub fn set_a(&self, name: &str, addresses: &[&str]) {
        let data = addresses.iter().map(|address| RData::A(A(address.parse().unwrap()))).collect();
        self.set(name, RecordType::A, data);
    }

    pub fn clear(&self, name: &str) {
        self.zone.lock().unwrap().records.retain(|(of, _), _| of != name);
    }

    /// SERVFAIL for everything, or answers again.
    pub fn set_failing(&self, is_failing: bool) {
        self.zone.lock().unwrap().is_failing = is_failing;
    }

    /// Questions asked so far, as `TYPE name`.
    pub fn asked(&self) -> Vec<String> {
        self.zone.lock().unwrap().asked.clone()
    }

    fn set(&self, name: &str, kind: RecordType, data: Vec<RData>) {
        self.zone.lock().unwrap().records.insert((name.to_owned(), kind), data);
    }
}

fn answer(question: &Message, zone: &mut Zone) -> Vec<u8> {
    let mut answer = question.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    answer.edns = None;
    answer.additionals.clear();
    let query = question.queries[0].clone();
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    zone.asked.push(format!("{} {name}", query.query_type()));
    if zone.is_failing {
        answer.metadata.response_code = ResponseCode::ServFail;
        return answer.to_vec().unwrap();
    }
    let known = zone.records.keys().any(|(of, _)| *of == name);
    answer.metadata.response_code = if known { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let data = zone.records.get(&(name, query.query_type())).cloned().unwrap_or_default();
    for data in data {
        answer.add_answer(Record::from_rdata(query.name().clone(), 1, data));
    }
    answer.to_vec().unwrap()
}
