//! The walls between the crates (who may depend on whom), the one crypto library, and what makes
//! `cargo run --release -- quickstart` work from the root, all read from `cargo metadata`.

use std::collections::{BTreeSet, HashMap};
use std::process::Command;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .other_options([
            "--locked".to_owned(),
            format!("--filter-platform={}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .exec()
        .expect("cargo metadata runs")
}

fn package<'m>(metadata: &'m Metadata, name: &str) -> &'m Package {
    metadata.packages.iter().find(|p| p.name.as_str() == name).unwrap_or_else(|| panic!("no package {name}"))
}

/// The names of what `name` depends on directly, without its dev-dependencies.
fn direct(metadata: &Metadata, name: &str) -> BTreeSet<String> {
    package(metadata, name)
        .dependencies
        .iter()
        .filter(|d| d.kind != DependencyKind::Development)
        .map(|d| d.name.to_string())
        .collect()
}

/// All packages that `roots` reach through edges that are built into products (no dev-dependencies).
fn reached(metadata: &Metadata, roots: &[&str]) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("metadata is resolved");
    let names: HashMap<&PackageId, &str> =
        metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let nodes: HashMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let mut open: Vec<&PackageId> = roots.iter().map(|name| &package(metadata, name).id).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(names[id].to_owned()) {
            continue;
        }
        for dependency in &nodes[id].deps {
            if dependency.dep_kinds.iter().any(|k| k.kind != DependencyKind::Development) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen
}

fn members(metadata: &Metadata) -> Vec<String> {
    metadata.workspace_packages().iter().map(|p| p.name.to_string()).collect()
}

#[test]
fn edge_and_control_plane_never_depend_on_each_other() {
    let metadata = metadata();
    assert!(!reached(&metadata, &["portico-edge"]).contains("portico-control-plane"));
    assert!(!reached(&metadata, &["portico-control-plane"]).contains("portico-edge"));
}

#[test]
fn only_the_operators_binary_joins_both_services() {
    let metadata = metadata();
    let joining: Vec<String> = members(&metadata)
        .into_iter()
        .filter(|m| {
            let direct = direct(&metadata, m);
            direct.contains("portico-edge") && direct.contains("portico-control-plane")
        })
        .collect();
    assert_eq!(joining, ["portico-cli"]);
}

#[test]
fn the_bottom_crate_knows_no_network_and_no_other_member() {
    let metadata = metadata();
    let reached = reached(&metadata, &["portico-cert-store"]);
    for absent in ["tokio", "hyper", "axum", "sqlx", "tonic", "prost", "portico-api", "portico-edge"] {
        assert!(!reached.contains(absent), "cert-store reaches {absent}");
    }
}

#[test]
fn the_test_ca_shares_nothing_with_the_product() {
    let metadata = metadata();
    let package = package(&metadata, "portico-acme-ca");
    let ours: Vec<_> = package.dependencies.iter().filter(|d| d.name.starts_with("portico-")).collect();
    // Its tests may reserve ports by the crate that has nothing else.
    assert!(
        ours.iter().all(|d| d.name == "portico-ports" && d.kind == DependencyKind::Development),
        "acme-ca depends on {ours:?}"
    );
    assert!(direct(&metadata, "portico-ports").is_empty(), "portico-ports brings something along");
    for service in
        ["portico-edge", "portico-control-plane", "portico-api", "portico-prober", "portico-cert-store"]
    {
        assert!(!direct(&metadata, service).contains("portico-acme-ca"), "{service} depends on the test CA");
    }
}

#[test]
fn the_cli_holds_the_test_ca_only_through_its_default_feature() {
    let metadata = metadata();
    let cli = package(&metadata, "portico-cli");
    let ca =
        cli.dependencies.iter().find(|d| d.name == "portico-acme-ca").expect("quickstart uses the test CA");
    assert!(ca.optional);
    assert_eq!(cli.features["default"], ["quickstart"]);
    assert_eq!(cli.features["quickstart"], ["dep:portico-acme-ca"]);
}

#[test]
fn named_libraries_stay_in_their_crates() {
    let metadata = metadata();
    for (library, holders) in [
        ("tokio-uring", vec!["portico-edge"]),
        ("io-uring", vec!["portico-edge"]),
        ("sqlx", vec!["portico-control-plane"]),
        ("hickory-server", vec!["portico-acme-ca", "portico-control-plane"]),
    ] {
        let found: Vec<String> =
            members(&metadata).into_iter().filter(|m| direct(&metadata, m).contains(library)).collect();
        assert_eq!(found, holders, "who depends on {library}");
    }
    let acme: Vec<String> =
        members(&metadata).into_iter().filter(|m| direct(&metadata, m).contains("instant-acme")).collect();
    assert!(acme.iter().all(|m| m == "portico-control-plane"), "{acme:?}");
}

#[test]
fn one_crypto_library_is_built_into_everything() {
    // `cargo tree` knows which optional dependencies are really switched on; metadata lists them all.
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--locked",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("package names are UTF-8");
    let built: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(built.contains("aws-lc-rs") && built.contains("rustls"));
    for banned in
        ["ring", "openssl", "openssl-sys", "native-tls", "boring", "mbedtls", "h3-quinn", "rustls-pemfile"]
    {
        assert!(!built.contains(banned), "{banned} is built in");
    }
}

#[test]
fn cargo_run_finds_the_operators_binary() {
    let metadata = metadata();
    let with_default_run: Vec<_> =
        metadata.workspace_packages().into_iter().filter(|p| p.default_run.is_some()).collect();
    assert_eq!(with_default_run.len(), 1);
    assert_eq!(with_default_run[0].name.as_str(), "portico-cli");
    assert_eq!(with_default_run[0].default_run.as_deref(), Some("portico"));
    let defaults: Vec<_> = metadata.workspace_default_packages().iter().map(|p| p.name.to_string()).collect();
    assert!(defaults.contains(&"portico-cli".to_owned()), "{defaults:?}");
}
