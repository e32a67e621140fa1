//! What the services say of a file that cannot be used, as `portico` prints it.

use crate::plane::{Ended, portico};

fn check(service: &str, file: &std::path::Path) -> Ended {
    let output = portico().args([service, "run", "--check", "--config"]).arg(file).output().unwrap();
    Ended::of(&output)
}

#[test]
fn a_default_certificate_that_is_missing_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    let certificate = folder.path().join("default.pem");
    let text = format!(
        "[certificates]\ndefault = \"{}\"\n[standalone]\nunknown_sni = \"default\"\n[[listen]]\n\
         address = \"127.0.0.1:0\"\nkind = \"https\"\n",
        certificate.display()
    );
    std::fs::write(&file, text).unwrap();
    let ended = check("edge", &file);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.stderr.matches(certificate.to_str().unwrap()).count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("No such file"), "{ended:?}");
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
