//! instant-acme, a client that this CA shares nothing with, gets certificates by all three challenges.

use http::Method;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, NewAccount, Order, OrderStatus, Problem, RevocationReason,
    RevocationRequest,
};
use serde_json::json;

use crate::stage::{Stage, fast, problem_type};

#[tokio::test]
async fn http01_issues_a_chain_that_verifies() {
    let stage = Stage::start(|_| {}).await;
    let names = ["shop.test", "www.shop.test"];
    let issued = stage.obtain(&stage.account().await, &names, ChallengeType::Http01).await.unwrap();
    issued.check(&stage.ca.root_pem, &names).unwrap();
    assert_eq!(issued.certificates().len(), 2);
    let seen = stage.http.seen.lock().unwrap();
    assert_eq!(seen.len(), 2, "one fetch a name");
    assert!(seen.iter().all(|(_, host)| !host.contains(':')), "the host is named as on port 80: {seen:?}");
}

#[tokio::test]
async fn tls_alpn01_issues_and_judges_the_certificate() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let names = ["shop.test", "www.shop.test"];
    let issued = stage.obtain(&account, &names, ChallengeType::TlsAlpn01).await.unwrap();
    issued.check(&stage.ca.root_pem, &names).unwrap();

    let mut order = stage.order(&account, &["wrong.test"]).await.unwrap();
    stage.alpn.answer("wrong.test", &[7; 32]);
    let mut authorizations = order.authorizations();
    let mut authorization = authorizations.next().await.unwrap().unwrap();
    authorization.challenge(ChallengeType::TlsAlpn01).unwrap().set_ready().await.unwrap();
    assert_eq!(order.poll_ready(&fast()).await.unwrap(), OrderStatus::Invalid);
    let error = first_error(&mut order).await;
    assert_eq!(error.r#type.unwrap(), "urn:ietf:params:acme:error:unauthorized");
    assert!(error.detail.unwrap().contains("acmeIdentifier"));
}

/// The error of the first authorization's challenge.
async fn first_error(order: &mut Order) -> Problem {
    let mut authorizations = order.authorizations();
    let authorization = authorizations.next().await.unwrap().unwrap();
    authorization.challenges[0].error.clone().expect("the failed challenge says why")
}

#[tokio::test]
async fn dns01_issues_a_wildcard_and_follows_a_delegation() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let names = ["*.shop.test", "other.test"];
    let issued = stage.obtain(&account, &names, ChallengeType::Dns01).await.unwrap();
    issued.check(&stage.ca.root_pem, &names).unwrap();

    let mut order = stage.order(&account, &["*.delegated.test"]).await.unwrap();
    let mut authorizations = order.authorizations();
    let mut authorization = authorizations.next().await.unwrap().unwrap();
    assert!(authorization.wildcard);
    assert_eq!(authorization.challenges.len(), 1, "a wildcard is proved by DNS only");
    let mut challenge = authorization.challenge(ChallengeType::Dns01).unwrap();
    let value = challenge.key_authorization().dns_value();
    stage
        .set_records(&json!([
            { "name": "_acme-challenge.delegated.test", "type": "CNAME", "values": ["x1.acme.provider.test"] },
            { "name": "x1.acme.provider.test", "type": "TXT", "values": ["stale", value] },
        ]))
        .await;
    challenge.set_ready().await.unwrap();
    assert_eq!(order.poll_ready(&fast()).await.unwrap(), OrderStatus::Ready);
}

#[tokio::test]
async fn a_missing_or_wrong_answer_fails_only_its_name_and_says_why() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let mut order = stage.order(&account, &["good.test", "silent.test"]).await.unwrap();
    stage.dns_call(Method::POST, "/nxdomain", &json!({ "names": ["silent.test"] })).await;
    let status = stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    assert_eq!(status, OrderStatus::Invalid);
    assert!(order.state().error.is_none(), "as Boulder: the reason stands in the authorization");
    let mut statuses = vec![];
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.unwrap();
        let state = authorization.refresh().await.unwrap();
        let error = state.challenges.iter().find_map(|c| c.error.as_ref()?.r#type.clone());
        statuses.push((state.status, error));
    }
    let dns = Some("urn:ietf:params:acme:error:dns".to_owned());
    assert_eq!(statuses, [(AuthorizationStatus::Valid, None), (AuthorizationStatus::Invalid, dns)]);
    let stats = stage.stats().await;
    assert_eq!(stats["validations"]["performed"], 2);
    assert_eq!(stats["validations"]["failed"], 1);
    assert_eq!(stats["validations"]["by_name"]["silent.test"]["http-01"]["failed"], 1);
}

