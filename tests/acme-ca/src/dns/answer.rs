//! From a question to an answer: own records, CNAME chains as a recursive resolver follows them, and
//! zones that another server answers.
//!
//! Answers carry AA and RA alike, because the stub stands for the whole of the DNS. Negative answers have
//! no SOA, so no resolver keeps them. No DNSSEC.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLockReadGuard};

use hickory_proto::op::{Edns, Header, HeaderCounts, Message, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

use super::exchange::{cname_of, query, query_message, query_tcp};
use super::records::{Local, NameFault, Records, text_of};
use super::{Stub, stats::Stats};

/// Answers queries from the shared state.
#[derive(Debug)]
pub(crate) struct Responder {
    pub(crate) stub: Arc<Stub>,
}

/// What goes into a response.
#[derive(Debug, Default)]
struct Answer {
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

/// CNAME steps followed for one question.
const CNAMES_MAX: usize = 10;

#[async_trait::async_trait]
impl RequestHandler for Responder {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        metadata.recursion_available = true;
        let tcp = request.protocol() == Protocol::Tcp;
        let answer = match self.answer_request(request, tcp).await {
            Ok(answer) => answer,
            Err(Silence) => return ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() }),
        };
        metadata.response_code = answer.code;
        let mut edns = Edns::new();
        edns.set_max_payload(request.max_payload());
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let message = builder.build(metadata, answer.answers.iter(), answer.authorities.iter(), [], []);
        response.send_response(message).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "answer not sent");
            ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
        })
    }
}

/// The query gets no answer at all.
struct Silence;

impl Responder {
    async fn answer_request(&self, request: &Request, tcp: bool) -> Result<Answer, Silence> {
        if request.metadata.op_code != OpCode::Query {
            return Ok(Answer { code: ResponseCode::NotImp, ..Answer::default() });
        }
        let Ok(info) = request.request_info() else {
            return Ok(Answer { code: ResponseCode::FormErr, ..Answer::default() });
        };
        let question = info.query.original();
        let answer = self.resolve(question.name.clone(), question.query_type, tcp).await;
        let code = answer.as_ref().ok().map(|answer| answer.code);
        self.stats(|stats| stats.record_query(&text_of(&question.name), question.query_type, tcp, code));
        answer
    }

    async fn resolve(&self, name: Name, kind: RecordType, tcp: bool) -> Result<Answer, Silence> {
        let mut answer = Answer::default();
        let mut at = name;
        let mut seen = HashSet::new();
        while seen.insert(at.to_lowercase()) && seen.len() <= CNAMES_MAX {
            let local = self.records().local(&at, kind);
            match local {
                Local::Found(data) => {
                    let ttl = self.stub.ttl_seconds;
                    answer.answers.extend(data.into_iter().map(|d| Record::from_rdata(at.clone(), ttl, d)));
                    return Ok(answer);
                }
                Local::Alias(target) => {
                    let data = RData::CNAME(CNAME(target.clone()));
                    answer.answers.push(Record::from_rdata(at, self.stub.ttl_seconds, data));
                    at = target;
                }
                Local::NoData => return Ok(answer),
                Local::NoName => return Ok(Answer { code: ResponseCode::NXDomain, ..answer }),
                Local::Fault(NameFault::Servfail) => return Ok(failed(ResponseCode::ServFail)),
                Local::Fault(NameFault::Refused) => return Ok(failed(ResponseCode::Refused)),
                Local::Fault(NameFault::Timeout) => return Err(Silence),
                Local::Forward(server) => {
                    let Some(forwarded) = self.forward(server, at.clone(), kind, tcp).await else {
                        return Ok(failed(ResponseCode::ServFail));
                    };
                    let open_end = open_alias(&forwarded.answers, &at, kind)
                        .filter(|target| self.records().forward_for(target) != Some(server));
                    answer.code = forwarded.metadata.response_code;
                    answer.answers.extend(forwarded.answers);
                    answer.authorities = forwarded.authorities;
                    let Some(target) = open_end else { return Ok(answer) };
                    // An alias out of that server's zone: what it says of the target does not count.
                    answer.code = ResponseCode::NoError;
                    answer.authorities.clear();
                    at = target;
                }
            }
        }
        Ok(failed(ResponseCode::ServFail)) // a loop, or a chain that is too long
    }

    async fn forward(&self, server: SocketAddr, name: Name, kind: RecordType, tcp: bool) -> Option<Message> {
        let message = query_message(name, kind);
        let outcome = if tcp { query_tcp(server, &message).await } else { query(server, &message).await };
        self.stats(|stats| stats.record_forward(outcome.is_err()));
        outcome.inspect_err(|error| tracing::info!(%server, %error, "forwarded query failed")).ok()
    }

    fn records(&self) -> RwLockReadGuard<'_, Records> {
        self.stub.records.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stub.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn failed(code: ResponseCode) -> Answer {
    Answer { code, ..Answer::default() }
}

/// The target of a CNAME chain in `answers` that begins at `name` and ends without records of `kind`.
fn open_alias(answers: &[Record], name: &Name, kind: RecordType) -> Option<Name> {
    let mut at = name.clone();
    for _ in 0..CNAMES_MAX {
        if answers.iter().any(|record| record.name == at && record.record_type() == kind) {
            return None;
        }
        let Some(target) = cname_of(answers, &at) else { return Some(at).filter(|end| end != name) };
        at = target;
    }
    None
}
