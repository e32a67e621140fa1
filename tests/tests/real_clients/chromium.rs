//! A browser: headless Chromium, with HTTP/3 forced, and finding it by itself.
//!
//! The page does what pages do and reports to its origin what it found (`page.html`).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use portico_tests::{Running, wait_until};
use serde_json::{Value, json};

use crate::edge::{Edge, HOST, identity};
use crate::origin::{self, Origin, PARTS, STYLE_BYTES};

const PROGRAM: &str = "/usr/bin/chromium";

struct Site {
    edge: Edge,
    origin: Origin,
}

async fn site() -> Option<Site> {
    if !Path::new(PROGRAM).exists() {
        portico_skipping::skipped(&format!("{PROGRAM} is not installed (apt-get install chromium)"));
        return None;
    }
    let origin = origin::start().await;
    let (folder, identity) = identity();
    let to_origin = format!("proxy = \"http://{}\"", origin.address);
    let routes = format!(
        "[[route]]\nhost = \"{HOST}\"\npath = \"/still\"\nstatic_body = \"still\"\n\
         [[route]]\nhost = \"{HOST}\"\npath = \"/kept.txt\"\n{to_origin}\ncache = {{}}\n\
         [[route]]\nhost = \"{HOST}\"\n{to_origin}\ncompression = {{}}\n"
    );
    let edge = Edge::start("auto", folder, identity, &routes, &[origin.address.port()]).await;
    Some(Site { edge, origin })
}

/// A browser with a new profile, which knows one address and trusts our key.
fn browser(edge: &Edge, profile: &Path, forced: &str, page: &str) -> Running {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &edge.identity.spki);
    let trusted = base64::engine::general_purpose::STANDARD.encode(digest);
    let mut command = Command::new(PROGRAM);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg("--no-default-browser-check")
        .arg(format!("--user-data-dir={}", profile.join("profile").display()))
        .arg(format!("--host-resolver-rules=MAP {HOST} {}, MAP * ~NOTFOUND", edge.https.ip()))
        .arg(format!("--ignore-certificate-errors-spki-list={trusted}"))
        .arg(format!("--origin-to-force-quic-on={forced}"))
        .arg(format!("https://{HOST}:{}{page}", edge.https.port()))
        .env("HOME", profile);
    Running::start("chromium", profile, &mut command)
}

/// What a page finds, whatever it came by.
async fn report(site: &mut Site, forced: &str, page: &str) -> Value {
    let profile = tempfile::tempdir().unwrap();
    let mut browser = browser(&site.edge, profile.path(), forced, page);
    let body = tokio::time::timeout(Duration::from_secs(60), site.origin.reports.recv()).await;
    browser.assert_alive();
    let Ok(Some(body)) = body else { panic!("no report of the page:\n{}", browser.last_words()) };
    let report: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(report["error"], Value::Null, "{report}");
    assert_eq!((&report["scripts"], &report["images"]), (&json!(PARTS), &json!(PARTS)), "{report}");
    assert_eq!((&report["echoed"], &report["downloaded"]), (&json!(true), &json!(true)), "{report}");
    assert_eq!(report["coding"], "zstd", "{report}");
    let sizes: (usize, usize) = serde_json::from_value(report["style"].clone()).unwrap();
    assert!(sizes.0 < STYLE_BYTES / 20 && sizes.1 == STYLE_BYTES, "compressed for the browser: {sizes:?}");
    assert_eq!(report["webSocket"], json!(["one", "two", 4000, "enough"]), "{report}");
    assert_eq!(report["early"], json!([405, 405]), "{report}");
    let kept = "200 kept by the edge";
    assert_eq!(report["revalidated"], json!([kept, kept]), "{report}");
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_loads_a_page_over_http3() {
    let Some(mut site) = site().await else { return };
    let forced = format!("{HOST}:{}", site.edge.https.port());
    let report = report(&mut site, &forced, "/page").await;
    assert_eq!(report["page"], "h3");
    assert_eq!(report["parts"], json!(vec!["h3"; 2 * PARTS]));
    // The edge told the browser that what it has is still good; the origin was asked once.
    let statuses: Vec<_> = site.edge.log_of("/kept.txt").iter().map(|line| line["status"].clone()).collect();
    assert_eq!(statuses, [json!(200), json!(304)]);
    assert_eq!(site.origin.seen("/kept.txt"), 1);
    assert_eq!(site.edge.metric("portico_edge_panics_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_moves_from_http2_to_http3_by_itself() {
    let Some(mut site) = site().await else { return };
    // Chromium takes HTTP/3 with a private CA's certificate only from hosts that are forced somewhere: here, on another port.
    let report = report(&mut site, &format!("{HOST}:1"), "/page?until-http3").await;
    assert_eq!(report["page"], "h2");
    // RFC 8441: on the connection that the page came by, which nothing else does for WebSocket.
    let tunnel = wait_until("the tunnel's line in the log", Duration::from_secs(60), async || {
        site.edge.log_of("/ws").pop()
    })
    .await;
    assert_eq!((&tunnel["status"], &tunnel["protocol"]), (&json!(101), &json!("h2")), "{tunnel}");
    assert_eq!(report["seen"].as_array().and_then(|seen| seen.last()), Some(&json!("h3")), "{report}");
    assert_eq!(site.edge.metric("portico_edge_panics_total").await, 0.0);
}
