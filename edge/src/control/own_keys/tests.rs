use std::os::unix::fs::PermissionsExt as _;

use portico_cert_store::CredentialId;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Bench {
    folder: tempfile::TempDir,
    cell: CellId,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            cell: CellId::parse("cell-a").expect("a cell's name"),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    /// As a start of the edge does.
    fn open(&self) -> OwnKeys {
        OwnKeys::open(&self.path(), &self.cell, &CellKeys::new()).expect("a private folder")
    }

    fn files(&self) -> Vec<String> {
        let mut names = files::names(&self.path()).expect("a folder");
        names.sort_unstable();
        names
    }
}

fn wanted(order: OrderId) -> KeyRequest {
    KeyRequest {
        order_id: order.to_string(),
        names: vec!["shop.test".to_owned(), "*.shop.test".to_owned()],
        key_type: "ecdsa-p256".to_owned(),
    }
}

/// SHA-256 of the public key that a request is signed with, whose names are as wanted.
fn spki_of(request: &[u8]) -> Spki {
    use x509_parser::certification_request::X509CertificationRequest;
    use x509_parser::prelude::FromDer as _;
    let (_, request) = X509CertificationRequest::from_der(request).expect("PKCS#10");
    request.verify_signature().expect("it is signed with its key");
    let spki = request.certification_request_info.subject_pki.raw;
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, spki).as_ref().try_into().expect("32 bytes")
}

fn now() -> Duration {
    planned_at(OrderId::generate())
}

fn seal_context(cell: &CellId, spki_sha256: Spki) -> SealContext<'_> {
    let credential = CredentialId::generate();
    SealContext { cell, epoch: OWN_EPOCH, key_tenant: "operator", credential, spki_sha256 }
}

#[test]
fn an_order_gets_the_same_key_whenever_it_asks_and_another_order_another() {
    let bench = Bench::new();
    let (keys, order) = (bench.open(), OrderId::generate());
    let first = spki_of(&keys.request(&wanted(order)).expect("a request"));
    assert_eq!(spki_of(&keys.request(&wanted(order)).expect("a request")), first);
    let restarted = bench.open();
    assert_eq!(spki_of(&restarted.request(&wanted(order)).expect("a request")), first);
    let other = restarted.request(&wanted(OrderId::generate())).expect("a request");
    assert_ne!(spki_of(&other), first);
    let file = bench.path().join(format!("{}.key", hex::encode(first)));
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(&bench.path())), (0o600, 0o700));
    assert!(restarted.sealed(&seal_context(&bench.cell, first)).is_ok());
}

#[test]
fn a_key_that_cannot_be_read_any_more_gives_its_order_to_another() {
    let bench = Bench::new();
    let (keys, order) = (bench.open(), OrderId::generate());
    let damaged = spki_of(&keys.request(&wanted(order)).expect("a request"));
    files::write_private(&bench.path().join(format!("{}.key", hex::encode(damaged))), b"no key")
        .expect("written");
    let other = spki_of(&keys.request(&wanted(order)).expect("a request"));
    assert_ne!(other, damaged);
    assert_eq!(spki_of(&keys.request(&wanted(order)).expect("a request")), other);
    assert_eq!(bench.files(), [format!("{}.key", hex::encode(other)), format!("{order}.order")]);
    assert_eq!(spki_of(&bench.open().request(&wanted(order)).expect("a request")), other);
}

#[test]
fn a_key_that_cannot_be_told_whose_it_is_is_not_kept() {
    let bench = Bench::new();
    let (keys, order) = (bench.open(), OrderId::generate());
    let obstacle = bench.path().join(format!("{order}.order"));
    std::fs::create_dir(&obstacle).expect("a folder");
    assert_eq!(keys.request(&wanted(order)).expect_err("not written").code, "NotStored");
    assert!(!bench.files().iter().any(|name| name.ends_with(".key")), "{:?}", bench.files());
    std::fs::remove_dir(&obstacle).expect("gone");
    keys.request(&wanted(order)).expect("a request");
}

#[test]
fn what_is_not_made_here_is_refused_and_leaves_nothing() {
    let bench = Bench::new();
    let keys = bench.open();
    let good = wanted(OrderId::generate());
    let many = vec!["a.test".to_owned(); KEY_REQUEST_NAMES_MAX + 1];
    for bad in [
        KeyRequest { order_id: "ord_1/../x".to_owned(), ..good.clone() },
        KeyRequest { names: Vec::new(), ..good.clone() },
        KeyRequest { names: many, ..good.clone() },
        KeyRequest { names: vec!["no name".to_owned()], ..good.clone() },
        KeyRequest { key_type: "rsa4096".to_owned(), ..good.clone() },
        KeyRequest { key_type: String::new(), ..good.clone() },
    ] {
        assert_eq!(keys.request(&bad).expect_err("it is refused").code, "BadKeyRequest", "{bad:?}");
    }
    assert_eq!(bench.files(), Vec::<String>::new());
    let most = KeyRequest { names: vec!["a.test".to_owned(); KEY_REQUEST_NAMES_MAX], ..good };
    keys.request(&most).expect("the bound itself");
}

