//! Backup certificates from the command to real edges: two CAs, what stands by, the drill, the switch and the way back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use portico_api::v1::{BackupScope, BackupState, Sharing};
use portico_tests::{CellPlan, Lab, LabOptions, wait_until};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(60);
const NAMES: [&str; 2] = ["shop.test", "www.shop.test"];

/// Who shows what: clients that trust one of the CAs alone.
struct Clients {
    first: Arc<ClientConfig>,
    second: Arc<ClientConfig>,
}

impl Clients {
    fn of(lab: &Lab) -> Result<Self> {
        let config = |root: &std::path::Path| {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(root)?)?;
            Ok::<_, anyhow::Error>(Arc::new(
                ClientConfig::builder().with_root_certificates(roots).with_no_client_auth(),
            ))
        };
        Ok(Self { first: config(&lab.issuing_root)?, second: config(lab.second_root())? })
    }

    /// The issuer whose certificate an edge shows, and the leaf.
    async fn shown(&self, edge: SocketAddr, name: &'static str) -> Result<(&'static str, Vec<u8>)> {
        for (issuer, config) in [("test", &self.first), ("second", &self.second)] {
            if let Ok(leaf) = leaf(edge, name, config.clone()).await {
                return Ok((issuer, leaf));
            }
        }
        anyhow::bail!("{edge} shows {name} no certificate of either CA")
    }

    async fn until_shown(&self, edge: SocketAddr, issuer: &str) {
        wait_until("what is shown", DEADLINE, async || {
            for name in NAMES {
                if self.shown(edge, name).await.expect("a handshake").0 != issuer {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }
}

async fn leaf(address: SocketAddr, name: &'static str, config: Arc<ClientConfig>) -> Result<Vec<u8>> {
    let handshake = async {
        let tcp = TcpStream::connect(address).await?;
        TlsConnector::from(config).connect(ServerName::try_from(name)?, tcp).await.context("handshake")
    };
    let stream = tokio::time::timeout(DEADLINE, handshake).await??;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    Ok(shown.context("no certificate")?.to_vec())
}

/// A command about backups; whether it ended well, and its answer.
fn backup(lab: &Lab, arguments: &[&str]) -> (bool, Value) {
    let done =
        lab.portico().args(["-o", "json", "backup-cert"]).args(arguments).output().expect("portico runs");
    let answer = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    (done.status.success(), answer)
}

/// Waits until something stands by for all names, or nothing does for any.
async fn until_standing_by(lab: &Lab, wanted: bool) {
    wait_until("the backups", DEADLINE, async || {
        let backups = lab.client.backups(&BackupScope::default(), None, None).await.expect("a list").items;
        let holds = |names: &[String]| NAMES.iter().all(|name| names.iter().any(|held| held == name));
        let stands_by =
            backups.iter().any(|backup| backup.state == BackupState::Staged && holds(&backup.hostnames));
        (if wanted { stands_by } else { backups.is_empty() }).then_some(())
    })
    .await;
}

fn wish(lab: &Lab, wish: &str) {
    let words = ["tenant", "set", "shops", "--backup-certificates", wish];
    let done = lab.portico().args(words).output().expect("portico runs");
    assert!(done.status.success(), "{done:?}");
}

fn public_key(leaf: &[u8]) -> Vec<u8> {
    let certificate = CertificateDer::from(leaf.to_vec());
    let parsed = rustls::server::ParsedCertificate::try_from(&certificate).expect("a certificate");
    parsed.subject_public_key_info().to_vec()
}

/// Two edges and two CAs; names that the first has issued for and the second stands by for.
async fn standing_by() -> Result<(Lab, Clients)> {
    let cells = vec![CellPlan { name: "default", edges: 2 }];
    let lab = Lab::start(LabOptions { cells, second_ca: true, ..LabOptions::default() }).await?;
    let tenant = lab.tenant("shops", Sharing::RegisteredDomain, &["default"]).await?;
    for name in NAMES {
        lab.domain(&tenant, name).await?;
        lab.active(name).await?;
    }
    let clients = Clients::of(&lab)?;
    clients.until_shown(lab.edges[0].https, "test").await;
    let (passed, drill) = backup(&lab, &["drill"]);
    assert!(!passed && drill["certificates"] == 0, "nothing stands by yet: {drill}");
    wish(&lab, "true");
    until_standing_by(&lab, true).await;
    Ok((lab, clients))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_tries_each_edge_and_changes_nothing_for_visitors() -> Result<()> {
    let (mut lab, clients) = standing_by().await?;
    wait_until("a drill that passes", DEADLINE, async || {
        let (passed, drill) = backup(&lab, &["drill", "--tenant", "shops"]);
        (passed && drill["edges"].as_array().is_some_and(|edges| edges.len() == 2)).then_some(())
    })
    .await;
    let (_, drill) = backup(&lab, &["drill"]);
    let figures = (&drill["certificates"], &drill["names"], &drill["without_backup"]);
    assert_eq!(figures, (&json!(1), &json!(2), &json!(0)));
    for edge in &lab.edges {
        for name in NAMES {
            assert_eq!(clients.shown(edge.https, name).await?.0, "test");
        }
    }
    // An edge that is away is named, the other has passed.
    lab.edges[1].process.kill();
    let drill = wait_until("the edge's absence", DEADLINE, async || {
        let (passed, drill) = backup(&lab, &["drill"]);
        (!passed).then_some(drill)
    })
    .await;
    let edges = drill["edges"].as_array().context("edges")?;
    let judged: Vec<(bool, bool)> =
        edges.iter().map(|edge| (edge["passed"] == true, edge["error"].is_string())).collect();
    assert!(judged.contains(&(true, false)) && judged.contains(&(false, true)), "{drill}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_shows_what_stands_by_and_one_takes_it_back() -> Result<()> {
    let (mut lab, clients) = standing_by().await?;
    let edges: Vec<SocketAddr> = lab.edges.iter().map(|edge| edge.https).collect();
    let serving = clients.shown(edges[0], NAMES[0]).await?.1;
    // The day it is for: the CA is gone, and one edge is away.
    lab.kill_ca();
    lab.edges[1].process.kill();
    let (done, switch) = backup(&lab, &["switch", "--issuer", "test"]);
    assert!(done && switch["switched"] == 1 && switch["without_backup"] == 0, "{switch}");
    clients.until_shown(edges[0], "second").await;
    let shown = clients.shown(edges[0], NAMES[0]).await?.1;
    assert_ne!(public_key(&shown), public_key(&serving), "another key");
    // The other comes back with what it had last, is told when there is somebody to tell it, and keeps it over a further start.
    lab.control_plane.kill();
    lab.restart_edge(1).await;
    assert_eq!(clients.shown(edges[1], NAMES[0]).await?.0, "test", "it has heard of no switch");
    lab.restart_control_plane().await;
    clients.until_shown(edges[1], "second").await;
    lab.edges[1].process.kill();
    lab.restart_edge(1).await;
    assert_eq!(clients.shown(edges[1], NAMES[1]).await?.0, "second", "from its own disk");

    let (done, again) = backup(&lab, &["switch", "--tenant", "shops"]);
    assert!(done && again["switched"] == 0 && again["unchanged"] == 1, "{again}");
    let (done, back) = backup(&lab, &["switch-back", "--tenant", "shops"]);
    assert!(done && back["switched"] == 1, "{back}");
    for edge in &edges {
        clients.until_shown(*edge, "test").await;
    }
    assert_eq!(clients.shown(edges[0], NAMES[0]).await?.1, serving, "what served before");
    wish(&lab, "false");
    until_standing_by(&lab, false).await;
    let trail = lab.client.audit(0, Some(1000)).await?.items;
    for action in ["backup.drill", "backup.switch", "backup.switch_back"] {
        assert!(trail.iter().any(|entry| entry.action == action), "{action} is not in the trail");
    }
    Ok(())
}
