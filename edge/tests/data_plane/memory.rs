//! An edge whose memory is filled by others: it begins nothing new, gives back what it can, stays within its bound, and serves as
//! before when they are gone.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use portico_attacker::{Attack, Target};
use portico_edge::limits;

use crate::attacks::{pour, resident_bytes};
use crate::client::{Https, any_version, http2_get, https, plain, try_https};
use crate::harness::wait_until;
use crate::http3_client::http3_get;
use crate::origin::{Origin, Reply, ok};
use crate::process::{FILE, Running, pem, prepare, uring_works};

const ATTACKED: &str = "attacked.example";
const GOOD: &str = "good.example";
const KEPT: &str = "kept.example";
/// Its answers are the edge's own.
const PAGE: &str = "page.example";

/// An edge takes some 40 MiB of it by itself, the cache as much.
const MEMORY: u64 = 128 << 20;
const CACHE: u64 = 64 << 20;
const OBJECT: usize = 1 << 20;
const OBJECTS: usize = 48;
/// Each asks for 4 MiB and more.
const ATTACKERS: usize = 16;
/// For one connection of an attacker.
const HELD_FOR: Duration = Duration::from_secs(8);

struct Stage {
    edge: Running,
    _origins: [Origin; 3],
}

impl Stage {
    fn new(io: &str) -> Self {
        let attacked = Origin::start(|_| Reply::Take(Box::new(pour)));
        let good = Origin::start(|_| Reply::Keep(ok("good")));
        let kept = Origin::start(|_| {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {OBJECT}\r\nCache-Control: max-age=600\r\n\r\n");
            Reply::Keep([head.into_bytes(), vec![b'k'; OBJECT]].concat())
        });
        let folder = prepare();
        let pem = pem(&[ATTACKED, GOOD, KEPT, PAGE]);
        std::fs::write(folder.path().join("certificates/memory.pem"), pem).unwrap();
        let mut file = FILE.replace("kind = \"https\"\n", "kind = \"https\"\nhttp3 = true\n");
        file = format!("memory_bytes = {MEMORY}\ncache_bytes = {CACHE}\n{file}");
        for (host, origin) in [(ATTACKED, &attacked), (GOOD, &good), (KEPT, &kept)] {
            file += &format!("[[route]]\nhost = \"{host}\"\nproxy = \"{}\"\n", origin.url());
            if host == KEPT {
                file += "cache = {}\n";
            }
        }
        let ports = [&attacked, &good, &kept].map(|origin| origin.address.port());
        // What one address may take is another subject.
        file += "[client_limits]\nexempt = [\"127.0.0.0/8\"]\n";
        file += &format!("[egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = {ports:?} }}]\n");
        std::fs::write(folder.path().join("edge.toml"), file).unwrap();
        Self { edge: Running::start(folder, io), _origins: [attacked, good, kept] }
    }

    fn fill_cache(&self) {
        let mut client = https(self.edge.https(), KEPT);
        for number in 0..OBJECTS {
            let answer = client.get(KEPT, &format!("/{number}"));
            assert_eq!((answer.status, answer.body.len()), (200, OBJECT));
        }
        let cached = self.edge.metric("portico_edge_cache_bytes");
        assert!(cached >= (OBJECTS * OBJECT) as f64, "{cached} bytes are cached");
    }

    fn limited(&self) -> f64 {
        self.edge.metric("portico_edge_limited_total{reason=\"memory\"}")
    }
}

/// What visitors have met.
#[derive(Default)]
struct Met {
    pages: AtomicU64,
    /// 503 on a connection that was there.
    put_off: AtomicU64,
    /// Connections that were not taken.
    refused: AtomicU64,
    refused_over_quic: AtomicU64,
    short: AtomicU64,
    peak: AtomicU64,
}

