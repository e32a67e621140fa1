//! Names to records through one DNS server: UDP, TCP when truncated, CNAME chains followed here when the
//! server does not follow them itself. No cache: a validation must see what is there now.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};

use crate::dns::exchange::{cname_of, query, query_message};
use crate::problem::{Kind, Problem};

/// A stub resolver.
#[derive(Debug)]
pub(crate) struct Resolver {
    server: SocketAddr,
}

/// CNAME steps followed for one name.
const CNAMES_MAX: usize = 10;
/// Queries for one lookup: a server that answers one step at a time needs one each.
const QUERIES_MAX: usize = 10;

impl Resolver {
    pub(crate) fn new(server: SocketAddr) -> Self {
        Self { server }
    }

    /// IPv6 addresses, then IPv4.
    ///
    /// # Errors
    /// `dns`.
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Problem> {
        let (v6, v4) = tokio::join!(self.lookup(name, RecordType::AAAA), self.lookup(name, RecordType::A));
        let records = v6.iter().flatten().chain(v4.iter().flatten());
        let addresses: Vec<IpAddr> = records.filter_map(RData::ip_addr).collect();
        if !addresses.is_empty() {
            return Ok(addresses);
        }
        v6?;
        v4?;
        Err(dns(format!("{name} has no A and no AAAA record")))
    }

    /// All TXT records, the strings of each joined.
    ///
    /// # Errors
    /// `dns`.
    pub(crate) async fn texts(&self, name: &str) -> Result<Vec<String>, Problem> {
        let records = self.lookup(name, RecordType::TXT).await?;
        let texts = records.iter().filter_map(|record| {
            let RData::TXT(txt) = record else { return None };
            Some(txt.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect())
        });
        Ok(texts.collect())
    }

    /// Records of `kind` at the end of the CNAME chain that begins at `name`.
    async fn lookup(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, Problem> {
        let mut at = Name::from_ascii(name).map_err(|error| dns(format!("{name}: {error}")))?;
        at.set_fqdn(true);
        let mut steps = 0;
        for _ in 0..QUERIES_MAX {
            let message = query_message(at.clone(), kind);
            let answer = query(self.server, &message)
                .await
                .map_err(|error| dns(format!("{kind} of {at}: the DNS server {}: {error}", self.server)))?;
            let asked = at.clone();
            while let Some(target) = cname_of(&answer.answers, &at) {
                at = target;
                steps += 1;
                if steps > CNAMES_MAX {
                    return Err(dns(format!("{name}: more than {CNAMES_MAX} CNAME steps")));
                }
            }
            let code = answer.metadata.response_code;
            if code == ResponseCode::NXDomain {
                return Err(dns(format!("{at} does not exist (NXDOMAIN)")));
            }
            if code != ResponseCode::NoError {
                return Err(dns(format!("{kind} of {at}: {code}")));
            }
            let found: Vec<RData> = answer
                .answers
                .iter()
                .filter(|record| record.name == at && record.record_type() == kind)
                .map(|record| record.data.clone())
                .collect();
            if !found.is_empty() || at == asked {
                return Ok(found);
            }
        }
        Err(dns(format!("{name}: the CNAME chain does not end")))
    }
}

fn dns(detail: String) -> Problem {
    Problem::new(Kind::Dns, detail)
}
