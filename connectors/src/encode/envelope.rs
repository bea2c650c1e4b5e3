//! A change event: Debezium's envelope around the row, written straight into a buffer.
//!
//! Its shape is [`kafka::event::Envelope`]; a test keeps the two equal. What is the same for
//! every event of a table is encoded once ([`SourceBlock`]).

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use kafka::Lsn;
use kafka::event::Op;

use super::value::{self, Kind};
use super::write_string;

/// A column as an event shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name with quotes and colon.
    name: Vec<u8>,
    kind: Kind,
}

impl Column {
    #[must_use]
    pub fn new(name: &str, kind: Kind) -> Self {
        let mut encoded = Vec::with_capacity(name.len() + 3);
        write_string(&mut encoded, name);
        encoded.push(b':');
        Self {
            name: encoded,
            kind,
        }
    }
}

/// A value of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    Text(&'a [u8]),
    /// Not known, and so left out: of an old row all but the key.
    Absent,
}

impl Value<'_> {
    /// Of its text.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Null | Self::Absent => 0,
        }
    }
}

/// Was the event seen by a table read?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    True,
    False,
}

/// Where and when an event's change happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub snapshot: Snapshot,
    /// Commit time; of a read, when its snapshot was taken. Microseconds since 1970.
    pub ts_us: i64,
    /// End of the last commit before the event.
    pub last_commit: Lsn,
    /// The change's place in the WAL; of a read, the WAL's end when its snapshot was taken.
    pub lsn: Lsn,
    pub xid: Option<u32>,
}

/// What every event of a table says of where it comes from.
#[derive(Debug, Clone)]
pub struct SourceBlock {
    name: Vec<u8>,
    database: Vec<u8>,
    schema: Vec<u8>,
    table: Vec<u8>,
}

impl SourceBlock {
    #[must_use]
    pub fn new(source: &str, database: &str, schema: &str, table: &str) -> Self {
        let encoded = |text: &str| {
            let mut out = Vec::with_capacity(text.len() + 2);
            write_string(&mut out, text);
            out
        };
        Self {
            name: encoded(source),
            database: encoded(database),
            schema: encoded(schema),
            table: encoded(table),
        }
    }

