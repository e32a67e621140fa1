//! The binary: what a parent process sees of it.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

const BINARY: &str = env!("CARGO_BIN_EXE_portico-acme-ca");

async fn started(arguments: &[&str]) -> (tokio::process::Child, Value) {
    let mut child = Command::new(BINARY)
        .args(arguments)
        .arg("--exit-on-stdin-eof")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(Duration::from_secs(20), lines.next_line()).await.unwrap().unwrap().unwrap();
    (child, serde_json::from_str(&line).unwrap())
}

#[tokio::test]
async fn both_parts_print_their_addresses_and_end_with_their_parent() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.pem");
    let api_ca = folder.path().join("api-ca.pem");
    let free = ["--listen", "127.0.0.1:0", "--management", "127.0.0.1:0"];
    let (dns, dns_says) =
        started(&[&["dns", "--default-a", "127.0.0.11,127.0.0.12"], &free[..]].concat()).await;
    let dns_address = dns_says["dns"].as_str().unwrap();
    let files = ["--root-out", root.to_str().unwrap(), "--api-ca-out", api_ca.to_str().unwrap()];
    let (ca, ca_says) = started(&[&["ca", "--dns", dns_address], &free[..], &files[..]].concat()).await;
    for file in [&root, &api_ca] {
        assert!(std::fs::read_to_string(file).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    }
    for says in [&dns_says, &ca_says] {
        let management = says["management"].as_str().unwrap().parse().unwrap();
        let (status, _) = crate::web::json(http::Method::GET, management, "/healthz", &Value::Null).await;
        assert_eq!(status, 200);
    }
    for mut child in [dns, ca] {
        drop(child.stdin.take());
        let status = timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn a_dropped_ca_serves_nobody_not_even_on_open_connections() {
    let stage = crate::stage::Stage::start(|_| {}).await;
    let management = stage.ca.addresses.management;
    let mut stream = TcpStream::connect(management).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: ca\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    drop(stage);
    let mut rest = vec![];
    timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.expect("left open").ok();
    assert!(TcpStream::connect(management).await.is_err(), "still listening");
}

#[tokio::test]
async fn wrong_arguments_are_named() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let free = portico_ports::reserve().to_string();
    let cases: [(&[&str], &str); 7] = [
        (&["ca"], "--dns"),
        (&["ca", "--dns", &free, "--listen", "0.0.0.0:14000"], "loopback"),
        (&["ca", "--dns", &free, "--listen", &taken], "--listen"),
        (&["ca", "--dns", &free, "--validity", "3w"], "--validity"),
        (&["ca", "--dns", &free, "--limit", "orders=1/1s"], "new-orders"),
        (
            &[
                "ca",
                "--dns",
                &free,
                "--listen",
                "127.0.0.1:0",
                "--management",
                "127.0.0.1:0",
                "--limit-scale",
                "0",
            ],
            "--limit-scale",
        ),
        (&["dns", "--default-a", "::1"], "--default-a"),
    ];
    for (arguments, named) in cases {
        let output = Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(named), "{arguments:?}: {text}");
    }
    drop(held);
}
