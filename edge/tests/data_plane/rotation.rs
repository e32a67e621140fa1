//! The access log is moved away while the edge serves: no line is lost, none is cut; and its disk may be full.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use portico_edge::limits::{ACCESS_LOG_BATCH_BYTES, ACCESS_LOG_QUEUE};

use crate::access_log::combined;
use crate::client::{https, plain};
use crate::harness::wait_until;
use crate::process::{FILE, Running, admin, prepare, uring_works};

const HOST: &str = "shop.example";

fn start(io: &str) -> Running {
    let folder = prepare();
    let file = FILE.replace("\"access.log\"", "\"logs/access.log\"\naccess_log_format = \"combined\"");
    fs::create_dir(folder.path().join("logs")).unwrap();
    fs::write(folder.path().join("edge.toml"), file).unwrap();
    Running::start(folder, io)
}

fn log(edge: &Running) -> PathBuf {
    edge.folder.path().join("logs/access.log")
}

/// Visitors that ask for one path after the other.
struct Visitors {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<u64>>,
}

impl Visitors {
    fn start(address: SocketAddr) -> Self {
        let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let visit = |visitor: u64| {
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            std::thread::spawn(move || {
                let (mut client, mut count) = (https(address, HOST), 0);
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.get(HOST, &format!("/{visitor}/{count}"));
                    assert_eq!(answer.status, 200);
                    count += 1;
                    asked.fetch_add(1, Ordering::SeqCst);
                    if answer.header("connection") == Some("close") {
                        client = https(address, HOST);
                    }
                }
                count
            })
        };
        let threads = (0..4).map(visit).collect();
        Self { stop, asked, threads }
    }

    /// Waits until some have been answered from now on.
    fn go_on(&self) {
        let before = self.asked.load(Ordering::SeqCst);
        wait_until("visitors are answered", || self.asked.load(Ordering::SeqCst) >= before + 200);
    }

    /// How many paths each has asked for.
    fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

fn end(edge: &mut Running) {
    edge.terminate();
    assert!(edge.child.wait().unwrap().success());
}

/// Every path once, over all files of the folder, each line whole. Returns how many files have lines.
fn assert_complete(folder: &Path, asked: &[u64]) -> usize {
    let format = combined();
    let (mut seen, mut files) = (BTreeMap::<String, u64>::new(), 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "gz") {
            let mut text = Vec::new();
            flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut text).unwrap();
            bytes = text;
        }
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{} ends in a cut line", path.display());
        files += usize::from(!text.is_empty());
        for line in text.lines() {
            let fields = format.captures(line).unwrap_or_else(|| panic!("{}: {line:?}", path.display()));
            *seen.entry(fields[5].split(' ').nth(1).unwrap().to_owned()).or_default() += 1;
        }
    }
    for (visitor, count) in asked.iter().enumerate() {
        for number in 0..*count {
            assert_eq!(
                seen.remove(&format!("/{visitor}/{number}")),
                Some(1),
                "/{visitor}/{number} of {count}"
            );
        }
    }
    assert!(seen.is_empty(), "nobody asked for these: {seen:?}");
    files
}

#[test]
fn rotation_under_load_loses_and_cuts_no_line() {
    for io in ["epoll", "uring"] {
        if io == "uring" && !uring_works() {
            portico_skipping::skipped("io_uring: this kernel refuses it");
            continue;
        }
        let mut edge = start(io);
        let (log, visitors) = (log(&edge), Visitors::start(edge.https()));
        let moved = |number: usize| log.with_extension(format!("log.{number}"));
        for number in 0..4 {
            visitors.go_on();
            fs::rename(&log, moved(number)).unwrap();
            let (status, answer) = edge.admin("POST", "/v1/access-log/reopen", "");
            assert_eq!(status, 200, "{answer}");
            // The one that was moved is whole now: whoever compresses it may begin.
            let length = fs::metadata(moved(number)).unwrap().len();
            visitors.go_on();
            assert_eq!(fs::metadata(moved(number)).unwrap().len(), length);
        }
        for number in 4..7 {
            visitors.go_on();
            fs::rename(&log, moved(number)).unwrap();
            let id = edge.child.id().to_string();
            assert!(Command::new("kill").args(["-USR1", &id]).status().unwrap().success());
            wait_until("there is a new file", || log.exists());
        }
        // Nobody tells it, but there is another file.
        visitors.go_on();
        fs::rename(&log, moved(7)).unwrap();
        fs::write(&log, "").unwrap();
        wait_until("it is found", || fs::metadata(&log).unwrap().len() > 0);
        let asked = visitors.end();
        end(&mut edge);
        assert_eq!(assert_complete(log.parent().unwrap(), &asked), 9);
    }
}

/// The block of the README between the lines of a fence.
fn logrotate_of_the_readme() -> &'static str {
    let readme = include_str!("../../../README.md");
    let block = readme.split("```").find(|block| block.contains("postrotate")).expect("the README shows one");
    block.split_once('\n').unwrap().1
}

