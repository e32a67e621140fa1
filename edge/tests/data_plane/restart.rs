//! A new process takes over from a running one, and no client notices.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Buf as _;
use portico_edge::limits;

use crate::client::{any_version, http2, https, runtime, try_https};
use crate::harness::{PATIENCE, wait_until};
use crate::http3_client::{Http3, REJECTED, http3_get};
use crate::origin::{Origin, Reply};
use crate::process::{FILE, Running, admin, prepare, uring_works};
use crate::site_load;

pub const HOST: &str = "shop.example";
const BODY: &str = "a body from a file";
/// In a row, under load.
const RESTARTS: usize = 20;

/// A chain of edges, each the successor of the one before; the last one ends with the test.
struct Chain {
    first: Running,
}

/// What is known of the chain on any thread.
pub struct Handle {
    pub socket: PathBuf,
}

impl Chain {
    fn start(io: &str, change: impl Fn(String) -> String) -> Self {
        let folder = prepare();
        let file = FILE.replacen("kind = \"https\"", "kind = \"https\"\nhttp3 = true", 1);
        std::fs::write(folder.path().join("edge.toml"), change(file)).unwrap();
        Self { first: Running::start(folder, io) }
    }

    fn folder(&self) -> &Path {
        self.first.folder.path()
    }

    fn https(&self) -> SocketAddr {
        self.first.https()
    }

    fn handle(&self) -> Handle {
        Handle { socket: self.folder().join("admin.sock") }
    }

    fn process(&self) -> u64 {
        self.handle().process()
    }

    fn restart(&self) -> u64 {
        self.handle().restart()
    }
}

impl Handle {
    /// The process that has the admin socket now.
    pub fn process(&self) -> u64 {
        admin(&self.socket, "GET", "/v1/status", "").1["process"].as_u64().unwrap()
    }

    /// Orders a restart and waits until the successor serves.
    pub fn restart(&self) -> u64 {
        let before = self.process();
        signal("USR2", before);
        wait_until("a successor has the admin socket", || self.process() != before);
        wait_until("it is ready", || {
            admin(&self.socket, "GET", "/v1/status", "").1["ready"].as_bool() == Some(true)
        });
        self.process()
    }
}

fn signal(name: &str, process: u64) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status().unwrap();
    assert!(status.success());
}

impl Drop for Chain {
    fn drop(&mut self) {
        if let Ok(process) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.process())) {
            let _ = Command::new("kill").arg("-KILL").arg(process.to_string()).status();
        }
    }
}

pub fn has_ended(process: u64) -> bool {
    // A zombie is one that its parent, a test or an edge that has ended itself, did not ask for yet.
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    status.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('Z'))
}

/// One kind of load: what it has done, and whether it is to stop.
#[derive(Default)]
pub struct Progress {
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Progress {
    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    pub fn add(&self) {
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }
}

/// Returns what was lost, with the reasons.
pub type Client = fn(SocketAddr, &Progress) -> Vec<String>;

/// Requests without a pause, until told to stop.
pub struct Load(Vec<Kind>);

pub struct Kind {
    name: &'static str,
    progress: Arc<Progress>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Kind {
    pub fn start(name: &'static str, run: Client, address: SocketAddr) -> Self {
        let progress = Arc::<Progress>::default();
        let told = Arc::clone(&progress);
        Self { name, progress, thread: std::thread::spawn(move || run(address, &told)) }
    }
}

impl Load {
    pub fn start(address: SocketAddr) -> Self {
        let kinds: [(&str, Client); 5] = [
            ("h1, kept", http1_kept),
            ("h1, a connection each", http1_fresh),
            ("h2", http2_kept),
            ("h3", http3_kept),
            ("h3, a connection each", http3_fresh),
        ];
        Self(kinds.map(|(name, run)| Kind::start(name, run, address)).into())
    }

    /// With what a site behind an origin is asked for, besides.
    pub fn of_a_site(address: SocketAddr) -> Self {
        let Self(mut kinds) = Self::start(address);
        kinds.extend(site_load::kinds(address));
        Self(kinds)
    }

