//! The binary as an operator meets it: its file, its admin socket, its signals, and a kernel without io_uring.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use portico_cert_store::{KeyType, PrivateKey};
use serde_json::{Value, json};

use portico_edge::limits::ADMIN_USAGE_ROWS_MAX;

use crate::client::{https, plain};
use crate::harness::wait_until;
use crate::origin::{Origin, Reply};

pub const EDGE: &str = env!("CARGO_BIN_EXE_portico-edge");

/// A certificate with its key as one PEM text.
pub fn pem(names: &[&str]) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    format!("{}{}", certificate.pem(), key.serialize_pem())
}

pub struct Running {
    pub child: Child,
    pub addresses: Vec<SocketAddr>,
    pub log: Vec<String>,
    /// What was logged afterwards, by successors too.
    pub later: mpsc::Receiver<String>,
    pub folder: tempfile::TempDir,
}

pub const FILE: &str = "workers = 2\nmetrics = \"127.0.0.1:0\"\nadmin_socket = \"admin.sock\"\nstate = \"state\"\n\
    access_log = \"access.log\"\ndrain_seconds = 5\n\
    [[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"http\"\n\
    [certificates]\nfolder = \"certificates\"\n[[route]]\nhost = \"*\"\nstatic_file = \"body.txt\"\ncontent_type = \"text/plain\"\n";

pub fn prepare() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("certificates")).unwrap();
    std::fs::write(folder.path().join("certificates/shop.pem"), pem(&["shop.example"])).unwrap();
    std::fs::write(folder.path().join("body.txt"), "a body from a file").unwrap();
    std::fs::write(folder.path().join("edge.toml"), FILE).unwrap();
    folder
}

pub fn command(folder: &Path, io: &str) -> Command {
    let mut command = Command::new(EDGE);
    command.arg("--config").arg(folder.join("edge.toml")).args(["--io", io]).stderr(Stdio::piped());
    command
}

impl Running {
    pub fn start(folder: tempfile::TempDir, io: &str) -> Self {
        let child = command(folder.path(), io).spawn().unwrap();
        Self::watch(child, folder)
    }

