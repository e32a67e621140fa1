use std::collections::BTreeMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn generation(sequence: u64) -> Generation {
    Generation::new(1, sequence)
}

fn frames(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn held(loaded: &Loaded) -> Vec<Vec<u8>> {
    loaded.resources.iter().map(<[u8]>::to_vec).collect()
}

fn load(folder: &Path) -> (LastGood, Loaded) {
    let mut store = LastGood::open(folder).unwrap();
    let loaded = store.load().unwrap();
    (store, loaded)
}

/// Snapshot 10 with deltas 11 and 12, then snapshot 12 with deltas 13 and 14.
fn small_store() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = load(folder.path());
    store.write_snapshot(generation(10), frames(&["a", "", "bb"])).unwrap();
    store.append(generation(11), &frames(&["c"])).unwrap();
    store.append(generation(12), &frames(&[])).unwrap();
    store.write_snapshot(generation(12), frames(&["a", "", "bb", "c"])).unwrap();
    store.append(generation(13), &frames(&["d", "e"])).unwrap();
    store.append(generation(14), &frames(&["f"])).unwrap();
    folder
}

/// File name to bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn folder_of(files: &BTreeMap<String, Vec<u8>>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn an_empty_folder_is_an_empty_state() {
    let folder = tempfile::tempdir().unwrap();
    let (store, loaded) = load(&folder.path().join("state/last-good"));
    assert_eq!(loaded, Loaded::default());
    assert!(!store.needs_compaction());
}

#[test]
fn a_state_reads_back_with_its_deltas() {
    let folder = small_store();
    let (store, loaded) = load(folder.path());
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.generation, generation(14));
    assert_eq!(store.generation(), generation(14));
    assert_eq!(held(&loaded), frames(&["a", "", "bb", "c"]));
    let deltas: Vec<_> = loaded.deltas.iter().map(|delta| (delta.generation, delta.frames.clone())).collect();
    assert_eq!(deltas, [(generation(13), frames(&["d", "e"])), (generation(14), frames(&["f"]))]);
}

#[test]
fn appending_goes_on_after_a_restart() {
    let folder = small_store();
    let (mut store, _) = load(folder.path());
    store.append(generation(20), &frames(&["g"])).unwrap();
    store.append(Generation::new(2, 1), &frames(&["h"])).unwrap();
    let (_, loaded) = load(folder.path());
    assert_eq!((loaded.generation, loaded.deltas.len()), (Generation::new(2, 1), 4));
    assert!(loaded.warnings.is_empty());
}

#[test]
fn generations_only_rise() {
    let folder = small_store();
    let (mut store, _) = load(folder.path());
    let not_newer = |result| assert!(matches!(result, Err(LastGoodError::NotNewer { .. })), "{result:?}");
    not_newer(store.append(generation(14), &frames(&["x"])));
    not_newer(store.append(Generation::new(0, 99), &frames(&["x"])));
    not_newer(store.write_snapshot(generation(13), frames(&["x"])));
    not_newer(store.write_snapshot(generation(12), frames(&["x"])));
    store.write_snapshot(generation(14), frames(&["x"])).unwrap();
    store.write_snapshot(generation(14), frames(&["y"])).unwrap();
    assert_eq!(held(&load(folder.path()).1), frames(&["y"]));
    let (mut empty, _) = load(&folder.path().join("empty"));
    assert!(matches!(empty.append(generation(1), &frames(&["x"])), Err(LastGoodError::NoSnapshot)));
}

#[test]
fn three_snapshots_are_kept_and_nothing_else() {
    let folder = small_store();
    let (mut store, _) = load(folder.path());
    fs::write(folder.path().join("99-1.snap.aside"), "left by a crash").unwrap();
    for sequence in 20..25 {
        store.write_snapshot(generation(sequence), frames(&["x"])).unwrap();
        store.append(Generation::new(1, sequence), &frames(&["x"])).unwrap_err();
    }
    let names: Vec<_> = files(folder.path()).into_keys().collect();
    assert_eq!(names, ["1-22.snap", "1-23.snap", "1-24.snap", "CURRENT"]);
}

#[test]
fn files_and_folder_are_the_owners_alone() {
    let folder = small_store();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    load(folder.path());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.path()), 0o700);
    for name in files(folder.path()).keys() {
        assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}");
    }
}