    /// Goes on until each kind has had enough answers from whoever serves now, however slow the machine is.
    pub fn end(self) {
        let before: Vec<u64> = self.0.iter().map(|kind| kind.progress.answered()).collect();
        for (kind, before) in self.0.iter().zip(before) {
            let enough = || kind.progress.answered() >= before + 20 || kind.thread.is_finished();
            wait_until(kind.name, enough);
        }
        for kind in &self.0 {
            kind.progress.stop.store(true, Ordering::SeqCst);
        }
        for Kind { name, progress, thread } in self.0 {
            let lost = thread.join().unwrap();
            let answered = progress.answered();
            eprintln!("{name}: {answered} answered, {} lost", lost.len());
            assert!(lost.is_empty(), "{name}: {answered} answered, lost: {lost:?}");
        }
    }
}

fn http1_kept(address: SocketAddr, progress: &Progress) -> Vec<String> {
    site_load::http1(address, progress, |client| {
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let answer = client.answer_to("GET")?;
        Ok((answer.text() == BODY, answer))
    })
}

fn http1_fresh(address: SocketAddr, progress: &Progress) -> Vec<String> {
    let mut lost = Vec::new();
    while progress.goes_on() {
        let asked = try_https(address, Some(HOST), any_version(&["http/1.1"])).and_then(|mut client| {
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"));
            client.answer_to("GET")
        });
        match asked {
            Ok(answer) if answer.text() == BODY => progress.add(),
            other => lost.push(format!("{other:?}")),
        }
    }
    lost
}

fn http2_kept(address: SocketAddr, progress: &Progress) -> Vec<String> {
    type Empty = http_body_util::Empty<bytes::Bytes>;
    runtime().block_on(async {
        let mut lost = Vec::new();
        while progress.goes_on() {
            let mut sender = match http2::<Empty>(address, Some(HOST)).await {
                Ok(sender) => sender,
                Err(error) => {
                    lost.push(format!("connect: {error}"));
                    continue;
                }
            };
            while sender.ready().await.is_ok() && progress.goes_on() {
                let request = http::Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
                match sender.try_send_request(request).await {
                    Ok(response) => match crate::client::collect(response).await {
                        Ok(answer) if answer.text() == BODY => progress.add(),
                        other => lost.push(format!("{other:?}")),
                    },
                    Err(mut error) => {
                        // It never left: the client has had GOAWAY meanwhile.
                        if error.take_message().is_none() {
                            lost.push(format!("{:?}", error.into_error()));
                        }
                        break;
                    }
                }
            }
        }
        lost
    })
}

fn http3_kept(address: SocketAddr, progress: &Progress) -> Vec<String> {
    http3_load(address, progress, usize::MAX)
}

fn http3_fresh(address: SocketAddr, progress: &Progress) -> Vec<String> {
    http3_load(address, progress, 1)
}

fn http3_load(address: SocketAddr, progress: &Progress, per_connection: usize) -> Vec<String> {
    tokio::task::LocalSet::new().block_on(&runtime(), async {
        let mut lost = Vec::new();
        while progress.goes_on() {
            let mut client = match Http3::connect(address, Some(HOST)).await {
                Ok(client) => client,
                Err(error) => {
                    lost.push(format!("connect: {error}"));
                    continue;
                }
            };
            for _ in 0..per_connection {
                let request = http::Request::get(format!("https://{HOST}/")).body(()).unwrap();
                match client.ask(request).await {
                    Ok(Some(answer)) if answer.text() == BODY => progress.add(),
                    // GOAWAY came before the request could leave.
                    Ok(None) => break,
                    // GOAWAY is on its way: to be asked again.
                    Err(error) if error == REJECTED => break,
                    other => {
                        lost.push(format!("{other:?}"));
                        break;
                    }
                }
                if !progress.goes_on() {
                    break;
                }
            }
            client.close();
        }
        lost
    })
}

#[test]
fn restart_after_restart_loses_no_request() {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let origin = site_load::origin();
        let chain = Chain::start(io, |file| file + &site_load::routes(&origin));
        let load = Load::of_a_site(chain.https());
        let mut processes = vec![chain.process()];
        for restart in 0..RESTARTS {
            // A chain of those that still drain is bounded; no more than half of it here.
            if let Some(old) = restart.checked_sub(limits::PREDECESSORS_MAX / 2) {
                wait_until("an old predecessor ends", || has_ended(processes[old]));
            }
            processes.push(chain.restart());
        }
        load.end();
        let (last, before) = processes.split_last().unwrap();
        for process in before {
            wait_until("each predecessor ends", || has_ended(*process));
        }
        // The paths and ports went along.
        assert_eq!(chain.first.metrics("/readyz").0, 200);
        assert_eq!(https(chain.https(), HOST).get(HOST, "/").text(), BODY);
        assert!(!has_ended(*last));
    }
}

/// A client of others, with a new connection each 10 ms that asks for ten things. (On one that has had GOAWAY it counts what it
/// has not asked for yet as failed, so it asks for all at once.)
#[test]
fn h2load_loses_no_request_over_a_hand_over() {
    if !Command::new("h2load").arg("--version").output().is_ok_and(|output| output.status.success()) {
        portico_skipping::skipped("h2load is not installed (Debian package nghttp2-client)");
        return;
    }
    // Pipelined requests over HTTP/1.1 are another subject.
    for protocol in [["--npn-list=h2", "-m10"], ["--h1", "-m1"]] {
        let chain = Chain::start("auto", |file| file);
        // The hand-over may take longer than the load, on a machine that is busy with something else.
        while !is_handed_over_under_h2load(&chain, protocol) {}
    }
}

/// `false`: the load was over before.
fn is_handed_over_under_h2load(chain: &Chain, protocol: [&str; 2]) -> bool {
    let mut load = Command::new("h2load");
    load.args(protocol).args(["-n", "5000", "-c", "500", "-r", "100"]);
    load.arg(format!("--connect-to={}", chain.https())).arg(format!("https://{HOST}/"));
    let connections = || chain.first.metric("portico_edge_connections_total");
    let before = connections();
    let mut load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it has begun", || connections() >= before + 50.0);
    let predecessor = chain.process();
    chain.restart();
    let since = connections();
    let is_under_way = load.try_wait().unwrap().is_none();
    wait_until("the predecessor ends", || has_ended(predecessor));
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let sums = "5000 total, 5000 started, 5000 done, 5000 succeeded, 0 failed, 0 errored, 0 timeout";
    assert!(output.status.success() && text.contains(sums), "{protocol:?}: {text}");
    assert!(text.contains("status codes: 5000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{text}");
    is_under_way && connections() > since
}

/// What is upgraded is an exchange under way: whoever drains waits for it, for as long as a drain may take, and then cuts it.
#[test]
fn a_tunnel_outlives_restarts_until_the_drain_is_over() {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let origin = site_load::origin();
        let file = |file: String| file + &site_load::routes(&origin);
        let chain = Chain::start(io, |text| file(text.replace("drain_seconds = 5", "drain_seconds = 600")));
        let mut tunnel = site_load::Tunnel::open(chain.https());
        let first = chain.process();
        for word in ["once", "twice"] {
            chain.restart();
            tunnel.says(word);
        }
        assert!(!has_ended(first), "it waits for its tunnel");
        drop(tunnel);
        wait_until("it ends with its tunnel", || has_ended(first));

        let chain = Chain::start(io, |text| file(text.replace("drain_seconds = 5", "drain_seconds = 1")));
        let mut tunnel = site_load::Tunnel::open(chain.https());
        let first = chain.process();
        chain.restart();
        assert!(tunnel.is_cut());
        wait_until("the drain's time is over", || has_ended(first));
        site_load::Tunnel::open(chain.https()).says("with the successor");
    }
}

/// An origin whose answer goes on until the test says stop.
fn endless_origin() -> (Origin, Arc<AtomicBool>) {
    let stop = Arc::<AtomicBool>::default();
    let stopped = Arc::clone(&stop);
    let origin = Origin::start(move |_| {
        let stopped = Arc::clone(&stopped);
        Reply::Take(Box::new(move |mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            while !stopped.load(Ordering::SeqCst) {
                if stream.write_all(format!("400\r\n{}\r\n", "x".repeat(0x400)).as_bytes()).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = stream.write_all(b"4\r\nlast\r\n0\r\n\r\n");
        }))
    });
    (origin, stop)
}

/// Its packets reach the process that has its keys by way of the youngest one, also from another port, and although two
/// generations have come since.
#[test]
fn an_http3_exchange_under_way_survives_two_restarts_and_a_new_address() {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let (origin, stop) = endless_origin();
        let (address, port) = (origin.address, origin.address.port());
        let chain = Chain::start(io, |file| {
            format!(
                "{}[[route]]\nhost = \"{HOST}\"\npath = \"/endless\"\nproxy = \"http://{address}\"\n\
                 [egress]\nallow = [{{ cidr = \"127.0.0.1/32\", ports = [{port}] }}]\n",
                file.replace("drain_seconds = 5", "drain_seconds = 60")
            )
        });
        let first = chain.process();
        tokio::task::LocalSet::new().block_on(&runtime(), async {
            let mut client = Http3::connect(chain.https(), Some(HOST)).await.unwrap();
            let request = http::Request::get(format!("https://{HOST}/endless")).body(()).unwrap();
            let mut stream: h3::client::RequestStream<_, bytes::Bytes> =
                client.sender.send_request(request).await.unwrap();
            stream.finish().await.unwrap();
            assert_eq!(stream.recv_response().await.unwrap().status(), 200);
            let (mut got, mut last) = (0, Vec::new());
            // The restarts are waited for on another thread: this one has to acknowledge packets meanwhile.
            let done = Arc::<AtomicBool>::default();
            let (restarting, told) = (chain.handle(), Arc::clone(&done));
            let restarting = std::thread::spawn(move || {
                restarting.restart();
                restarting.restart();
                told.store(true, Ordering::SeqCst);
            });
            let (mut rebound, mut after) = (false, 0);
            while let Some(mut data) = within(stream.recv_data()).await.unwrap() {
                got += data.remaining();
                last = data.copy_to_bytes(data.remaining()).to_vec();
                if rebound {
                    after += last.len();
                    // More than the windows hold: acknowledgements came from the new port.
                    if after > 3 << 20 {
                        stop.store(true, Ordering::SeqCst);
                    }
                } else if done.load(Ordering::SeqCst) {
                    rebound = true;
                    client.endpoint.rebind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
                }
            }
            restarting.join().unwrap();
            assert!(last.ends_with(b"last"), "{got} bytes, and then the end was cut off");
            client.close();
            client.endpoint.wait_idle().await;
        });
        let forwarded = chain.first.metric("portico_edge_quic_forwarded_packets_total{result=\"sent\"}");
        assert!(forwarded > 0.0, "the youngest passes packets on");
        wait_until("the first process ends once its exchange has", || has_ended(first));
        assert_eq!(https(chain.https(), HOST).get(HOST, "/").text(), BODY);
    }
}

