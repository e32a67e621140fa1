//! The whole edge in fleet mode: its binary, a control plane over real sockets, handshakes by real clients. The server
//! needs threads of its own: an edge that starts is waited for, and it joins before it listens.

#![expect(clippy::unwrap_used, reason = "a step of a test that fails is its failure")]

mod fleet;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fleet::process::EdgeProcess;
use fleet::server::{Conversation, TestCa, TestControl, within};
use fleet::{Shop, fixed, mint_valid};
use portico_api::distribution as wire;
use portico_cert_store::Generation;
use portico_edge::clock;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const FIRST: Generation = Generation { epoch: 1, sequence: 1 };

/// Runs a test on epoll, and on io_uring where this kernel has it.
async fn on_each_backend(test: impl AsyncFn(&str)) {
    test("epoll").await;
    match portico_edge::io::probe() {
        Ok(_) => test("uring").await,
        Err(refused) => portico_skipping::skipped(&format!("io_uring: {refused}")),
    }
}

fn shop(name: &str) -> Shop {
    let mut shop = Shop::new(name);
    let now = clock::unix_time().as_secs();
    shop.minted = mint_valid(shop.tenant, &[name], now - 3600, now + 86_400);
    shop
}

fn config(folder: &Path, control: &TestControl) -> PathBuf {
    let token = folder.join("token");
    std::fs::write(&token, control.state.ca.token()).unwrap();
    let file = folder.join("edge.toml");
    let text = format!(
        r#"
workers = 2
state = "{folder}/state"
metrics = "127.0.0.1:0"
access_log = "off"
drain_seconds = 5
[[listen]]
address = "127.0.0.1:0"
kind = "https"
http3 = true
[control]
address = "{address}"
join_token_file = "{token}"
"#,
        folder = folder.display(),
        address = control.address,
        token = token.display()
    );
    std::fs::write(&file, text).unwrap();
    file
}

async fn feed(conversation: &mut Conversation, shops: &[Shop]) {
    conversation.send_key().await;
    let resources: Vec<_> = shops.iter().flat_map(|shop| shop.resources(1)).collect();
    conversation.send_snapshot(FIRST, &resources).await;
    let ack = conversation.ack().await;
    assert_eq!((ack.generation, ack.nacks.len()), (Some(FIRST.into()), 0));
}

/// A GET over TLS 1.3 by a client that trusts this shop's certificate alone.
async fn get(edge: &EdgeProcess, shop: &Shop) -> std::io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shop.minted.leaf.clone().into()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    within(async {
        let stream = tokio::net::TcpStream::connect(edge.address).await?;
        let name = shop.name.clone().try_into().unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", shop.name);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    })
    .await
}

async fn assert_serves(edge: &EdgeProcess, shop: &Shop, body: &str) {
    let answer = get(edge, shop).await.unwrap_or_else(|error| panic!("{}: {error}", shop.name));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(body), "{}: {answer}", shop.name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_was_killed_serves_every_name_without_its_control_plane() {
    on_each_backend(async |backend| {
        let folder = tempfile::tempdir().unwrap();
        let mut control = TestControl::start(TestCa::new()).await;
        let file = config(folder.path(), &control);
        let edge = EdgeProcess::start(&file, backend);
        let shops: Vec<Shop> = (0..40).map(|index| shop(&format!("n{index}.shop.example"))).collect();
        let mut conversation = control.conversation().await;
        feed(&mut conversation, &shops).await;
        let second = Generation { epoch: 1, sequence: 2 };
        let change = shops[7].domain(2, |body| body.routes[0] = fixed("changed"));
        conversation.send_delta(FIRST, second, vec![change]).await;
        conversation.ack().await;
        let status = conversation.status().await;
        assert_eq!(status.io_backend, backend);
        assert!(status.listeners.contains(&edge.address.to_string()), "{:?}", status.listeners);
        assert_serves(&edge, &shops[7], "changed").await;
        edge.kill();
        drop(conversation);
        control.stop().await;

        let edge = EdgeProcess::start(&file, backend);
        for (index, shop) in shops.iter().enumerate() {
            assert_serves(&edge, shop, if index == 7 { "changed" } else { &shop.name }).await;
        }
        assert_eq!(edge.metric("portico_edge_panics_total").await, 0.0);
    })
    .await;
}

/// It cannot know what it is not told, so without a stream it is behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_is_behind_from_when_it_has_no_stream_until_it_has_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut control = TestControl::start(TestCa::new()).await;
    let edge = EdgeProcess::start(&config(folder.path(), &control), "epoll");
    let mut conversation = control.conversation().await;
    feed(&mut conversation, &[shop("www.shop.example")]).await;
    let lag = async |wanted: &str, is_it: fn(f64) -> bool| {
        let waits = async {
            while !is_it(edge.metric("portico_edge_sync_lag_seconds").await) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), waits).await.expect(wanted);
    };
    lag("it has all that there is", |lag| lag == 0.0).await;
    drop(conversation);
    control.stop().await;
    lag("it says for how long it has heard nothing", |lag| lag > 1.0).await;
}