fn id(option: &str) -> String {
    let output = Command::new("id").arg(option).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn logrotate_rotates_as_the_readme_says() {
    let program =
        ["/usr/sbin/logrotate", "/usr/bin/logrotate"].into_iter().find(|path| Path::new(path).exists());
    let Some(program) = program else {
        portico_skipping::skipped("logrotate is not installed (Debian package logrotate)");
        return;
    };
    if !Path::new("/usr/bin/curl").exists() {
        portico_skipping::skipped("curl is not installed, which the README's logrotate file calls");
        return;
    }
    let mut edge = start("auto");
    let (log, folder) = (log(&edge), edge.folder.path());
    let (rules, state) = (folder.join("logrotate.conf"), folder.join("logrotate.state"));
    let text = logrotate_of_the_readme()
        .replace("/var/log/portico/access.log", log.to_str().unwrap())
        .replace("/var/lib/portico-edge/admin.sock", folder.join("admin.sock").to_str().unwrap())
        .replace("portico adm", &format!("{} {}", id("-un"), id("-gn")));
    assert_eq!(text.matches(folder.to_str().unwrap()).count(), 2, "{text}");
    fs::write(&rules, text).unwrap();
    let visitors = Visitors::start(edge.https());
    for _ in 0..3 {
        visitors.go_on();
        let rotated = Command::new(program)
            .args(["--verbose", "--force", "--state"])
            .args([&state, &rules])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&rotated.stderr);
        assert!(rotated.status.success() && !said.contains("error"), "{said}");
        assert!(log.exists());
    }
    visitors.go_on();
    let asked = visitors.end();
    let packed = fs::read_dir(log.parent().unwrap()).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        path.extension().is_some_and(|extension| extension == "gz").then_some(path)
    });
    assert_eq!(packed.count(), 2, "all but the youngest are compressed");
    end(&mut edge);
    assert_eq!(assert_complete(log.parent().unwrap(), &asked), 4);
}

#[test]
fn a_full_disk_holds_up_no_request_and_each_line_is_written_or_counted() {
    let folder = prepare();
    let log = folder.path().join("access.log");
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let edge = Running::start(folder, "auto");
    let mut sent = 0;
    let ask = |count: usize| {
        let mut client = plain(edge.addresses[1]);
        let turns = count.div_ceil(20);
        for _ in 0..turns {
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(20));
            for _ in 0..20 {
                assert_eq!(client.answer().status, 301);
            }
        }
        turns * 20
    };
    for _ in 0..2 {
        sent += ask(ACCESS_LOG_QUEUE);
    }
    let dropped = || edge.metric("portico_edge_access_log_dropped_total");
    let written = || edge.metric("portico_edge_access_log_lines_total");
    assert!(dropped() > 0.0 && written() == 0.0);
    assert!(edge.later.try_iter().chain(edge.log.clone()).any(|line| line.contains("cannot be written")));

    // Room again: what was held is written, and so is what comes.
    fs::remove_file(&log).unwrap();
    let (status, answer) = edge.admin("POST", "/v1/access-log/reopen", "");
    assert_eq!(status, 200, "{answer}");
    sent += ask(100);
    let all = sent as f64;
    wait_until("each line is written or counted", || written() + dropped() == all);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    let lines = text.lines().count() as f64;
    assert_eq!(lines, written());
    assert!(lines > 100.0, "{lines}");
    // No more was held than the queue and one batch.
    let shortest = text.lines().map(str::len).min().unwrap();
    let held = ACCESS_LOG_QUEUE + ACCESS_LOG_BATCH_BYTES / shortest + 1;
    assert!(text.lines().count() <= held + 100, "{lines} of {held}");
}

#[test]
fn a_log_that_cannot_be_opened_again_goes_on_where_it_was() {
    let edge = start("auto");
    let log = log(&edge);
    let moved = log.with_extension("log.1");
    fs::rename(&log, &moved).unwrap();
    fs::create_dir(&log).unwrap();
    let (status, answer) = edge.admin("POST", "/v1/access-log/reopen", "");
    assert_eq!((status, &answer["code"]), (500, &"NotReopened".into()), "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("still go to the file"), "{answer}");
    assert_eq!(https(edge.https(), HOST).get(HOST, "/after").status, 200);
    wait_until("its line is in the old file", || fs::read_to_string(&moved).unwrap().contains("/after"));
}

#[test]
fn an_order_that_a_stuck_writer_does_not_follow_in_time_says_so() {
    let folder = prepare();
    let pipe = folder.path().join("access.log");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let edge = Running::start(folder, "auto");
    // More than a pipe holds, so the writer is in the middle of a write.
    let mut client = plain(edge.addresses[1]);
    for _ in 0..50 {
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(20));
        for _ in 0..20 {
            assert_eq!(client.answer().status, 301);
        }
    }
    // ACCESS_LOG_REOPEN_DEADLINE passes, and the edge's other surfaces answer meanwhile.
    let socket = edge.folder.path().join("admin.sock");
    let ordered = std::thread::spawn(move || admin(&socket, "POST", "/v1/access-log/reopen", ""));
    assert_eq!(edge.metrics("/healthz").0, 200);
    let ordered = ordered.join().unwrap();
    assert_eq!((ordered.0, &ordered.1["code"]), (503, &"WriterBusy".into()), "{ordered:?}");
}

#[test]
fn without_a_log_there_is_nothing_to_open_again() {
    let folder = prepare();
    let file = FILE.replace("access_log = \"access.log\"\n", "");
    fs::write(folder.path().join("edge.toml"), file).unwrap();
    let edge = Running::start(folder, "auto");
    let (status, answer) = edge.admin("POST", "/v1/access-log/reopen", "");
    assert_eq!((status, &answer["code"]), (409, &"NoAccessLog".into()));
    let id = edge.child.id().to_string();
    assert!(Command::new("kill").args(["-USR1", &id]).status().unwrap().success());
    wait_until("the signal is told of", || {
        edge.later.try_iter().any(|line| line.contains("there is no access log"))
    });
    assert_eq!(https(edge.https(), HOST).get(HOST, "/").status, 200);
}
