//! A whole stage for one test: DNS stub, responders for HTTP-01 and TLS-ALPN-01, and the CA.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use portico_acme_ca::{CaArgs, CaHandle, DnsArgs, DnsHandle};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::web::{self, ApiClient};

pub(crate) struct Stage {
    pub(crate) dns: DnsHandle,
    pub(crate) ca: CaHandle,
    pub(crate) client: ApiClient,
    pub(crate) http: Arc<HttpResponder>,
    pub(crate) alpn: Arc<AlpnResponder>,
    _tasks: JoinSet<()>,
}

/// Answers of the HTTP responder by path; anything else is 404.
#[derive(Default)]
pub(crate) struct HttpResponder {
    pub(crate) bodies: Mutex<HashMap<String, String>>,
    pub(crate) redirects: Mutex<HashMap<String, String>>,
    /// Path and Host of each request.
    pub(crate) seen: Mutex<Vec<(String, String)>>,
}

/// Certificates of the TLS responder by name.
#[derive(Debug, Default)]
pub(crate) struct AlpnResponder {
    pub(crate) keys: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Stage {
    pub(crate) async fn start(change: impl FnOnce(&mut CaArgs)) -> Self {
        let dns = portico_acme_ca::dns::start(DnsArgs::in_process(vec![Ipv4Addr::LOCALHOST])).await.unwrap();
        let (http, alpn) = (Arc::<HttpResponder>::default(), Arc::<AlpnResponder>::default());
        let mut tasks = JoinSet::new();
        let http_port = serve_http(&mut tasks, Arc::clone(&http)).await;
        let tls_port = serve_alpn(&mut tasks, Arc::clone(&alpn)).await;
        let mut args = CaArgs::in_process(dns.addresses.dns);
        args.http_port = http_port;
        args.tls_port = tls_port;
        change(&mut args);
        let ca = portico_acme_ca::start(args).await.unwrap();
        let client = ApiClient::new(ca.addresses.api, &ca.api_ca_pem);
        Self { dns, ca, client, http, alpn, _tasks: tasks }
    }

    pub(crate) async fn account(&self) -> Account {
        self.try_account().await.unwrap()
    }

    pub(crate) async fn try_account(&self) -> Result<Account, Error> {
        let wanted = NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
        let builder = Account::builder_with_http(Box::new(self.client.clone()));
        Ok(builder.create(&wanted, self.ca.addresses.directory.clone(), None).await?.0)
    }

    /// From newOrder to the chain, by one type of challenge.
    pub(crate) async fn obtain(
        &self,
        account: &Account,
        names: &[&str],
        kind: ChallengeType,
    ) -> Result<Issued, Error> {
        let mut order = self.order(account, names).await?;
        self.authorize(&mut order, kind).await?;
        self.finish(&mut order, names).await
    }

    pub(crate) async fn order(&self, account: &Account, names: &[&str]) -> Result<Order, Error> {
        let names: Vec<Identifier> = names.iter().map(|n| Identifier::Dns((*n).to_owned())).collect();
        account.new_order(&NewOrder::new(&names)).await
    }

    /// Answers all pending authorizations of an order and waits until it is ready or failed.
    pub(crate) async fn authorize(
        &self,
        order: &mut Order,
        kind: ChallengeType,
    ) -> Result<OrderStatus, Error> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let Identifier::Dns(name) = authorization.identifier().identifier.clone() else {
                panic!("not a DNS name")
            };
            let mut challenge = authorization.challenge(kind.clone()).expect("the challenge is offered");
            let proof = challenge.key_authorization();
            if kind == ChallengeType::Http01 {
                self.answer_http(&challenge.token, proof.as_str());
            } else if kind == ChallengeType::TlsAlpn01 {
                self.alpn.answer(&name, proof.digest().as_ref());
            } else {
                assert_eq!(kind, ChallengeType::Dns01);
                self.answer_dns(&name, &proof.dns_value()).await;
            }
            challenge.set_ready().await?;
        }
        order.poll_ready(&fast()).await
    }

    pub(crate) async fn finish(&self, order: &mut Order, names: &[&str]) -> Result<Issued, Error> {
        let key = KeyPair::generate().unwrap();
        order.finalize_csr(&csr(names, &key)).await?;
        let chain = order.poll_certificate(&fast()).await?;
        Ok(Issued { chain, key })
    }

    pub(crate) fn answer_http(&self, token: &str, body: &str) {
        let path = format!("/.well-known/acme-challenge/{token}");
        self.http.bodies.lock().unwrap().insert(path, body.to_owned());
    }

    pub(crate) async fn answer_dns(&self, name: &str, value: &str) {
        self.set_records(&json!({
            "name": format!("_acme-challenge.{name}"), "type": "TXT", "values": [value],
        }))
        .await;
    }

    pub(crate) async fn set_records(&self, sets: &Value) {
        let (status, answer) = self.dns_call(Method::POST, "/records", sets).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    pub(crate) async fn dns_call(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        web::json(method, self.dns.addresses.management, path, body).await
    }

    pub(crate) async fn ca_call(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        web::json(method, self.ca.addresses.management, path, body).await
    }

    pub(crate) async fn stats(&self) -> Value {
        self.ca_call(Method::GET, "/stats", &Value::Null).await.1
    }

    pub(crate) async fn advance(&self, seconds: u64) {
        let (status, _) = self.ca_call(Method::POST, "/clock", &json!({ "advance_seconds": seconds })).await;
        assert_eq!(status, StatusCode::OK);
    }

    pub(crate) async fn fault(&self, fault: Value) {
        let (status, answer) = self.ca_call(Method::POST, "/faults", &fault).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
}

/// A chain with the key that it was ordered for.
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: KeyPair,
}

