use kafka::Lsn;
use serde_json::{Value as Json, json};

use super::*;
use crate::encode::{Kind, Snapshot};

/// `public.item(id bigint primary key, name text, note text)`.
pub(crate) fn captured() -> Captured {
    let column = |name: &str, type_oid| TableColumn {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        kind: Kind::of(type_oid, -1),
    };
    let columns = [column("id", 20), column("name", 25), column("note", 25)];
    Captured {
        name: "public.item".to_owned(),
        topic: "shop.public.item".to_owned(),
        oid: 7,
        sql: "ONLY \"public\".\"item\"".to_owned(),
        columns: columns.iter().map(|column| column.name.clone()).collect(),
        types: columns.iter().map(TableColumn::type_pair).collect(),
        key: vec![KeyColumn {
            name: "id".to_owned(),
            kind: Kind::Integer,
            type_name: "bigint".to_owned(),
        }],
        key_at: vec![0],
        encoded: columns.iter().map(TableColumn::encoded).collect(),
        block: SourceBlock::new("shop", "shop", "public", "item"),
    }
}

const ORIGIN: Origin = Origin {
    snapshot: Snapshot::False,
    ts_us: 1,
    last_commit: Lsn(99),
    lsn: Lsn(100),
    xid: Some(7),
};

fn values<'a>(name: &'a [u8]) -> [Value<'a>; 3] {
    [Value::Text(b"5"), Value::Text(name), Value::Null]
}

fn change<'a>(
    op: Op,
    key: &'a Result<Key, EncodeError>,
    text_bytes: usize,
    bytes_max: usize,
) -> Change<'a> {
    Change {
        op,
        key,
        origin: &ORIGIN,
        text_bytes,
        bytes_max,
    }
}

/// An update to `new` from `old`, where that is known: its event's rows, and what is quarantined.
fn update(old: Option<&[u8]>, new: &[u8], bytes_max: usize) -> (Option<Json>, Option<Undecodable>) {
    let captured = captured();
    let (new, key) = (values(new), captured.key_of(|at| values(b"")[at]));
    let before = old.map(|old| captured.row(values(old).into_iter()));
    let change = change(Op::Update, &key, 0, bytes_max);
    let encoded = captured.upsert(&change, before, new.into_iter());
    (
        encoded.event.map(|event| rows(&event)),
        encoded.quarantined.map(|quarantined| *quarantined),
    )
}

fn rows(event: &[u8]) -> Json {
    let event: Json = serde_json::from_slice(event).unwrap();
    json!([event["op"], event["before"], event["after"]])
}

#[test]
fn a_sound_row_is_an_event() {
    let (event, quarantined) = update(Some(b"a"), b"b", 4096);
    let row = |name: &str| json!({"id": 5, "name": name, "note": null});
    assert_eq!(event, Some(json!(["u", row("a"), row("b")])));
    assert!(quarantined.is_none());
}

#[test]
fn a_value_that_is_no_text_is_quarantined() {
    let (event, quarantined) = update(None, b"\xc8", 4096);
    assert_eq!(event, None);
    let text = format!("{quarantined:?}");
    assert!(
        text.contains("NotUtf8 { column: \"name\" }") && text.contains("sent: Nothing"),
        "{text}"
    );
}

#[test]
fn rather_than_the_row_its_old_state_is_left_out() {
    let row = json!({"id": 5, "name": "b", "note": null});
    for (old, reason) in [
        (&[b'x'; 4096][..], "TooLarge"),
        (b"\xc8", "NotUtf8 { column: \"name\" }"),
    ] {
        let (event, quarantined) = update(Some(old), b"b", 2048);
        assert_eq!(event, Some(json!(["u", null, row])));
        let text = format!("{quarantined:?}");
        assert!(
            text.contains(reason) && text.contains("sent: WithoutBefore"),
            "{text}"
        );
    }
}

#[test]
fn a_row_that_is_too_large_is_quarantined_with_and_without_its_old_state() {
    for old in [None, Some(&b"a"[..])] {
        let (event, quarantined) = update(old, &[b'x'; 4096], 2048);
        assert_eq!(event, None);
        assert!(format!("{quarantined:?}").contains("TooLarge"));
    }
}

#[test]
fn a_row_beyond_all_bounds_is_not_encoded_first() {
    let captured = captured();
    let key = captured.key_of(|at| values(b"")[at]);
    let change = change(Op::Create, &key, 2 * 2048 + 2, 2048);
    let encoded = captured.upsert(&change, None, values(b"").into_iter());
    assert!(encoded.event.is_none());
}

#[test]
fn a_delete_goes_out_whatever_its_old_row_is() {
    let captured = captured();
    let key = captured.key_of(|at| values(b"")[at]);
    for (old, text_bytes) in [(&[b'x'; 4096][..], 0), (b"\xc8", 0), (b"a", 1 << 20)] {
        let change = change(Op::Delete, &key, text_bytes, 2048);
        let encoded = captured.delete(&change, values(old).into_iter());
        assert_eq!(rows(&encoded.event.unwrap()), json!(["d", {"id": 5}, null]));
        assert!(encoded.quarantined.is_some());
    }
}

#[test]
fn a_key_is_told_or_the_reason_why_not() {
    let captured = captured();
    let key = |value| captured.key_of(|_| value).map(|key| key.json);
    assert_eq!(key(Value::Text(b"5")).unwrap(), br#"{"id":5}"#[..]);
    let column = "id".to_owned();
    for value in [Value::Null, Value::Absent] {
        let column = column.clone();
        assert_eq!(key(value), Err(EncodeError::NoKey { column }));
    }
    assert_eq!(
        key(Value::Text(b"\xc8")),
        Err(EncodeError::NotUtf8 { column })
    );
}
