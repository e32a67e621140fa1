//! The DNS records that a tenant is told to set: the exact name, type and value of each.

use portico_api::v1::{DnsInstructions, DnsRecord, ProofFile, RecordPurpose};

use crate::config::Config;
use crate::proof;
use crate::store::domain::DomainRow;

/// Every record that has a use for this domain: proof, traffic, and the delegation of the DNS challenge.
pub(crate) fn instructions(row: &DomainRow, config: &Config) -> DnsInstructions {
    let name = row.name.to_string();
    let record = |name: &str, kind: &str, value: String, purpose| DnsRecord {
        name: name.to_owned(),
        kind: kind.to_owned(),
        value,
        purpose,
    };
    let mut records = Vec::new();
    // No CNAME may stand at a zone's apex, where SOA and NS stand (RFC 1034 section 3.6.2).
    let is_apex = row.name.registered_domain() == Some(name.as_str());
    let target = proof::cname_target(&row.name, &row.labels.proof_label, config.dns.cname_zone.as_deref());
    if let Some(target) = target.filter(|_| !is_apex) {
        records.push(record(&name, "CNAME", target, RecordPurpose::ProofAndTraffic));
    }
    let token = row.labels.txt_token.clone();
    records.push(record(&proof::txt_name(&row.name), "TXT", token, RecordPurpose::Proof));
    for address in &config.fleet.public_addresses {
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        records.push(record(&name, kind, address.to_string(), RecordPurpose::Traffic));
    }
    if let Some(zone) = &config.dns.challenge_zone {
        let from = format!("_acme-challenge.{}", row.name.base());
        let to = format!("{}.{zone}", row.labels.challenge_label);
        records.push(record(&from, "CNAME", to, RecordPurpose::ChallengeDelegation));
    }
    let (token, is_wildcard) = (&row.labels.http_token, row.name.is_wildcard());
    let proof_file = (!is_wildcard).then(|| ProofFile {
        url: format!("http://{name}{}", proof::http_path(token)),
        content: proof::http_content(token, row.tenant_id, &row.name),
    });
    DnsInstructions { records, proof_file }
}

/// The one record to set first, in words.
pub(crate) fn proof_text(instructions: &DnsInstructions) -> String {
    let of = |purpose| instructions.records.iter().find(|record| record.purpose == purpose);
    let words = |record: &DnsRecord| format!("{} {} {}", record.name, record.kind, quoted(record));
    match (of(RecordPurpose::ProofAndTraffic), of(RecordPurpose::Proof)) {
        (Some(cname), Some(txt)) => format!("{} (or, to prove control only, {})", words(cname), words(txt)),
        (None, Some(record)) | (Some(record), None) => words(record),
        (None, None) => String::new(),
    }
}

/// The file that proves control before DNS does, in words; nothing for a wildcard.
pub(crate) fn file_text(instructions: &DnsInstructions) -> String {
    match &instructions.proof_file {
        Some(file) => format!(" Or, while it points elsewhere, serve {} at {}.", file.content, file.url),
        None => String::new(),
    }
}

/// The records that bring traffic, in words.
pub(crate) fn traffic_text(instructions: &DnsInstructions) -> String {
    let traffic = instructions.records.iter().filter(|record| record.purpose == RecordPurpose::Traffic);
    let words: Vec<String> =
        traffic.map(|record| format!("{} {} {}", record.name, record.kind, record.value)).collect();
    words.join(", ")
}

fn quoted(record: &DnsRecord) -> String {
    if record.kind == "TXT" { format!("\"{}\"", record.value) } else { record.value.clone() }
}
