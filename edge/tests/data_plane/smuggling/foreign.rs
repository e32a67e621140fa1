//! What the edge lets through, as other people's servers read it: each message is exactly one for nginx, Apache and Caddy too.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::pairs::{self, Pair};
use super::{HOST, plain_edge};
use crate::client::plain;
use crate::harness::{Setup, TestEdge, proxy_to, wait_until};

/// How one is started, and what its log looks like: method, target and status, one request a line.
struct Server {
    name: &'static str,
    program: &'static str,
    package: &'static str,
    config: fn(&Path, u16) -> String,
    arguments: fn(&Path) -> Vec<String>,
    /// A line of its log.
    read: fn(&str) -> Option<(String, String, u16)>,
}

const SERVERS: [Server; 3] = [
    Server {
        name: "nginx",
        program: "/usr/sbin/nginx",
        package: "nginx-light",
        config: nginx,
        arguments: |at| {
            vec!["-c".into(), format!("{}/server.conf", at.display()), "-p".into(), at.display().to_string()]
        },
        read: words,
    },
    Server {
        name: "Apache",
        program: "/usr/sbin/apache2",
        package: "apache2-bin",
        config: apache,
        arguments: |at| vec!["-f".into(), format!("{}/server.conf", at.display()), "-DFOREGROUND".into()],
        read: words,
    },
    Server {
        name: "Caddy",
        program: "/usr/bin/caddy",
        package: "caddy",
        config: caddy,
        arguments: |at| {
            let file = format!("{}/server.conf", at.display());
            ["run", "--adapter", "caddyfile", "--config"]
                .map(str::to_owned)
                .into_iter()
                .chain([file])
                .collect()
        },
        read: of_json,
    },
];

fn nginx(at: &Path, port: u16) -> String {
    let at = at.display();
    format!(
        "daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nworker_processes 1;\nevents {{ worker_connections 256; }}\n\
         http {{\nlog_format short '$request_method $request_uri $status';\naccess_log {at}/access.log short;\n\
         client_body_temp_path {at}/b;\nproxy_temp_path {at}/p;\nfastcgi_temp_path {at}/f;\nuwsgi_temp_path {at}/u;\n\
         scgi_temp_path {at}/s;\nmerge_slashes off;\nserver {{ listen 127.0.0.1:{port}; location / {{ return 200 ok; }} }}\n}}\n"
    )
}

fn apache(at: &Path, port: u16) -> String {
    let modules = ["mpm_event", "authz_core"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let at = at.display();
    format!(
        "ServerRoot {at}\nPidFile {at}/pid\nErrorLog {at}/error.log\nMutex file:{at}\nServerName {HOST}\nUser nobody\n\
         Group nogroup\n{modules}Listen 127.0.0.1:{port}\nDocumentRoot {at}/nothing\nErrorDocument 404 ok\nErrorDocument 405 ok\n\
         LogFormat \"%r %>s\" short\nCustomLog {at}/access.log short\n"
    )
}

fn caddy(at: &Path, port: u16) -> String {
    let at = at.display();
    format!(
        "{{\n    admin off\n    auto_https off\n}}\nhttp://:{port} {{\n    bind 127.0.0.1\n    log {{\n        output file {at}/access.log\n    }}\n    respond ok\n}}\n"
    )
}

fn words(line: &str) -> Option<(String, String, u16)> {
    let words: Vec<&str> = line.split(' ').collect();
    let (method, target, status) = (words.first()?, words.get(1)?, words.last()?);
    Some(((*method).to_owned(), (*target).to_owned(), status.parse().ok()?))
}

fn of_json(line: &str) -> Option<(String, String, u16)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let request = line.get("request")?;
    let text = |name: &str| Some(request.get(name)?.as_str()?.to_owned());
    Some((text("method")?, text("uri")?, u16::try_from(line.get("status")?.as_u64()?).ok()?))
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// With what it has seen, and nothing yet.
    fn start(&self, at: &Path, port: u16) -> Running {
        fs::create_dir_all(at.join("nothing")).unwrap();
        fs::write(at.join("server.conf"), (self.config)(at, port)).unwrap();
        let child = Command::new(self.program)
            .args((self.arguments)(at))
            .envs(["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|name| (name, at)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let running = Running(child);
        wait_until("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        running
    }

    fn seen(&self, at: &Path) -> Vec<(String, String, u16)> {
        let text = fs::read_to_string(at.join("access.log")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| (self.read)(line).unwrap_or_else(|| panic!("{}: {line:?}", self.name)))
            .collect()
    }
}

fn check(server: &Server, pairs: &[Pair]) {
    let folder = tempfile::tempdir().unwrap();
    let port = portico_ports::reserve().port();
    let _running = server.start(folder.path(), port);
    let mut edge = TestEdge::with(
        portico_edge::io::choose(portico_edge::io::IoChoice::Auto).unwrap().0,
        Setup::default(),
    );
    plain_edge(&mut edge, &[("127.0.0.0/8", port)], proxy_to(&format!("http://127.0.0.1:{port}")));
    let mut wanted = Vec::new();
    for pair in pairs {
        let Some((method, path, _)) = &pair.wanted else { continue };
        let statuses = pairs::statuses(&edge, pair);
        wanted.push(((*method).to_owned(), path.clone()));
        if statuses.get(1) != Some(&400) {
            wanted.push((String::new(), format!("/end-{}", pair.number)));
        }
        // Not 400: what it thinks of a method is its own affair.
        assert!(
            statuses.first().is_some_and(|&status| status != 400 && status != 502),
            "{}: {:?} was answered {statuses:?}",
            server.name,
            pair.bytes
        );
    }
    plain(edge.http).get(HOST, "/last");
    wanted.push(("GET".to_owned(), "/last".to_owned()));
    let count = || server.seen(folder.path()).len();
    wait_until("all of it is in its log", || count() >= wanted.len());
    let mut seen: Vec<_> = server
        .seen(folder.path())
        .into_iter()
        .map(|(method, target, status)| {
            assert_ne!(status, 400, "{}: {method} {target}", server.name);
            // Its method may have become a longer one.
            (if target.starts_with("/end-") { String::new() } else { method }, target)
        })
        .collect();
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted, "{}", server.name);
}

#[test]
fn other_servers_read_what_is_let_through_as_exactly_those_messages() {
    let pairs = pairs::all();
    for server in SERVERS {
        if Path::new(server.program).exists() {
            check(&server, &pairs);
        } else {
            portico_skipping::skipped(&format!(
                "{} is not installed (apt-get install {})",
                server.name, server.package
            ));
        }
    }
}
