//! systemd as it is: its program that activates by sockets, its notifications, its reading of our units.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::client::{any_version, http2_get, https, https_over};
use crate::harness::{PATIENCE, wait_until};
use crate::http3_client::http3_get;
use crate::process::{EDGE, FILE, Running, command, prepare};
use crate::restart::{Handle, Load, has_ended};
use crate::site_load;

const HOST: &str = "shop.example";
const BODY: &str = "a body from a file";

/// A program of Debian's package systemd; without it the test says that it is skipped.
fn program(name: &str) -> Option<PathBuf> {
    let found = ["/usr/bin", "/bin"]
        .map(|folder| Path::new(folder).join(name))
        .into_iter()
        .find(|path| path.exists());
    if found.is_none() {
        portico_skipping::skipped(&format!("{name} is not installed (Debian package systemd)"));
    }
    found
}

/// An edge's file with that address over TCP and UDP.
fn activatable(folder: &tempfile::TempDir, address: SocketAddr, routes: &str) {
    let file = FILE.replacen("kind = \"https\"", "kind = \"https\"\nhttp3 = true", 1);
    let file = file.replacen("127.0.0.1:0\"\nkind", &format!("{address}\"\nkind"), 1);
    std::fs::write(folder.path().join("edge.toml"), file + routes).unwrap();
}

/// One such program listens on one kind of socket; the second passes on what it got from the first.
fn activating(activate: &Path, folder: &tempfile::TempDir, address: SocketAddr) -> Command {
    let mut activating = Command::new(activate);
    activating.args(["--listen", &address.to_string()]).arg(activate);
    activating.args(["--datagram", "--listen", &address.to_string(), EDGE, "--config"]);
    activating.arg(folder.path().join("edge.toml")).stdin(Stdio::null()).stderr(Stdio::piped());
    activating
}

#[test]
fn systemds_own_program_starts_the_edge_with_the_first_visitor() {
    let Some(activate) = program("systemd-socket-activate") else { return };
    let (address, folder) = (portico_ports::reserve(), prepare());
    activatable(&folder, address, "");
    let child = activating(&activate, &folder, address).spawn().unwrap();
    let first = std::thread::spawn(move || {
        let connected = std::cell::RefCell::new(None);
        wait_until("somebody listens", || {
            *connected.borrow_mut() = TcpStream::connect(address).ok();
            connected.borrow().is_some()
        });
        let stream = connected.take().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = https_over(stream, Some(HOST), any_version(&["http/1.1"])).unwrap();
        client.get(HOST, "/").text()
    });
    let mut edge = Running::watch(child, folder);
    assert_eq!(first.join().unwrap(), BODY, "whoever came first has waited for the edge and is served");
    assert!(edge.addresses.contains(&address), "{:?}", edge.addresses);
    for _ in 0..10 {
        assert_eq!(https(address, HOST).get(HOST, "/").text(), BODY);
        assert_eq!(http2_get(address, Some(HOST), HOST, "/").unwrap().text(), BODY);
        assert_eq!(http3_get(address, Some(HOST), HOST, "/"), Ok(200));
    }
    edge.terminate();
    assert!(edge.child.wait().unwrap().success());
    assert!(TcpStream::connect(address).is_err(), "nobody but the edge had the socket");
}

/// The sockets of a service manager go from process to process like any others.
#[test]
fn an_edge_of_systemds_program_is_restarted_under_load() {
    let Some(activate) = program("systemd-socket-activate") else { return };
    let (address, folder, origin) = (portico_ports::reserve(), prepare(), site_load::origin());
    activatable(&folder, address, &site_load::routes(&origin));
    let child = activating(&activate, &folder, address).spawn().unwrap();
    let first = std::thread::spawn(move || {
        wait_until("somebody listens", || TcpStream::connect(address).is_ok());
    });
    let edge = Running::watch(child, folder);
    first.join().unwrap();
    let handle = Handle { socket: edge.folder.path().join("admin.sock") };
    let load = Load::of_a_site(address);
    let mut processes = vec![handle.process()];
    for _ in 0..3 {
        processes.push(handle.restart());
    }
    load.end();
    let (last, before) = processes.split_last().unwrap();
    for process in before {
        wait_until("each predecessor ends", || has_ended(*process));
    }
    assert_eq!(https(address, HOST).get(HOST, "/").text(), BODY);
    signal("TERM", *last);
    // A ring's sockets are taken apart a moment after its process.
    wait_until("nobody but the edges had the socket", || TcpStream::connect(address).is_err());
}

/// The service manager's end: what it is told.
struct Told {
    socket: UnixDatagram,
}

impl Told {
    fn bind(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    fn next(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("it is told something");
        String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect()
    }
}

fn signal(name: &str, process: u64) {
    assert!(Command::new("kill").args([format!("-{name}"), process.to_string()]).status().unwrap().success());
}

#[test]
fn the_service_manager_is_told_of_start_reload_successor_and_end() {
    let folder = prepare();
    let path = folder.path().join("notify.sock");
    let told = Told::bind(&path);
    let child = command(folder.path(), "auto").env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let edge = Running::watch(child, folder);
    assert_eq!(told.next(), ["READY=1"]);
    let process = || edge.admin("GET", "/v1/status", "").1["process"].as_u64().unwrap();
    let first = process();

    // A successor that does not get far: the reload has begun, and has ended with the edge that there was.
    let file = edge.folder.path().join("edge.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replace("workers", "wrokers")).unwrap();
    signal("USR2", first);
    let reloading = told.next();
    assert!(reloading[0] == "RELOADING=1" && reloading[1].starts_with("MONOTONIC_USEC="), "{reloading:?}");
    assert!(reloading[1].trim_start_matches("MONOTONIC_USEC=").parse::<u64>().unwrap() > 0);
    assert_eq!(told.next(), ["READY=1"]);
    assert_eq!(process(), first);

    std::fs::write(&file, good).unwrap();
    signal("USR2", first);
    assert_eq!(told.next()[0], "RELOADING=1");
    // Two processes tell it; which is first does not matter.
    let mut both = [told.next().concat(), told.next().concat()];
    both.sort();
    wait_until("the successor has the admin socket", || process() != first);
    let second = process();
    assert_eq!(both, [format!("MAINPID={second}"), "READY=1".to_owned()]);

    // Only the end of the last one is the end.
    signal("TERM", second);
    assert_eq!(told.next(), ["STOPPING=1"]);
}

/// The units that the README shows: name, text.
fn units() -> Vec<(String, String)> {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```ini\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let unit = |text: &str| {
        let kind = if text.contains("[Socket]") { "socket" } else { "service" };
        (format!("portico-edge.{kind}"), text.replace("/usr/local/bin/portico", EDGE))
    };
    blocks.map(unit).collect()
}

fn verified(units: &[(String, String)]) -> Option<String> {
    let analyze = program("systemd-analyze")?;
    let folder = tempfile::tempdir().unwrap();
    let mut verify = Command::new(analyze);
    verify.arg("verify").env("SYSTEMD_LOG_LEVEL", "warning");
    for (name, text) in units {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        verify.arg(path);
    }
    let output = verify.output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn systemd_reads_the_units_of_the_readme_without_a_complaint() {
    let units = units();
    let names: Vec<_> = units.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["portico-edge.service", "portico-edge.socket"]);
    let Some(said) = verified(&units) else { return };
    assert_eq!(said.trim(), "");
    // And it would complain.
    let spoilt: Vec<_> =
        units.iter().map(|(name, text)| (name.clone(), text.replace("=all", "=all # x"))).collect();
    assert!(verified(&spoilt).unwrap().contains("notify access"));
}
