//! A record of a table's topic becomes a change of a mirror row, or is set aside with a reason.

use std::fmt;
use std::sync::Arc;

use kafka::Lsn;
use kafka::event::Op;
use kafka::follower::Event;
use kafka::quarantine::{Quarantined, Sent};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;

use crate::mirror::{State, Table, Value};

/// Characters of a key that cannot be read, as far as the quarantine keeps them.
const KEY_CHARACTERS_MAX: usize = 200;

/// What one record says of one row.
#[derive(Debug, Clone)]
pub struct Change {
    pub table: &'static Table,
    pub record: Record,
    pub key: Key,
    pub what: What,
    /// Where in the source's log the change stands; none: the record does not say.
    pub lsn: Option<Lsn>,
}

/// Where a record stands in Kafka, and since when.
#[derive(Debug, Clone)]
pub struct Record {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
}

/// The row's primary key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Id(i64),
    /// No key of this table; as text, cut short.
    Unreadable(String),
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The row is this, or gone.
    Now(State),
    /// Cannot be applied. `row` has what could be read of it, null elsewhere.
    Poison {
        reason: String,
        row: Option<Vec<Value>>,
    },
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

impl fmt::Display for Key {
    /// As the connector writes keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{{\"id\":{id}}}"),
            Self::Unreadable(text) => f.write_str(text),
        }
    }
}

impl Key {
    /// What the connector wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Id {
            id: i64,
        }
        match serde_json::from_slice(bytes) {
            Ok(Id { id }) => Self::Id(id),
            Err(_) => {
                let text = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
                Self::Unreadable(text.chars().take(KEY_CHARACTERS_MAX).collect())
            }
        }
    }
}

/// Reads a record of this table; never fails, whatever the bytes.
#[must_use]
pub fn decode(table: &'static Table, event: &Event) -> Change {
    let key = Key::decode(&event.key);
    let (lsn, what) = match (&key, &event.value) {
        (Key::Unreadable(_), _) => (None, poison("the key is not {\"id\": number}")),
        (Key::Id(_), None) => (None, What::Now(State::Gone)),
        (Key::Id(id), Some(value)) => decode_value(table, *id, value),
    };
    Change {
        table,
        record: Record::of(event),
        key,
        what,
        lsn,
    }
}

/// Reads a record of the source's quarantine: a change that its connector could not send. None
/// where that leaves the row as it should be, or concerns no mirror.
#[must_use]
pub(super) fn decode_quarantined(source: &str, event: &Event) -> Option<Change> {
    let value = event.value.as_ref()?;
    let Ok(quarantined) = serde_json::from_slice::<Quarantined>(value) else {
        tracing::error!(
            source,
            record = %Record::of(event),
            "a record of the quarantine cannot be read; if a newer connector wrote it, start a \
            newer aggregator and rebuild {source}"
        );
        return None;
    };
    let table = Table::find(source, &quarantined.table)?;
    if quarantined.sent == Sent::WithoutBefore || quarantined.part > 0 {
        return None;
    }
    let key = match &quarantined.key {
        Some(key) => Key::decode(key.to_string().as_bytes()),
        None => Key::Unreadable(format!("not told, at {}", quarantined.lsn)),
    };
    let row = match &key {
        Key::Id(id) => {
            let mut row = vec![Value::Null; table.columns.len()];
            row[0] = Value::Integer(*id);
            Some(row)
        }
        Key::Unreadable(_) => None,
    };
    let reason = format!(
        "its connector could not send it ({}): {}",
        quarantined.reason.name(),
        quarantined.detail
    );
    Some(Change {
        table,
        record: Record::of(event),
        key,
        what: What::Poison { reason, row },
        lsn: Some(quarantined.lsn),
    })
}

impl Record {
    /// Is it the record before, in the same partition?
    pub(super) fn is_right_before(&self, next: &Self) -> bool {
        self.topic == next.topic
            && self.partition == next.partition
            && self.offset + 1 == next.offset
    }

    fn of(event: &Event) -> Self {
        Self {
            topic: event.topic.clone(),
            partition: event.partition,
            offset: event.offset,
            timestamp_ms: event.timestamp_ms,
        }
    }
}

fn poison(reason: impl Into<String>) -> What {
    What::Poison {
        reason: reason.into(),
        row: None,
    }
}

fn decode_value(table: &'static Table, id: i64, bytes: &[u8]) -> (Option<Lsn>, What) {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let envelope = EnvelopeOf(table).deserialize(&mut json);
    let envelope = match envelope.and_then(|envelope| json.end().map(|()| envelope)) {
        Ok(envelope) => envelope,
        // The error's own words may quote the row.
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let reason = format!("the value is no change event (line {line}, column {column})");
            return (None, poison(reason));
        }
    };
    let what = match (envelope.op, envelope.after) {
        (Op::Delete, _) => What::Now(State::Gone),
        (_, None) => poison("the event has no row after the change"),
        (_, Some(row)) => read_row(table, id, row),
    };
    (envelope.lsn, what)
}

fn read_row(table: &'static Table, id: i64, row: Vec<Option<Json>>) -> What {
    let mut problems = Vec::new();
    let mut values = Vec::with_capacity(row.len());
    for (column, json) in table.columns.iter().zip(row) {
        let read = json.map_or(Err("is missing"), |json| column.kind.read(json));
        values.push(read.unwrap_or_else(|problem| {
            problems.push(format!("column {} {problem}", column.name));
            Value::Null
        }));
    }
    if problems.is_empty() && values.first() != Some(&Value::Integer(id)) {
        problems.push("column id is not the key's".to_owned());
    }
    if problems.is_empty() {
        What::Now(State::Row(values))
    } else {
        What::Poison {
            reason: problems.join("; "),
            row: Some(values),
        }
    }
}

