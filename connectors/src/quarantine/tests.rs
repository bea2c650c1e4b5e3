use kafka::Lsn;
use kafka::quarantine::Reason;
use proptest::prelude::*;

use super::*;
use crate::captured::tests::captured;

fn origin() -> Origin {
    Origin {
        snapshot: Snapshot::False,
        ts_us: 1,
        last_commit: Lsn(99),
        lsn: Lsn(100),
        xid: Some(7),
    }
}

/// The records of a row whose event is too large.
fn records(values: &[Value<'_>], bytes_max: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let captured = captured();
    let key = captured.key_of(|at| values[at]);
    let change = Change {
        op: Op::Update,
        key: &key,
        origin: &origin(),
        text_bytes: 0,
        bytes_max,
    };
    let reason = EncodeError::TooLarge { bytes: 2, max: 1 };
    let undecodable = Undecodable::new(&change, reason, Sent::Nothing, values.iter().copied());
    let (key, records) = undecodable.records(&captured, bytes_max).unwrap();
    (key, records.collect::<Result<_, _>>().unwrap())
}

/// Reads `TupleData` as its documentation says.
fn tuple(mut raw: &[u8]) -> Vec<Option<Option<Vec<u8>>>> {
    let mut take = |len: usize| {
        let (taken, rest) = raw.split_at(len);
        raw = rest;
        taken
    };
    let columns = u16::from_be_bytes(take(2).try_into().unwrap());
    let values = (0..columns).map(|_| match take(1) {
        b"n" => Some(None),
        b"u" => None,
        b"t" => {
            let len = u32::from_be_bytes(take(4).try_into().unwrap());
            Some(Some(take(usize::try_from(len).unwrap()).to_vec()))
        }
        other => panic!("{other:?}"),
    });
    values.collect()
}

proptest! {
    #[test]
    fn the_parts_together_are_the_row(
        name in prop::option::of(prop::collection::vec(any::<u8>(), 0..9000)),
        bytes_max in 2048_usize..20_000,
    ) {
        let value = name.as_ref().map_or(Value::Null, |name| Value::Text(name));
        let (key, records) = records(&[Value::Text(b"5"), value, Value::Absent], bytes_max);
        let mut raw = Vec::new();
        for (record, number) in records.iter().zip(0..) {
            prop_assert!(key.len() + record.len() <= bytes_max.max(4096), "{}", record.len());
            let record: Quarantined = serde_json::from_slice(record).unwrap();
            prop_assert_eq!((record.part, record.parts as usize), (number, records.len()));
            prop_assert_eq!(record.key, Some(json!({"id": 5})));
            prop_assert_eq!(record.reason, Reason::TooLarge);
            raw.extend(BASE64.decode(record.raw).unwrap());
        }
        prop_assert_eq!(tuple(&raw), vec![Some(Some(b"5".to_vec())), Some(name), None]);
    }
}

#[test]
fn a_row_beyond_all_bounds_is_cut_and_says_so() {
    let name = vec![b'x'; ROW_BYTES_MAX];
    let (_, records) = records(
        &[Value::Text(b"5"), Value::Text(&name), Value::Null],
        16 << 20,
    );
    let last: Quarantined = serde_json::from_slice(records.last().unwrap()).unwrap();
    assert!(last.cut);
    assert_eq!(last.bytes, ROW_BYTES_MAX as u64 + 2 + 6 + 5 + 1);
    assert_eq!(last.part + 1, last.parts);
    assert_eq!(records.len(), ROW_BYTES_MAX / PART_BYTES_MAX);
}

#[test]
fn a_key_that_cannot_be_told_is_null() {
    let (key, records) = records(&[Value::Text(b"\xc8"), Value::Null, Value::Null], 16 << 20);
    assert_eq!(key, br#"{"key":null,"table":"public.item"}"#);
    let record: Quarantined = serde_json::from_slice(&records[0]).unwrap();
    assert_eq!(record.key, None);
}
