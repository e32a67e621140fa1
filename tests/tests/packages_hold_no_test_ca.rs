//! What is shipped is built without the quickstart, and then holds no CA.

use std::process::Command;

#[test]
fn the_operators_binary_without_quickstart_has_no_test_ca() {
    let tree = |features: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--offline",
                "--locked",
                "-p",
                "portico-cli",
                "--edges",
                "normal,build",
                "--prefix",
                "none",
            ])
            .args(features)
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .expect("cargo tree runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("package names are UTF-8")
    };
    assert!(tree(&[]).contains("portico-acme-ca"), "the default build has the quickstart");
    let shipped = tree(&["--no-default-features"]);
    assert!(shipped.contains("portico-edge") && shipped.contains("portico-control-plane"));
    assert!(!shipped.contains("portico-acme-ca"), "{shipped}");
}
