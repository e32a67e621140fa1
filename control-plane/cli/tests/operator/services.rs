//! What the services say of a file that cannot be used, as `portico` prints it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::plane::{Ended, portico};

fn check(service: &str, file: &Path) -> Ended {
    let output = portico().args([service, "run", "--check", "--config"]).arg(file).output().unwrap();
    Ended::of(&output)
}

const LISTEN: &str = "[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n";

#[test]
fn a_file_that_the_edges_file_names_and_that_cannot_be_used_is_told_once_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    std::fs::write(folder.path().join("no-token"), "portico edge run --config edge.toml --token pjt_x\n")
        .unwrap();
    let table = [
        ("[certificates]\ndefault = \"gone.pem\"\n", "6:11", "gone.pem", "No such file"),
        ("[certificates]\nfolder = \"gone\"\n", "6:10", "gone", "No such file"),
        ("[certificates]\nlist_file = \"gone.list\"\n", "6:13", "gone.list", "No such file"),
        (
            "[control]\naddress = \"127.0.0.1:1\"\njoin_token_file = \"no-token\"\n",
            "7:19",
            "no-token",
            "behind --token",
        ),
        (
            "[control]\naddress = \"127.0.0.1:1\"\njoin_token_file = \"gone-token\"\n",
            "7:19",
            "gone-token",
            "has not joined a fleet yet",
        ),
    ];
    for (section, place, named, problem) in table {
        std::fs::write(&file, format!("state = \"state\"\n{LISTEN}{section}")).unwrap();
        let ended = check("edge", &file);
        assert_eq!(ended.code, 1, "{ended:?}");
        let path = folder.path().join(named);
        assert_eq!(ended.stderr.matches(path.to_str().unwrap()).count(), 1, "{ended:?}");
        assert!(ended.stderr.contains(&format!("edge.toml:{place}: ")), "{ended:?}");
        assert!(ended.stderr.contains(problem), "{ended:?}");
    }
}

#[test]
fn a_route_of_a_host_without_a_certificate_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    let route = "[[route]]\nhost = \"shop.example\"\nstatic_body = \"x\"\n";
    std::fs::write(&file, format!("{LISTEN}{route}")).unwrap();
    let ended = check("edge", &file);
    assert_eq!(ended.code, 0, "{ended:?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("shop.example") && said.contains("has no certificate"), "{ended:?}");
}

#[test]
fn a_value_of_the_control_planes_file_is_named_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("control-plane.toml");
    let text = "data = \"/d\"\napi = \"127.0.0.1:7070\"\ndistribution = \"127.0.0.1:7443\"\n[renewal]\nshare = 7.5\n";
    std::fs::write(&file, text).unwrap();
    let ended = check("control-plane", &file);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("control-plane.toml:5:9: renewal.share"), "{ended:?}");
}

/// A control plane in a process of its own.
struct Service {
    child: Child,
    api: String,
}

impl Service {
    fn start(file: &Path, flags: &[&str]) -> Self {
        let mut command = portico();
        command.args(["control-plane", "run", "--config"]).arg(file).args(flags);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = lines.by_ref().map(Result::unwrap).find(|line| line.contains(" ready"));
        let ready = ready.expect("it ended before it was ready");
        let api = ready.split_whitespace().find_map(|word| word.strip_prefix("api=")).unwrap().to_owned();
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, api }
    }

    fn is_good(&self, token: &str) -> bool {
        let mut command = portico();
        command
            .args(["--api", &format!("http://{}", self.api), "tenant", "list"])
            .env("PORTICO_TOKEN", token);
        command.output().unwrap().status.success()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn an_operator_who_has_lost_every_token_gets_another_at_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let file = at.join("control-plane.toml");
    let text = format!(
        "data = \"{0}/data\"\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\n\
         key_encryption_key_file = \"{0}/kek\"\noperator_token_file = \"{0}/operator\"\n\
         [dns]\nresolvers = [\"127.0.0.1:1\"]\n[fleet]\npublic_addresses = [\"127.0.0.11\"]\n",
        at.display()
    );
    std::fs::write(&file, text).unwrap();
    let token = || std::fs::read_to_string(at.join("operator")).unwrap().trim().to_owned();
    let service = Service::start(&file, &["--create-kek"]);
    let lost = token();
    drop(service);

    std::fs::remove_file(at.join("operator")).unwrap();
    let service = Service::start(&file, &[]);
    assert!(!at.join("operator").exists(), "a token file that was put away comes back by itself");
    drop(service);

    let service = Service::start(&file, &["--new-operator-token"]);
    assert_ne!(token(), lost);
    assert!(service.is_good(&token()) && service.is_good(&lost), "the lost one ends by `portico token rm`");
    drop(service);
    // A second time the file is there, and its token is good: nothing is lost, and nothing made.
    let before = token();
    let service = Service::start(&file, &["--new-operator-token"]);
    assert_eq!(token(), before);
    assert!(service.is_good(&before));
}

/// It lives as long as the pipe from its parent does, which no successor has.
#[test]
fn an_edge_of_the_quickstart_says_why_it_has_no_successor() {
    let line = ["--lifeline", "edge", "run", "--config", "edge.toml", "--take-over=/nowhere"];
    let ended = Ended::of(&portico().args(line).output().unwrap());
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("end that (Ctrl-C) and start it again"), "{ended:?}");
}