#[tokio::test]
async fn http01_follows_redirects_to_allowed_ports_and_stops_at_ten() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let redirects = |host: &str, to: String| stage.http.redirects.lock().unwrap().insert(host.to_owned(), to);
    redirects("old.test", "http://new.test{path}?moved=1".to_owned());
    stage.obtain(&account, &["old.test"], ChallengeType::Http01).await.unwrap();
    assert_eq!(stage.http.seen.lock().unwrap().len(), 2);

    redirects("loop.test", "http://loop.test{path}".to_owned());
    redirects("port.test", "http://new.test:22{path}".to_owned());
    redirects("scheme.test", "ftp://new.test{path}".to_owned());
    redirects("address.test", "http://127.0.0.1{path}".to_owned());
    for name in ["loop.test", "port.test", "scheme.test", "address.test"] {
        let mut order = stage.order(&account, &[name]).await.unwrap();
        let status = stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
        assert_eq!(status, OrderStatus::Invalid, "{name}");
    }
    let seen = stage.http.seen.lock().unwrap();
    assert_eq!(seen.iter().filter(|(_, host)| host == "loop.test").count(), 11);
}

#[tokio::test]
async fn http01_follows_a_redirect_to_https_without_looking_at_the_certificate() {
    let web = axum_over_tls().await;
    let stage = Stage::start(|args| args.tls_port = web.port).await;
    let account = stage.account().await;
    let to = format!("https://secure.test:{}{{path}}", web.port);
    stage.http.redirects.lock().unwrap().insert("plain.test".to_owned(), to);
    let mut order = stage.order(&account, &["plain.test"]).await.unwrap();
    let mut authorizations = order.authorizations();
    let mut authorization = authorizations.next().await.unwrap().unwrap();
    let mut challenge = authorization.challenge(ChallengeType::Http01).unwrap();
    *web.body.lock().unwrap() = challenge.key_authorization().as_str().to_owned();
    challenge.set_ready().await.unwrap();
    assert_eq!(order.poll_ready(&fast()).await.unwrap(), OrderStatus::Ready);
}

struct TlsWeb {
    port: u16,
    body: std::sync::Arc<std::sync::Mutex<String>>,
    _tasks: tokio::task::JoinSet<()>,
}

/// An HTTPS server with a self-signed certificate for another name.
async fn axum_over_tls() -> TlsWeb {
    use std::sync::Arc;
    let body = Arc::<std::sync::Mutex<String>>::default();
    let made = rcgen::generate_simple_self_signed(vec!["unrelated.test".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = tokio::task::JoinSet::new();
    let shared = Arc::clone(&body);
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |_| {
                    let body = shared.lock().unwrap().clone();
                    async move {
                        Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(
                            bytes::Bytes::from(body),
                        )))
                    }
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.ok();
            });
        }
    });
    TlsWeb { port, body, _tasks: tasks }
}

#[tokio::test]
async fn a_refused_connection_is_told_as_such() {
    let closed = portico_ports::reserve();
    let stage = Stage::start(|args| args.http_port = closed.port()).await;
    let account = stage.account().await;
    let mut order = stage.order(&account, &["down.test"]).await.unwrap();
    stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    let error = first_error(&mut order).await;
    assert_eq!(error.r#type.unwrap(), "urn:ietf:params:acme:error:connection");
}

#[tokio::test]
async fn a_second_certificate_of_the_same_account_needs_no_validation() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let names = ["shop.test", "www.shop.test"];
    let first = stage.obtain(&account, &names, ChallengeType::Http01).await.unwrap();
    let second = stage.obtain(&account, &names, ChallengeType::Http01).await.unwrap();
    assert_ne!(first.key.public_key_raw(), second.key.public_key_raw());
    second.check(&stage.ca.root_pem, &names).unwrap();
    let stats = stage.stats().await;
    assert_eq!(stats["authorizations"]["reused_valid"], 2);
    assert_eq!(stats["validations"]["performed"], 2);
    assert_eq!(stats["certificates"]["issued"], 2);

    let mut order = stage.order(&stage.account().await, &names).await.unwrap();
    assert_eq!(order.state().status, OrderStatus::Pending, "another account reuses nothing");
}

