use std::sync::atomic::AtomicBool;

use super::*;

#[test]
fn growth_from_nothing_copies_few_entries_at_each_step() {
    let mut writer = Writer::<u32, u32>::new(0);
    let reader = writer.reader();
    let mut most = 0;
    for key in 0..200_000 {
        let before = writer.entries_cloned();
        writer.insert(key, !key);
        most = most.max(writer.entries_cloned() - before);
    }
    assert!(most <= 1_024, "{most}");
    let mean = writer.entries_cloned() / 200_000;
    assert!(mean <= 2 * SHARD_ENTRIES_MEAN as u64, "{mean}");
    assert!((0..200_000).all(|key| reader.get(&key) == Some(!key)));
    assert_eq!(reader.len(), 200_000);
}

#[test]
fn a_removed_value_is_dropped_although_its_shard_was_shared() {
    let mut writer = Writer::<u32, Arc<u32>>::new(0);
    let values: Vec<_> = (0..10_000).map(Arc::new).collect();
    for (key, value) in (0..).zip(&values) {
        writer.insert(key, Arc::clone(value));
    }
    for key in 0..10_000 {
        assert_eq!(writer.remove(&key).as_deref(), Some(&key));
    }
    assert_eq!(writer.len(), 0);
    assert!(values.iter().all(|value| Arc::strong_count(value) == 1));
}

#[test]
fn readers_never_miss_an_entry_that_stays_while_the_map_grows_and_shrinks() {
    let mut writer = Writer::<u32, u32>::new(0);
    for key in 0..100 {
        writer.insert(key, key);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = writer.reader();
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    assert!((0..100).all(|key| reader.get(&key) == Some(key)));
                }
            });
        }
        for round in 0..3 {
            for key in 100..20_000 {
                writer.insert(key, round);
            }
            for key in 100..20_000 {
                writer.remove(&key);
            }
            writer.replace_all((0..5_000).map(|key| (key, key)).collect());
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn slot_indexes_stay_within_the_directory() {
    assert_eq!(slot_index(u64::MAX, 0), 0);
    assert_eq!(slot_index(u64::MAX, 1), 1);
    assert_eq!(slot_index(u64::MAX, DIRECTORY_BITS_MAX), (1 << DIRECTORY_BITS_MAX) - 1);
    assert_eq!(directory_bits(0), 0);
    assert_eq!(directory_bits(SHARD_ENTRIES_MEAN + 1), 1);
    assert_eq!(directory_bits(usize::MAX / 2), DIRECTORY_BITS_MAX);
}
