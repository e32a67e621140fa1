//! The configuration files of the parts, as an operator would write them.

use portico_api::v1::JoinTokenRequest;
use portico_api::v1::client::Client;
use portico_cert_store::CellId;

use super::addresses::Addresses;
use super::children::Part;
use super::folder::{self, Folder};
use crate::failure::{Failure, Outcome};

pub(super) const CONTROL_PLANE: &str = "control-plane.toml";

/// Tenants point `_acme-challenge` into this zone; the control plane's own DNS answers it.
const CHALLENGE_ZONE: &str = "acme.provider.test";
const CNAME_ZONE: &str = "edge.provider.test";

pub(super) fn write_control_plane(folder: &Folder, addresses: &Addresses) -> Outcome {
    let path = |name: &str| format!("{:?}", folder.file(name).display().to_string());
    let edges: Vec<String> = addresses.edges.iter().map(|edge| format!("{:?}", edge.to_string())).collect();
    let text = format!(
        r#"data = {data}
api = "{api}"
distribution = "{distribution}"
key_encryption_key_file = {kek}
operator_token_file = {token}

[dns]
resolvers = ["{dns}"]
responder = "{responder}"
challenge_zone = "{CHALLENGE_ZONE}"
cname_zone = "{CNAME_ZONE}"

[fleet]
public_addresses = [{edges}]
http_port = {http_port}
https_port = {https_port}

[[issuer]]
name = "quickstart"
directory = "https://{ca}/directory"
root_pem = {api_root}
roots_pem = {root}
contact = "mailto:ops@provider.test"
poll_ms = 50
"#,
        data = path("control-plane"),
        api = addresses.api,
        distribution = addresses.distribution,
        kek = path("kek"),
        token = path(folder::TOKEN),
        dns = addresses.dns,
        responder = addresses.responder,
        edges = edges.join(", "),
        http_port = addresses.http_port,
        https_port = addresses.https_port,
        ca = addresses.ca,
        api_root = path(folder::CA_API_ROOT),
        root = path(folder::ROOT),
    );
    folder.write(CONTROL_PLANE, &text)
}

/// Writes the file of one edge, with a join token that the control plane just made.
pub(super) async fn write_edge(
    folder: &Folder,
    addresses: &Addresses,
    edge: usize,
    client: &Client,
) -> Outcome {
    const TOKEN_TTL_SECONDS: u32 = 600;
    let name = Part::edge_name(edge);
    let cell = CellId::parse("default").map_err(|error| Failure::failed(error.to_string()))?;
    let request = JoinTokenRequest { cell, ttl_seconds: TOKEN_TTL_SECONDS };
    let token = client.create_join_token(&request).await?;
    folder.write(&format!("{name}/join-token"), &token.token)?;
    let path = |file: &str| format!("{:?}", folder.file(&format!("{name}/{file}")).display().to_string());
    let text = format!(
        r#"workers = 1
io = "auto"
state = {state}
metrics = "{metrics}"
access_log = {access_log}
drain_seconds = 2

[[listen]]
address = "{http}"
kind = "http"
public_https_port = {https_port}

[[listen]]
address = "{https}"
kind = "https"
public_https_port = {https_port}
http3 = true

[control]
address = "{distribution}"
join_token_file = {join_token}
"#,
        state = path("state"),
        metrics = addresses.edge_metrics(edge),
        access_log = path("access.log"),
        http = addresses.edge_http(edge),
        https = addresses.edge_https(edge),
        https_port = addresses.https_port,
        distribution = token.distribution,
        join_token = path("join-token"),
    );
    folder.write(&format!("{name}/edge.toml"), &text)
}

/// Tells the DNS stub who answers the challenge zone.
pub(super) fn forward(addresses: &Addresses) -> Vec<u8> {
    format!(r#"{{"zone":"{CHALLENGE_ZONE}","address":"{}"}}"#, addresses.responder).into_bytes()
}
