//! The ways by which a CA reaches a name: redirects, the other method, and two accounts at one time.

use std::sync::Arc;
use std::time::Duration;

use portico_api::distribution::urgent::Action;
use portico_cert_store::{Generation, TenantId};
use portico_control_plane::acme::order::Wanted;
use portico_control_plane::acme::{
    Account, AccountKey, CaEndpoint, CaHttp, CaOrder, CaOrderStatus, ChallengeMethod, Pace,
};
use portico_control_plane::limits::EVENT_TEXT_BYTES_MAX;
use portico_control_plane::store::sql;
use rcgen::{CertificateParams, CustomExtension};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::edge::{Identity, TestEdge};
use crate::lab::{Lab, Options, cell_id};
use crate::stand_in::server_config;

const HTTP_ONLY: &str = r#"["http-01"]"#;
const TLS_ONLY: &str = r#"["tls-alpn-01"]"#;

/// As most sites of today: port 80 leads to https, where the certificate expired long ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_redirects_to_https_with_a_bad_certificate_is_issued_by_http() {
    let lab = Lab::start(&Options { challenges: HTTP_ONLY, ..Options::default() }).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["https-only.test"]).await;
    lab.until_covered(1).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["validations"]["by_challenge"]["http-01"]["performed"], 1);
    assert_eq!(stats["validations"]["by_challenge"]["http-01"]["failed"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_that_no_ca_would_follow_are_named_and_cost_no_order() {
    let lab = Lab::start(&Options { challenges: HTTP_ONLY, ..Options::default() }).await;
    let link_local = json!({ "name": "link-local.test", "type": "A", "values": ["169.254.169.254"] });
    lab.world.set_dns("/records", link_local).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    for (name, words) in [
        ("loop.test", "redirected more than 10 times"),
        ("metadata.test", "169.254.169.254"),
        ("odd-port.test", "ports 80 and 443 only"),
        ("address.test", "no redirect to an IP address"),
    ] {
        let domain = lab.domains(tenant, &[name]).await[0];
        let condition = lab.until_condition(domain, "ChallengeReachable", "false").await;
        assert!(condition[2].contains(words), "{name}: {condition:?}");
    }
    assert_eq!(lab.world.stats().await["new_orders"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_of_100_kb_is_told_in_a_few_words() {
    let lab = Lab::start(&Options { challenges: HTTP_ONLY, ..Options::default() }).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let domain = lab.domains(tenant, &["long.test"]).await[0];
    let condition = lab.until_condition(domain, "ChallengeReachable", "false").await;
    assert!(condition[2].contains("ports 80 and 443 only"), "{condition:?}");
    let told = lab.rows("SELECT text FROM events WHERE kind = 'domain.unreachable'").await.concat();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].len() < EVENT_TEXT_BYTES_MAX, "{} bytes", told[0].len());
    assert!(told[0].contains(":22/aaa") && told[0].contains("looked at again at"), "{}", told[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_whose_port_80_is_not_ours_is_issued_by_tls_alpn() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["no-http.test"]).await;
    lab.until_covered(1).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["validations"]["by_challenge"]["tls-alpn-01"]["performed"], 1, "{stats}");
    assert!(stats["validations"]["by_challenge"]["http-01"].is_null(), "not even tried: {stats}");
}

/// MASTER and SHADOW inside a provider's network: the name still points at its present server, which sends the challenge
/// to the edges. The operator's grant for that tenant opens the pre-flight's way there, and no other tenant's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_grant_lets_the_pre_flight_of_its_names_reach_a_master_in_a_private_range() {
    let lab = Lab::start(&Options { challenges: HTTP_ONLY, ..Options::default() }).await;
    let port = lab.world.stand_in.http_port;
    pass_on(port).await;
    for name in ["granted.test", "other.test"] {
        lab.world.set_dns("/records", json!({ "name": name, "type": "A", "values": ["127.0.0.2"] })).await;
    }
    let other = lab.tenant(&[], "registered_domain").await;
    let refused = lab.domains(other, &["other.test"]).await[0];
    let condition = lab.until_condition(refused, "ChallengeReachable", "false").await;
    assert!(condition[2].contains("an operator may grant it to the tenant"), "{condition:?}");

    let tenant = lab.tenant(&[], "registered_domain").await;
    grant(&lab, tenant, &["127.0.0.2"], port).await;
    lab.domains(tenant, &["granted.test"]).await;
    let live = lab.until_covered(1).await;
    assert_eq!(live[0].names, ["granted.test"]);
    assert_eq!(lab.condition(refused, "ChallengeReachable").await.unwrap()[0], "false");
}

/// A tenant whose names may be looked for at these addresses, at the port for https.
async fn tenant_granted(lab: &Lab, addresses: &[&str]) -> TenantId {
    let tenant = lab.tenant(&[], "alone").await;
    grant(lab, tenant, addresses, lab.world.stand_in.tls_port).await;
    tenant
}

/// Lets the names of a tenant be looked for at these addresses.
async fn grant(lab: &Lab, tenant: TenantId, addresses: &[&str], port: u16) {
    let grants: Vec<_> =
        addresses.iter().map(|address| json!({ "cidr": format!("{address}/32"), "ports": [port] })).collect();
    let mut tx = lab.begin().await;
    sql::query("UPDATE tenants SET spec = json_set(spec, '$.egress_grants', json(?)) WHERE id = ?")
        .bind(json!(grants).to_string())
        .bind(tenant.to_string())
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

/// MASTER at 127.0.0.2: what comes to this port goes to the edges as it is.
async fn pass_on(port: u16) {
    let master = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = master.accept().await {
            tokio::spawn(async move {
                let mut edge = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut edge).await;
            });
        }
    });
}

