//! The client against a server made of sockets: what it sends, and what it does with bad answers.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Serves `answers` one after the other, each on its own connection or on a kept one, and returns the requests.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<String>, close_after_each: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut answers = answers.into_iter();
            let mut next = answers.next();
            while next.is_some() {
                let (mut stream, _) = listener.accept().await.unwrap();
                while let Some(answer) = next.take() {
                    let Some(request) = read_request(&mut stream).await else {
                        next = Some(answer);
                        break;
                    };
                    requests.lock().unwrap().push(request);
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    next = answers.next();
                    if close_after_each {
                        break;
                    }
                }
            }
        });
        Self { url, seen }
    }

    fn client(&self) -> Client {
        Client::new(&self.url, Some("ptk_a_b"), None).unwrap()
    }

    fn request(&self, index: usize) -> String {
        self.seen.lock().unwrap()[index].clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        request.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |value| value.parse().unwrap());
        if body.len() >= length {
            return Some(text);
        }
    }
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn tenant() -> String {
    let tenant = portico_cert_store::TenantId::generate();
    json!({ "id": tenant, "name": "one", "domains": 0, "revision": 1, "created_at": "2026-01-01T00:00:00Z" })
        .to_string()
}

fn spec() -> crate::v1::TenantSpec {
    serde_json::from_value(json!({ "name": "one" })).unwrap()
}

#[tokio::test]
async fn a_post_carries_token_type_and_a_fresh_idempotency_key() {
    let server =
        Server::start(vec![answer("201 Created", &tenant()), answer("200 OK", &tenant())], false).await;
    let client = server.client();
    assert_eq!(client.create_tenant(&spec()).await.unwrap().spec.name, "one");
    client.create_tenant(&spec()).await.unwrap();
    let keys: Vec<String> = (0..2)
        .map(|index| {
            let request = server.request(index);
            assert!(request.starts_with("POST /v1/tenants HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("\r\nauthorization: Bearer ptk_a_b\r\n"), "{request}");
            assert!(request.contains("\r\ncontent-type: application/json\r\n"), "{request}");
            request.lines().find(|line| line.starts_with("idempotency-key: ")).unwrap().to_owned()
        })
        .collect();
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_problem_is_the_error_and_another_refusal_shows_its_text() {
    let problem = json!({ "type": "/errors/domain_conflict", "title": "conflict", "status": 409, "detail": "taken",
        "code": "domain_conflict", "request_id": "r" });
    let answers = vec![answer("409 Conflict", &problem.to_string()), answer("502 Bad Gateway", "<html>")];
    let server = Server::start(answers, false).await;
    let client = server.client();
    let error = client.domain("shop.test").await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(409), Some("domain_conflict")));
    let error = client.domain("*.shop.test").await.unwrap_err();
    assert_eq!(error.to_string(), "the API answered 502 Bad Gateway: <html>");
    assert!(server.request(1).starts_with("GET /v1/domains/%2A.shop.test HTTP/1.1"), "{}", server.request(1));
}

#[tokio::test]
async fn a_dead_kept_connection_is_replaced_without_an_error() {
    let answers = (0..5).map(|_| answer("200 OK", &tenant())).collect();
    let server = Server::start(answers, true).await;
    let client = server.client();
    for _ in 0..5 {
        client.tenant(portico_cert_store::TenantId::generate()).await.unwrap();
    }
}

#[tokio::test]
async fn queries_are_escaped_and_empty_ones_left_out() {
    let page = json!({ "items": [] }).to_string();
    let server = Server::start(vec![answer("200 OK", &page), answer("200 OK", &page)], false).await;
    let client = server.client();
    client.domains(&DomainQuery::default()).await.unwrap();
    let query = DomainQuery {
        status: Some(crate::v1::DomainStatus::Failed),
        q: Some("a&b c".to_owned()),
        limit: Some(10),
        ..DomainQuery::default()
    };
    client.domains(&query).await.unwrap();
    assert!(server.request(0).starts_with("GET /v1/domains HTTP/1.1"));
    assert!(server.request(1).starts_with("GET /v1/domains?status=failed&q=a%26b%20c&limit=10 HTTP/1.1"));
}

#[tokio::test]
async fn a_silent_server_costs_one_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = Client::new(&url, None, None).unwrap().with_deadline(Duration::from_millis(50));
    let error = client.ready().await.unwrap_err();
    assert!(matches!(error, ClientError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b' '; 65536]).await.is_ok() {}
    });
    let error = Client::new(&url, None, None).unwrap().openapi().await.unwrap_err();
    assert!(matches!(error, ClientError::AnswerTooLong), "{error}");
}

#[test]
fn a_token_never_goes_in_clear_over_a_network() {
    for url in ["http://192.0.2.1:7070", "http://cp.example", "http://127.0.0.1.example:7070"] {
        let error = Client::new(url, Some("t"), None).unwrap_err();
        assert!(error.to_string().contains("https"), "{error}");
    }
    for url in ["http://127.0.0.1:7070", "http://[::1]:7070/", "http://localhost:7070"] {
        Client::new(url, Some("t"), None).unwrap();
    }
    for url in ["127.0.0.1:7070", "ftp://127.0.0.1", "http://127.0.0.1:7070/v1", "https://cp.example"] {
        Client::new(url, None, None).unwrap_err();
    }
}
