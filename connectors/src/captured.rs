//! A captured table with the columns of one moment, ready to encode its rows.

use bytes::Bytes;
use kafka::event::Op;
use kafka::quarantine::Sent;

use crate::config::ConnectorConfig;
use crate::encode::envelope::{self, Column, Origin, Value};
use crate::encode::{EncodeError, KeyColumn, SourceBlock, key};
use crate::error::LifeError;
use crate::quarantine::Undecodable;
use crate::source::catalog::{Table, TableColumn};

/// Columns come with a RELATION message, or with the catalog in a read's snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Captured {
    /// `schema.table`.
    pub(crate) name: String,
    pub(crate) topic: String,
    pub(crate) oid: u32,
    /// In SQL.
    pub(crate) sql: String,
    pub(crate) columns: Vec<String>,
    /// Of each column: id and modifier of its type.
    pub(crate) types: Vec<(u32, i32)>,
    pub(crate) key: Vec<KeyColumn>,
    /// Where each key column stands among `columns`.
    pub(crate) key_at: Vec<usize>,
    encoded: Vec<Column>,
    block: SourceBlock,
}

/// How an event without an old state begins.
const BEFORE_ROW: &[u8] = br#"{"before":null,"after":"#;

/// An event but for its row: the same for every row of a read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) before: Vec<u8>,
    pub(crate) behind: Vec<u8>,
}

/// A row's key, as Kafka and as PostgreSQL know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) json: Bytes,
    pub(crate) texts: Vec<String>,
}

/// A change that an event is to be made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) op: Op,
    pub(crate) key: &'a Result<Key, EncodeError>,
    pub(crate) origin: &'a Origin,
    /// Of all its values.
    pub(crate) text_bytes: usize,
    /// Of a record's key and value.
    pub(crate) bytes_max: usize,
}

/// What is sent of a change.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// None: nothing can be sent.
    pub(crate) event: Option<Vec<u8>>,
    /// What could not be encoded, all or part of the change.
    pub(crate) quarantined: Option<Box<Undecodable>>,
}

impl Change<'_> {
    /// No value's JSON is shorter than half of its text (a date is the shortest), so a row that
    /// is beyond all bounds is not encoded first.
    fn encodable(&self) -> Result<(), EncodeError> {
        if self.text_bytes / 2 <= self.bytes_max {
            return Ok(());
        }
        Err(EncodeError::TooLarge {
            bytes: self.text_bytes / 2,
            max: self.bytes_max,
        })
    }

    fn fit(&self, key: &Key, event: Vec<u8>) -> Result<Vec<u8>, EncodeError> {
        let bytes = key.json.len() + event.len();
        if bytes <= self.bytes_max {
            return Ok(event);
        }
        Err(EncodeError::TooLarge {
            bytes,
            max: self.bytes_max,
        })
    }
}

impl Encoded {
    fn whole(event: Vec<u8>) -> Self {
        Self {
            event: Some(event),
            quarantined: None,
        }
    }

    fn reduced<'v>(
        event: Vec<u8>,
        change: &Change<'_>,
        reason: EncodeError,
        values: impl Iterator<Item = Value<'v>>,
    ) -> Self {
        let undecodable = Undecodable::new(change, reason, Sent::WithoutBefore, values);
        Self {
            event: Some(event),
            quarantined: Some(Box::new(undecodable)),
        }
    }

    fn nothing<'v>(
        change: &Change<'_>,
        reason: EncodeError,
        values: impl Iterator<Item = Value<'v>>,
    ) -> Self {
        let undecodable = Undecodable::new(change, reason, Sent::Nothing, values);
        Self {
            event: None,
            quarantined: Some(Box::new(undecodable)),
        }
    }
}

impl Captured {
    pub(crate) fn new(
        config: &ConnectorConfig,
        database: &str,
        table: &Table,
        columns: &[TableColumn],
    ) -> Result<Self, LifeError> {
        let name = table.qualified();
        let place = |column: &KeyColumn| {
            columns
                .iter()
                .position(|other| other.name == column.name)
                .ok_or_else(|| LifeError::KeyAltered {
                    table: name.clone(),
                    column: column.name.clone(),
                })
        };
        let key_at = table.key.iter().map(place).collect::<Result<_, _>>()?;
        Ok(Self {
            topic: kafka::topic::table(&config.kafka, &config.source, &table.schema, &table.name),
            oid: table.oid,
            sql: table.sql(),
            columns: columns.iter().map(|column| column.name.clone()).collect(),
            types: columns.iter().map(TableColumn::type_pair).collect(),
            key: table.key.clone(),
            key_at,
            encoded: columns.iter().map(TableColumn::encoded).collect(),
            block: SourceBlock::new(&config.source, database, &table.schema, &table.name),
            name,
        })
    }

    /// Its name without the schema.
    pub(crate) fn table(&self) -> &str {
        let name = self.name.split_once('.');
        name.map_or(self.name.as_str(), |(_, table)| table)
    }

    /// The key from its columns' text.
    pub(crate) fn key(&self, texts: Vec<String>) -> Key {
        let mut json = Vec::with_capacity(32);
        key::write(&mut json, &self.key, texts.iter().map(String::as_str));
        Key {
            json: json.into(),
            texts,
        }
    }