    /// Reads the log until the edge says that all its sockets are bound.
    pub fn watch(mut child: Child, folder: tempfile::TempDir) -> Self {
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut addresses, mut log) = (Vec::new(), Vec::new());
        while addresses.len() < 3 {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {log:?}")).unwrap();
            if line.contains("listening") || line.contains(": metrics") {
                let text = line.rsplit("address=").next().unwrap();
                addresses.push(text.trim().parse().unwrap_or_else(|_| panic!("{line:?}")));
            }
            log.push(line);
        }
        // Keep the pipe empty, or the edge would wait for us.
        let (sender, later) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Self { child, addresses, log, later, folder }
    }

    pub fn https(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn metrics(&self, path: &str) -> (u16, String) {
        let answer = plain(self.addresses[2]).get("localhost", path);
        (answer.status, answer.text())
    }

    pub fn metric(&self, series: &str) -> f64 {
        let text = self.metrics("/metrics").1;
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    pub fn admin(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        admin(&self.folder.path().join("admin.sock"), method, path, body)
    }

    pub fn terminate(&self) {
        let status = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn admin(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, body) = admin_text(socket, method, path, body);
    (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body:?}")))
}

pub fn admin_text(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

pub fn uring_works() -> bool {
    portico_edge::io::probe().is_ok()
}

#[test]
fn a_standalone_file_is_served_and_measured_on_both_backends() {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let edge = Running::start(prepare(), io);
        for _ in 0..20 {
            let answer = https(edge.https(), "shop.example").get("shop.example", "/");
            assert_eq!((answer.status, answer.text().as_str()), (200, "a body from a file"));
        }
        assert_eq!(edge.metrics("/healthz").0, 200);
        assert_eq!(edge.metrics("/readyz").0, 200);
        assert_eq!(edge.metrics("/nothing").0, 404);
        assert_eq!(edge.metric(&format!("portico_edge_io_backend{{backend=\"{io}\"}}")), 1.0);
        let path = if io == "uring" { "ring" } else { "epoll" };
        let series = format!("portico_edge_io_operations_total{{path=\"{path}\"}}");
        wait_until("waits go through the chosen backend", || edge.metric(&series) >= 20.0);
        let other = if io == "uring" { "epoll" } else { "ring" };
        assert_eq!(edge.metric(&format!("portico_edge_io_operations_total{{path=\"{other}\"}}")), 0.0);
        assert_eq!(edge.metric("portico_edge_handshakes_total{result=\"full\"}"), 20.0);
        assert_eq!(edge.metric("portico_edge_panics_total"), 0.0);
        let log = std::fs::read_to_string(edge.folder.path().join("access.log")).unwrap();
        assert!(log.lines().count() >= 19, "{log}");
    }
}

#[test]
fn no_page_of_an_edge_is_huge() {
    let edge = Running::start(prepare(), "auto");
    let process = edge.child.id();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    // Absent before Linux 5.0.
    let setting = status.lines().find_map(|line| line.strip_prefix("THP_enabled:"));
    assert!(setting.is_none_or(|setting| setting.trim() == "0"), "{setting:?}");
}

/// The same in both modes; the fleet's is in `control_process.rs`.
#[test]
fn what_the_metrics_port_answers_the_admin_socket_does_too() {
    let edge = Running::start(prepare(), "auto");
    let socket = edge.folder.path().join("admin.sock");
    // It listens before its first worker runs.
    wait_until("it is ready", || edge.metrics("/readyz").0 == 200);
    for (path, wanted) in
        [("/healthz", "ok\n"), ("/readyz", "ready\n"), ("/metrics", "portico_edge_build_info")]
    {
        assert!(edge.metrics(path).1.contains(wanted), "{path}");
        let (status, text) = admin_text(&socket, "GET", path, "");
        assert!(status == 200 && text.contains(wanted), "{path}: {text}");
    }
    let path = "/debug/certs?sni=shop.example";
    let (status, answer) = edge.admin("GET", path, "");
    assert_eq!(
        (status, &answer["found"], &answer["credentials"][0]["certificate"]["names"][0]),
        (200, &true.into(), &"shop.example".into())
    );
    // It names names, and nothing on the port does.
    assert_eq!(edge.metrics(path).0, 404);
    let (status, answer) = edge.admin("GET", "/debug/generation", "");
    assert_eq!((status, &answer["names"]), (200, &1.into()), "{answer}");
    assert!(answer["epoch"].is_u64() && answer["sequence"].is_u64(), "{answer}");
    assert!(edge.metrics("/debug/generation").1.contains("--unix-socket"));
}

#[test]
fn the_explanation_of_a_name_holds_each_certificate_that_some_client_gets() {
    let folder = prepare();
    let key = PrivateKey::generate(KeyType::Rsa2048).unwrap();
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &rustls::pki_types::PrivatePkcs8KeyDer::from(key.secret_der().to_vec()),
        &rcgen::PKCS_RSA_SHA256,
    )
    .unwrap();
    let rsa =
        rcgen::CertificateParams::new(vec!["shop.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let file = format!("{}{}", rsa.pem(), key.serialize_pem());
    std::fs::write(folder.path().join("certificates/shop-rsa.pem"), file).unwrap();
    std::fs::write(folder.path().join("certificates/other.pem"), pem(&["other.example"])).unwrap();
    let text = FILE.replace(
        "folder = \"certificates\"",
        "folder = \"certificates\"\ndefault = \"certificates/other.pem\"",
    );
    let text = format!(
        "{text}[standalone]\nunknown_sni = \"default\"\n[[tls]]\nhost = \"shop.example\"\nminimum_version = \"1.3\"\n"
    );
    std::fs::write(folder.path().join("edge.toml"), text).unwrap();
    let edge = Running::start(folder, "auto");
    let explained = |name: &str| edge.admin("GET", &format!("/debug/certs?sni={name}"), "").1;
    let shop = explained("shop.example");
    let of = |answer: &Value, index: usize| {
        let credential = &answer["credentials"][index];
        (credential["clients"].clone(), credential["certificate"]["key_type"].clone())
    };
    assert_eq!(of(&shop, 0), (json!(["all", "ecdsa_only"]), json!("ecdsa-p256")), "{shop}");
    assert_eq!(of(&shop, 1), (json!(["rsa_only"]), json!("rsa2048")), "{shop}");
    let shown = &shop["credentials"][0]["certificate"]["fingerprint_sha256"];
    let leaf = https(edge.https(), "shop.example").stream.conn.peer_certificates().unwrap()[0].to_vec();
    let seen = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf);
    let hex: String = seen.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(shown, &json!(hex), "{shop}");
    assert_eq!(
        (&shop["tls"]["minimum_version"], &shop["tls"]["http2"]),
        (&json!("1.3"), &json!(true)),
        "{shop}"
    );
    let stranger = explained("stranger.example");
    assert_eq!(
        (&stranger["found"], &stranger["default_certificate"]),
        (&json!(false), &json!(true)),
        "{stranger}"
    );
    assert_eq!(stranger["credentials"][0]["certificate"]["names"], json!(["other.example"]), "{stranger}");
    assert_eq!(stranger["tls"]["minimum_version"], "1.2", "{stranger}");
}

#[test]
fn kept_answers_are_purged_on_the_admin_socket_of_an_edge_that_stands_alone() {
    let count = AtomicU64::new(0);
    let origin = Origin::start(move |_| {
        let body = count.fetch_add(1, Ordering::SeqCst).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Reply::Keep(format!("{head}{body}").into_bytes())
    });
    let folder = prepare();
    let (cidr, port) = origin.grant();
    let route = format!(
        "[[route]]\nhost = \"*\"\nproxy = \"{}\"\ncache = {{}}\n[egress]\nallow = [{{ cidr = \"{cidr}\", ports = [{port}] }}]\n",
        origin.url()
    );
    let text = format!("{}{route}", FILE.split("[[route]]").next().unwrap());
    std::fs::write(folder.path().join("edge.toml"), text).unwrap();
    let edge = Running::start(folder, "auto");
    let port = edge.https().port();
    let get = |path: &str| {
        let host = format!("shop.example:{port}");
        https(edge.https(), "shop.example").get(&host, path).text()
    };
    let kept = |path: &str| {
        wait_until("it is kept", || get(path) == get(path));
        get(path)
    };
    let (first, other) = (kept("/a"), kept("/b"));
    let purge = |body: &str| edge.admin("POST", "/v1/purge", body);
    let (status, answer) = purge("{\"urls\": [\"https://shop.example/a\"]}");
    assert_eq!((status, &answer["answers"]), (200, &1.into()), "{answer}");
    assert_ne!(get("/a"), first);
    assert_eq!(get("/b"), other);
    let (status, answer) = purge("{\"everything\": true}");
    assert!(status == 200 && answer["answers"].as_u64() >= Some(1), "{answer}");
    assert_ne!(get("/b"), other);
    for wrong in [
        "",
        "{}",
        "{\"url\": \"https://shop.example/\"}",
        "{\"urls\": [\"/a\"]}",
        "[]",
        "[[\"https://shop.example/a\"]]",
        "{\"hosts\": [], \"hosts\": [\"shop.example\"]}",
    ] {
        let (status, answer) = purge(wrong);
        assert!(matches!(status, 400 | 422) && answer["detail"].is_string(), "{wrong}: {status} {answer}");
    }
}

/// What the start would stumble over.
#[test]
fn a_check_refuses_an_access_log_in_a_folder_that_is_not_there() {
    for (log, good) in [("nowhere/access.log", false), ("certificates", false), ("access.log", true)] {
        let folder = prepare();
        let text = FILE.replace("access_log = \"access.log\"", &format!("access_log = \"{log}\""));
        std::fs::write(folder.path().join("edge.toml"), text).unwrap();
        // The file's own name is enough for an operator who stands beside it.
        for file in [folder.path().join("edge.toml"), PathBuf::from("edge.toml")] {
            let mut command = Command::new(EDGE);
            let output = command.arg("--config").arg(file).arg("--check").current_dir(folder.path());
            let output = output.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.success(), good, "{log}: {said}");
            assert!(good || (said.contains("access_log") && said.contains(log)), "{said}");
        }
        assert!(!folder.path().join("access.log").exists(), "a check makes no file");
    }
}

/// A policy for a name that is misspelt holds nowhere, and the site that it was for is open.
#[test]
fn a_check_warns_of_a_policy_for_a_host_that_is_nobodys() {
    for (host, warned) in [
        ("ww.shop.example", true),
        ("shop.example", false),
        ("www.routed.example", false),
        ("*.routed.example", false),
        ("a.wild.example", false),
        ("*.b.wild.example", true),
    ] {
        let folder = prepare();
        std::fs::write(folder.path().join("certificates/wild.pem"), pem(&["*.wild.example"])).unwrap();
        let sections = "[[route]]\nhost = \"www.routed.example\"\nstatic_body = \"x\"\n";
        let text = format!("{FILE}{sections}[[tls]]\nhost = \"{host}\"\nminimum_version = \"1.3\"\n");
        std::fs::write(folder.path().join("edge.toml"), text).unwrap();
        let output = command(folder.path(), "auto").arg("--check").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let line = said.lines().find(|line| line.contains("neither certificate nor route"));
        assert_eq!(line.is_some(), warned, "{host}: {said}");
        assert!(line.is_none_or(|line| line.contains(host)), "{said}");
    }
}

#[test]
fn an_access_log_that_is_made_is_not_for_everybody() {
    let edge = Running::start(prepare(), "auto");
    let mode = std::fs::metadata(edge.folder.path().join("access.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o137, 0, "{mode:o}");
}

#[cfg(not(feature = "heap-profile"))]
#[test]
fn a_build_without_heap_profiles_says_how_to_have_one() {
    let edge = Running::start(prepare(), "auto");
    let (status, answer) = edge.admin("GET", "/debug/pprof/heap", "");
    assert_eq!((status, &answer["code"]), (501, &"HeapProfileNotBuilt".into()));
    let said = answer["detail"].as_str().unwrap();
    assert!(
        said.contains("--features heap-profile") && said.contains("_RJEM_MALLOC_CONF=prof:true"),
        "{said}"
    );
}

#[cfg(feature = "heap-profile")]
#[test]
fn a_heap_profile_is_taken_where_allocations_are_sampled() {
    let edge = Running::start(prepare(), "auto");
    let (status, answer) = edge.admin("GET", "/debug/pprof/heap", "");
    assert_eq!((status, &answer["code"]), (409, &"HeapProfileNotSampling".into()), "{answer}");
    let folder = prepare();
    let child =
        command(folder.path(), "auto").env("_RJEM_MALLOC_CONF", "prof:true,lg_prof_sample:12").spawn();
    let edge = Running::watch(child.unwrap(), folder);
    for _ in 0..2 {
        let (status, text) =
            admin_text(&edge.folder.path().join("admin.sock"), "GET", "/debug/pprof/heap", "");
        assert!(status == 200 && text.starts_with("heap_v2/4096\n"), "{status} {text:.200}");
        assert!(text.contains("MAPPED_LIBRARIES:") && text.contains("portico-edge"));
    }
}

#[test]
fn the_busiest_names_of_a_standalone_edge_are_told() {
    let folder = prepare();
    let names: Vec<String> = (0..=ADMIN_USAGE_ROWS_MAX).map(|number| format!("n{number}.example")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    std::fs::write(folder.path().join("certificates/names.pem"), pem(&names)).unwrap();
    let edge = Running::start(folder, "auto");
    let mut client = https(edge.https(), "n0.example");
    for name in names.iter().chain(["n7.example", "n7.example", "n3.example"].iter()) {
        assert_eq!(client.get(name, "/").status, 200, "{name}");
    }
    drop(client);
    let told = |order: &str| edge.admin("GET", &format!("/debug/usage{order}"), "").1["names"].clone();
    wait_until("all are counted", || told("")[1]["requests"] == 2 && told("")[0]["requests"] == 3);
    let busiest = told("?order=requests");
    assert_eq!((&busiest[0]["name"], &busiest[1]["name"]), (&"n7.example".into(), &"n3.example".into()));
    assert_eq!(busiest.as_array().unwrap().len(), ADMIN_USAGE_ROWS_MAX, "and no more");
    assert_eq!(told("?order=response_bytes")[0]["response_bytes"], 3 * "a body from a file".len());
    assert_eq!(edge.admin("GET", "/debug/usage?order=beauty", "").0, 400);
}

#[test]
fn how_long_things_take_is_measured_as_histograms() {
    let origin = Origin::echoing();
    let (address, port) = (origin.address, origin.address.port());
    let folder = prepare();
    let more = format!(
        "[[route]]\nhost = \"shop.example\"\npath = \"/api\"\nproxy = \"http://{address}\"\n\
         [egress]\nallow = [{{ cidr = \"127.0.0.1/32\", ports = [{port}] }}]\n"
    );
    std::fs::write(folder.path().join("edge.toml"), format!("{FILE}{more}")).unwrap();
    let edge = Running::start(folder, "auto");
    let mut client = https(edge.https(), "shop.example");
    for _ in 0..3 {
        assert_eq!(client.get("shop.example", "/api").text(), "/api");
    }
    assert_eq!(client.get("shop.example", "/").status, 200);
    drop(client);
    wait_until("all are counted", || edge.metric("portico_edge_exchange_seconds_count") == 4.0);
    for (name, count) in [
        ("handshake_seconds", 1.0),
        ("first_byte_seconds", 4.0),
        ("origin_connect_seconds", 1.0),
        ("origin_first_byte_seconds", 3.0),
    ] {
        assert_eq!(edge.metric(&format!("portico_edge_{name}_count")), count, "{name}");
        assert_eq!(edge.metric(&format!("portico_edge_{name}_bucket{{le=\"+Inf\"}}")), count, "{name}");
        assert!(edge.metric(&format!("portico_edge_{name}_sum")) > 0.0, "{name}");
    }
}

/// Starts the edge from a thread whose seccomp filter answers io_uring_setup with EPERM, as containers do.
fn without_io_uring(folder: &Path, io: &str) -> Child {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let (folder, io) = (folder.to_owned(), io.to_owned());
    let starting = std::thread::spawn(move || {
        const IO_URING_SETUP: i64 = 425; // the same number on every architecture
        let filter = SeccompFilter::new(
            [(IO_URING_SETUP, vec![])].into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(1),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap(); // this thread and its children only
        command(&folder, &io).spawn().unwrap()
    });
    starting.join().unwrap()
}

#[test]
fn a_kernel_that_refuses_io_uring_is_served_on_epoll_and_says_so_once() {
    let folder = prepare();
    let child = without_io_uring(folder.path(), "auto");
    let edge = Running::watch(child, folder);
    let said: Vec<_> = edge.log.iter().filter(|line| line.contains("refuses io_uring")).collect();
    assert_eq!(said.len(), 1, "{:?}", edge.log);
    assert!(said[0].contains("seccomp") && said[0].contains("WARN"), "{said:?}");
    let answer = https(edge.https(), "shop.example").get("shop.example", "/");
    assert_eq!((answer.status, answer.text().as_str()), (200, "a body from a file"));
    assert_eq!(edge.metric("portico_edge_io_backend{backend=\"epoll\"}"), 1.0);
    assert_eq!(edge.metric("portico_edge_io_backend{backend=\"uring\"}"), 0.0);
}

#[test]
fn insisting_on_io_uring_where_it_is_refused_is_an_error_with_its_cause() {
    let folder = prepare();
    let output = without_io_uring(folder.path(), "uring").wait_with_output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("refuses io_uring") && text.contains("seccomp") && text.contains("--io epoll"),
        "{text}"
    );
}

#[test]
fn a_wrong_file_ends_the_start_with_its_place() {
    let folder = prepare();
    std::fs::write(folder.path().join("edge.toml"), FILE.replace("workers = 2", "workers = 2\nwrokers = 3"))
        .unwrap();
    let output = command(folder.path(), "auto").output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("edge.toml:2:1: ") && text.contains("wrokers"), "{text}");
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = prepare();
    let file = FILE.replacen("127.0.0.1:0\"\nkind", &format!("127.0.0.1:{port}\"\nkind"), 1);
    std::fs::write(folder.path().join("edge.toml"), file).unwrap();
    let output = command(folder.path(), "epoll").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(text.contains(&format!("port {port} is taken")), "{text}");
}

#[test]
fn one_bad_certificate_file_is_left_out_and_the_others_serve() {
    let folder = prepare();
    let certificates = folder.path().join("certificates");
    std::fs::write(
        certificates.join("broken.pem"),
        "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let other_key = pem(&["x.example"]);
    let key = other_key.split_once("-----BEGIN PRIVATE KEY").unwrap().1;
    let swapped = format!(
        "{}-----BEGIN PRIVATE KEY{key}",
        pem(&["swapped.example"]).split_once("-----BEGIN PRIVATE KEY").unwrap().0
    );
    std::fs::write(certificates.join("swapped.pem"), swapped).unwrap();
    let edge = Running::start(folder, "epoll");
    for file in ["broken.pem", "swapped.pem"] {
        assert!(
            edge.log.iter().any(|line| line.contains(file) && line.contains("WARN")),
            "{file}: {:?}",
            edge.log
        );
    }
    assert_eq!(https(edge.https(), "shop.example").get("shop.example", "/").status, 200);
}

#[test]
fn certificates_change_on_the_admin_socket_without_a_reload() {
    let edge = Running::start(prepare(), "auto");
    let socket: PathBuf = edge.folder.path().join("admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let leaf = |name: &str| https(edge.https(), name).stream.conn.peer_certificates().unwrap()[0].to_vec();
    let listed = || edge.admin("GET", "/v1/certificates", "").1["certificates"].as_array().unwrap().len();
    assert_eq!(listed(), 1);

    let (status, added) = edge.admin("POST", "/v1/certificates", &pem(&["new.example"]));
    assert_eq!(status, 201, "{added}");
    assert_eq!(added["persists"], false, "and says so");
    let id = added["certificate"]["id"].as_str().unwrap().to_owned();
    let first = leaf("new.example");

    let path = format!("/v1/certificates/{id}");
    let (status, replaced) = edge.admin("PUT", &path, &pem(&["new.example", "newer.example"]));
    assert_eq!(status, 200, "{replaced}");
    assert_ne!(leaf("new.example"), first);
    leaf("newer.example");
    let explained = edge.admin("GET", "/debug/certs?sni=newer.example", "").1;
    let certificate = &explained["credentials"][0]["certificate"];
    assert_eq!((&explained["found"], &certificate["id"]), (&true.into(), &id.as_str().into()));
    assert!(
        edge.admin("GET", "/v1/names", "").1["names"].as_array().unwrap().contains(&"newer.example".into())
    );

    assert_eq!(edge.admin("DELETE", &path, "").0, 200);
    assert_eq!(edge.admin("GET", "/debug/certs?sni=newer.example", "").1["found"], false);
    assert_eq!(listed(), 1);
    for (method, path, body, status) in [
        ("DELETE", path.as_str(), "", 404),
        ("POST", "/v1/certificates", "not a pem", 400),
        ("PUT", "/v1/certificates/lin_nonsense", "", 400),
        ("GET", "/debug/certs?sni=10.0.0.1", "", 400),
        ("GET", "/nowhere", "", 404),
    ] {
        let (got, answer) = edge.admin(method, path, body);
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(answer["detail"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
    }
    let large = "x".repeat(portico_edge::limits::ADMIN_BODY_BYTES_MAX + 1);
    let mut stream = UnixStream::connect(&socket).unwrap();
    let _ = write!(
        stream,
        "POST /v1/certificates HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{large}",
        large.len()
    );
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[test]
fn sigterm_and_the_admin_call_drain_and_end_well() {
    for by_signal in [true, false] {
        let mut edge = Running::start(prepare(), "auto");
        let mut client = https(edge.https(), "shop.example");
        assert_eq!(client.get("shop.example", "/").status, 200);
        if by_signal {
            edge.terminate();
        } else {
            assert_eq!(edge.admin("POST", "/v1/drain", "").1["draining"], true);
        }
        assert!(client.closes(), "an idle connection is told to go");
        let child = std::cell::RefCell::new(&mut edge.child);
        wait_until("it has ended", || child.borrow_mut().try_wait().is_ok_and(|status| status.is_some()));
        assert!(edge.child.wait().unwrap().success());
        assert!(!edge.folder.path().join("admin.sock").exists(), "the socket is gone");
    }
}

#[test]
fn an_edge_that_withdraws_serves_new_connections_until_it_is_ordered_again() {
    let folder = prepare();
    std::fs::write(folder.path().join("edge.toml"), format!("withdraw_seconds = 600\n{FILE}")).unwrap();
    let mut edge = Running::start(folder, "auto");
    edge.terminate();
    wait_until("/readyz says so", || {
        let (status, text) = edge.metrics("/readyz");
        status == 503 && text.contains("draining")
    });
    let mut late = https(edge.https(), "shop.example");
    for _ in 0..2 {
        assert_eq!(late.get("shop.example", "/").status, 200);
    }
    edge.terminate();
    assert!(late.closes());
    let child = std::cell::RefCell::new(&mut edge.child);
    wait_until("it has ended", || child.borrow_mut().try_wait().is_ok_and(|status| status.is_some()));
    assert!(edge.child.wait().unwrap().success());
}

#[test]
fn a_draining_edge_is_not_ready_while_an_exchange_goes_on() {
    let edge = Running::start(prepare(), "auto");
    let mut open = https(edge.https(), "shop.example");
    open.send("GET / HTTP/1.1\r\nHost: "); // a head under way
    wait_until("it is accepted", || edge.metric("portico_edge_connections ") >= 1.0);
    edge.terminate();
    wait_until("/readyz says so", || {
        let (status, text) = edge.metrics("/readyz");
        status == 503 && text.contains("draining")
    });
    assert_eq!(edge.metrics("/healthz").0, 200);
    assert_eq!(edge.metric("portico_edge_draining"), 1.0);
}