#[tokio::test]
async fn an_authorization_is_not_reused_past_its_lifetime() {
    let stage = Stage::start(|args| args.authz_lifetime = std::time::Duration::from_secs(7 * 3600)).await;
    let account = stage.account().await;
    stage.obtain(&account, &["shop.test"], ChallengeType::Http01).await.unwrap();
    stage.advance(7 * 3600 - 60).await;
    let mut order = stage.order(&account, &["shop.test"]).await.unwrap();
    assert_eq!(order.state().status, OrderStatus::Ready);
    stage.advance(120).await;
    assert_eq!(order.refresh().await.unwrap().status, OrderStatus::Invalid);
    let mut order = stage.order(&account, &["shop.test"]).await.unwrap();
    assert_eq!(order.state().status, OrderStatus::Pending);
    stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    let stats = stage.stats().await;
    assert_eq!(stats["validations"]["by_name"]["shop.test"]["http-01"]["performed"], 2);
}

#[tokio::test]
async fn an_identical_pending_order_is_given_again() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let first = stage.order(&account, &["a.test", "b.test"]).await.unwrap().url().to_owned();
    let again = stage.order(&account, &["B.test", "a.test"]).await.unwrap().url().to_owned();
    let other = stage.order(&account, &["a.test"]).await.unwrap().url().to_owned();
    assert_eq!(first, again);
    assert_ne!(first, other);
    let stats = stage.stats().await;
    assert_eq!(stats["orders"]["reused"], 1);
    assert_eq!(stats["authorizations"]["reused_pending"], 1);
    let log = stats["new_orders"].as_array().unwrap();
    let results: Vec<&str> = log.iter().map(|entry| entry["result"].as_str().unwrap()).collect();
    assert_eq!(results, ["created", "reused", "created"]);
    assert_eq!(log[0]["names"], json!(["a.test", "b.test"]));
}

#[tokio::test]
async fn a_certificate_is_revoked_once() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let issued = stage.obtain(&account, &["shop.test"], ChallengeType::Http01).await.unwrap();
    let certificates = issued.certificates();
    let request =
        RevocationRequest { certificate: &certificates[0], reason: Some(RevocationReason::KeyCompromise) };
    let stranger = stage.account().await;
    assert_eq!(problem_type(&stranger.revoke(&request).await.unwrap_err()), "unauthorized");
    account.revoke(&request).await.unwrap();
    assert_eq!(problem_type(&account.revoke(&request).await.unwrap_err()), "alreadyRevoked");
    assert_eq!(stage.stats().await["certificates"]["revoked"], 1);
}

#[tokio::test]
async fn an_account_is_found_changed_and_deactivated() {
    let stage = Stage::start(|_| {}).await;
    let wanted = NewAccount {
        contact: &["mailto:ops@provider.test"],
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let directory = stage.ca.addresses.directory.clone();
    let builder = || Account::builder_with_http(Box::new(stage.client.clone()));
    let (mut account, credentials) = builder().create(&wanted, directory.clone(), None).await.unwrap();
    let old = account.clone();
    account.update_contacts(&["mailto:new@provider.test"]).await.unwrap();
    let wrong = account.update_contacts(&["tel:112"]).await.unwrap_err();
    assert_eq!(problem_type(&wrong), "unsupportedContact");
    let new_credentials = account.update_key().await.unwrap();
    stage.order(&account, &["shop.test"]).await.unwrap();
    assert_eq!(problem_type(&stage.order(&old, &["shop.test"]).await.err().unwrap()), "malformed");
    drop(credentials);
    let restored = builder().from_credentials(new_credentials).await.unwrap();
    assert_eq!(restored.id(), account.id());
    restored.deactivate().await.unwrap();
    assert_eq!(problem_type(&stage.order(&account, &["shop.test"]).await.err().unwrap()), "unauthorized");
}