    /// The key of a row, given the value at a place.
    pub(crate) fn key_of<'v>(
        &self,
        value_at: impl Fn(usize) -> Value<'v>,
    ) -> Result<Key, EncodeError> {
        let column = |at: &usize| self.columns.get(*at).cloned().unwrap_or_default();
        let texts = self.key_at.iter().map(|at| match value_at(*at) {
            Value::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err(EncodeError::NotUtf8 { column: column(at) }),
            },
            Value::Null | Value::Absent => Err(EncodeError::NoKey { column: column(at) }),
        });
        Ok(self.key(texts.collect::<Result<_, _>>()?))
    }

    /// What stands before and behind the row in each event of a table read.
    pub(crate) fn frame(&self, origin: &Origin) -> Frame {
        let mut before = self.event(Op::Read, None, Some(b""), origin);
        let behind = before.split_off(BEFORE_ROW.len());
        Frame { before, behind }
    }

    /// Appends the key and the event of a read row; where the key ends. None: it is no such row
    /// as nearly all are, and [`Captured::upsert`] tells why. What was appended is of no use then.
    pub(crate) fn append_read<'v>(
        &self,
        out: &mut Vec<u8>,
        frame: &Frame,
        value_at: impl Fn(usize) -> Option<&'v [u8]>,
    ) -> Option<usize> {
        let text = |at: &usize| value_at(*at).and_then(|text| std::str::from_utf8(text).ok());
        if self.key_at.iter().any(|at| text(at).is_none()) {
            return None;
        }
        key::write(out, &self.key, self.key_at.iter().filter_map(text));
        let key_end = out.len();
        out.extend_from_slice(&frame.before);
        let values =
            (0..self.columns.len()).map(|at| value_at(at).map_or(Value::Null, Value::Text));
        envelope::write_row(out, &self.encoded, values).ok()?;
        out.extend_from_slice(&frame.behind);
        Some(key_end)
    }

    /// A row in JSON.
    pub(crate) fn row<'v>(
        &self,
        values: impl Iterator<Item = Value<'v>>,
    ) -> Result<Vec<u8>, EncodeError> {
        let mut out = Vec::with_capacity(256);
        match envelope::write_row(&mut out, &self.encoded, values) {
            Ok(()) => Ok(out),
            Err(place) => Err(EncodeError::NotUtf8 {
                column: self.columns.get(place).cloned().unwrap_or_default(),
            }),
        }
    }

    fn event(
        &self,
        op: Op,
        before: Option<&[u8]>,
        after: Option<&[u8]>,
        origin: &Origin,
    ) -> Vec<u8> {
        let rows = before.map_or(0, <[u8]>::len) + after.map_or(0, <[u8]>::len);
        let mut out = Vec::with_capacity(rows + 512);
        envelope::write(&mut out, op, before, after, &self.block, origin);
        out
    }

    /// The event of a row that is there. `before` is its old state, where that is known: rather
    /// than the row it is left out.
    pub(crate) fn upsert<'v>(
        &self,
        change: &Change<'_>,
        before: Option<Result<Vec<u8>, EncodeError>>,
        values: impl Iterator<Item = Value<'v>> + Clone,
    ) -> Encoded {
        let (key, after) = match self.key_and_row(change, values.clone()) {
            Ok(both) => both,
            Err(reason) => return Encoded::nothing(change, reason, values),
        };
        let whole =
            |before: Option<&[u8]>| self.event(change.op, before, Some(&after), change.origin);
        let lost = match before {
            None => None,
            Some(Err(reason)) => Some(reason),
            Some(Ok(before)) => match change.fit(key, whole(Some(&before))) {
                Ok(event) => return Encoded::whole(event),
                Err(reason) => Some(reason),
            },
        };
        match (change.fit(key, whole(None)), lost) {
            (Ok(event), None) => Encoded::whole(event),
            (Ok(event), Some(reason)) => Encoded::reduced(event, change, reason, values),
            (Err(reason), _) => Encoded::nothing(change, reason, values),
        }
    }

    /// The event of a row that is gone. `before` is what the source told of it: rather than the
    /// event all but the key is left out.
    pub(crate) fn delete<'v>(
        &self,
        change: &Change<'_>,
        values: impl Iterator<Item = Value<'v>> + Clone,
    ) -> Encoded {
        let key = match change.key {
            Ok(key) => key,
            Err(reason) => return Encoded::nothing(change, reason.clone(), values),
        };
        let whole = change.encodable().and_then(|()| {
            let before = self.row(values.clone())?;
            change.fit(
                key,
                self.event(Op::Delete, Some(&before), None, change.origin),
            )
        });
        match whole {
            Ok(event) => Encoded::whole(event),
            Err(reason) => Encoded::reduced(
                self.delete_of_key(key, change.origin),
                change,
                reason,
                values,
            ),
        }
    }

    /// A delete of which only the key is known.
    pub(crate) fn delete_of_key(&self, key: &Key, origin: &Origin) -> Vec<u8> {
        let mut before = vec![b'{'];
        let texts = self.key_at.iter().zip(&key.texts).collect::<Vec<_>>();
        let columns = self.encoded.iter().enumerate();
        let known = columns.filter_map(|(place, column)| {
            let (_, text) = texts.iter().find(|(at, _)| **at == place)?;
            Some((column, text.as_str()))
        });
        envelope::write_known(&mut before, known);
        before.push(b'}');
        self.event(Op::Delete, Some(&before), None, origin)
    }

    fn key_and_row<'c, 'v>(
        &self,
        change: &Change<'c>,
        values: impl Iterator<Item = Value<'v>>,
    ) -> Result<(&'c Key, Vec<u8>), EncodeError> {
        let key = change.key.as_ref().map_err(EncodeError::clone)?;
        change.encodable()?;
        Ok((key, self.row(values)?))
    }
}

#[cfg(test)]
pub(crate) mod tests;
