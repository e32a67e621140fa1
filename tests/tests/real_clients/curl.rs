//! curl and openssl as visitors.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::command::{self, Said};
use crate::edge::{Edge, HOST, Identity, identity};
use crate::origin::{self, Origin, STYLE_BYTES};

fn is_missing() -> bool {
    !command::is_there("curl", "curl")
}

async fn start(of_route: &str, more: &str) -> (Edge, Origin) {
    start_in(identity(), of_route, more).await
}

/// `more` stands before the routes.
async fn start_in((folder, identity): (TempDir, Identity), of_route: &str, more: &str) -> (Edge, Origin) {
    let origin = origin::start().await;
    let routes =
        format!("{more}[[route]]\nhost = \"{HOST}\"\nproxy = \"http://{}\"\n{of_route}", origin.address);
    let edge = Edge::start("auto", folder, identity, &routes, &[origin.address.port()]).await;
    (edge, origin)
}

impl Edge {
    /// The answer's head and body, as curl prints them.
    async fn curl(&self, path: &str, args: &[&str]) -> Said {
        self.curl_at(self.https, path, args).await
    }

    /// On another listener.
    async fn curl_at(&self, address: SocketAddr, path: &str, args: &[&str]) -> Said {
        let (to, ca) = (format!("{HOST}:443:{address}"), self.identity.ca.to_str().unwrap());
        let url = format!("https://{HOST}{path}");
        let own = ["--silent", "--show-error", "--include", "--max-time", "60"];
        let where_to = ["--connect-to", to.as_str(), "--cacert", ca];
        command::run("curl", &[&own[..], &where_to, args, &[url.as_str()]].concat()).await
    }
}