#[test]
fn a_successor_that_fails_leaves_the_edge_serving() {
    let chain = Chain::start("auto", |file| file);
    let before = chain.process();
    let file = chain.folder().join("edge.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let load = Load::start(chain.https());
    std::fs::write(&file, good.replace("workers = 2", "workers = 2\nwrokers = 3")).unwrap();
    signal("HUP", before);
    let said = RefCell::new(Vec::new());
    let hears = |what: &str| {
        wait_until(what, || {
            said.borrow_mut().extend(chain.first.later.try_iter());
            said.borrow().iter().any(|line: &String| line.contains(what))
        });
    };
    hears("wrokers");
    hears("ended before it served");
    assert_eq!(chain.first.metric("portico_edge_last_reload_successful"), 0.0);
    // One that goes so far as to take the sockets, and then finds no certificates.
    std::fs::write(&file, good.replace("folder = \"certificates\"", "folder = \"nowhere\"")).unwrap();
    signal("HUP", before);
    hears("nowhere");
    hears("this edge serves on");
    assert_eq!(chain.process(), before);
    // And with the good file again it is a restart like any other.
    std::fs::write(&file, good).unwrap();
    assert_ne!(chain.restart(), before);
    load.end();
    wait_until("the predecessor ends", || has_ended(before));
}

#[test]
fn taking_over_from_nobody_is_an_error_that_says_so() {
    let folder = prepare();
    let output = crate::process::command(folder.path(), "epoll").arg("--take-over").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(text.contains("admin.sock.take-over") && text.contains("start without --take-over"), "{text}");
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

#[test]
fn a_session_of_the_predecessor_goes_on_with_its_successor() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let chain = Chain::start("auto", |file| file);
        let config = crate::client::config(&["http/1.1"], &[version]);
        let visit = || {
            let mut client = try_https(chain.https(), Some(HOST), config.clone()).unwrap();
            assert_eq!(client.get(HOST, "/").text(), BODY); // a ticket has come by now
            client.stream.conn.handshake_kind()
        };
        assert_ne!(visit(), Some(rustls::HandshakeKind::Resumed));
        for restart in 1..=2 {
            let predecessor = chain.process();
            chain.restart();
            // Until then it may take the visit itself, and only its own successor opens the ticket that it gives.
            wait_until("the predecessor has ended", || has_ended(predecessor));
            assert_eq!(visit(), Some(rustls::HandshakeKind::Resumed), "{version:?}, restart {restart}");
        }
    }
}

