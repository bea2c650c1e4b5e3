//! Random histories of one log: streamed, read, recorded, crashed.

use proptest::prelude::*;

use std::collections::BTreeSet;

use kafka::checkpoint::ReadRequest;

use super::*;
use crate::encode::Kind;
use crate::source::catalog::TableColumn;

/// A transaction of the log: its commit record from `commit` to `end`, and how many changes.
#[derive(Debug, Clone, Copy)]
struct Logged {
    commit: Lsn,
    end: Lsn,
    changes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The next message of the stream.
    Stream,
    Keepalive,
    /// A read that shows so many transactions more than the stream has passed.
    Read(usize),
    Record,
    /// PostgreSQL is told the last record's position.
    Confirm,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Stream),
        2 => Just(Step::Keepalive),
        1 => (0_usize..4).prop_map(Step::Read),
        4 => Just(Step::Record),
        2 => Just(Step::Confirm),
        1 => Just(Step::Crash),
    ]
}

fn log() -> impl Strategy<Value = Vec<Logged>> {
    prop::collection::vec((1_u64..5, 2_u64..5, 1_usize..4), 1..12).prop_map(|parts| {
        let mut at = 100;
        parts
            .into_iter()
            .map(|(gap, length, changes)| {
                let commit = at + gap;
                at = commit + length;
                Logged {
                    commit: Lsn(commit),
                    end: Lsn(at),
                    changes,
                }
            })
            .collect()
    })
}

/// What stands in the topics: (transaction, change), and how far reads have shown.
#[derive(Debug, Clone, Default)]
struct Topics {
    changes: Vec<(usize, usize)>,
    shown: Lsn,
}

struct Writer {
    log: Vec<Logged>,
    progress: Progress,
    next: usize,
    inside: Option<(usize, usize)>,
    topics: Topics,
    committed: Topics,
    last: Checkpoint,
    confirmed: Lsn,
}

pub(super) fn identity() -> Identity {
    Identity {
        system_identifier: "1".to_owned(),
        timeline: 1,
    }
}

pub(super) fn tables() -> BTreeMap<String, Vec<String>> {
    BTreeMap::from([("public.t".to_owned(), vec!["id".to_owned()])])
}

impl Writer {
    fn new(log: Vec<Logged>) -> Self {
        let mut progress =
            Progress::begin_epoch(None, 1, identity(), Lsn(100), &tables(), &BTreeMap::new());
        progress.learn_from_catalog("public.t", &typed(&["id"]));
        sent(&mut progress, None);
        let last = progress.record();
        Self {
            log,
            confirmed: last.position,
            progress,
            next: 0,
            inside: None,
            topics: Topics::default(),
            committed: Topics::default(),
            last,
        }
    }

    fn stream(&mut self) {
        let Some(transaction) = self.log.get(self.next).copied() else {
            return;
        };
        match self.inside {
            None => {
                self.progress.pass(transaction.commit);
                let send = self.progress.begin(transaction.commit, 1) == Disposition::Send;
                self.inside = Some((0, if send { transaction.changes } else { 0 }));
            }
            Some((sent, changes)) if sent < changes => {
                let lsn = Lsn(transaction.commit.0 * 10 + sent as u64);
                if self.progress.passes_over(lsn) == Ok(false) {
                    self.topics.changes.push((self.next, sent));
                    self.progress.change_sent(lsn);
                }
                self.inside = Some((sent + 1, changes));
            }
            Some(_) => {
                assert_eq!(self.progress.has_passed_part(), Ok(()));
                self.progress.commit(transaction.commit, transaction.end, 0);
                self.inside = None;
                self.next += 1;
            }
        }
    }

    fn keepalive(&mut self) {
        let read = match (self.log.get(self.next), self.log.last()) {
            (Some(next), _) => next.commit,
            (None, Some(last)) => Lsn(last.end.0 + 3),
            (None, None) => return,
        };
        self.progress.keepalive(read);
    }

    fn read(&mut self, ahead: usize) {
        let shown = self.log.get((self.next + ahead).min(self.log.len() - 1));
        if let Some(shown) = shown {
            self.topics.shown = self.topics.shown.max(shown.end);
            self.progress.read_up_to(shown.end);
        }
    }

    /// Whoever reads up to a whole checkpoint has the source as it was at its position.
    fn record(&mut self) -> Result<(), TestCaseError> {
        self.last = self.progress.record();
        self.committed = self.topics.clone();
        let sent: BTreeSet<_> = self.committed.changes.iter().collect();
        prop_assert_eq!(sent.len(), self.committed.changes.len(), "something twice");
        if !self.last.is_whole() {
            return Ok(());
        }
        let position = self.last.position;
        prop_assert!(self.committed.shown <= position, "a read shows more");
        for (number, transaction) in self.log.iter().enumerate() {
            for change in 0..transaction.changes {
                let sent = self.committed.changes.contains(&(number, change));
                prop_assert_eq!(
                    sent,
                    transaction.end <= position,
                    "change {} of transaction {} ({:?}) at {}",
                    change,
                    number,
                    transaction,
                    position
                );
            }
        }
        Ok(())
    }