/// Of the metrics port, or of the admin socket.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> (u16, String) {
    within(async {
        let request = format!("GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_of_a_fleet_answers_its_operator() {
    let folder = tempfile::tempdir().unwrap();
    let mut control = TestControl::start(TestCa::new()).await;
    let file = config(folder.path(), &control);
    let text = std::fs::read_to_string(&file).unwrap();
    let log = folder.path().join("access.log");
    let text = text.replace("\"off\"", &format!("{log:?}\naccess_log_format = \"vhost_combined\""));
    std::fs::write(&file, text).unwrap();
    let edge = EdgeProcess::start(&file, "epoll");
    let port = || tokio::net::TcpStream::connect(edge.metrics);
    let socket = || tokio::net::UnixStream::connect(folder.path().join("state/admin.sock"));
    assert_eq!(ask(port().await.unwrap(), "/healthz").await.0, 200);
    // First it waits for its worker.
    let waits = async {
        loop {
            let (status, said) = ask(port().await.unwrap(), "/readyz").await;
            assert_eq!(status, 503, "{said}");
            if said.contains("no generation") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waits).await.expect("it says what it waits for");
    let mut conversation = control.conversation().await;
    let shops = [shop("www.shop.example")];
    feed(&mut conversation, &shops).await;
    assert_eq!(edge.metric("portico_edge_apply_seconds_count").await, 1.0);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(ask(port().await.unwrap(), path).await.0, 200, "{path}");
        assert_eq!(ask(socket().await.unwrap(), path).await.0, 200, "{path}");
    }
    let (_, generation) = ask(socket().await.unwrap(), "/debug/generation").await;
    let generation: serde_json::Value = serde_json::from_str(&generation).unwrap();
    assert_eq!((&generation["epoch"], &generation["sequence"]), (&1.into(), &1.into()), "{generation}");
    let (_, shown) = ask(socket().await.unwrap(), "/debug/certs?sni=www.shop.example").await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let (status, said) = ask(socket().await.unwrap(), "/debug/usage").await;
    assert!(status == 409 && said.contains("portico usage"), "{said}");
    assert_eq!(shown["tenant"], shops[0].tenant.to_string().as_str(), "{shown}");
    assert_serves(&edge, &shops[0], "www.shop.example").await;
    // The log's settings are the edge's own in a fleet as well.
    let line = within(async {
        loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.ends_with('\n') {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(line.starts_with(&format!("www.shop.example:{} 127.0.0.1 - - [", edge.address.port())), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspension_holds_when_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut control = TestControl::start(TestCa::new()).await;
    let edge = EdgeProcess::start(&config(folder.path(), &control), "epoll");
    let mut conversation = control.conversation().await;
    let shops = [shop("www.shop.example"), shop("other.example")];
    feed(&mut conversation, &shops).await;
    let suspend = wire::Suspend {
        tenant_id: shops[0].tenant.to_string(),
        suspension: Some(wire::Suspension {
            mode: wire::suspension::Mode::Legal as i32,
            ..Default::default()
        }),
        version: 2,
        ..Default::default()
    };
    conversation.send_urgent(1, wire::urgent::Action::Suspend(suspend)).await;
    assert!(get(&edge, &shops[0]).await.unwrap().starts_with("HTTP/1.1 451"));
    assert_serves(&edge, &shops[1], "other.example").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_without_http3_is_refused_over_quic_and_not_advertised() {
    let folder = tempfile::tempdir().unwrap();
    let mut control = TestControl::start(TestCa::new()).await;
    let edge = EdgeProcess::start(&config(folder.path(), &control), "epoll");
    let mut conversation = control.conversation().await;
    let shops = [shop("with.example"), shop("without.example")];
    feed(&mut conversation, &shops).await;
    let off = wire::TlsPolicy { http3_off: true, ..Default::default() };
    let second = Generation { epoch: 1, sequence: 2 };
    conversation.send_delta(FIRST, second, vec![shops[1].domain(2, |body| body.tls = Some(off))]).await;
    conversation.ack().await;
    for (shop, on) in [(&shops[0], true), (&shops[1], false)] {
        let answer = get(&edge, shop).await.unwrap().to_ascii_lowercase();
        assert_eq!(answer.contains("alt-svc: h3="), on, "{answer}");
        assert_eq!(answer.contains("alt-svc: clear\r\n"), !on, "{answer}");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(shop.minted.leaf.clone().into()).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(quic_config(roots), edge.address, &shop.name).unwrap();
        match within(connecting).await {
            Ok(_) => assert!(on, "{} was served", shop.name),
            Err(quinn::ConnectionError::ConnectionClosed(close)) => {
                assert!(!on, "{}: {close}", shop.name);
                // no_application_protocol: the name is ours, this protocol is not for it.
                assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(120));
            }
            Err(error) => panic!("{}: {error}", shop.name),
        }
    }
}

fn quic_config(roots: rustls::RootCertStore) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap()))
}

/// Two processes with one identity: the fleet sees one stream, which moves, and the state folder one writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_the_stream_and_what_the_disk_did_not_have_yet() {
    let folder = tempfile::tempdir().unwrap();
    let mut control = TestControl::start(TestCa::new()).await;
    let edge = EdgeProcess::start(&config(folder.path(), &control), "epoll");
    let shops = [shop("one.shop.example"), shop("two.shop.example")];
    let mut first = control.conversation().await;
    feed(&mut first, &shops).await;
    edge.signal(rustix::process::Signal::USR2);
    let mut second = control.conversation().await;
    assert_eq!(second.hello.edge_id, first.hello.edge_id);
    assert_eq!(second.hello.applied, Some(FIRST.into()), "the successor began from the disk");
    // The predecessor's stream has ended before, and it opens no other.
    while within(first.from_edge.recv()).await.is_some() {}
    let next = Generation { epoch: 1, sequence: 2 };
    let change = shops[0].domain(2, |body| body.routes[0] = fixed("by the successor"));
    second.send_delta(FIRST, next, vec![change]).await;
    assert_eq!(second.ack().await.generation, Some(next.into()));
    within(async { while !get(&edge, &shops[0]).await.unwrap().ends_with("by the successor") {} }).await;
    assert_serves(&edge, &shops[1], "two.shop.example").await;

    // Another one boots from what the first successor has written.
    edge.signal_holder(folder.path(), rustix::process::Signal::USR2);
    let third = control.conversation().await;
    assert_eq!(third.hello.applied, Some(next.into()));
    while within(second.from_edge.recv()).await.is_some() {}
    assert_serves(&edge, &shops[0], "by the successor").await;
    edge.signal_holder(folder.path(), rustix::process::Signal::KILL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_serves_although_the_control_plane_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut control = TestControl::start(TestCa::new()).await;
    let edge = EdgeProcess::start(&config(folder.path(), &control), "epoll");
    let shops = [shop("one.shop.example")];
    let mut conversation = control.conversation().await;
    feed(&mut conversation, &shops).await;
    drop(conversation);
    control.stop().await;
    let before = edge.holder(folder.path());
    edge.signal(rustix::process::Signal::USR2);
    within(async {
        while edge.holder(folder.path()) == before {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_serves(&edge, &shops[0], "one.shop.example").await;
    edge.signal_holder(folder.path(), rustix::process::Signal::KILL);
}
