use portico_api::distribution::Resource;

use super::*;

/// A chunk of so many bytes, once encoded.
fn chunk(bytes: usize) -> SnapshotChunk {
    let mut resource = Resource { id: "id".to_owned(), ..Resource::default() };
    resource.body = vec![0; bytes].into();
    let more = resource.encoded_len() - bytes;
    resource.body = vec![0; bytes - more].into();
    assert_eq!(resource.encoded_len(), bytes);
    SnapshotChunk { resources: vec![resource] }
}

#[test]
fn a_snapshot_takes_no_more_than_its_bytes() {
    let mut incoming = Incoming::begin(&SnapshotBegin { resources: 100, ..SnapshotBegin::default() });
    // As if all the others had come already: this is about the last ones.
    incoming.bytes = limits::SNAPSHOT_BYTES_MAX - 2000;
    incoming.chunk(chunk(1000));
    incoming.chunk(chunk(1000));
    assert!(incoming.fault.is_none() && incoming.resources.len() == 2, "up to the bound it is kept");
    incoming.chunk(chunk(1000));
    assert_eq!(incoming.fault.as_ref().map(|fault| fault.code), Some("SnapshotTooLarge"));
    incoming.chunk(chunk(1000));
    assert!(incoming.resources.is_empty(), "and what comes behind it is not");
    let refused = incoming.end(&SnapshotEnd::default()).expect_err("it is refused whole");
    assert_eq!(refused.fault.code, "SnapshotTooLarge");
}
