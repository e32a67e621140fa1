//! The edge when something runs out or stands still: descriptors, the reader of its log; and its own surfaces.

use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit};

use crate::client::{https, plain};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to, wait_until};
use crate::process::{FILE, Running, prepare, uring_works};

fn backends() -> Vec<&'static str> {
    if uring_works() { vec!["epoll", "uring"] } else { vec!["epoll"] }
}

/// Clock ticks (of 10 ms) that a process has used (proc(5): utime and stime).
fn ticks_used(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Far above what an edge holds open for itself, and below [`CLIENTS`]: some clients find a place, the others none. The
/// edge's own count cannot be read here: /proc shows the descriptors of a process that is not dumpable to root only.
const DESCRIPTORS: u64 = 128;
const CLIENTS: usize = 160;

#[test]
fn an_edge_without_descriptors_waits_without_spinning_and_recovers() {
    for io in backends() {
        let edge = Running::start(prepare(), io);
        assert_eq!(https(edge.https(), "shop.example").get("shop.example", "/").status, 200);
        // Asked while there are descriptors; later this connection is the only way to ask.
        let mut metrics = plain(edge.addresses[2]);
        let mut errors = || {
            let text = metrics.get("localhost", "/metrics").text();
            let line = text.lines().find(|line| line.starts_with("portico_edge_accept_errors_total"));
            line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        };
        assert_eq!(errors(), 0.0);
        let pid = Pid::from_child(&edge.child);
        // A hard limit that is lowered stays low.
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(DESCRIPTORS), maximum };
        let before = rustix::process::prlimit(Some(pid), Resource::Nofile, limit).unwrap();

        let mut waiting: Vec<_> = (0..CLIENTS).map(|_| plain(edge.addresses[1])).collect();
        for client in &mut waiting {
            client.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        }
        let deadline = portico_edge::clock::now() + crate::harness::PATIENCE;
        while errors() == 0.0 {
            assert!(portico_edge::clock::now() < deadline, "accept never failed");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (begun, ticks) = (portico_edge::clock::now(), ticks_used(edge.child.id()));
        let failed = errors();
        std::thread::sleep(Duration::from_millis(600)); // long enough to see a loop that spins
        let tries = errors() - failed;
        let busy = ticks_used(edge.child.id()) - ticks;
        assert!(
            busy * 10 < u64::try_from(begun.elapsed().as_millis()).unwrap() / 2,
            "{busy} ticks: it spins"
        );
        assert!((1.0..100.0).contains(&tries), "{tries} tries in 600 ms");

        // Those who have a place are served, and each place that is left goes to one who waits.
        std::thread::scope(|scope| {
            for mut client in waiting {
                scope.spawn(move || assert_eq!(client.answer().status, 301));
            }
        });
        rustix::process::prlimit(Some(pid), Resource::Nofile, before).unwrap();
        let answer = https(edge.https(), "shop.example").get("shop.example", "/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "a body from a file"));
        assert_eq!(edge.metric("portico_edge_panics_total"), 0.0);
    }
}

#[test]
fn a_log_that_nobody_reads_slows_no_request_and_its_drops_are_counted() {
    on_each_backend(|backend| {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("log");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // No reader at all: the start does not wait for one.
        let mut edge = TestEdge::with(backend, Setup { log: Some(pipe.clone()), ..Setup::default() });
        edge.serve_with(&["shop.example"], &[], |domain| domain.https_redirect_off = true);
        let dropped = || edge.metric("portico_edge_access_log_dropped_total");
        let before = dropped();
        let mut client = plain(edge.http);
        let request = "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n".repeat(20);
        // The pipe, the writer's buffer and the queue are full after some 9,000 lines; a connection lives for 10,000.
        for _ in 0..2 {
            for _ in 0..390 {
                client.send(&request);
                for _ in 0..20 {
                    assert_eq!(client.answer().status, 200);
                }
            }
            client = plain(edge.http);
        }
        assert!(dropped() - before > 1000.0, "{} lines dropped", dropped() - before);

        // Its reader comes: lines flow again.
        let mut reader =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
        let mut bytes = Vec::new();
        let mut buffer = [0; 65536];
        wait_until_mut("the log is read", || {
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..count]);
            }
            bytes.iter().filter(|byte| **byte == b'\n').count() >= portico_edge::limits::ACCESS_LOG_QUEUE
        });
        let whole = bytes.rsplitn(2, |byte| *byte == b'\n').nth(1).unwrap();
        for line in whole.split(|byte| *byte == b'\n') {
            let line: serde_json::Value = serde_json::from_slice(line).expect("each line is whole");
            assert_eq!(line["status"], 200);
        }
    });
}

fn wait_until_mut(what: &str, condition: impl FnMut() -> bool) {
    let condition = std::cell::RefCell::new(condition);
    wait_until(what, || condition.borrow_mut()());
}