    fn crash(&mut self) {
        self.topics = self.committed.clone();
        self.progress = Progress::resume(&self.last, identity(), &tables());
        self.inside = None;
        // The server sends what commits at or after the place that it was told.
        let resent = |transaction: &Logged| transaction.commit >= self.confirmed;
        self.next = self.log.iter().position(resent).unwrap_or(self.log.len());
    }
}

proptest! {
    #[test]
    fn a_whole_record_is_the_source_at_its_position(
        log in log(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut writer = Writer::new(log);
        for step in steps {
            match step {
                Step::Stream => writer.stream(),
                Step::Keepalive => writer.keepalive(),
                Step::Read(ahead) => writer.read(ahead),
                Step::Record => writer.record()?,
                Step::Confirm => writer.confirmed = writer.last.position,
                Step::Crash => writer.crash(),
            }
        }
        // At rest everything is sent, and said to be.
        while writer.next < writer.log.len() {
            writer.stream();
        }
        writer.keepalive();
        writer.record()?;
        prop_assert!(writer.last.is_whole());
        prop_assert!(writer.last.position > writer.log[writer.log.len() - 1].end);
    }

    #[test]
    fn a_position_never_goes_back(log in log(), steps in prop::collection::vec(step(), 1..100)) {
        let mut writer = Writer::new(log);
        let mut before = Lsn::ZERO;
        for step in steps {
            match step {
                Step::Stream => writer.stream(),
                Step::Keepalive => writer.keepalive(),
                Step::Read(ahead) => writer.read(ahead),
                Step::Record => {
                    writer.record()?;
                    prop_assert!(writer.last.position >= before);
                    before = writer.last.position;
                }
                Step::Confirm => writer.confirmed = writer.last.position,
                Step::Crash => writer.crash(),
            }
        }
    }
}

/// The next chunk is sent: up to a key, or all that there is.
fn sent(progress: &mut Progress, after: Option<&str>) {
    let Some(NextRead::Slices(slices)) = progress.next_read(1, &BTreeSet::new()) else {
        panic!("there is nothing to read");
    };
    let end = ChunkEnd {
        after: after.map(|key| columns(&[key])),
        rows: 1,
        bytes: 10,
    };
    progress.chunk_sent(&slices[0], end);
}

fn request(id: u64) -> ReadRequest {
    ReadRequest {
        id,
        condition: None,
        rows_per_second_max: None,
        requested_at_us: 0,
        read: Read::First,
        reconcile: BTreeMap::from([(3, Reconcile { next: 0, end: 9 })]),
    }
}

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// As the catalog has them, all of one type.
fn typed(names: &[&str]) -> Vec<TableColumn> {
    let column = |name: &&str| TableColumn {
        name: (*name).to_owned(),
        type_oid: 25,
        type_modifier: -1,
        kind: Kind::Text,
    };
    names.iter().map(column).collect()
}

pub(super) fn read_once() -> Progress {
    Writer::new(Vec::new()).progress
}

fn state(progress: &Progress) -> &TableState {
    &progress.tables["public.t"]
}

#[test]
fn other_columns_start_the_read_over_and_only_the_new_ones_are_unknown() {
    let mut progress = read_once();
    assert!(!progress.learn_from_log("public.t", &columns(&["id"]), &[]));
    assert!(progress.learn_from_log("public.t", &columns(&["id", "color"]), &[]));
    assert_eq!(state(&progress).read, Read::First);
    assert_eq!(state(&progress).columns, columns(&["id"]));
    assert_eq!(state(&progress).target, columns(&["id", "color"]));
    sent(&mut progress, None);
    assert!(progress.record().is_whole());
    assert_eq!(state(&progress).columns, columns(&["id", "color"]));
}

#[test]
fn fewer_columns_in_the_log_start_over_and_only_the_catalog_takes_one_away() {
    let mut progress = read_once();
    progress.learn_from_log("public.t", &columns(&["id", "color"]), &[]);
    sent(&mut progress, Some("5"));
    assert!(progress.learn_from_log("public.t", &columns(&["id"]), &[]));
    assert_eq!(state(&progress).read, Read::First);
    assert_eq!(state(&progress).target, columns(&["id", "color"]));
    assert!(progress.learn_from_catalog("public.t", &typed(&["id"])));
    assert_eq!(state(&progress).target, columns(&["id"]));
    assert!(!progress.learn_from_catalog("public.t", &typed(&["id"])));
}

#[test]
fn the_next_read_waits_for_the_record_that_covers_the_last() {
    let mut progress = read_once();
    progress.learn_from_catalog("public.t", &typed(&["id", "color"]));
    assert!(progress.wants_read());
    progress.read_up_to(Lsn(150));
    sent(&mut progress, Some("5"));
    assert!(!progress.wants_read());
    progress.record();
    assert!(!progress.wants_read(), "the stream has not passed it");
    progress.keepalive(Lsn(150));
    assert!(!progress.wants_read(), "no record says so");
    progress.record();
    assert!(progress.wants_read());
}

#[test]
fn an_epoch_grows_whatever_the_clock_says() {
    let mut last = read_once().record();
    last.epoch = 50;
    for (now, epoch) in [(10, 51), (50, 51), (51, 51), (99, 99)] {
        let begun = Progress::begin_epoch(
            Some(&last),
            now,
            identity(),
            Lsn(1),
            &tables(),
            &BTreeMap::new(),
        );
        assert_eq!(begun.epoch(), epoch);
    }
}

#[test]
fn a_pulse_that_the_log_was_behind_counts_once_it_has_come_so_far() {
    let mut progress = read_once();
    progress.current(Lsn(150), 1);
    progress.current(Lsn(170), 2);
    progress.current(Lsn(200), 3);
    let known = |progress: &mut Progress| progress.record().current_at_us;
    assert_eq!(known(&mut progress), None);
    progress.keepalive(Lsn(160));
    assert_eq!(known(&mut progress), Some(1));
    progress.begin(Lsn(165), 1);
    progress.commit(Lsn(165), Lsn(180), 0);
    assert_eq!(known(&mut progress), Some(2));
    progress.keepalive(Lsn(200));
    assert_eq!(known(&mut progress), Some(3));
}

#[test]
fn a_table_that_returns_to_the_configuration_is_compared_with_all_of_its_topic() {
    let last = read_once().record();
    let without = Progress::resume(&last, identity(), &BTreeMap::new()).record();
    assert!(
        without.tables.is_empty(),
        "a table that is not streamed is forgotten"
    );
    let mut again = Progress::resume(&without, identity(), &tables());
    again.add("public.t", &BTreeMap::from([(0, 7), (1, 0)]));
    assert_eq!(state(&again).read, Read::First);
    let stale = BTreeMap::from([(0, Reconcile { next: 0, end: 7 })]);
    assert_eq!(state(&again).reconcile, stale);
    assert!(!again.record().is_whole());
}

#[test]
fn what_is_asked_for_survives_in_the_record_and_is_forgotten_once_it_is_complete() {
    let mut progress = read_once();
    progress.ask("public.t", request(7)).unwrap();
    progress.ask("public.t", request(8)).unwrap();
    assert!(progress.ask("public.u", request(9)).is_err());
    let mut progress = Progress::resume(&progress.record(), identity(), &tables());
    assert_eq!(progress.last_request(), 8);
    assert!(progress.wants_read());
    sent(&mut progress, Some("5"));
    assert!(!progress.wants_read(), "no record covers the chunk");
    assert!(progress.record().is_whole(), "readers go on meanwhile");
    sent(&mut progress, None);
    let Some(NextRead::Reconcile {
        request: Some(7),
        partition: 3,
        ..
    }) = progress.next_read(1, &BTreeSet::new())
    else {
        panic!(
            "what is gone is to be deleted: {:?}",
            progress.next_read(1, &BTreeSet::new())
        );
    };
    progress.reconciled("public.t", Some(7), 3, 9);
    assert_eq!(progress.request("public.t", 7), None);
    assert!(progress.give_up("public.t", 8));
    assert_eq!(progress.next_read(1, &BTreeSet::new()), None);
    assert!(!progress.record().tables["public.t"].columns.is_empty());
}

#[test]
fn tables_and_ranges_are_read_at_once_and_a_restart_takes_the_ranges_back() {
    let catalog = ["public.a", "public.b"].map(|name| (name.to_owned(), columns(&["id"])));
    let catalog = BTreeMap::from(catalog);
    let mut progress =
        Progress::begin_epoch(None, 1, identity(), Lsn(1), &catalog, &BTreeMap::new());
    let slices = |progress: &Progress| match progress.next_read(4, &BTreeSet::new()) {
        Some(NextRead::Slices(slices)) => slices,
        other => panic!("{other:?}"),
    };
    let first = slices(&progress);
    assert_eq!(first.len(), 2);
    progress.read_begins(&first[0], vec![columns(&["3"]), columns(&["6"])], 9, 0);
    assert_eq!(slices(&progress).len(), 4, "three ranges of a, and b");
    let end = ChunkEnd {
        after: Some(columns(&["4"])),
        rows: 1,
        bytes: 1,
    };
    progress.chunk_sent(&slices(&progress)[1], end);
    assert_eq!(slices(&progress)[1].range.after, Some(columns(&["4"])));
    let without = BTreeSet::from(["public.a".to_owned()]);
    let Some(NextRead::Slices(others)) = progress.next_read(4, &without) else {
        panic!("b is not locked");
    };
    assert_eq!((others.len(), others[0].table.as_str()), (1, "public.b"));
    progress.learn_from_catalog("public.a", &typed(&["id", "color"]));
    assert_eq!(slices(&progress).len(), 2);
}
