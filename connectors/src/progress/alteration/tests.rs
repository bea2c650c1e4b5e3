use std::collections::BTreeSet;

use kafka::checkpoint::Reconcile;
use proptest::prelude::*;

use super::*;
use crate::encode::Kind;
use crate::progress::{ChunkEnd, Identity, NextRead};

const TABLE: &str = "public.t";

fn column(name: &str, type_oid: u32) -> TableColumn {
    TableColumn {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        kind: Kind::of(type_oid, -1),
    }
}

fn definition() -> Definition {
    Definition {
        oid: 7,
        published: 8,
        key: vec![("id".to_owned(), "integer".to_owned())],
        file_node: 9,
        attributes: "a".to_owned(),
    }
}

/// A table `t(id, n)` that was read.
fn read_once() -> Progress {
    let identity = Identity {
        system_identifier: "1".to_owned(),
        timeline: 1,
    };
    let tables = BTreeMap::from([(TABLE.to_owned(), Vec::new())]);
    let mut progress =
        Progress::begin_epoch(None, 1, identity, Lsn(100), &tables, &BTreeMap::new());
    progress.define(TABLE, definition());
    progress.learn_from_catalog(TABLE, &[column("id", 20), column("n", 23)]);
    read_whole(&mut progress);
    assert!(progress.record().is_whole());
    progress
}

/// One chunk that is the whole table.
fn read_whole(progress: &mut Progress) {
    match progress.next_read(1, &BTreeSet::new()) {
        Some(NextRead::Slices(slices)) => progress.chunk_sent(&slices[0], ChunkEnd::default()),
        other => panic!("{other:?}"),
    }
}

fn state(progress: &Progress) -> &TableState {
    &progress.tables[TABLE]
}

#[test]
fn what_happened_to_a_table_follows_from_its_definitions() {
    let progress = read_once();
    let after = |change: fn(&mut Definition)| {
        let mut now = definition();
        change(&mut now);
        progress.alteration(TABLE, &now)
    };
    assert_eq!(after(|_| {}), None);
    assert_eq!(after(|now| now.oid += 1), Some(Alteration::Remade));
    assert_eq!(
        after(|now| now.published += 1),
        Some(Alteration::Republished)
    );
    assert_eq!(
        after(|now| now.key[0].1 = "text".to_owned()),
        Some(Alteration::Rekeyed)
    );
    // VACUUM FULL; a column's default.
    assert_eq!(after(|now| now.file_node += 1), None);
    assert_eq!(after(|now| now.attributes.push('b')), None);
    let rewrite = after(|now| {
        now.file_node += 1;
        now.attributes.push('b');
    });
    assert_eq!(rewrite, Some(Alteration::Rewritten));
}

#[test]
fn a_table_of_which_an_older_version_wrote_nothing_is_taken_as_it_is() {
    let mut progress = read_once();
    progress.tables.get_mut(TABLE).unwrap().definition = None;
    assert_eq!(progress.alteration(TABLE, &definition()), None);
    progress.tables.get_mut(TABLE).unwrap().types.clear();
    assert!(!progress.learn_from_catalog(TABLE, &[column("id", 20), column("n", 25)]));
    assert!(progress.learn_from_catalog(TABLE, &[column("id", 20), column("n", 23)]));
}

#[test]
fn a_forgotten_table_is_read_and_compared_once_the_stream_has_passed_the_look() {
    let mut progress = read_once();
    let ends = BTreeMap::from([(0, 5), (1, 0)]);
    progress.forget(TABLE, definition(), &ends, Lsn(150));
    assert!(progress.holds(TABLE) && progress.waits_for_log());
    assert!(progress.is_even(), "the topics hold nothing of the look");
    assert!(progress.next_read(1, &BTreeSet::new()).is_none() && !progress.wants_read());
    assert!(!progress.record().is_whole());
    progress.keepalive(Lsn(150));
    assert!(!progress.holds(TABLE) && !progress.waits_for_log());
    assert_eq!(state(&progress).read, Read::First);
    read_whole(&mut progress);
    let stale = NextRead::Reconcile {
        table: TABLE.to_owned(),
        request: None,
        partition: 0,
        stale: Reconcile { next: 0, end: 5 },
    };
    assert_eq!(progress.next_read(1, &BTreeSet::new()), Some(stale));
    let record = progress.record();
    assert!(!record.is_whole(), "not even its rows are known");
    assert!(record.tables[TABLE].not_before.is_zero());
}