async fn point(lab: &Lab, name: &str, addresses: &[&str]) {
    lab.world.set_dns("/records", json!({ "name": name, "type": "A", "values": addresses })).await;
}

/// Who else may have port 443 of a name: one without the protocol, one with others only, one with a challenge that is not ours, and
/// one that speaks no TLS.
async fn strangers(port: u16) {
    let shows = |protocols: &[&[u8]], digest: Option<[u8; 32]>| {
        let mut params = CertificateParams::new(vec!["stranger.test".to_owned()]).unwrap();
        params.custom_extensions = digest.iter().map(|d| CustomExtension::new_acme_identifier(d)).collect();
        let mut config = server_config(&params);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Some(TlsAcceptor::from(Arc::new(config)))
    };
    let kinds = [
        ("127.0.0.2", shows(&[], None)),
        ("127.0.0.3", shows(&[b"h2", b"http/1.1"], None)),
        ("127.0.0.4", shows(&[b"acme-tls/1"], Some([9; 32]))),
        ("127.0.0.5", None),
    ];
    for (address, acceptor) in kinds {
        let listener = TcpListener::bind((address, port)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    match acceptor {
                        Some(acceptor) => drop(acceptor.accept(stream).await),
                        None => drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await),
                    }
                });
            }
        });
    }
}

/// Where an order would go by TLS-ALPN-01, port 443 of each address is met as a CA meets it: what is there else is told with what to
/// do, and costs no order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_else_answers_at_port_443_is_told_and_costs_no_order() {
    let lab = Lab::start(&Options { challenges: TLS_ONLY, ..Options::default() }).await;
    strangers(lab.world.stand_in.tls_port).await;
    let elsewhere = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6"];
    let tenant = tenant_granted(&lab, &elsewhere).await;
    let lead_here = "pass TLS on as it is";
    for (name, addresses, words, advice) in [
        ("plain.test", &["127.0.0.2"][..], "does not speak acme-tls/1", lead_here),
        ("cdn.test", &["127.0.0.3"], "does not speak acme-tls/1", lead_here),
        ("other.test", &["127.0.0.4"], "answered by somebody else", lead_here),
        ("no-tls.test", &["127.0.0.5"], "TLS: ", lead_here),
        ("closed.test", &["127.0.0.6"], "cannot connect", "open that port"),
        ("one-of-two.test", &["127.0.0.1", "127.0.0.3"], "127.0.0.3", lead_here),
        ("private.test", &["127.0.0.7"], "an operator may grant it to the tenant", "let the name lead"),
    ] {
        point(&lab, name, addresses).await;
        let domain = lab.domains(tenant, &[name]).await[0];
        let condition = lab.until_condition(domain, "ChallengeReachable", "false").await;
        assert!(condition[2].contains(words) && condition[2].contains(advice), "{name}: {condition:?}");
        assert!(!condition[2].contains("http://"), "nobody asks for HTTP-01: {condition:?}");
    }
    lab.domains(tenant, &["good.test"]).await;
    assert_eq!(lab.until_covered(1).await[0].names, ["good.test"]);
    let stats = lab.world.stats().await;
    assert_eq!(stats["new_orders"].as_array().unwrap().len(), 1, "{stats}");
    assert_eq!(stats["validations"]["by_challenge"]["tls-alpn-01"]["failed"], 0, "{stats}");
}

