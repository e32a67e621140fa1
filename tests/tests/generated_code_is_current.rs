//! The committed Rust code of the distribution protocol is what the committed .proto file says.
//!
//! Users need no `protoc`: this test compiles the file with `protox` and compares. To accept a change of the
//! protocol: `PORTICO_REGENERATE=1 cargo test --release -p portico-tests --test generated_code_is_current`.

use std::path::Path;

#[test]
fn generated_code_matches_the_proto_file() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../control-plane/api"));
    let proto = root.join("proto");
    let committed = root.join("src/distribution/generated.rs");
    let files =
        protox::compile(["portico/distribution/v1.proto"], [&proto]).expect("the proto file compiles");
    let out = tempfile::tempdir().expect("temporary folder");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".")
        .compile_fds(files)
        .expect("code is generated");
    let fresh =
        std::fs::read_to_string(out.path().join("portico.distribution.v1.rs")).expect("generated file");
    if std::env::var_os("PORTICO_REGENERATE").is_some() {
        std::fs::write(&committed, &fresh).expect("write the generated code");
    }
    let present = std::fs::read_to_string(&committed).unwrap_or_default();
    assert!(
        present == fresh,
        "{} is out of date; run this test once with PORTICO_REGENERATE=1 and commit the result",
        committed.display()
    );
}