#[test]
fn a_key_goes_when_nothing_serves_with_it_and_a_restart_forgets_nothing() {
    let bench = Bench::new();
    let keys = bench.open();
    let ask = |keys: &OwnKeys| spki_of(&keys.request(&wanted(OrderId::generate())).expect("a request"));
    let (old, new) = (ask(&keys), ask(&keys));
    keys.delete_unused(&HashSet::from([old]), now()).expect("settled");
    assert_eq!(bench.files().len(), 3, "a key in use, and one with its order: {:?}", bench.files());
    let keys = bench.open();
    keys.delete_unused(&HashSet::from([old]), now()).expect("settled");
    keys.delete_unused(&HashSet::from([new]), now()).expect("settled");
    assert_eq!(bench.files(), [format!("{}.key", hex::encode(new))], "the renewed one's key is destroyed");
    let gone = keys.sealed(&seal_context(&bench.cell, old)).expect_err("it is gone");
    assert_eq!(gone.code, "KeyNotHere");
    assert!(gone.text.contains("portico cell rekey cell-a") && gone.text.len() < limits::NACK_TEXT_BYTES_MAX);
    keys.delete_unused(&HashSet::new(), now()).expect("settled");
    assert!(bench.files().is_empty() && keys.is_empty());
}

#[test]
fn a_key_whose_certificate_never_comes_goes_after_its_time() {
    let bench = Bench::new();
    let (keys, order) = (bench.open(), OrderId::generate());
    keys.request(&wanted(order)).expect("a request");
    let planned = planned_at(order);
    keys.delete_unused(&HashSet::new(), planned + limits::OWN_KEY_WAITS_MAX).expect("settled");
    assert_eq!(bench.files().len(), 2, "the bound itself");
    keys.delete_unused(&HashSet::new(), planned + limits::OWN_KEY_WAITS_MAX + DAY).expect("settled");
    assert!(bench.files().is_empty(), "{:?}", bench.files());
}

#[test]
fn so_many_keys_wait_and_the_first_asked_for_goes() {
    let bench = Bench::new();
    let keys = bench.open();
    let first = OrderId::generate();
    let at_first = spki_of(&keys.request(&wanted(first)).expect("a request"));
    // As if they had been made: a disk would take its time.
    for number in 1..limits::OWN_KEYS_WAITING_MAX {
        let mut spki = [0; 32];
        spki[..8].copy_from_slice(&number.to_be_bytes());
        keys.lock().order(OrderId::generate(), spki);
    }
    assert_eq!(spki_of(&keys.request(&wanted(first)).expect("a request")), at_first);
    keys.request(&wanted(OrderId::generate())).expect("a request");
    assert_eq!(keys.lock().ordered.len(), limits::OWN_KEYS_WAITING_MAX);
    assert!(!bench.files().contains(&format!("{}.key", hex::encode(at_first))), "it waited longest");
}

#[test]
fn a_key_that_lay_here_before_has_its_time_to_be_asked_for() {
    let bench = Bench::new();
    let keys = bench.open();
    let spki = spki_of(&keys.request(&wanted(OrderId::generate())).expect("a request"));
    keys.delete_unused(&HashSet::from([spki]), now()).expect("settled");
    // The last-good files were lost: nothing refers to it any more, for now.
    let keys = bench.open();
    let start = now();
    keys.delete_unused(&HashSet::new(), start).expect("settled");
    keys.delete_unused(&HashSet::new(), start + limits::OWN_KEY_UNKNOWN_MAX).expect("settled");
    assert!(keys.sealed(&seal_context(&bench.cell, spki)).is_ok(), "the bound itself");
    keys.delete_unused(&HashSet::new(), start + limits::OWN_KEY_UNKNOWN_MAX + DAY).expect("settled");
    assert!(bench.files().is_empty());
}

#[test]
fn what_a_crash_or_a_stranger_left_is_no_key() {
    let bench = Bench::new();
    files::private_folder(&bench.path()).expect("a private one");
    let put = |name: &str, bytes: &[u8]| {
        files::write_private(&bench.path().join(name), bytes).expect("it is written");
    };
    let spki = [7; 32];
    put("half.new", b"half a key");
    put(&format!("{}.order", OrderId::generate()), hex::encode(spki).as_bytes());
    put(&format!("{}.key", hex::encode(spki)), b"no key");
    std::fs::rename(bench.path().join(format!("{}.key", hex::encode(spki))), bench.path().join("other.key"))
        .expect("moved");
    let keys = bench.open();
    assert_eq!(bench.files(), ["other.key"], "an order without its key and half a file are gone");
    let bound = usize::try_from(limits::OWN_KEY_FILE_BYTES_MAX).expect("it fits");
    for bytes in [bound, bound + 1] {
        put(&format!("{}.key", hex::encode(spki)), &vec![0xff; bytes]);
        let fault = keys.sealed(&seal_context(&bench.cell, spki)).expect_err("it is none");
        let is_about_its_size = fault.text.contains("at most 4096 are read");
        assert_eq!((fault.code, is_about_its_size), ("KeyDoesNotOpen", bytes > bound), "{fault}");
    }
}
