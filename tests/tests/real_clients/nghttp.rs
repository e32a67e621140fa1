//! nghttp2's own clients: h2load with many streams, and nghttp, which prints every frame.

use std::fs;

use crate::command::{self, Said};
use crate::edge::{Edge, HOST, identity};
use crate::origin::{self, Origin};

const PACKAGE: &str = "nghttp2-client";

async fn start() -> (Edge, Origin) {
    let origin = origin::start().await;
    let (folder, identity) = identity();
    let routes = format!("[[route]]\nhost = \"{HOST}\"\nproxy = \"http://{}\"\n", origin.address);
    let edge = Edge::start("auto", folder, identity, &routes, &[origin.address.port()]).await;
    (edge, origin)
}

/// The line of h2load that sums its requests up, and that of their statuses.
fn sums(said: &Said) -> (String, String) {
    let text = said.text();
    let line = |start: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("no {start:?} in {text}")).trim().to_owned()
    };
    (line("requests:"), line("status codes:"))
}

fn all_good(count: usize) -> (String, String) {
    (
        format!(
            "{count} total, {count} started, {count} done, {count} succeeded, 0 failed, 0 errored, 0 timeout"
        ),
        format!("{count} 2xx, 0 3xx, 0 4xx, 0 5xx"),
    )
}

impl Edge {
    async fn h2load(&self, path: &str, args: &[&str]) -> Said {
        let (to, url) = (format!("--connect-to={}", self.https), format!("https://{HOST}{path}"));
        command::run("h2load", &[args, &[to.as_str(), url.as_str()]].concat()).await
    }

    async fn nghttp(&self, path: &str, args: &[&str]) -> String {
        let url = format!("https://{}{path}", self.https);
        let authority = format!(":authority: {HOST}");
        let all =
            [&["--verbose", "--no-verify-peer", "-H", authority.as_str()], args, &[url.as_str()]].concat();
        command::run("nghttp", &all).await.text()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_has_an_answer_to_each_request_of_many_streams() {
    if !command::is_there("h2load", PACKAGE) {
        return;
    }
    let (edge, origin) = start().await;
    let said = edge.h2load("/part/1.js", &["-n", "4000", "-c", "8", "-m", "100"]).await;
    assert_eq!(sums(&said), all_good(4000), "{}", said.text());
    assert_eq!(origin.seen("/part/1.js"), 4000);
    assert_eq!(edge.metric("portico_edge_handshakes_total{result=\"full\"}").await, 8.0);
    // Windows of one packet's size, which have to be opened again and again.
    let said =
        edge.h2load("/large?bytes=300000", &["-n", "200", "-c", "4", "-m", "20", "-w", "14", "-W", "14"]);
    assert_eq!(sums(&said.await), all_good(200));
    assert_eq!(edge.metric("portico_edge_panics_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_brings_bodies_of_every_stream_to_the_origin() {
    if !command::is_there("h2load", PACKAGE) {
        return;
    }
    let (edge, mut origin) = start().await;
    let body: Vec<u8> = (0..=250).cycle().take(150_000).collect();
    let file = edge.folder.path().join("body");
    fs::write(&file, &body).unwrap();
    let args = ["-n", "300", "-c", "4", "-m", "25", "-d", file.to_str().unwrap()];
    let said = edge.h2load("/report", &args).await;
    assert_eq!(sums(&said), all_good(300));
    for number in 0..300 {
        let came = origin.reports.try_recv().expect("as many bodies as requests");
        assert!(came == body, "body {number} has {} bytes", came.len());
    }
    assert_eq!(edge.metric("portico_edge_panics_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_over_http1_has_an_answer_to_each_request_too() {
    if !command::is_there("h2load", PACKAGE) {
        return;
    }
    let (edge, origin) = start().await;
    let said = edge.h2load("/part/1.js", &["--h1", "-n", "1000", "-c", "8"]).await;
    assert_eq!(sums(&said), all_good(1000));
    assert_eq!(origin.seen("/part/1.js"), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttp_is_told_the_settings_and_gets_trailers() {
    if !command::is_there("nghttp", PACKAGE) {
        return;
    }
    let (edge, _origin) = start().await;
    let said = edge.nghttp("/part/1.js", &[]).await;
    for wanted in [
        "The negotiated protocol: h2",
        "recv SETTINGS frame",
        "[SETTINGS_MAX_CONCURRENT_STREAMS(0x03):100]",
        "[SETTINGS_INITIAL_WINDOW_SIZE(0x04):131072]",
        "[SETTINGS_MAX_HEADER_LIST_SIZE(0x06):32768]",
        // RFC 8441: WebSocket is spoken.
        "(0x08):1]",
        "; ACK",
        ":status: 200",
        "window.scripts",
    ] {
        assert!(said.contains(wanted), "no {wanted:?} in {said}");
    }
    let file = edge.folder.path().join("body");
    fs::write(&file, "counted").unwrap();
    let args =
        ["-d", file.to_str().unwrap(), "--trailer", "x-sum: 7", "-H", "te: trailers", "--no-content-length"];
    let said = edge.nghttp("/echo", &args).await;
    let (_, after_data) = said.rsplit_once("recv DATA frame").expect("a body");
    assert!(said.contains("counted") && said.contains("recv (stream_id="), "{said}");
    assert!(said.contains(") x-sum: 7"), "{said}");
    assert!(after_data.contains("END_STREAM"), "{said}");
}