#[test]
fn more_or_fewer_workers_take_over_all_sockets() {
    let chain = Chain::start("auto", |file| file);
    let load = Load::start(chain.https());
    let file = chain.folder().join("edge.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    for workers in [3, 1, 2] {
        std::fs::write(&file, text.replace("workers = 2", &format!("workers = {workers}"))).unwrap();
        chain.restart();
        // A socket that nobody accepts from would hold some of these for ever.
        for _ in 0..20 {
            assert_eq!(https(chain.https(), HOST).get(HOST, "/").text(), BODY);
            assert_eq!(http3_get(chain.https(), Some(HOST), HOST, "/"), Ok(200));
        }
    }
    load.end();
}

#[test]
fn sockets_of_the_service_manager_are_served_and_outlive_the_edge() {
    // Of both kinds: a port that is free for TCP may be somebody's over UDP.
    let address = portico_ports::reserve();
    let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
    let folder = prepare();
    let text = FILE.replacen("kind = \"https\"", "kind = \"https\"\nhttp3 = true", 1);
    std::fs::write(
        folder.path().join("edge.toml"),
        text.replacen("127.0.0.1:0\"\nkind", &format!("{address}\"\nkind"), 1),
    )
    .unwrap();
    let start = |folder: tempfile::TempDir| {
        // As systemd does it: from descriptor 3 on, with the id of the process that is to take them.
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "exec 3<&0 4>&1 </dev/null >&2; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$0\" \"$@\"",
            crate::process::EDGE,
        ]);
        command.arg("--config").arg(folder.path().join("edge.toml")).stderr(Stdio::piped());
        command.stdin(Stdio::from(OwnedFd::from(tcp.try_clone().unwrap())));
        command.stdout(Stdio::from(OwnedFd::from(udp.try_clone().unwrap())));
        Running::watch(command.spawn().unwrap(), folder)
    };
    let mut edge = start(folder);
    assert_eq!(edge.https(), address);
    for _ in 0..20 {
        assert_eq!(https(address, HOST).get(HOST, "/").text(), BODY);
        assert_eq!(http3_get(address, Some(HOST), HOST, "/"), Ok(200));
    }
    edge.terminate();
    let child = RefCell::new(&mut edge.child);
    wait_until("it has ended", || child.borrow_mut().try_wait().is_ok_and(|status| status.is_some()));
    // Whoever comes meanwhile waits for the next one.
    let waiting = std::thread::spawn(move || https(address, HOST).get(HOST, "/").text());
    wait_until("it is connected", || std::net::TcpStream::connect(address).is_ok());
    let folder = std::mem::replace(&mut edge.folder, tempfile::tempdir().unwrap());
    let next = start(folder);
    assert_eq!(waiting.join().unwrap(), BODY);
    drop(next);
}
