//! The DNS records that owners have to set, collected for a provider's import or for a DNS stub.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use portico_api::v1::{Domain, RecordPurpose};
use portico_prober::chain_text;
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::settings::Settings;

/// All values of one name and type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RecordSet {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) values: Vec<String>,
}

/// What proves control of these domains by TXT, and, for wildcards, delegates the DNS challenge. Records that carry
/// traffic are left out: moving a site is a decision of its own.
pub(crate) fn needed<'a>(domains: impl IntoIterator<Item = &'a Domain>) -> Vec<RecordSet> {
    let mut sets: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for domain in domains {
        let wildcard = domain.spec.hostname.starts_with("*.");
        let wanted = domain.dns.records.iter().filter(|record| match record.purpose {
            RecordPurpose::Proof => record.kind == "TXT",
            RecordPurpose::ChallengeDelegation => wildcard,
            RecordPurpose::ProofAndTraffic | RecordPurpose::Traffic => false,
        });
        for record in wanted {
            let values = sets.entry((record.name.clone(), record.kind.clone())).or_default();
            if !values.contains(&record.value) {
                values.push(record.value.clone());
            }
        }
    }
    sets.into_iter().map(|((name, kind), values)| RecordSet { name, kind, values }).collect()
}

/// Writes the sets: JSON where the file ends in `.json`, else CSV with a line for each value.
pub(crate) fn write(file: &Path, sets: &[RecordSet]) -> Outcome {
    let text = if file.extension().is_some_and(|extension| extension == "json") {
        serde_json::to_vec_pretty(sets).map_err(|error| Failure::file(file, error))?
    } else {
        csv_text(sets).map_err(|error| Failure::file(file, error))?
    };
    std::fs::write(file, text).map_err(|error| Failure::file(file, error))
}

fn csv_text(sets: &[RecordSet]) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["name", "type", "value"])?;
    for set in sets {
        for value in &set.values {
            writer.write_record([&set.name, &set.kind, value])?;
        }
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PublishArgs {
    /// Put the records that prove control into the quickstart's DNS stub (needs its --context)
    #[arg(long)]
    publish_records: bool,
}

impl PublishArgs {
    pub(crate) fn is_wanted(&self) -> bool {
        self.publish_records
    }

    pub(crate) async fn publish(&self, settings: &Settings, sets: Vec<RecordSet>) -> Outcome {
        let stub = settings.context.as_ref().and_then(|context| context.dns_stub);
        let stub = stub.ok_or_else(|| {
            Failure::usage("--publish-records needs a context with a DNS stub")
                .next_text("--context portico-quickstart, or set the records at the domain's DNS provider")
        })?;
        publish(stub, &sets).await
    }
}

/// Puts the sets into the DNS stub over its management address.
pub(crate) async fn publish(stub: std::net::SocketAddr, sets: &[RecordSet]) -> Outcome {
    /// The stub takes 5,000 a call.
    const SETS_PER_CALL: usize = 4000;
    for chunk in sets.chunks(SETS_PER_CALL) {
        let body = serde_json::to_vec(chunk).map_err(|error| Failure::failed(error.to_string()))?;
        post(stub, "/records", body)
            .await
            .map_err(|text| Failure::failed(format!("DNS stub at {stub}: {text}")))?;
    }
    Ok(())
}

/// One POST of JSON to a loopback address.
pub(crate) async fn post(address: std::net::SocketAddr, path: &str, body: Vec<u8>) -> Result<Bytes, String> {
    const ANSWER_BYTES_MAX: usize = 1 << 20;
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|e| chain_text(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| chain_text(&e))?;
    let driver = tokio::spawn(connection);
    let request = http::Request::post(path)
        .header("host", address.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| chain_text(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| chain_text(&e))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|e| e.to_string())?
        .to_bytes();
    driver.abort();
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
    }
    Ok(body)
}