#[test]
fn compaction_is_due_at_a_tenth_of_the_snapshot_but_not_for_trifles() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = load(folder.path());
    let megabyte = vec![7; 1 << 20];
    store.write_snapshot(generation(1), vec![&megabyte; 8]).unwrap();
    store.append(generation(2), &[&megabyte[..500_000]]).unwrap();
    assert!(!store.needs_compaction());
    store.append(generation(3), &[&megabyte[..400_000]]).unwrap();
    assert!(store.needs_compaction());
    let (mut store, loaded) = load(folder.path());
    assert!(store.needs_compaction() && loaded.warnings.is_empty());
    store.write_snapshot(generation(3), [b"small"]).unwrap();
    store.append(generation(4), &[&megabyte[..100_000]]).unwrap();
    assert!(!store.needs_compaction());
}

#[test]
fn an_oversized_frame_is_refused_and_leaves_the_state_before() {
    let folder = small_store();
    let before = files(folder.path());
    let (mut store, _) = load(folder.path());
    let huge = vec![0; FRAME_BYTES_MAX + 1];
    assert!(matches!(store.append(generation(20), &[&huge]), Err(LastGoodError::Io { .. })));
    assert!(matches!(store.write_snapshot(generation(20), [&huge]), Err(LastGoodError::Io { .. })));
    assert_eq!(files(folder.path()), before);
    store.append(generation(20), &[&huge[..FRAME_BYTES_MAX]]).unwrap();
    assert_eq!(load(folder.path()).1.deltas[2].frames[0].len(), FRAME_BYTES_MAX);
}

#[test]
fn a_length_field_cannot_ask_for_memory() {
    let mut bytes = Vec::new();
    frame::write_frame(&mut bytes, b"abc").unwrap();
    for length in [u32::MAX, 1 << 31, 1 << 23, 100, 4] {
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        let damage = frame::read_frame(&mut bytes.as_slice(), bytes.len() as u64).unwrap_err();
        assert!(matches!(damage, Damage::Torn | Damage::Wrong(_)), "{length}: {damage:?}");
    }
}

#[test]
fn a_crash_at_any_step_of_publishing_leaves_the_state_before_or_after() {
    let full = files(small_store().path());
    let sequence_of = |files: &BTreeMap<String, Vec<u8>>| {
        let folder = folder_of(files);
        let (mut store, loaded) = load(folder.path());
        // Whatever was found, the store works on and the next start finds the newest.
        store.write_snapshot(generation(50), frames(&["next"])).unwrap();
        assert_eq!(load(folder.path()).1.warnings, Vec::<String>::new());
        (loaded.generation.sequence, loaded.warnings.len())
    };
    let mut before = full.clone();
    before.remove("1-12.snap");
    before.remove("1-12.log");
    before.insert("CURRENT".into(), current_text(generation(10)).into_bytes());
    assert_eq!(sequence_of(&before), (12, 0));

    // Half of the new snapshot aside; then whole and renamed, but not yet named by CURRENT.
    let mut aside = before.clone();
    aside.insert("1-12.snap.aside".into(), full["1-12.snap"][..30].to_vec());
    assert_eq!(sequence_of(&aside), (12, 0));
    let mut renamed = before.clone();
    renamed.insert("1-12.snap".into(), full["1-12.snap"].clone());
    assert_eq!(sequence_of(&renamed), (12, 0));
    renamed.insert("CURRENT.aside".into(), full["CURRENT"][..5].to_vec());
    assert_eq!(sequence_of(&renamed), (12, 0));

    // A torn append, at every length: the deltas before it count.
    let log = &full["1-12.log"];
    for length in 0..log.len() {
        let mut torn = full.clone();
        torn.insert("1-12.log".into(), log[..length].to_vec());
        let (sequence, _) = sequence_of(&torn);
        assert!((12..=13).contains(&sequence), "{length}: {sequence}");
    }
}

#[test]
fn a_torn_tail_is_cut_before_the_log_goes_on() {
    let folder = small_store();
    let log = folder.path().join("1-12.log");
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() - 1]).unwrap();
    let (mut store, loaded) = load(folder.path());
    assert_eq!((loaded.generation, loaded.warnings.len()), (generation(13), 1));
    assert!(loaded.warnings[0].contains("ends too early"), "{:?}", loaded.warnings);
    store.append(generation(14), &frames(&["again"])).unwrap();
    let (_, loaded) = load(folder.path());
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.deltas[1].frames, frames(&["again"]));
}

