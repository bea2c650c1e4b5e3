//! A captured table with the columns of one moment, ready to encode its rows.

use bytes::Bytes;
use kafka::event::Op;

use crate::config::ConnectorConfig;
use crate::deliver::Target;
use crate::encode::envelope::{self, Column, Origin, Value};
use crate::encode::{KeyColumn, SourceBlock, key};
use crate::error::LifeError;
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
    pub(crate) key: Vec<KeyColumn>,
    /// Where each key column stands among `columns`.
    pub(crate) key_at: Vec<usize>,
    encoded: Vec<Column>,
    block: SourceBlock,
}

/// A row's key, as Kafka and as PostgreSQL know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) json: Bytes,
    pub(crate) texts: Vec<String>,
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
            key: table.key.clone(),
            key_at,
            encoded: columns.iter().map(TableColumn::encoded).collect(),
            block: SourceBlock::new(&config.source, database, &table.schema, &table.name),
            name,
        })
    }

    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            table: &self.name,
            topic: &self.topic,
        }
    }

    /// The key from its columns' text.
    pub(crate) fn key(&self, texts: Vec<String>) -> Key {
        let mut json = Vec::with_capacity(32);
        key::write(&mut json, &self.key, texts.iter().map(String::as_bytes));
        Key {
            json: json.into(),
            texts,
        }
    }

    pub(crate) fn row<'a>(&self, values: impl Iterator<Item = Value<'a>>) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        envelope::write_row(&mut out, &self.encoded, values);
        out
    }

    pub(crate) fn event(
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

    /// A delete of which only the key is known.
    pub(crate) fn delete_of_key(&self, key: &Key, origin: &Origin) -> Vec<u8> {
        let mut values = vec![Value::Absent; self.columns.len()];
        for (at, text) in self.key_at.iter().zip(&key.texts) {
            values[*at] = Value::Text(text.as_bytes());
        }
        let before = self.row(values.into_iter());
        self.event(Op::Delete, Some(&before), None, origin)
    }
}
