//! The bytes that cross Kafka. A change here is a change for every consumer.

use std::collections::BTreeMap;

use kafka::checkpoint::{HalfSent, KeyRange, Read, ReadRequest, Reconcile, RunningRead};
use kafka::event::{Envelope, Op, Source};
use kafka::quarantine::{Quarantined, Reason, Sent};
use kafka::{Checkpoint, Definition, Lsn, TableState};
use proptest::prelude::*;
use serde_json::json;

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_checkpoint_is_written_as_ever() {
    let read = |read| TableState {
        columns: columns(&["id"]),
        target: columns(&["id", "note"]),
        read,
        ..TableState::default()
    };
    let mut reconciled = read(Read::Done);
    reconciled
        .reconcile
        .insert(1, Reconcile { next: 5, end: 9 });
    let mut asked = read(Read::Done);
    asked.requests.push(ReadRequest {
        id: 1_763_900_002,
        condition: Some("id > 5".to_owned()),
        rows_per_second_max: Some(1000),
        requested_at_us: 1_763_900_002_000_000,
        read: Read::First,
        reconcile: BTreeMap::from([(0, Reconcile { next: 0, end: 17 })]),
    });
    let running = Read::Running(RunningRead {
        ranges: KeyRange::between(vec![columns(&["42", "x"])]),
        rows: 20_000,
        bytes: 14_000_000,
        rows_estimate: 5_000_000,
        begun_at_us: 1_763_900_001_000_000,
    });
    let defined = TableState {
        types: vec![(20, -1), (1043, 204)],
        definition: Some(Definition {
            oid: 16_400,
            published: 16_500,
            key: vec![("id".to_owned(), "integer".to_owned())],
            file_node: 16_600,
            attributes: "d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        }),
        not_before: Lsn(0x1_0000_2A00),
        ..read(Read::Done)
    };
    let record = Checkpoint {
        epoch: 1_763_900_000,
        system_identifier: "7423456789012345678".to_owned(),
        timeline: 2,
        position: Lsn(0x1_0000_2A3C),
        reach: Lsn(0x1_0000_2A40),
        half_sent: Some(HalfSent {
            commit_lsn: Lsn(0x1_0000_2A3F),
            xid: 771,
            changes: 20_000,
            change_lsn: Lsn(0x1_0000_2A3D),
        }),
        committed_at_us: Some(1_763_900_001_000_001),
        current_at_us: None,
        wal_end: Lsn(0x1_0000_2A48),
        offsets: BTreeMap::from([(
            "sales.public.sls_order".to_owned(),
            BTreeMap::from([(0, 17), (3, 4)]),
        )]),
        quarantine: BTreeMap::from([(0, 2)]),
        tables: BTreeMap::from([
            ("public.first".to_owned(), read(Read::First)),
            (
                "public.after".to_owned(),
                read(Read::After(columns(&["42", "x"]))),
            ),
            ("public.asked".to_owned(), asked),
            ("public.defined".to_owned(), defined),
            ("public.done".to_owned(), reconciled),
            ("public.running".to_owned(), read(running)),
        ]),
    };
    insta::assert_json_snapshot!("checkpoint", record);
    assert!(!record.is_whole());
}

/// As the version before quarantine, definitions and parts of transactions wrote it.
#[test]
fn a_checkpoint_of_an_older_version_is_understood() {
    let written = r#"{"epoch":5,"system_identifier":"7","timeline":1,"position":"0/10",
        "reach":"0/10","committed_at_us":null,"current_at_us":null,"wal_end":"0/10",
        "offsets":{"sales.public.a":{"0":1}},
        "tables":{"public.a":{"columns":["id"],"target":["id"],"read":"done"}}}"#;
    let record: Checkpoint = serde_json::from_str(written).unwrap();
    assert!(record.is_whole());
    assert!(record.quarantine.is_empty());
    assert_eq!(record.half_sent, None);
}

#[test]
fn what_is_in_quarantine_is_written_as_ever() {
    let quarantined = Quarantined {
        table: "public.photo".to_owned(),
        op: Op::Update,
        key: Some(json!({"id": 5})),
        reason: Reason::TooLarge,
        detail: "the event has 20971520 bytes".to_owned(),
        sent: Sent::Nothing,
        lsn: Lsn(0x1_0000_2A3C),
        xid: Some(771),
        ts_us: 1_763_900_001_000_001,
        columns: columns(&["id", "photo"]),
        bytes: 20_971_500,
        part: 1,
        parts: 5,
        cut: false,
        raw: "AAI=".to_owned(),
    };
    insta::assert_json_snapshot!("quarantined", quarantined);
}

#[test]
fn an_envelope_is_written_as_debezium_writes_it() {
    let envelope = Envelope {
        before: None,
        after: Some(json!({"id": 5, "price": "2.50", "name": "\u{5e9}\u{1f980} \"q\""})),
        source: Source {
            version: "1".to_owned(),
            connector: "postgresql".to_owned(),
            name: "sales".to_owned(),
            ts_ms: 1_763_900_001_000,
            snapshot: "false".to_owned(),
            db: "sales".to_owned(),
            sequence: "[\"4294978620\",\"4294978624\"]".to_owned(),
            ts_us: 1_763_900_001_000_001,
            ts_ns: 1_763_900_001_000_001_000,
            schema: "public".to_owned(),
            table: "sls_order".to_owned(),
            tx_id: Some(771),
            lsn: Some(4_294_978_624),
            xmin: None,
        },
        transaction: None,
        op: Op::Update,
        ts_ms: Some(1_763_900_001_002),
        ts_us: Some(1_763_900_001_002_003),
        ts_ns: Some(1_763_900_001_002_003_000),
    };
    insta::assert_json_snapshot!("envelope", envelope);
}

prop_compose! {
    fn any_definition()(
        (oid, published, file_node) in any::<(u32, u32, u32)>(),
        key in prop::collection::vec(("[a-z]{1,4}", "[a-z]{1,4}"), 0..3),
        attributes in "[a-f0-9]{0,4}",
    ) -> Definition {
        Definition { oid, published, key, file_node, attributes }
    }
}

prop_compose! {
    fn any_state()(
        known in prop::collection::vec("[a-z]{1,4}", 0..3),
        target in prop::collection::vec("[a-z]{1,4}", 0..3),
        read in prop_oneof![
            Just(Read::First),
            prop::collection::vec(".{0,4}", 1..3).prop_map(Read::After),
            prop::collection::vec(prop::collection::vec(".{0,4}", 1..3), 0..3).prop_map(|keys| {
                Read::Running(RunningRead {
                    ranges: KeyRange::between(keys),
                    ..RunningRead::default()
                })
            }),
            Just(Read::Done),
        ],
        types in prop::collection::vec((any::<u32>(), any::<i32>()), 0..3),
        definition in prop::option::of(any_definition()),
        not_before in any::<u64>().prop_map(Lsn),
        reconcile in prop::collection::btree_map(
            0..9_i32,
            (0..99_i64, 0..99_i64).prop_map(|(next, end)| Reconcile { next, end }),
            0..3,
        ),
        partitions in 0..9_i32,
    ) -> TableState {
        TableState {
            columns: known,
            target,
            types,
            definition,
            not_before,
            read,
            reconcile,
            partitions,
            ..TableState::default()
        }
    }
}

prop_compose! {
    fn any_part()(commit: u64, xid: u32, changes: u64, change: u64) -> HalfSent {
        HalfSent { commit_lsn: Lsn(commit), xid, changes, change_lsn: Lsn(change) }
    }
}

prop_compose! {
    fn any_checkpoint()(
        epoch: u64,
        timeline: u32,
        position: u64,
        reach: u64,
        half_sent in prop::option::of(any_part()),
        wal_end: u64,
        times: (Option<i64>, Option<i64>),
        offsets in prop::collection::btree_map(
            "[a-z.]{1,9}",
            prop::collection::btree_map(0..9_i32, 0..i64::MAX, 0..3),
            0..3,
        ),
        quarantine in prop::collection::btree_map(0..2_i32, 0..i64::MAX, 0..2),
        tables in prop::collection::btree_map("[a-z.]{1,9}", any_state(), 0..3),
    ) -> Checkpoint {
        Checkpoint {
            epoch,
            system_identifier: "1".to_owned(),
            timeline,
            position: Lsn(position),
            reach: Lsn(reach),
            half_sent,
            committed_at_us: times.0,
            current_at_us: times.1,
            wal_end: Lsn(wal_end),
            offsets,
            quarantine,
            tables,
        }
    }
}

proptest! {
    #[test]
    fn a_successor_reads_what_its_predecessor_wrote(record in any_checkpoint()) {
        let written = serde_json::to_vec(&record).unwrap();
        prop_assert_eq!(serde_json::from_slice::<Checkpoint>(&written).unwrap(), record);
    }

    #[test]
    fn a_record_is_whole_if_nothing_lies_beyond_it_and_every_table_is_known(
        record in any_checkpoint()
    ) {
        let known = record.tables.values().filter(|table| !table.columns.is_empty()).count();
        let whole = record.reach.0 <= record.position.0 && known == record.tables.len();
        prop_assert_eq!(record.is_whole(), whole);
    }
}