/// What is before the edges passes TLS on as it is: the CA meets the challenge although no address is ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_whose_server_passes_tls_on_is_issued_by_tls_alpn() {
    let lab = Lab::start(&Options { challenges: TLS_ONLY, ..Options::default() }).await;
    pass_on(lab.world.stand_in.tls_port).await;
    let tenant = tenant_granted(&lab, &["127.0.0.2"]).await;
    point(&lab, "passed-on.test", &["127.0.0.2"]).await;
    lab.domains(tenant, &["passed-on.test"]).await;
    lab.until_covered(1).await;
    assert_eq!(lab.world.stats().await["validations"]["by_challenge"]["tls-alpn-01"]["performed"], 1);
}

/// Two accounts have challenges for one host open at once: the fleet holds both tokens, an edge that comes later gets
/// both, and the CA validates both. Which of our issuers orders is the planner's choice; two never order one name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_accounts_validate_one_host_at_once() {
    let lab = Lab::start(&Options { challenges: HTTP_ONLY, ..Options::default() }).await;
    lab.world.faults(json!({ "kind": "slow", "endpoint": "challenge", "delay_ms": 12_000 })).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["both.test"]).await;
    while lab.world.stats().await["faults"]["slow"] != 1 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let account = Account::register(&second_way(&lab), &AccountKey::generate().unwrap(), None).await.unwrap();
    let names = ["both.test".to_owned()];
    let wanted = Wanted { names: &names, replaces: None, profile: None };
    let mut order = CaOrder::create(&account, &wanted).await.unwrap();
    let authorizations = order.authorizations(false).await.unwrap();
    let challenge =
        authorizations[0].challenges.iter().find(|c| c.method == ChallengeMethod::Http01).unwrap();
    let expires = lab.world.clock.now_ms() + 600_000;
    let fleet = lab.running.distribution.fleet.clone();
    fleet.set_http01("both.test", &challenge.token, &challenge.key_authorization, expires, None).await;

    let token = lab.running.distribution.create_join_token(&cell_id("default"), 600).await.unwrap().token;
    let identity = Identity::join(lab.running.distribution.address, &token).await.unwrap();
    let late = TestEdge::connect(lab.running.distribution.address, identity, Generation::default()).await;
    let tokens = |state: &crate::edge::State| {
        let set = state.urgents.iter().filter_map(|urgent| match &urgent.action {
            Some(Action::SetHttp01(set)) if set.host == "both.test" => Some(set.token.clone()),
            _ => None,
        });
        set.collect::<std::collections::BTreeSet<_>>().len()
    };
    late.wait("both tokens", |state| tokens(state) == 2).await;
    // From now on the CA may meet either edge, and each must answer alike.
    let late = Arc::new(late);
    lab.world.stand_in.set_edges(lab.edges.values().cloned().chain([late]).collect());

    order.set_ready(&[("both.test".to_owned(), ChallengeMethod::Http01)]).await.unwrap();
    while order.refresh().await.unwrap() == CaOrderStatus::Pending {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(order.status(), CaOrderStatus::Ready);
    assert!(lab.live_credentials().await.is_empty(), "ours is open all the while");
    lab.until_covered(1).await;
    let stats = lab.world.stats().await;
    let http = &stats["validations"]["by_name"]["both.test"]["http-01"];
    assert_eq!((&http["performed"], &http["failed"]), (&json!(2), &json!(0)), "{stats}");
    assert_eq!(stats["accounts"]["created"], 2);
}

/// Another client's way to the lab's CA.
fn second_way(lab: &Lab) -> CaHttp {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(lab.world.path("api-ca.pem")).unwrap()).unwrap();
    let pace = Pace { per_second: 100, burst: 100 };
    CaHttp::new(&CaEndpoint {
        directory: lab.world.directory().parse().unwrap(),
        roots: Arc::new(roots),
        serialize_orders: false,
        pace,
        nonce_pace: pace,
    })
    .unwrap()
}
