use std::collections::BTreeMap;

use kafka::{Checkpoint, Lsn};

use super::super::Progress;
use super::super::tests::{identity, read_once, tables};

/// Two changes of a transaction are sent, at 161 and 162; the record of then.
fn half_sent() -> Checkpoint {
    let mut progress = read_once();
    progress.begin(Lsn(165), 7);
    for lsn in [Lsn(161), Lsn(162)] {
        assert_eq!(progress.passes_over(lsn), Ok(false));
        progress.change_sent(lsn);
    }
    progress.record()
}

#[test]
fn a_successor_goes_on_behind_what_was_sent_of_a_transaction() {
    let last = half_sent();
    let mut progress = Progress::resume(&last, identity(), &tables());
    assert_eq!(progress.record().half_sent, last.half_sent);
    progress.begin(Lsn(165), 7);
    assert_eq!(progress.passes_over(Lsn(161)), Ok(true));
    assert_eq!(progress.record().half_sent, last.half_sent, "not less");
    assert_eq!(progress.passes_over(Lsn(162)), Ok(true));
    assert_eq!(progress.record().half_sent, last.half_sent);
    assert_eq!(progress.passes_over(Lsn(163)), Ok(false));
    progress.change_sent(Lsn(163));
    let part = progress.record().half_sent.unwrap();
    assert_eq!((part.changes, part.change_lsn), (3, Lsn(163)));
    assert_eq!(progress.has_passed_part(), Ok(()));
    progress.commit(Lsn(165), Lsn(170), 0);
    assert_eq!(progress.record().half_sent, None);
}

#[test]
fn a_part_that_the_log_does_not_have_is_sent_again() {
    let begun = || {
        let mut progress = Progress::resume(&half_sent(), identity(), &tables());
        progress.begin(Lsn(165), 7);
        assert_eq!(progress.passes_over(Lsn(161)), Ok(true));
        progress
    };
    let mut other_change = begun();
    assert!(other_change.passes_over(Lsn(163)).is_err());
    assert!(begun().has_passed_part().is_err(), "fewer changes");
    other_change.distrust_part();
    let record = other_change.record();
    assert_eq!(record.half_sent, None);
    assert!(!record.is_whole(), "the part still stands in the topics");
}

#[test]
fn another_transaction_is_sent_whole() {
    for (commit_lsn, xid) in [(Lsn(165), 8), (Lsn(166), 7), (Lsn(166), 8)] {
        let mut progress = Progress::resume(&half_sent(), identity(), &tables());
        progress.begin(commit_lsn, xid);
        assert_eq!(progress.passes_over(Lsn(161)), Ok(false), "{commit_lsn}");
    }
    // One before it leaves the part to be passed.
    let mut progress = Progress::resume(&half_sent(), identity(), &tables());
    progress.begin(Lsn(155), 6);
    assert_eq!(progress.passes_over(Lsn(151)), Ok(false));
    progress.commit(Lsn(155), Lsn(160), 0);
    progress.begin(Lsn(165), 7);
    assert_eq!(progress.passes_over(Lsn(161)), Ok(true));
}

#[test]
fn a_new_epoch_passes_over_nothing() {
    let last = half_sent();
    let begun = Progress::begin_epoch(
        Some(&last),
        1,
        identity(),
        Lsn(100),
        &tables(),
        &BTreeMap::new(),
    );
    assert_eq!(begun.part_to_pass(), None);
    assert_eq!(begun.clone().record().half_sent, None);
}
