//! A small authoritative DNS server for the challenge zone: it answers the TXT records that DNS-01 by delegation needs.
//!
//! A tenant points `_acme-challenge.<host>` once, by CNAME, to its own label below the zone; whatever a CA asks there
//! is answered from a table in memory that the issuance tasks fill from the database ([`ChallengeZone`]).
//!
//! It is authoritative for one zone and nothing else: no recursion, no transfer, no update, REFUSED for any other
//! name. Deliberately absent: DNSSEC (a delegation without DS is insecure but valid), response-rate limiting (over UDP, where
//! who asks may be forged, an answer is at most three times as large as its question, that of what is not there for its SOA; only
//! TXT of a live order is more, up to one packet).

mod tcp;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use anyhow::Context as _;
use hickory_proto::op::{Edns, Header, HeaderCounts, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::clock;

/// Seconds that resolvers may keep a TXT answer, and (SOA minimum, RFC 2308 section 5) that a name has none: each order
/// brings another value.
const CHALLENGE_TTL: u32 = 1;
/// Seconds for SOA and NS.
const APEX_TTL: u32 = 300;
/// The most values of one label that an answer carries: two issuers, a wildcard with its base, one retry each.
const VALUES_MAX: usize = 16;
/// What fits one unfragmented packet (DNS flag day 2020).
const UDP_PAYLOAD_MAX: u16 = 1232;

/// Ports that are tried where any will do.
const PORTS_TRIED: u32 = 16;

/// Label to TXT values, the newest last.
type Table = HashMap<Box<str>, Vec<Box<str>>>;

/// The zone's contents. Clones share them.
#[derive(Clone, Debug)]
pub struct ChallengeZone {
    zone: Name,
    records: Arc<RwLock<Table>>,
    /// Until when the records are known to be those of all; `None`: always, nobody else writes them.
    known_until: Option<Arc<Mutex<Instant>>>,
}

/// A responder that answers; it ends when its token is cancelled.
#[derive(Debug)]
pub struct Responder {
    /// UDP and TCP.
    pub address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
}

impl ChallengeZone {
    /// # Errors
    /// `zone` is no DNS name.
    pub fn new(zone: &str) -> anyhow::Result<Self> {
        let mut name =
            Name::from_ascii(zone).with_context(|| format!("challenge zone `{zone}`"))?.to_lowercase();
        name.set_fqdn(true);
        Ok(Self { zone: name, records: Arc::default(), known_until: None })
    }

    /// The same for records that another control plane may put up: until [`Self::is_known_until`] has been said, and after that
    /// time, it answers SERVFAIL, upon which a resolver asks another server (RFC 2308 section 7.1), and never that a name has
    /// no record.
    #[must_use]
    pub fn following(self) -> Self {
        Self { known_until: Some(Arc::new(Mutex::new(clock::instant()))), ..self }
    }

    /// Whoever puts a record up waits for us until then.
    pub fn is_known_until(&self, until: Instant) {
        if let Some(known) = &self.known_until {
            *known.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }

    /// Whether what is answered now is what all control planes answer.
    pub fn is_known(&self) -> bool {
        self.known_until
            .as_ref()
            .is_none_or(|until| clock::instant() < *until.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts these (label, value) pairs in place of all that was there.
    pub fn replace_all(&self, records: impl IntoIterator<Item = (String, String)>) {
        let mut table = Table::new();
        for (label, value) in records {
            table.entry(label.to_ascii_lowercase().into()).or_default().push(value.into());
        }
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// Adds one value; several may stand below one label.
    pub fn add(&self, label: &str, value: &str) {
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        let values = records.entry(label.to_ascii_lowercase().into()).or_default();
        if !values.iter().any(|v| **v == *value) {
            values.push(value.into());
        }
    }

    /// Takes one value away.
    pub fn remove(&self, label: &str, value: &str) {
        let label = label.to_ascii_lowercase();
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = records.get_mut(label.as_str()) {
            values.retain(|v| **v != *value);
            if values.is_empty() {
                records.remove(label.as_str());
            }
        }
    }

    fn values(&self, label: &str) -> Option<Vec<Box<str>>> {
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        // The newest are the ones that a CA is about to ask for.
        records.get(label).map(|values| values.iter().rev().take(VALUES_MAX).cloned().collect())
    }
}

/// Binds UDP and TCP at `address` (port 0: the same free port for both) and answers until `shutdown`.
///
/// # Errors
/// The address is taken or not ours.
pub async fn serve(
    address: SocketAddr,
    zone: ChallengeZone,
    shutdown: CancellationToken,
) -> anyhow::Result<Responder> {
    let (listener, udp) = bind(address).await?;
    let address = listener.local_addr()?;
    let handler = Handler { zone, address: address.ip() };
    let mut server = Server::new(handler.clone());
    server.register_socket(udp);
    let server = tokio::spawn(async move {
        tcp::serve(listener, handler, shutdown).await;
        if let Err(error) = server.shutdown_gracefully().await {
            tracing::warn!(%error, "the DNS responder did not end well");
        }
    });
    Ok(Responder { address, server })
}

/// Both transports at one port. Where any will do, one that is free for TCP may be taken for UDP, and another is tried.
async fn bind(address: SocketAddr) -> anyhow::Result<(TcpListener, UdpSocket)> {
    let mut ports_left = if address.port() == 0 { PORTS_TRIED } else { 1 };
    loop {
        let tcp = TcpListener::bind(address)
            .await
            .with_context(|| format!("bind dns.responder {address} (TCP)"))?;
        let bound = tcp.local_addr()?;
        ports_left -= 1;
        match UdpSocket::bind(bound).await {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if ports_left > 0 => {}
            Err(error) => return Err(error).with_context(|| format!("bind dns.responder {bound} (UDP)")),
        }
    }
}

impl Responder {
    /// Waits for the end that its token asked for.
    pub async fn ended(self) {
        let _ = self.server.await;
    }
}

#[derive(Clone)]
struct Handler {
    zone: ChallengeZone,
    address: IpAddr,
}

/// What goes into a response.
struct Answer {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl RequestHandler for Handler {
    // async_trait's expansion by hand: the trait is a foreign one, and the macro would be our only use of its crate.
    fn handle_request<'a, 'b, 'c, R, T>(
        &'a self,
        request: &'b Request,
        mut response: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'c>>
    where
        'a: 'c,
        'b: 'c,
        R: ResponseHandler + 'c,
        T: Time + 'c,
        Self: 'c,
    {
        Box::pin(async move {
            let answer = self.answer(request);
            let mut metadata = Metadata::response_from_request(&request.metadata);
            metadata.authoritative = answer.authoritative;
            metadata.recursion_available = false;
            metadata.response_code = answer.code;
            let mut edns = Edns::new();
            edns.set_max_payload(request.max_payload().clamp(512, UDP_PAYLOAD_MAX));
            let mut builder = MessageResponseBuilder::from_message_request(request);
            if request.edns.is_some() {
                builder.edns(&edns);
            }
            let message = builder.build(metadata, answer.answers.iter(), answer.authorities.iter(), [], []);
            response.send_response(message).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "DNS answer not sent");
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            })
        })
    }
}

impl Handler {
    fn answer(&self, request: &Request) -> Answer {
        if request.metadata.op_code != OpCode::Query {
            return Answer::refusal(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Answer::refusal(ResponseCode::FormErr) };
        let query = info.query.original();
        if query.query_class != DNSClass::IN {
            return Answer::refusal(ResponseCode::Refused);
        }
        self.resolve(&query.name, query.query_type)
    }

    /// `name` as it was asked: its case comes back in the answer (0x20).
    fn resolve(&self, name: &Name, kind: RecordType) -> Answer {
        let zone = &self.zone.zone;
        // `zone_of` compares labels without regard to case.
        if !zone.zone_of(name) || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Answer::refusal(ResponseCode::Refused);
        }
        if !self.zone.is_known() {
            return Answer::refusal(ResponseCode::ServFail);
        }
        let depth = name.num_labels() - zone.num_labels();
        let label =
            name.iter().next().map(|l| String::from_utf8_lossy(l).to_ascii_lowercase()).unwrap_or_default();
        match depth {
            0 => self.apex(name, kind),
            1 if label == "ns" => self.name_server(name, kind),
            1 => match self.zone.values(&label) {
                Some(values) if matches!(kind, RecordType::TXT | RecordType::ANY) => {
                    let txt = |value: Box<str>| RData::TXT(TXT::new(vec![value.into()]));
                    let records =
                        values.into_iter().map(|v| Record::from_rdata(name.clone(), CHALLENGE_TTL, txt(v)));
                    Answer::found(records.collect())
                }
                Some(_) => self.nothing(ResponseCode::NoError),
                None => self.nothing(ResponseCode::NXDomain),
            },
            _ => self.nothing(ResponseCode::NXDomain),
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Answer {
        let data = if kind == RecordType::SOA {
            self.soa()
        } else if matches!(kind, RecordType::NS | RecordType::ANY) {
            RData::NS(NS(self.name_server_name()))
        } else {
            return self.nothing(ResponseCode::NoError);
        };
        Answer::found(vec![Record::from_rdata(name.clone(), APEX_TTL, data)])
    }

    fn name_server(&self, name: &Name, kind: RecordType) -> Answer {
        let data = match (self.address, kind) {
            (IpAddr::V4(ip), RecordType::A) if !ip.is_unspecified() => RData::A(A(ip)),
            (IpAddr::V6(ip), RecordType::AAAA) if !ip.is_unspecified() => RData::AAAA(AAAA(ip)),
            _ => return self.nothing(ResponseCode::NoError),
        };
        Answer::found(vec![Record::from_rdata(name.clone(), APEX_TTL, data)])
    }

    /// NODATA or NXDOMAIN, with the SOA that says how long that holds (RFC 2308 section 3).
    fn nothing(&self, code: ResponseCode) -> Answer {
        let soa = Record::from_rdata(self.zone.zone.clone(), CHALLENGE_TTL, self.soa());
        Answer { code, authoritative: true, answers: Vec::new(), authorities: vec![soa] }
    }

    fn name_server_name(&self) -> Name {
        self.zone.zone.prepend_label("ns").unwrap_or_else(|_| self.zone.zone.clone())
    }

    fn soa(&self) -> RData {
        let mailbox = self.zone.zone.prepend_label("hostmaster").unwrap_or_else(|_| self.zone.zone.clone());
        // Nobody transfers the zone, so its serial number has no reader.
        RData::SOA(SOA::new(self.name_server_name(), mailbox, 1, 3600, 600, 86_400, CHALLENGE_TTL))
    }
}

impl Answer {
    fn refusal(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: Vec::new(), authorities: Vec::new() }
    }

    fn found(answers: Vec<Record>) -> Self {
        Self { code: ResponseCode::NoError, authoritative: true, answers, authorities: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hickory_proto::op::{Message, Query};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;

    const ZONE: &str = "acme.provider.test";

    struct Lab {
        zone: ChallengeZone,
        responder: Responder,
        shutdown: CancellationToken,
    }

    async fn lab() -> Lab {
        let zone = ChallengeZone::new(ZONE).unwrap();
        let shutdown = CancellationToken::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let responder = serve(any, zone.clone(), shutdown.clone()).await.unwrap();
        Lab { zone, responder, shutdown }
    }

    fn question(name: &str, kind: RecordType, payload: Option<u16>) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        let mut query = Query::query(Name::from_ascii(name).unwrap(), kind);
        query.name.set_fqdn(true);
        message.add_query(query);
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message
    }

    async fn udp(lab: &Lab, message: &Message) -> (Message, usize) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(lab.responder.address).await.unwrap();
        socket.send(&message.to_vec().unwrap()).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let length = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
        (Message::from_vec(&buffer[..length]).unwrap(), length)
    }

    async fn tcp(lab: &Lab, message: &Message) -> Message {
        let mut stream = TcpStream::connect(lab.responder.address).await.unwrap();
        let wire = message.to_vec().unwrap();
        stream.write_u16(wire.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&wire).await.unwrap();
        let length = timeout(Duration::from_secs(5), stream.read_u16()).await.unwrap().unwrap();
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await.unwrap();
        Message::from_vec(&buffer).unwrap()
    }

    fn texts(message: &Message) -> Vec<String> {
        let text = |record: &Record| {
            if let RData::TXT(txt) = &record.data {
                txt.txt_data.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect()
            } else {
                record.data.to_string()
            }
        };
        message.answers.iter().map(text).collect()
    }

    #[tokio::test]
    async fn a_txt_value_is_answered_with_authority_over_udp_and_tcp() {
        let lab = lab().await;
        lab.zone.add("k3jd", "one");
        lab.zone.add("k3jd", "two");
        lab.zone.add("k3jd", "two");
        let asked = question("k3jd.acme.provider.test", RecordType::TXT, Some(1232));
        for answer in [udp(&lab, &asked).await.0, tcp(&lab, &asked).await] {
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.metadata.authoritative && !answer.metadata.recursion_available);
            let mut found = texts(&answer);
            found.sort();
            assert_eq!(found, ["one", "two"]);
        }
        lab.zone.remove("k3jd", "one");
        assert_eq!(texts(&udp(&lab, &asked).await.0), ["two"]);
        lab.zone.replace_all([("K3JD".to_owned(), "three".to_owned())]);
        assert_eq!(texts(&udp(&lab, &asked).await.0), ["three"]);
        lab.shutdown.cancel();
        lab.responder.ended().await;
    }

    #[tokio::test]
    async fn records_that_another_may_have_changed_meanwhile_are_not_answered() {
        let mut lab = lab().await;
        let shutdown = lab.shutdown.clone();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        lab.zone = ChallengeZone::new(ZONE).unwrap().following();
        lab.responder = serve(any, lab.zone.clone(), shutdown).await.unwrap();
        lab.zone.add("k3jd", "one");
        let code = async |name: &str| {
            udp(&lab, &question(name, RecordType::TXT, None)).await.0.metadata.response_code
        };
        let names = ["k3jd.acme.provider.test", "absent.acme.provider.test"];
        assert_eq!(code(names[0]).await, ResponseCode::ServFail, "nobody waits for us yet");
        lab.zone.is_known_until(clock::instant() + Duration::from_secs(600));
        assert_eq!(
            (code(names[0]).await, code(names[1]).await),
            (ResponseCode::NoError, ResponseCode::NXDomain)
        );
        lab.zone.is_known_until(clock::instant());
        for name in names {
            assert_eq!(code(name).await, ResponseCode::ServFail);
        }
        assert_eq!(code("elsewhere.test").await, ResponseCode::Refused);
    }

    #[tokio::test]
    async fn mixed_case_is_found_and_comes_back_as_asked() {
        let lab = lab().await;
        lab.zone.add("k3jd", "value");
        let (answer, _) = udp(&lab, &question("K3jD.aCMe.Provider.TEST", RecordType::TXT, None)).await;
        assert_eq!(texts(&answer), ["value"]);
        assert_eq!(answer.queries[0].name.to_ascii(), "K3jD.aCMe.Provider.TEST.");
        assert_eq!(answer.answers[0].name.to_ascii(), "K3jD.aCMe.Provider.TEST.");
    }

    #[tokio::test]
    async fn absence_is_told_apart_and_may_be_kept_for_a_second_only() {
        let lab = lab().await;
        lab.zone.add("k3jd", "value");
        let expected = [
            ("k3jd.acme.provider.test", RecordType::A, ResponseCode::NoError),
            ("k3jd.acme.provider.test", RecordType::CAA, ResponseCode::NoError),
            ("acme.provider.test", RecordType::TXT, ResponseCode::NoError),
            ("gone.acme.provider.test", RecordType::TXT, ResponseCode::NXDomain),
            ("x.k3jd.acme.provider.test", RecordType::TXT, ResponseCode::NXDomain),
        ];
        for (name, kind, code) in expected {
            let (answer, _) = udp(&lab, &question(name, kind, Some(1232))).await;
            assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
            assert!(answer.metadata.authoritative && answer.answers.is_empty(), "{name} {kind}");
            assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{name} {kind}");
            assert_eq!(answer.authorities[0].ttl, CHALLENGE_TTL);
        }
        let (soa, _) = udp(&lab, &question(ZONE, RecordType::SOA, None)).await;
        assert_eq!(soa.answers[0].record_type(), RecordType::SOA);
        let (ns, _) = udp(&lab, &question(ZONE, RecordType::NS, None)).await;
        assert_eq!(texts(&ns), ["ns.acme.provider.test."]);
        let (glue, _) = udp(&lab, &question("ns.acme.provider.test", RecordType::A, None)).await;
        assert_eq!(texts(&glue), ["127.0.0.1"]);
    }

    #[tokio::test]
    async fn other_zones_and_transfers_are_refused() {
        let lab = lab().await;
        for (name, kind) in [
            ("example.org", RecordType::A),
            ("provider.test", RecordType::SOA),
            ("notacme.provider.test", RecordType::TXT),
            ("xacme.provider.test", RecordType::TXT),
            (ZONE, RecordType::AXFR),
        ] {
            let (answer, _) = udp(&lab, &question(name, kind, None)).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{name} {kind}");
            assert!(!answer.metadata.authoritative && answer.answers.is_empty(), "{name} {kind}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_is_cut_on_udp_and_whole_on_tcp() {
        let lab = lab().await;
        for n in 0..40 {
            lab.zone.add("k3jd", &format!("{n:0>100}"));
        }
        for (payload, bytes_max) in [(None, 512), (Some(4096), 1232), (Some(100), 512)] {
            let asked = question("k3jd.acme.provider.test", RecordType::TXT, payload);
            let (answer, length) = udp(&lab, &asked).await;
            assert!(answer.metadata.truncation && length <= bytes_max, "{payload:?}: {length}");
        }
        let whole = tcp(&lab, &question("k3jd.acme.provider.test", RecordType::TXT, None)).await;
        assert_eq!(whole.answers.len(), VALUES_MAX);
        assert_eq!(texts(&whole)[0], format!("{:0>100}", 39), "the newest first");
    }
}
