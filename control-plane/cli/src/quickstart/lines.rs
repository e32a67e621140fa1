//! The lines that are printed: each works as it is in a shell, and each says what has to come back.

use std::time::Duration;

use super::addresses::Addresses;
use super::folder::{self, Folder};
use super::onboarding::{self, BROKEN, Onboarded, TENANTS};
use super::{shell_path, shell_program};
use crate::output::{self, Colour, line};
use crate::shell::shell_word;

/// A command with what it shows.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) about: &'static str,
    /// For a shell.
    pub(super) command: String,
    pub(super) ask: Ask,
    pub(super) expect: Expect,
}

/// What the command asks, for whoever has no curl.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Https {
        name: String,
        edge: usize,
        path: &'static str,
    },
    Http {
        name: String,
        edge: usize,
        path: &'static str,
    },
    /// `portico` itself.
    Portico,
}

/// What has to come back.
#[derive(Clone, Debug)]
pub(super) enum Expect {
    /// An HTTP answer with this status, this `location`, and a body that holds these texts.
    Answer { status: u16, location: Option<String>, body: Vec<String> },
    /// Exit code 0 and an output that holds these texts.
    Output(Vec<String>),
}

pub(super) fn lines(folder: &Folder, addresses: &Addresses) -> Vec<Line> {
    let mut lines = site_lines(folder, addresses);
    lines.extend(operator_lines(folder, addresses));
    lines
}

fn site_lines(folder: &Folder, addresses: &Addresses) -> Vec<Line> {
    let port = addresses.https_port;
    let page = |tenant: &str, name: &str| Expect::Answer {
        status: 200,
        location: None,
        body: vec![format!("origin of {tenant}"), format!("host: {name}")],
    };
    let redirect =
        |status, location: String| Expect::Answer { status, location: Some(location), body: Vec::new() };
    let https = |about, name: &str, edge: usize, path, expect| Line {
        about,
        command: https_command(folder, addresses, name, edge, path),
        ask: Ask::Https { name: name.to_owned(), edge, path },
        expect,
    };
    let [tulip, harbour] = TENANTS;
    let (boat, deep) = (onboarding::shared_name(7), "preview-42.apps.tulip.test");
    vec![
        https(
            "a proxied site, by the first edge",
            "www.tulip.test",
            0,
            "/hello",
            page(tulip, "www.tulip.test"),
        ),
        https("the same by the second edge", "www.tulip.test", 1, "/hello", page(tulip, "www.tulip.test")),
        https(
            "a redirect",
            "old.tulip.test",
            0,
            "/page?x=1",
            redirect(308, format!("https://tulip.test:{port}/page?x=1")),
        ),
        Line {
            about: "plain http goes to https",
            command: http_command(addresses, "tulip.test", 1, "/"),
            ask: Ask::Http { name: "tulip.test".to_owned(), edge: 1, path: "/" },
            expect: redirect(301, format!("https://tulip.test:{port}/")),
        },
        https(
            "a name under a wildcard, issued by a delegated DNS challenge",
            deep,
            1,
            "/",
            page(tulip, deep),
        ),
        https(
            "one of 40 names of a tenant that lets its names share certificates",
            &boat,
            0,
            "/",
            page(harbour, &boat),
        ),
    ]
}

fn operator_lines(folder: &Folder, addresses: &Addresses) -> Vec<Line> {
    let portico = |about, arguments: &str, texts: &[&str]| Line {
        about,
        command: format!("{} --context {} {arguments}", program(), shell_path(folder.path())),
        ask: Ask::Portico,
        expect: Expect::Output(texts.iter().map(|text| (*text).to_owned()).collect()),
    };
    let boat = onboarding::shared_name(7);
    let add = format!(
        "domain add blog.test --tenant {} --proxy http://{} --publish-records --wait",
        TENANTS[0], addresses.origins[0]
    );
    vec![
        portico(
            "which certificates there are, and who shares them",
            "cert list",
            &["tulip.test", "and 24 more"],
        ),
        portico(
            "spot check of both edges; a redirect is reported, not followed",
            &format!("check www.tulip.test old.tulip.test {boat}"),
            &["www.tulip.test", "trusted", "not followed", "6 checks, 0 with something wrong"],
        ),
        portico(
            "a name that cannot be validated: what is wrong, and whose turn it is",
            &format!("domain show {BROKEN}"),
            &[BROKEN, "next "],
        ),
        portico("your own name: claimed, proved by TXT, issued, served", &add, &["blog.test", "active"]),
        portico("the edges, and how far each has followed", "edge list", &["current"]),
        portico("try a site before its DNS moves", "preview www.tulip.test", &["www.tulip.test", "curl"]),
        portico(
            "lines for the server that serves a site today, so that the edge gets its certificate first",
            "shadow www.tulip.test --print nginx",
            &["location ^~ /.well-known/acme-challenge/", "proxy_pass http://"],
        ),
    ]
}

fn https_command(folder: &Folder, addresses: &Addresses, name: &str, edge: usize, path: &str) -> String {
    let (port, ip) = (addresses.https_port, addresses.edges[edge]);
    let root = shell_path(&folder.file(folder::ROOT));
    let url = shell_word(&format!("https://{name}:{port}{path}"));
    format!("curl -sSi --cacert {root} --resolve {name}:{port}:{ip} {url}")
}

fn http_command(addresses: &Addresses, name: &str, edge: usize, path: &str) -> String {
    let (port, ip) = (addresses.http_port, addresses.edges[edge]);
    format!("curl -sSi --resolve {name}:{port}:{ip} http://{name}:{port}{path}")
}

/// This program as a word of a shell command.
fn program() -> String {
    std::env::current_exe().map_or_else(|_| "portico".to_owned(), |path| shell_program(&path))
}

pub(super) fn print(
    lines: &[Line],
    folder: &Folder,
    addresses: &Addresses,
    onboarded: &Onboarded,
    took: Duration,
) {
    let bold = |text: &str| output::paint(text, Colour::Bold);
    line(bold(&format!(
        "Portico runs: {} domains of 2 tenants, {} active with {} certificates on {} edges; ready in {:.1} s",
        onboarded.domains,
        onboarded.active,
        onboarded.certificates,
        addresses.edges.len(),
        took.as_secs_f64()
    )));
    line(format!("All files are in {}. Ctrl-C ends everything.\n", shell_path(folder.path())));
    for each in lines {
        line(format!("# {}\n{}", each.about, each.command));
    }
    let file = |name: &str| shell_path(&folder.file(name));
    line(format!("\n{}", bold("Where to look next")));
    line(format!(
        "  the API       http://{}/v1/openapi.json, with the token in {}",
        addresses.api,
        file(folder::TOKEN)
    ));
    line(format!(
        "  settings      {} {}",
        file(super::configuration::CONTROL_PLANE),
        file("edge-1/edge.toml")
    ));
    line(format!("  logs          {} {}", file("logs"), file("edge-1/access.log")));
    line(format!("  metrics       http://{}/metrics", addresses.edge_metrics(0)));
    line(format!("  what the CA did   http://{}/stats", addresses.ca_management));
}