impl Issued {
    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    /// Chain, names, dates and key, as a TLS client and a server would see them.
    pub(crate) fn check(&self, root_pem: &str, names: &[&str]) -> Result<(), String> {
        let certificates = self.certificates();
        let (leaf, intermediates) = certificates.split_first().ok_or("no certificate")?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        for name in names {
            let name = name.replace('*', "any");
            let server = ServerName::try_from(name.clone()).unwrap();
            verifier
                .verify_server_cert(leaf, intermediates, &server, &[], UnixTime::now())
                .map_err(|error| format!("{name}: {error}"))?;
        }
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
        if parsed.public_key().subject_public_key.data.as_ref() != self.key.public_key_raw() {
            return Err("another key".to_owned());
        }
        Ok(())
    }
}

pub(crate) fn fast() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(10)).timeout(Duration::from_secs(10))
}

pub(crate) fn csr(names: &[&str], key: &KeyPair) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().der().to_vec()
}

/// The problem type of an error, without its namespace.
pub(crate) fn problem_type(error: &Error) -> &str {
    let Error::Api(problem) = error else { panic!("not a problem: {error}") };
    problem.r#type.as_deref().unwrap().strip_prefix("urn:ietf:params:acme:error:").unwrap()
}

impl AlpnResponder {
    pub(crate) fn answer(&self, name: &str, digest: &[u8]) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // Not `from_der`: it parses the certificate and refuses the critical extension.
        let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).unwrap();
        let key = CertifiedKey::new(vec![certificate.der().clone()], key);
        self.keys.lock().unwrap().insert(name.to_owned(), Arc::new(key));
    }
}

impl ResolvesServerCert for AlpnResponder {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.keys.lock().unwrap().get(hello.server_name()?).cloned()
    }
}

async fn serve_alpn(tasks: &mut JoinSet<()>, responder: Arc<AlpnResponder>) -> u16 {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(responder);
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.ok() });
        }
    });
    port
}

async fn serve_http(tasks: &mut JoinSet<()>, responder: Arc<HttpResponder>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let responder = Arc::clone(&responder);
            let service = service_fn(move |request| {
                let response = responder.respond(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

impl HttpResponder {
    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        self.seen.lock().unwrap().push((path.clone(), host.clone()));
        if let Some(to) = self.redirects.lock().unwrap().get(&host) {
            let to = to.replace("{path}", &path);
            return Response::builder().status(302).header(LOCATION, to).body(Full::default()).unwrap();
        }
        match self.bodies.lock().unwrap().get(&path) {
            Some(body) => Response::new(Full::from(body.clone())),
            None => Response::builder().status(404).body(Full::default()).unwrap(),
        }
    }
}

/// Waits for a condition with a deadline.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