impl Met {
    fn more(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn all(&self) -> bool {
        [&self.pages, &self.put_off, &self.refused, &self.refused_over_quic, &self.short]
            .iter()
            .all(|counter| counter.load(Ordering::SeqCst) > 0)
    }
}

/// Those who are at it end, also when the test has failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks for a page of the edge's own and for one of an origin, on one connection while it is left.
fn visit(address: SocketAddr, met: &Met, over: &AtomicBool) {
    let mut connection: Option<Https> = None;
    while !over.load(Ordering::SeqCst) {
        let Some(client) = &mut connection else {
            match try_https(address, Some(PAGE), any_version(&["http/1.1"])) {
                Ok(client) => connection = Some(client),
                Err(_) => {
                    Met::more(&met.refused);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            continue;
        };
        for host in [PAGE, GOOD] {
            use std::io::Write as _;
            let asked = write!(client.stream, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            // Whoever was quiet for a moment, as a thread of a busy machine may be, was let go.
            let Ok(answer) = asked.and_then(|()| client.answer_to("GET")) else {
                connection = None;
                break;
            };
            match (host, answer.status) {
                (PAGE, 200) => Met::more(&met.pages),
                (GOOD, 200) => assert_eq!(answer.text(), "good"),
                (GOOD, 503) => {
                    let after = limits::MEMORY_RETRY_AFTER.as_secs().to_string();
                    assert_eq!(answer.header("retry-after"), Some(after.as_str()));
                    Met::more(&met.put_off);
                }
                (host, status) => panic!("{status} of {host}"),
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn come_over_quic(address: SocketAddr, met: &Met, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        match http3_get(address, Some(PAGE), PAGE, "/") {
            Ok(status) => assert_eq!(status, 200),
            Err(_) => Met::more(&met.refused_over_quic),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connections that ask for nothing, as many as are taken.
fn hoard(address: SocketAddr, met: &Met, over: &AtomicBool) {
    let mut hoarded = Vec::new();
    while !over.load(Ordering::SeqCst) {
        match try_https(address, Some(PAGE), any_version(&["h2"])) {
            Ok(connection) => hoarded.push(connection),
            Err(_) => {
                Met::more(&met.refused);
                // Those that were let go are no use.
                hoarded.clear();
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn look((process, metrics): (u32, SocketAddr), met: &Met, over: &AtomicBool) {
    while !over.load(Ordering::SeqCst) {
        met.peak.fetch_max(resident_bytes(process), Ordering::SeqCst);
        let ready = plain(metrics).get("localhost", "/readyz");
        if (ready.status, ready.text().as_str()) == (503, "short of memory\n") {
            Met::more(&met.short);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn survives(io: &str) {
    let stage = Stage::new(io);
    let address = stage.edge.https();
    stage.fill_cache();
    let mut idle = https(address, PAGE);
    assert_eq!(idle.get(PAGE, "/").status, 200);
    assert_eq!(stage.edge.metric("portico_edge_memory_bound_bytes"), MEMORY as f64);
    let (met, over) = (Met::default(), AtomicBool::new(false));
    let surface = (stage.edge.child.id(), stage.edge.addresses[2]);
    let target = Target { address, host: ATTACKED.to_owned() };
    std::thread::scope(|scope| {
        scope.spawn(|| visit(address, &met, &over));
        // Memory is short for a moment only: those who ask for nothing are let go at once.
        for _ in 0..4 {
            scope.spawn(|| come_over_quic(address, &met, &over));
        }
        scope.spawn(|| look(surface, &met, &over));
        scope.spawn(|| hoard(address, &met, &over));
        for _ in 0..ATTACKERS {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    // Refused like everybody else, mostly.
                    let _outcome = Attack::ZeroWindow.run(&target, HELD_FOR);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let _ends = Ends(&over);
        wait_until("everything that is refused was seen", || met.all());
    });
    // By the shortage, and long before its own deadline.
    idle.stream.sock.set_read_timeout(Some(limits::IDLE_DEADLINE / 4)).unwrap();
    assert!(idle.closes(), "a connection without an exchange is in nobody's way");
    let expired = stage.edge.metric("portico_edge_connections_expired_total{reason=\"idle\"}");
    assert_eq!(expired, 0.0, "nobody had to wait for a deadline");
    assert!(stage.limited() > 0.0 && stage.edge.metric("portico_edge_memory_shortages_total") > 0.0);
    assert!(stage.edge.metric("portico_edge_cache_evictions_total") > 0.0, "the cache gives way");
    wait_until("it is well again", || stage.edge.metrics("/readyz").0 == 200);
    assert_eq!(stage.edge.metric("portico_edge_memory_short "), 0.0);
    let peak = met.peak.load(Ordering::SeqCst);
    let well = resident_bytes(surface.0);
    eprintln!(
        "{io}: {} MiB of {} at most, {} refusals, {} shortages, {} MiB when well again",
        peak >> 20,
        MEMORY >> 20,
        stage.limited(),
        stage.edge.metric("portico_edge_memory_shortages_total"),
        well >> 20
    );
    assert!(peak <= MEMORY, "{} KiB", peak / 1024);

    // What the attackers' exchanges held may be on its way back still. Of those that begin, no more may be under way at once than
    // there was room for at each look of a while: one, at the last look that found it short and nobody left.
    wait_until("it serves again", || https(address, GOOD).get(GOOD, "/").status == 200);
    std::thread::sleep(limits::MEMORY_GROWS_WITHIN + limits::MEMORY_LOOK_EVERY);
    let (limited, mut again) = (stage.limited(), https(address, GOOD));
    for _ in 0..20 {
        assert_eq!(again.get(GOOD, "/").text(), "good");
        assert_eq!(https(address, PAGE).get(PAGE, "/").status, 200);
        assert_eq!(http2_get(address, Some(GOOD), GOOD, "/").unwrap().status, 200);
        assert_eq!(http3_get(address, Some(GOOD), GOOD, "/"), Ok(200));
        assert_eq!(https(address, KEPT).get(KEPT, "/").status, 200);
    }
    assert_eq!(stage.limited(), limited, "nobody is refused any more");
    assert_eq!(stage.edge.metric("portico_edge_panics_total"), 0.0);
}

#[test]
fn an_edge_whose_memory_is_filled_refuses_at_once_and_recovers() {
    survives("epoll");
    match uring_works() {
        true => survives("uring"),
        false => portico_skipping::skipped("io_uring: this kernel refuses it"),
    }
}

/// Nobody comes any more, so that the workers have nothing to do.
fn gives_back_what_is_free(io: &str) {
    const CONNECTIONS: usize = 600;
    let folder = prepare();
    std::fs::write(
        folder.path().join("edge.toml"),
        format!("{FILE}[client_limits]\nexempt = [\"127.0.0.0/8\"]\n"),
    )
    .unwrap();
    let edge = Running::start(folder, io);
    let process = edge.child.id();
    let come = || try_https(edge.https(), Some("shop.example"), any_version(&["h2"])).unwrap();
    drop(come());
    let before = resident_bytes(process);
    let all: Vec<_> = (0..CONNECTIONS).map(|_| come()).collect();
    wait_until("all are counted", || edge.metric("portico_edge_connections ") >= CONNECTIONS as f64);
    let with = resident_bytes(process);
    drop(all);
    let left = || resident_bytes(process).saturating_sub(before);
    wait_until("a quarter is left at most", || left() < (with - before) / 4);
    eprintln!(
        "{io}: {} KiB with {CONNECTIONS} connections, {} KiB without",
        (with - before) / 1024,
        left() / 1024
    );
}

#[test]
fn what_connections_held_goes_back_to_the_kernel_when_they_are_gone() {
    gives_back_what_is_free("epoll");
    match uring_works() {
        true => gives_back_what_is_free("uring"),
        false => portico_skipping::skipped("io_uring: this kernel refuses it"),
    }
}