#[test]
fn an_edge_ends_although_nobody_reads_its_log() {
    for io in backends() {
        let folder = prepare();
        let file = FILE.replace("access_log = \"access.log\"", "access_log = \"pipe\"");
        std::fs::write(folder.path().join("edge.toml"), file).unwrap();
        assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
        let mut edge = Running::start(folder, io);
        let mut client = plain(edge.addresses[1]);
        for _ in 0..50 {
            client.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n".repeat(20));
            for _ in 0..20 {
                assert_eq!(client.answer().status, 301);
            }
        }
        drop(client);
        edge.terminate();
        let child = std::cell::RefCell::new(&mut edge.child);
        wait_until("it has ended", || child.borrow_mut().try_wait().is_ok_and(|status| status.is_some()));
        assert!(edge.child.wait().unwrap().success());
    }
}

#[test]
fn the_edges_own_metrics_and_admin_socket_are_no_origin_whatever_is_granted() {
    for io in backends() {
        let folder = prepare();
        let free = portico_ports::reserve().port();
        let hosts = ["127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "2130706433", "127.1"];
        let mut file = FILE.replace("metrics = \"127.0.0.1:0\"", &format!("metrics = \"127.0.0.1:{free}\""));
        file = file.split("[[route]]").next().unwrap().to_owned();
        for (number, host) in hosts.iter().enumerate() {
            file += &format!("[[route]]\nhost = \"m{number}.example\"\nproxy = \"http://{host}:{free}\"\n");
        }
        file += &format!("[egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [{free}] }}]\n");
        std::fs::write(folder.path().join("edge.toml"), &file).unwrap();
        let names: Vec<String> = (0..hosts.len()).map(|number| format!("m{number}.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        std::fs::write(folder.path().join("certificates/shop.pem"), crate::process::pem(&names)).unwrap();
        let edge = Running::start(folder, io);
        for (host, name) in hosts.iter().zip(&names) {
            assert_eq!(https(edge.https(), name).get(name, "/metrics").status, 502, "{host}");
        }
        let mut surface = plain(([127, 0, 0, 1], free).into());
        let text = surface.get("localhost", "/metrics").text();
        let value = |series: &str| {
            let line = text.lines().find(|line| line.starts_with(series));
            line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        };
        assert_eq!(value("portico_edge_origin_connects_total"), 0.0);
        assert_eq!(value("portico_edge_egress_refused_total"), hosts.len() as f64);
    }
}

#[test]
fn a_unix_socket_is_no_origin() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        let served = edge.serve(&["shop.example"]);
        for origin in
            ["unix:/run/portico/admin.sock", "unix:///run/portico/admin.sock", "/run/portico/admin.sock"]
        {
            let mut body = crate::fleet::domain_body("shop.example", &[served.lineage]);
            body.routes = vec![proxy_to(origin)];
            let published =
                edge.bench.delta(vec![crate::fleet::domain(served.domains[0].1, 2, served.tenant, &body)]);
            assert_eq!(published.nacks.len(), 1, "{origin}");
        }
        assert_eq!(
            https(edge.https, "shop.example").get("shop.example", "/").status,
            200,
            "the last good one"
        );
    });
}

/// Set in the process that plays the edge of the test below.
const CHILD: &str = "PORTICO_TEST_WITHOUT_DESCRIPTORS";

fn set_descriptors(current: u64) {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
}

/// No descriptor more than there are.
fn forbid_new_descriptors() {
    use std::os::fd::AsRawFd as _;
    let next_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    set_descriptors(next_free.try_into().unwrap());
}

/// In a process of its own, because the limit is one of the process: says where it listens, and allows descriptors again
/// when it is told to.
fn edge_without_descriptors() {
    let before = rustix::process::getrlimit(Resource::Nofile).current.unwrap();
    let backend = portico_edge::io::choose(portico_edge::io::IoChoice::Epoll).unwrap().0;
    let setup = Setup { before_workers: forbid_new_descriptors, ..Setup::default() };
    let mut edge = TestEdge::with(backend, setup);
    edge.serve(&["shop.example"]);
    println!("\nlistening {}", edge.http);
    let mut lines = std::io::stdin().lines();
    lines.next().unwrap().unwrap();
    assert!(!edge.workers[0].is_finished(), "a worker was given up");
    set_descriptors(before);
    assert!(lines.next().is_none(), "until the test is over");
}

#[test]
fn a_worker_that_finds_no_descriptors_at_its_start_is_started_until_it_does() {
    if std::env::var_os(CHILD).is_some() {
        return edge_without_descriptors();
    }
    let name = "resources::a_worker_that_finds_no_descriptors_at_its_start_is_started_until_it_does";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let address = lines.find_map(|line| line.strip_prefix("listening ").map(str::to_owned)).unwrap();
    let mut client = plain(address.parse().unwrap());
    client.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
    // Longer than several starts: each of them has failed, or there would be an answer.
    client.stream.set_read_timeout(Some(4 * portico_edge::limits::WORKER_RESTART_PAUSE)).unwrap();
    let answer = client.stream.read(&mut [0; 1]);
    assert!(answer.is_err(), "no worker could have started: {answer:?}");
    client.stream.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    let mut tell = child.stdin.take().unwrap();
    writeln!(tell, "descriptors").unwrap();
    assert_eq!(client.answer().status, 301, "served once there are descriptors");
    drop(tell);
    for _line in lines {} // its pipe has to be read until it ends
    assert!(child.wait().unwrap().success());
}
