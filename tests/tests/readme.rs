//! What the README shows is accepted as it is: its configuration files are checked by the services that read them, and its
//! command lines are commands with those options.

#![expect(clippy::unwrap_used, reason = "set-up fails the test")]

use std::process::{Command, Output};

use portico_tests::binary;

const README: &str = include_str!("../../README.md");

fn portico(args: &[&str]) -> Output {
    Command::new(binary("portico")).args(args).output().unwrap()
}

#[test]
fn configuration_files_in_the_readme_are_good() {
    let blocks: Vec<&str> =
        README.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert_eq!(blocks.len(), 3, "one for the control plane, two for edges");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("portico.toml");
    // The third names a certificate, which `--check` reads.
    let default = rcgen::generate_simple_self_signed(["www.example.net".to_owned()]).unwrap();
    std::fs::create_dir(folder.path().join("certificates")).unwrap();
    let pem = default.cert.pem() + &default.signing_key.serialize_pem();
    std::fs::write(folder.path().join("certificates/default.pem"), pem).unwrap();
    // The log's folder and the join token are there on an operator's machine.
    let place = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("join-token"), format!("pjt_1_secret_{}", "0".repeat(64))).unwrap();
    for block in blocks {
        let block = block
            .replace("/var/log/portico", place)
            .replace("/etc/portico/join-token", &format!("{place}/join-token"));
        std::fs::write(&file, &block).unwrap();
        let service = if block.contains("[[listen]]") { "edge" } else { "control-plane" };
        let checked = portico(&[service, "run", "--check", "--config", file.to_str().unwrap()]);
        assert!(checked.status.success(), "{block}\n{}", String::from_utf8_lossy(&checked.stderr));
    }
}

/// The one request of the API that the README spells out.
#[test]
fn the_routes_that_the_readme_patches_are_routes() {
    let (_, rest) = README.split_once("-d '{\"routes\"").unwrap();
    let text = format!("{{\"routes\"{}", rest.split_once('\'').unwrap().0);
    let mut patch: serde_json::Value = serde_json::from_str(&text).unwrap();
    let routes: Vec<portico_api::v1::Route> = serde_json::from_value(patch["routes"].take()).unwrap();
    let portico_api::v1::Action::Proxy(proxy) = &routes[0].action else { panic!("{routes:?}") };
    assert_eq!((proxy.origins.len(), portico_api::rule::proxy_faults(proxy)), (2, vec![]));
}

#[test]
fn commands_in_the_readme_exist_with_their_options() {
    let lines = README.lines().filter_map(|line| line.strip_prefix("    portico "));
    let mut seen = 0;
    for line in lines {
        let line = line.split('#').next().unwrap();
        let is_name = |word: &&str| {
            !word.starts_with('-') && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        };
        let mut args: Vec<&str> = line.split_whitespace().take_while(is_name).take(2).collect();
        args.push("--help");
        let output = portico(&args);
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        for option in line.split(' ').filter(|word| word.starts_with("--")) {
            assert!(
                help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")),
                "{line}: {option}\n{help}"
            );
        }
        seen += 1;
    }
    assert!(seen >= 5, "only {seen} command lines found");
}