/// The states that the small store has been in, newest first.
fn past_states() -> Vec<(Generation, Vec<Vec<u8>>, usize)> {
    let (old, new) = (frames(&["a", "", "bb"]), frames(&["a", "", "bb", "c"]));
    vec![
        (generation(14), new.clone(), 2),
        (generation(13), new.clone(), 1),
        (generation(12), new, 0),
        (generation(12), old.clone(), 2),
        (generation(11), old.clone(), 1),
        (generation(10), old, 0),
    ]
}

fn check_damaged(files: &BTreeMap<String, Vec<u8>>, what: &str) {
    let folder = folder_of(files);
    let (_, loaded) = load(folder.path());
    let state = (loaded.generation, held(&loaded), loaded.deltas.len());
    let known = past_states();
    let age = known.iter().position(|past| *past == state);
    assert!(age.is_some(), "{what}: a state that never was: {state:?}");
    assert!(age == Some(0) || !loaded.warnings.is_empty(), "{what}: older, and no warning");
}

#[test]
fn every_flipped_byte_and_every_cut_is_detected_or_survived() {
    let good = files(small_store().path());
    assert_eq!(good.len(), 5, "{:?}", good.keys());
    let header = delta_log::header().len();
    let first = delta_log::encode(generation(12), generation(13), &frames(&["d", "e"])).unwrap().len();
    let ends_of_deltas = [header, header + first];
    for (name, bytes) in &good {
        for at in 0..bytes.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut damaged = good.clone();
                damaged.get_mut(name).unwrap()[at] ^= mask;
                check_damaged(&damaged, &format!("{name} byte {at} ^ {mask:02x}"));
            }
            // Cut behind a whole delta, a log is what it was before the next one: older, and nothing is damaged.
            if name != "1-12.log" || !ends_of_deltas.contains(&at) {
                let mut cut = good.clone();
                cut.get_mut(name).unwrap().truncate(at);
                check_damaged(&cut, &format!("{name} cut at {at}"));
            }
        }
        // A snapshot without a log is what stands before the first delta: older, and nothing is damaged.
        if name != "1-12.log" {
            let mut missing = good.clone();
            missing.remove(name);
            check_damaged(&missing, &format!("{name} missing"));
        }
    }
}

#[test]
fn when_all_is_damaged_the_state_is_empty_and_says_so() {
    let mut damaged = files(small_store().path());
    for bytes in damaged.values_mut() {
        bytes[0] ^= 1;
    }
    let folder = folder_of(&damaged);
    let (mut store, loaded) = load(folder.path());
    assert_eq!((loaded.generation, loaded.resources.len()), (Generation::default(), 0));
    assert_eq!(loaded.warnings.len(), 3, "{:?}", loaded.warnings);
    store.write_snapshot(generation(1), frames(&["fresh"])).unwrap();
    assert_eq!(held(&load(folder.path()).1), frames(&["fresh"]));
    assert_eq!(files(folder.path()).len(), 2, "what was damaged is gone");
}

#[test]
fn a_log_of_another_snapshot_is_not_read() {
    let mut swapped = files(small_store().path());
    let old = swapped["1-10.log"].clone();
    swapped.insert("1-12.log".into(), old);
    let (_, loaded) = load(folder_of(&swapped).path());
    assert_eq!((loaded.generation, loaded.deltas.len(), loaded.warnings.len()), (generation(12), 0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read(
        resources in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..40),
        deltas in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5), 0..10),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = load(folder.path());
        store.write_snapshot(generation(1), &resources).unwrap();
        for (sequence, delta) in (2..).zip(&deltas) {
            store.append(generation(sequence), delta).unwrap();
        }
        let (_, loaded) = load(folder.path());
        prop_assert_eq!(held(&loaded), resources);
        let read: Vec<_> = loaded.deltas.into_iter().map(|delta| delta.frames).collect();
        prop_assert_eq!(read, deltas);
        prop_assert!(loaded.warnings.is_empty());
    }

    #[test]
    fn any_bytes_in_any_file_never_panic(
        name in prop::sample::select(vec!["CURRENT", "1-12.snap", "1-12.log", "1-10.snap", "1-10.log", "7-7.snap"]),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        keep in 0..60_usize,
    ) {
        let mut files = files(small_store().path());
        let mut mixed = files.get(name).cloned().unwrap_or_default();
        mixed.truncate(keep);
        mixed.extend_from_slice(&bytes);
        files.insert(name.into(), mixed);
        check_damaged(&files, name);
    }
}