/// Status, fields in lower case, body. Interim answers are left out.
#[track_caller]
fn parse(said: &Said) -> (u16, String, Vec<u8>) {
    assert!(said.is_good(), "{said:?}");
    let mut rest = said.bytes();
    loop {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        rest = &rest[end + 4..];
        if status >= 200 {
            return (status, head, rest.to_vec());
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_conditions_are_answered_from_the_cache() {
    if is_missing() {
        return;
    }
    let (edge, origin) = start("cache = {}\n", "").await;
    let whole = b"kept by the edge";
    for version in VERSIONS {
        let curl = async |args: &[&str]| parse(&edge.curl("/kept.txt", &[&[version], args].concat()).await);
        let (status, head, body) = curl(&[]).await;
        assert_eq!((status, &body[..]), (200, &whole[..]));
        let tag = field(&head, "etag").expect("a tag").to_owned();
        let (status, head, body) = curl(&["--range", "0-3"]).await;
        assert_eq!((status, &body[..]), (206, &whole[..4]), "{head}");
        assert_eq!(field(&head, "content-range"), Some("bytes 0-3/16"));
        assert_eq!(field(&head, "content-length"), Some("4"));
        let (status, _, body) = curl(&["--range", "-4"]).await;
        assert_eq!((status, &body[..]), (206, &whole[12..]));
        let (status, _, body) = curl(&["--range", "8-"]).await;
        assert_eq!((status, &body[..]), (206, &whole[8..]));
        let (status, head, _) = curl(&["--range", "16-20"]).await;
        assert_eq!((status, field(&head, "content-range")), (416, Some("bytes */16")));
        // What curl saves between two runs, as a user would.
        let file = edge.folder.path().join(format!("tag{version}"));
        let file = file.to_str().unwrap();
        let (status, ..) = curl(&["--etag-save", file]).await;
        assert_eq!((status, fs::read_to_string(file).unwrap().trim()), (200, tag.as_str()));
        let (status, head, body) = curl(&["--etag-compare", file]).await;
        assert_eq!((status, field(&head, "etag"), body.len()), (304, Some(tag.as_str()), 0));
        let (status, ..) = curl(&["--header", "If-None-Match: \"another\""]).await;
        assert_eq!(status, 200);
        let (status, head, body) = curl(&["--head"]).await;
        assert_eq!((status, field(&head, "content-length"), body.len()), (200, Some("16"), 0));
    }
    assert_eq!(origin.seen("/kept.txt"), 1, "all but the first are from the cache");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_reads_every_coding_that_it_asks_for() {
    if is_missing() {
        return;
    }
    let (edge, _origin) = start("compression = {}\n", "").await;
    let version = command::run("curl", &["--version"]).await.text();
    let features =
        version.lines().find_map(|line| line.strip_prefix("Features:")).expect("a line of features");
    let has = |feature: &str| features.split_whitespace().any(|one| one.eq_ignore_ascii_case(feature));
    for version in VERSIONS {
        let plain = parse(&edge.curl("/style.css", &[version]).await);
        assert_eq!((plain.0, plain.2.len(), field(&plain.1, "content-encoding")), (200, STYLE_BYTES, None));
        let (status, head, body) = parse(&edge.curl("/style.css", &[version, "--compressed"]).await);
        assert!(field(&head, "content-encoding").is_some(), "{head}");
        assert!(status == 200 && body == plain.2, "{head}");
        for (coding, feature) in [("gzip", "libz"), ("br", "brotli"), ("zstd", "zstd")] {
            if !has(feature) {
                portico_skipping::skipped(&format!(
                    "curl --compressed with {coding}: this curl has no {feature}"
                ));
                continue;
            }
            let accepts = format!("Accept-Encoding: {coding}");
            let args = [version, "--compressed", "--header", &accepts];
            let (status, head, body) = parse(&edge.curl("/style.css", &args).await);
            assert_eq!((status, field(&head, "content-encoding")), (200, Some(coding)));
            assert!(body == plain.2, "{coding}: {} bytes", body.len());
            let sent = parse(&edge.curl("/style.css", &[version, "--header", &accepts]).await).2;
            assert!(sent.len() < STYLE_BYTES / 10, "{coding}: {} bytes on the wire", sent.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_behind_a_balancer_takes_curls_proxy_header_and_nothing_else() {
    if is_missing() {
        return;
    }
    let address = portico_ports::reserve();
    let listener = format!(
        "[[listen]]\naddress = \"{address}\"\nkind = \"https\"\npublic_https_port = 443\n\
         proxy_protocol = [\"127.0.0.0/8\"]\n"
    );
    let (edge, _origin) = start("", &listener).await;
    for version in VERSIONS {
        let through = [version, "--haproxy-protocol"];
        let (status, _, body) = parse(&edge.curl_at(address, "/part/1.js", &through).await);
        assert_eq!(status, 200);
        assert!(body.starts_with(b"window.scripts"));
        assert!(!edge.curl_at(address, "/part/1.js", &[version]).await.is_good(), "without a header");
    }
    assert_eq!(edge.metric("portico_edge_proxy_headers_total{result=\"read\"}").await, 2.0);
    assert_eq!(edge.metric("portico_edge_proxy_headers_total{result=\"malformed\"}").await, 2.0);
    // And a header where none belongs is no ClientHello.
    assert!(!edge.curl("/part/1.js", &["--haproxy-protocol"]).await.is_good());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_said_before_it_is_sent() {
    if is_missing() {
        return;
    }
    const MOST: usize = 2_000_000;
    let limits = format!("[standalone]\nlimits = {{ request_body_bytes = {MOST} }}\n");
    let (edge, origin) = start("", &limits).await;
    let file = edge.folder.path().join("body");
    let data = format!("@{}", file.display());
    for version in VERSIONS {
        // Curl asks before it sends so much (Expect), and has its answer.
        fs::write(&file, vec![b'x'; MOST]).unwrap();
        let said = edge.curl("/echo", &[version, "--data-binary", &data, "--verbose"]).await;
        let (status, _, body) = parse(&said);
        assert_eq!((status, body.len()), (200, MOST));
        if version == "--http1.1" {
            assert!(said.complaints().contains("> Expect: 100-continue"), "{}", said.complaints());
            assert!(said.complaints().contains("< HTTP/1.1 100 Continue"), "{}", said.complaints());
        }
        fs::write(&file, vec![b'x'; MOST + 1]).unwrap();
        let args = [version, "--data-binary", &data, "--write-out", "\nsent %{size_upload}"];
        let said = edge.curl("/too-large", &args).await;
        assert_eq!(parse(&said).0, 413);
        if version == "--http1.1" {
            assert!(said.text().ends_with("\nsent 0"), "{}", said.text());
        }
        let field = format!("X-Large: {}", "x".repeat(40_000));
        let said = edge.curl("/too-large", &[version, "--header", &field]).await;
        assert_eq!(parse(&said).0, 431, "{version}");
    }
    assert_eq!(origin.seen("/too-large"), 0);
    let (status, head, _) =
        parse(&edge.curl("/echo", &["--http1.1", "--data", "x", "--header", "Expect: a miracle"]).await);
    assert_eq!(status, 417, "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_too_often_is_told_when_to_come_again() {
    if is_missing() {
        return;
    }
    let (edge, _origin) = start("", "[standalone]\nlimits = { requests_per_second = 5 }\n").await;
    for version in VERSIONS {
        // All over one connection.
        let args = [version, "--write-out", "\ncode %{http_code}\n"];
        let text = edge.curl("/part/[1-60].js", &args).await.text();
        let codes: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("code ")).collect();
        let count = |code: &str| codes.iter().filter(|one| **one == code).count();
        assert_eq!((codes.len(), count("200") + count("429")), (60, 60), "{codes:?}");
        assert!(count("429") > 0, "{codes:?}");
        let refused = text.to_ascii_lowercase().matches("\nretry-after: ").count();
        assert_eq!(refused, count("429"), "{text}");
    }
    assert!(edge.metric("portico_edge_limited_total{reason=\"tenant_requests\"}").await >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_has_the_fields_of_get_and_no_body() {
    if is_missing() {
        return;
    }
    let (edge, _origin) = start("", "").await;
    for version in VERSIONS {
        let (status, head, body) = parse(&edge.curl("/large?bytes=5000", &[version, "--head"]).await);
        assert_eq!((status, field(&head, "content-length"), body.len()), (200, Some("5000"), 0));
        let (status, _, body) = parse(&edge.curl("/large?bytes=5000", &[version]).await);
        assert_eq!((status, body.len()), (200, 5000));
        let (status, _, body) = parse(&edge.curl("/nowhere", &[version, "--head"]).await);
        assert_eq!((status, body.len()), (404, 0));
    }
}

/// openssl s_client says which kind of key has signed.
async fn signed_by(edge: &Edge, args: &[&str]) -> String {
    let (address, ca) = (edge.https.to_string(), edge.identity.ca.display().to_string());
    let own = ["s_client", "-connect", &address, "-servername", HOST, "-CAfile", &ca];
    let said = command::run("openssl", &[&own[..], args].concat()).await;
    let text = String::from_utf8_lossy(said.bytes()).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("Peer signature type: "));
    line.unwrap_or_else(|| panic!("{args:?}: {:?}: {text}{}", said.code(), said.complaints())).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_is_shown_the_certificate_that_it_can_verify() {
    if is_missing() || !command::is_there("openssl", "openssl") {
        return;
    }
    let (folder, identity) = identity();
    // Beside the ECDSA pair that is there.
    let (key, certificate) =
        (folder.path().join("certificates/rsa.key"), folder.path().join("certificates/rsa.pem"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "7", "-subj", "/CN=rsa"]);
    command.args(["-addext", &format!("subjectAltName=DNS:{HOST}"), "-keyout"]).arg(&key).arg("-out");
    assert!(command.arg(&certificate).output().unwrap().status.success());
    let (edge, _origin) = start_in((folder, identity), "", "").await;
    let both = "RSA-PSS+SHA256:ECDSA+SHA256:RSA+SHA256";
    for (args, wanted) in [
        (["-tls1_3", "-sigalgs", both], "ECDSA"),
        (["-tls1_3", "-sigalgs", "ECDSA+SHA256"], "ECDSA"),
        (["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], "RSA-PSS"),
        (["-tls1_2", "-sigalgs", both], "ECDSA"),
        (["-tls1_2", "-sigalgs", "RSA-PSS+SHA256"], "RSA-PSS"),
        (["-tls1_2", "-sigalgs", "RSA+SHA256"], "RSA"),
        (["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "RSA-PSS"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], "ECDSA"),
    ] {
        assert_eq!(signed_by(&edge, &args).await, wanted, "{args:?}");
    }
    // And curl, which verifies it.
    let rsa = certificate.to_str().unwrap();
    for (ciphers, ca) in [
        ("ECDHE-RSA-AES128-GCM-SHA256", rsa),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", edge.identity.ca.to_str().unwrap()),
    ] {
        let args = ["--tls-max", "1.2", "--ciphers", ciphers, "--cacert", ca];
        assert_eq!(parse(&edge.curl("/part/1.js", &args).await).0, 200, "{ciphers}");
    }
}
