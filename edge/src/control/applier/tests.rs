use portico_api::distribution::Resource;
use prost::Message as _;

use super::*;
use crate::live::Live;

fn applier(folder: &std::path::Path) -> Applier {
    let (_live, publisher) = Live::new(8, 1 << 20, CellKeys::new());
    let last_good = LastGood::open(folder.join("last-good")).expect("a folder");
    let cell = CellId::parse("cell-a").expect("a cell's name");
    let of_cell = CellKeys::new();
    let own = OwnKeys::open(&folder.join("keys"), &cell, &of_cell).expect("a private one");
    Applier::new(publisher, Keys { of_cell, own }, cell, last_good, ControlMetrics::new())
}

/// A change of so many bytes in memory.
fn change(sequence: u64, bytes: usize) -> Saving {
    let published = |body: usize| Published {
        generation: Generation { epoch: 1, sequence },
        nacks: Vec::new(),
        accepted: vec![Resource { id: "id".to_owned(), body: vec![0; body].into(), ..Resource::default() }],
        removed: Vec::new(),
        carried: Vec::new(),
    };
    let more = Saving::delta(&published(bytes)).bytes() - bytes;
    let saving = Saving::delta(&published(bytes - more));
    assert_eq!(saving.bytes(), bytes);
    saving
}

#[test]
fn what_a_disk_has_refused_is_held_up_to_a_bound_and_then_a_snapshot_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut applier = applier(folder.path());
    let quarter = limits::UNSAVED_BYTES_MAX / 4;
    for sequence in 1..=4 {
        applier.keep(change(sequence, quarter));
        assert!(!applier.gap);
    }
    assert_eq!(applier.unsaved.len(), 4, "the bound itself");
    applier.keep(change(5, 1000));
    assert!(applier.gap, "one more is not held");
    // What follows it would be wrong without it.
    applier.unsaved.clear();
    applier.keep(change(6, 1000));
    assert!(applier.unsaved.is_empty());
    let whole = Published {
        generation: Generation { epoch: 1, sequence: 7 },
        nacks: Vec::new(),
        accepted: Vec::new(),
        removed: Vec::new(),
        carried: Vec::new(),
    };
    applier.keep(Saving::snapshot(&whole));
    assert!(!applier.gap && applier.unsaved.len() == 1, "a snapshot says everything anew");
}

#[test]
fn an_ack_has_so_many_nacks_each_with_so_much_text() {
    let nack = |text: &str| Nack { text: text.to_owned(), ..Nack::default() };
    let exact = "x".repeat(limits::NACK_TEXT_BYTES_MAX);
    let texts = bounded(vec![nack(&exact), nack(&format!("{exact}y")), nack(&"\u{20ac}".repeat(1000))]);
    assert_eq!((texts[0].text.as_str(), texts[1].text.as_str()), (exact.as_str(), exact.as_str()));
    let euros = texts[2].text.len();
    assert!(euros <= limits::NACK_TEXT_BYTES_MAX && euros > limits::NACK_TEXT_BYTES_MAX - 3, "{euros}");
    assert_eq!(bounded(vec![nack("x"); limits::NACKS_MAX]).len(), limits::NACKS_MAX);
    let cut = bounded(vec![nack(&exact); limits::NACKS_MAX + 1]);
    assert_eq!(cut.len(), limits::NACKS_MAX);
    let ack = Ack { nacks: cut, ..Ack::default() };
    // tonic's own bound on what a server reads, unless it says another.
    assert!(ack.encoded_len() < 4 << 20, "{} bytes", ack.encoded_len());
}

#[test]
fn so_many_of_what_cannot_be_served_are_named_and_the_rest_is_counted() {
    let nacks = vec![Nack::default(); limits::UNSERVED_NAMED_MAX + 3];
    let (all, of_more) = (&nacks[..limits::UNSERVED_NAMED_MAX], named(&nacks));
    assert_eq!((named(all), named(&[])), ((all, 0), (&[][..], 0)));
    assert_eq!((of_more.0.len(), of_more.1), (limits::UNSERVED_NAMED_MAX, 3));
}