#[test]
fn of_a_rewritten_table_the_rows_are_known() {
    let mut progress = read_once();
    progress.forget_values(TABLE, definition(), Lsn(150));
    assert!(progress.next_read(1, &BTreeSet::new()).is_none());
    progress.keepalive(Lsn(150));
    assert!(progress.next_read(1, &BTreeSet::new()).is_some());
    assert!(progress.record().is_whole());
    assert_eq!(state(&progress).columns, ["id"]);
    read_whole(&mut progress);
    assert_eq!(progress.record().tables[TABLE].columns, ["id", "n"]);
}

#[test]
fn of_a_column_of_another_type_nothing_is_known() {
    let mut progress = read_once();
    let names = ["id".to_owned(), "n".to_owned()];
    assert!(!progress.learn_from_log(TABLE, &names, &[(20, -1), (23, -1)]));
    assert!(progress.learn_from_log(TABLE, &names, &[(20, -1), (25, -1)]));
    assert_eq!(state(&progress).columns, ["id"]);
    assert_eq!(state(&progress).read, Read::First);
}

#[test]
fn the_first_look_at_a_table_holds_nothing_and_a_later_one_that_finds_columns_does() {
    let mut progress = read_once();
    let columns = [column("id", 20), column("n", 23)];
    assert!(!progress.learn_from_look(TABLE, &columns, Lsn(150)));
    assert!(!progress.holds(TABLE));
    assert!(progress.learn_from_look(TABLE, &columns[..1], Lsn(150)));
    assert!(progress.holds(TABLE));
    progress
        .tables
        .insert(TABLE.to_owned(), TableState::default());
    assert!(!progress.learn_from_look(TABLE, &columns, Lsn(170)));
    assert!(!progress.holds(TABLE));
}

proptest! {
    /// However log and looks alternate, at the end the table is read as the catalog has it.
    #[test]
    fn the_catalog_has_the_last_word(
        told in prop::collection::vec((any::<bool>(), 0_usize..3, 0_u32..2), 0..8),
    ) {
        let mut progress = read_once();
        let shape = |columns: usize, type_oid: u32| {
            let all = [column("id", 20), column("n", 23 + type_oid), column("m", 25)];
            all[..=columns].to_vec()
        };
        for (by_log, columns, type_oid) in told {
            let columns = shape(columns, type_oid);
            let names: Vec<_> = columns.iter().map(|column| column.name.clone()).collect();
            let types: Vec<_> = columns.iter().map(TableColumn::type_pair).collect();
            if by_log {
                progress.learn_from_log(TABLE, &names, &types);
            } else {
                progress.learn_from_look(TABLE, &columns, Lsn(120));
            }
        }
        let last = shape(2, 0);
        progress.learn_from_look(TABLE, &last, Lsn(130));
        progress.keepalive(Lsn(200));
        read_whole(&mut progress);
        let record = progress.record();
        prop_assert!(record.is_whole());
        prop_assert_eq!(&record.tables[TABLE].columns, &["id", "n", "m"]);
        prop_assert_eq!(&record.tables[TABLE].types, &[(20, -1), (23, -1), (25, -1)]);
    }
}

#[test]
fn a_look_beyond_the_end_of_a_log_that_a_crash_cut_short_holds_nothing() {
    let mut progress = read_once();
    progress.forget_values(TABLE, definition(), Lsn(150));
    progress.log_ended_at(Lsn(200));
    assert!(progress.holds(TABLE));
    progress.log_ended_at(progress.position());
    assert!(!progress.holds(TABLE));
}
