use portico_cert_store::CellKey;

use super::*;
use crate::control::identity::tests::identity;

fn sealed(identity: &Identity, epoch: u32) -> SealedCellKey {
    let key = CellKey::generate(identity.cell.clone(), epoch);
    let (encapsulated, ciphertext) = hpke::seal_cell_key(&identity.hpke_public, &key).expect("it is sealed");
    SealedCellKey {
        cell_id: identity.cell.to_string(),
        epoch,
        encapsulated_key: encapsulated.into(),
        ciphertext: ciphertext.into(),
    }
}

#[test]
fn keys_of_so_many_epochs_are_kept_and_the_oldest_goes() {
    let (folder, identity, keys) = (tempfile::tempdir().expect("a folder"), identity(), CellKeys::new());
    let files = CellKeyFiles::open(&folder.path().join("cell-keys")).expect("a private one");
    let most = u32::try_from(limits::CELL_KEY_EPOCHS_MAX).expect("it fits");
    for epoch in 1..=most + 3 {
        files.receive(&sealed(&identity, epoch), &identity, &keys).expect("it opens");
    }
    let mut epochs = files.epochs().expect("a folder");
    epochs.sort_unstable();
    assert_eq!(epochs, (4..=most + 3).collect::<Vec<_>>());
    let again = CellKeys::new();
    assert_eq!(files.load(&identity, &again).expect("all of them"), Vec::<String>::new());
    assert_eq!(again.held().len(), limits::CELL_KEY_EPOCHS_MAX);
}

#[test]
fn a_key_file_is_read_up_to_its_bound_and_damage_is_no_reason_to_stay_down() {
    let (folder, identity, keys) = (tempfile::tempdir().expect("a folder"), identity(), CellKeys::new());
    let files = CellKeyFiles::open(&folder.path().join("cell-keys")).expect("a private one");
    let bound = usize::try_from(limits::CELL_KEY_FILE_BYTES_MAX).expect("it fits");
    for bytes in [bound, bound + 1] {
        files::write_private(&files.path(1), &vec![0xff; bytes]).expect("it is written");
        let warnings = files.load(&identity, &keys).expect("only a warning");
        assert_eq!(warnings.len(), 1);
        let is_about_its_size = warnings[0].contains("at most 4096 are read");
        assert_eq!(is_about_its_size, bytes > bound, "{warnings:?}");
    }
}