    fn write(&self, out: &mut Vec<u8>, origin: &Origin) {
        out.extend_from_slice(
            concat!(
                r#"{"version":""#,
                env!("CARGO_PKG_VERSION"),
                r#"","connector":"postgresql","name":"#
            )
            .as_bytes(),
        );
        out.extend_from_slice(&self.name);
        let snapshot = match origin.snapshot {
            Snapshot::True => "true",
            Snapshot::False => "false",
        };
        put(
            out,
            format_args!(
                r#","ts_ms":{},"snapshot":"{snapshot}","db":"#,
                origin.ts_us.div_euclid(1000)
            ),
        );
        out.extend_from_slice(&self.database);
        put(
            out,
            format_args!(
                r#","sequence":"[\"{}\",\"{}\"]","ts_us":{},"ts_ns":{},"schema":"#,
                origin.last_commit.0,
                origin.lsn.0,
                origin.ts_us,
                origin.ts_us.saturating_mul(1000)
            ),
        );
        out.extend_from_slice(&self.schema);
        out.extend_from_slice(br#","table":"#);
        out.extend_from_slice(&self.table);
        match origin.xid {
            Some(xid) => put(out, format_args!(r#","txId":{xid}"#)),
            None => out.extend_from_slice(br#","txId":null"#),
        }
        put(
            out,
            format_args!(r#","lsn":{},"xmin":null}}"#, origin.lsn.0),
        );
    }
}

/// Writes a row as a JSON object.
///
/// # Errors
/// The place of the first value that is no text.
pub fn write_row<'a>(
    out: &mut Vec<u8>,
    columns: &[Column],
    values: impl Iterator<Item = Value<'a>>,
) -> Result<(), usize> {
    out.push(b'{');
    let mut first = true;
    for (place, (column, value)) in columns.iter().zip(values).enumerate() {
        let text = match value {
            Value::Absent => continue,
            Value::Null => None,
            Value::Text(text) => Some(text),
        };
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.extend_from_slice(&column.name);
        value::write(out, column.kind, text).map_err(|value::NotUtf8| place)?;
    }
    out.push(b'}');
    Ok(())
}

/// Writes columns of which each value is known to be text, between the brackets of an object.
pub fn write_known<'a>(out: &mut Vec<u8>, values: impl Iterator<Item = (&'a Column, &'a str)>) {
    for (number, (column, text)) in values.enumerate() {
        if number > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&column.name);
        value::write_text(out, column.kind, text);
    }
}

/// Writes a whole event; `before` and `after` are rows in JSON.
pub fn write(
    out: &mut Vec<u8>,
    op: Op,
    before: Option<&[u8]>,
    after: Option<&[u8]>,
    source: &SourceBlock,
    origin: &Origin,
) {
    out.extend_from_slice(br#"{"before":"#);
    out.extend_from_slice(before.unwrap_or(b"null"));
    out.extend_from_slice(br#","after":"#);
    out.extend_from_slice(after.unwrap_or(b"null"));
    out.extend_from_slice(br#","source":"#);
    source.write(out, origin);
    let op = match op {
        Op::Create => 'c',
        Op::Update => 'u',
        Op::Delete => 'd',
        Op::Read => 'r',
    };
    let now_us = now_us();
    put(
        out,
        format_args!(
            r#","transaction":null,"op":"{op}","ts_ms":{},"ts_us":{now_us},"ts_ns":{}}}"#,
            now_us / 1000,
            now_us.saturating_mul(1000)
        ),
    );
}

/// Microseconds since 1970 by this machine's clock.
#[must_use]
pub fn now_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or_default()
}

fn put(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a Vec takes any bytes");
}

#[cfg(test)]
mod tests {
    use kafka::event::Envelope;
    use serde_json::value::RawValue;

    use super::*;

    fn event(op: Op, before: Option<&[u8]>, after: Option<&[u8]>) -> Vec<u8> {
        let source = SourceBlock::new("sales", "shop \"1\"", "public", "sls_order");
        let origin = Origin {
            snapshot: Snapshot::False,
            ts_us: 1_577_836_800_123_456,
            last_commit: Lsn(99),
            lsn: Lsn(100),
            xid: Some(7),
        };
        let mut out = Vec::new();
        write(&mut out, op, before, after, &source, &origin);
        out
    }

    #[test]
    fn an_event_is_the_shared_envelope_field_by_field() {
        for (op, before, after) in [
            (Op::Create, None, Some(&b"{\"id\":1}"[..])),
            (Op::Update, None, Some(&b"{\"id\":1}"[..])),
            (Op::Delete, Some(&b"{\"id\":1}"[..]), None),
            (Op::Read, None, Some(&b"{\"id\":1}"[..])),
        ] {
            let written = event(op, before, after);
            let read: Envelope<Box<RawValue>> = match serde_json::from_slice(&written) {
                Ok(read) => read,
                Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&written)),
            };
            assert_eq!(read.op, op);
            assert_eq!(serde_json::to_vec(&read).unwrap(), written);
        }
    }

    #[test]
    fn a_row_names_its_columns_and_leaves_out_what_is_not_known() {
        let columns = [
            Column::new("id", Kind::Integer),
            Column::new("odd \"name\"", Kind::Text),
            Column::new("price", Kind::Numeric),
        ];
        let mut out = Vec::new();
        let values = [Value::Absent, Value::Null, Value::Text(b"2.50")];
        write_row(&mut out, &columns, values.into_iter()).unwrap();
        assert_eq!(out, br#"{"odd \"name\"":null,"price":"2.50"}"#);
        let values = [Value::Absent, Value::Text(b"\xc8"), Value::Null];
        let refused = write_row(&mut Vec::new(), &columns, values.into_iter());
        assert_eq!(refused, Err(1));
    }
}
