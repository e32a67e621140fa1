//! The quickstart as a user runs it: from the command line, with real processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![cfg(feature = "quickstart")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A quickstart folder with addresses of its own, so that several can run side by side.
struct Place {
    folder: tempfile::TempDir,
    flags: Vec<String>,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let third = 64 + u8::try_from(std::process::id() % 128).unwrap();
        let first = 2 * NEXT.fetch_add(1, Ordering::Relaxed) + 11;
        let origin = |n: u8| Ipv4Addr::new(127, 0, third, first + 100 + n);
        let edge = |n: u8| IpAddr::V4(Ipv4Addr::new(127, 0, third, first + n));
        let mut flags = vec!["--edges".to_owned(), format!("{},{}", edge(0), edge(1))];
        flags.extend(["--origins".to_owned(), format!("{},{}", origin(0), origin(1))]);
        let ports = [
            "--api-port",
            "--distribution-port",
            "--responder-port",
            "--dns-port",
            "--dns-management-port",
            "--ca-port",
            "--ca-management-port",
            "--origin-port",
        ];
        // Held until all are chosen, so that no two are the same.
        let mut held = Vec::new();
        for flag in ports {
            let (tcp, udp) = free_port();
            flags.extend([flag.to_owned(), tcp.local_addr().unwrap().port().to_string()]);
            held.push((tcp, udp));
        }
        Self { folder: tempfile::tempdir().unwrap(), flags }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("q")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
        command.arg("quickstart").arg("--dir").arg(self.dir()).args(&self.flags).stdin(Stdio::null());
        command
    }

    /// A quickstart that has printed its lines.
    fn started(&self) -> Started {
        let mut child = self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        while !printed.contains("Where to look next") {
            if output.read_line(&mut printed).unwrap() == 0 {
                let mut error = String::new();
                child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("it ended early:\n{printed}\n{error}");
            }
        }
        let children = pids(&self.dir());
        assert_eq!(children.len(), 6, "control plane, CA, DNS stub, origin, two edges: {children:?}");
        Started { child, children, output }
    }
}

struct Started {
    child: Child,
    children: Vec<Pid>,
    output: BufReader<std::process::ChildStdout>,
}

impl Started {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(), signal).unwrap();
    }

    fn assert_no_child_is_left(&self) {
        wait_until("all children to end", || self.children.iter().all(|pid| !is_running(*pid)));
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn free_port() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (tcp, udp);
        }
    }
}

fn pids(folder: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(folder.join("pids")).unwrap();
    let pid = |line: &str| Pid::from_raw(line.split_once(' ').unwrap().0.parse().unwrap()).unwrap();
    text.lines().map(pid).collect()
}

/// A zombie does not count: it is ended and waits for its parent, which may be the machine's first process.
fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let zombie = stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")));
    test_kill_process(pid).is_ok() && !zombie
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited 15 s for {what}");
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_printed_line_works_and_no_child_is_left() {
    let place = Place::new();
    let output = place.command().arg("--script").output().unwrap();
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("44 names on 2 edges") || printed.contains("45 names on 2 edges"), "{printed}");
    assert!(printed.ends_with("no child is left\n"), "{printed}");
    assert!(!place.dir().join("pids").exists());
    // Nothing of it is anywhere else: the folder's parent holds the folder only.
    assert_eq!(std::fs::read_dir(place.folder.path()).unwrap().count(), 1);
}

#[test]
fn without_curl_the_built_in_client_runs_the_lines_and_says_so() {
    let place = Place::new();
    let bin = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/sh", bin.path().join("sh")).unwrap();
    let output = place.command().arg("--script").env("PATH", bin.path()).output().unwrap();
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("built-in client"), "{printed}");
}

#[test]
fn ctrl_c_ends_all_children_and_a_second_run_in_the_same_folder_works() {
    let place = Place::new();
    for _ in 0..2 {
        let mut started = place.started();
        started.signal(Signal::INT);
        let mut rest = String::new();
        started.output.read_to_string(&mut rest).unwrap();
        let status = started.child.wait().unwrap();
        assert!(status.success(), "{status} {rest}");
        assert!(rest.ends_with("no child is left\n"), "{rest}");
        assert!(started.children.iter().all(|pid| !is_running(*pid)));
    }
}

#[test]
fn a_certificate_is_shown_by_the_name_that_it_serves_and_a_new_route_reaches_the_edges() {
    let place = Place::new();
    let started = place.started();
    let portico = |line: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
        let output = command.arg("--context").arg(place.dir()).args(line).output().unwrap();
        assert!(output.status.success(), "{line:?}: {}", text(&output));
        text(&output)
    };
    // A name of its own, and one that only a wildcard covers.
    for name in ["www.tulip.test", "preview-42.apps.tulip.test"] {
        let shown = portico(&["cert", "show", name]);
        assert!(
            shown.contains("name         *.apps.tulip.test") && shown.contains("BEGIN CERTIFICATE"),
            "{shown}"
        );
    }
    let json = portico(&["-o", "json", "cert", "show", "www.tulip.test"]);
    assert!(json.starts_with("[\n") && json.contains("chain_pem"), "{json}");

    let routed =
        portico(&["domain", "route", "www.tulip.test", "--redirect", "https://moved.example", "--wait"]);
    assert!(routed.contains("redirect 308 to https://moved.example"), "{routed}");
    let checked = portico(&["check", "www.tulip.test", "--path", "/page"]);
    assert_eq!(checked.matches("-> https://moved.example/page (not followed)").count(), 2, "{checked}");
    drop(started);
}

#[test]
fn a_killed_parent_takes_its_children_along() {
    let place = Place::new();
    let started = place.started();
    started.signal(Signal::KILL);
    started.assert_no_child_is_left();
}

#[test]
fn a_running_quickstart_is_left_alone_and_a_taken_port_is_named_with_its_flag() {
    let place = Place::new();
    let started = place.started();
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("already"), "{}", text(&output));

    let other = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    let output = command
        .arg("quickstart")
        .arg("--dir")
        .arg(other.path().join("q"))
        .args(&place.flags)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let printed = text(&output);
    // All that are taken at once, not one a try.
    for part in ["quickstart --dir ", " --api-port ", " --ca-port ", " --origin-port "] {
        assert!(printed.contains(part), "no {part:?} in {printed}");
    }
    assert!(started.children.iter().all(|pid| is_running(*pid)));
}