/// The operation, the row after it, and where it stands in the source's log.
struct Read {
    op: Op,
    after: Option<Vec<Option<Json>>>,
    lsn: Option<Lsn>,
}

/// Reads a [`Read`] of this table; all else of the envelope is skipped.
struct EnvelopeOf(&'static Table);

impl<'de> DeserializeSeed<'de> for EnvelopeOf {
    type Value = Read;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeOf {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a change event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        struct Source {
            lsn: Option<u64>,
        }
        let (mut op, mut after, mut lsn) = (None, None, None);
        while let Some(field) = map.next_key::<Field>()? {
            match field {
                Field::Op => op = Some(map.next_value::<Op>()?),
                Field::After => after = map.next_value_seed(RowOf(self.0))?,
                Field::Source => {
                    let source = map.next_value::<Option<Source>>()?;
                    lsn = source.and_then(|source| source.lsn).map(Lsn);
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let op = op.ok_or_else(|| A::Error::missing_field("op"))?;
        Ok(Read { op, after, lsn })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Field {
    Op,
    After,
    Source,
    #[serde(other)]
    Other,
}

/// The mirrored columns of a row, in the table's order.
struct RowOf(&'static Table);

impl<'de> DeserializeSeed<'de> for RowOf {
    type Value = Option<Vec<Option<Json>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for RowOf {
    type Value = Option<Vec<Option<Json>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a row of {} or null", self.0.captured)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut row = vec![None; self.0.columns.len()];
        while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            match self.0.columns.iter().position(|column| column.name == name) {
                Some(place) => row[place] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Some(row))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::mirror::{LINE, Time};

    fn event(key: &[u8], value: Option<&[u8]>) -> Event {
        Event {
            topic: "sales.public.sls_orderdetail".into(),
            table: "public.sls_orderdetail".into(),
            partition: 0,
            offset: 7,
            key: Bytes::copy_from_slice(key),
            value: value.map(Bytes::copy_from_slice),
            timestamp_ms: 0,
        }
    }

    fn what(value: &str) -> What {
        decode(&LINE, &event(br#"{"id":5}"#, Some(value.as_bytes()))).what
    }

    #[test]
    fn the_row_after_is_read_by_column_names_and_the_rest_is_skipped() {
        let row = r#"{"order_id":9,"new":{"a":[1]},"quantity":2,"unit_price":"2.50","item_id":null,"id":5}"#;
        let value =
            format!(r#"{{"before":{{"id":"?"}},"after":{row},"source":{{"x":1}},"op":"u"}}"#);
        let read = vec![
            Value::Integer(5),
            Value::Null,
            Value::Text("2.50".to_owned()),
            Value::Integer(2),
            Value::Integer(9),
        ];
        assert_eq!(what(&value), What::Now(State::Row(read)));
    }

    #[test]
    fn deletes_and_tombstones_are_gone() {
        let delete = r#"{"before":{"id":5},"after":null,"op":"d"}"#;
        assert_eq!(what(delete), What::Now(State::Gone));
        let tombstone = decode(&LINE, &event(br#"{"id":5}"#, None));
        assert_eq!(tombstone.what, What::Now(State::Gone));
    }

    #[test]
    fn poison_keeps_what_could_be_read_and_names_the_columns() {
        let row = r#"{"id":5,"order_id":9,"quantity":2,"unit_price":"NaN"}"#;
        let What::Poison { reason, row } = what(&format!(r#"{{"after":{row},"op":"c"}}"#)) else {
            panic!("applied");
        };
        assert_eq!(
            reason,
            "column item_id is missing; column unit_price is no finite number, so no sum can contain it"
        );
        let row = row.unwrap();
        assert_eq!(row[4], Value::Integer(9));
        assert_eq!(row[1], Value::Null);
    }

    #[test]
    fn what_is_no_change_event_is_poison() {
        for value in [
            "",
            "{",
            "5",
            "null",
            r#"{"op":"c"}"#,
            r#"{"after":{"id":5}}"#,
            r#"{"after":7,"op":"c"}"#,
            r#"{"after":null,"op":"c"}"#,
            r#"{"after":{"id":6,"item_id":1,"unit_price":"1","quantity":1,"order_id":1},"op":"c"}"#,
        ] {
            assert!(matches!(what(value), What::Poison { .. }), "{value}");
        }
        for key in [&b""[..], b"5", b"{}", b"{\"id\":\"5\"}", b"\xff\0"] {
            let change = decode(&LINE, &event(key, None));
            assert!(matches!(change.key, Key::Unreadable(_)));
            assert!(matches!(change.what, What::Poison { .. }));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_poison(key: Vec<u8>, value: Option<Vec<u8>>) {
            let _ = decode(&LINE, &event(&key, value.as_deref()));
        }
    }

    #[test]
    fn times_of_orders_are_read() {
        let row = r#"{"id":5,"customer_id":1,"date":"2000-01-01T00:00:01.000000Z"}"#;
        let value = format!(r#"{{"after":{row},"op":"r"}}"#);
        let change = decode(
            &crate::mirror::ORDER,
            &event(br#"{"id":5}"#, Some(value.as_bytes())),
        );
        let What::Now(State::Row(row)) = change.what else {
            panic!("not applied");
        };
        assert_eq!(row[2], Value::Time(Time(1_000_000)));
    }
}
