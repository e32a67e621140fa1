//! Counters of the DNS stub.

use std::collections::BTreeMap;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde::Serialize;

/// Everything counted since start.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stats {
    pub(crate) queries: u64,
    pub(crate) over_tcp: u64,
    pub(crate) unanswered: u64,
    pub(crate) forwarded: u64,
    pub(crate) forwards_failed: u64,
    pub(crate) by_code: BTreeMap<String, u64>,
    pub(crate) by_type: BTreeMap<String, u64>,
    /// Name, then type.
    pub(crate) by_name: BTreeMap<String, BTreeMap<String, u64>>,
    pub(crate) names_left_out: u64,
}

/// Names counted one by one.
const NAMES_MAX: usize = 200_000;

impl Stats {
    /// Counts one query; no code means that it got no answer.
    pub(crate) fn record_query(
        &mut self,
        name: &str,
        kind: RecordType,
        tcp: bool,
        code: Option<ResponseCode>,
    ) {
        self.queries += 1;
        self.over_tcp += u64::from(tcp);
        match code {
            Some(code) => *self.by_code.entry(code_name(code)).or_default() += 1,
            None => self.unanswered += 1,
        }
        *self.by_type.entry(kind.to_string()).or_default() += 1;
        if self.by_name.len() >= NAMES_MAX && !self.by_name.contains_key(name) {
            self.names_left_out += 1;
            return;
        }
        *self.by_name.entry(name.to_owned()).or_default().entry(kind.to_string()).or_default() += 1;
    }

    /// Counts one query that another server was asked.
    pub(crate) fn record_forward(&mut self, failed: bool) {
        self.forwarded += 1;
        self.forwards_failed += u64::from(failed);
    }
}

fn code_name(code: ResponseCode) -> String {
    let known = [
        (ResponseCode::NoError, "NOERROR"),
        (ResponseCode::NXDomain, "NXDOMAIN"),
        (ResponseCode::ServFail, "SERVFAIL"),
        (ResponseCode::Refused, "REFUSED"),
        (ResponseCode::NotImp, "NOTIMP"),
        (ResponseCode::FormErr, "FORMERR"),
    ];
    let name = known.iter().find(|(known, _)| *known == code).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| u16::from(code).to_string())
}
