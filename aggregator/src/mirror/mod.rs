//! Copies of the sources' tables: one statement a table and step brings a mirror from the state
//! it has to the last state that the step's events give, and reports what that changed.
//!
//! A mirror knows nothing of what is made of it. It reports, of each row that really changed,
//! the old and the new state of its reported columns; what these touch is [`crate::view`]'s.

mod bulk;
mod tables;
mod value;

use std::collections::{HashMap, HashSet};

use futures_util::try_join;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

pub use tables::TABLES;
pub(crate) use tables::{DETAIL, ITEM, LINE, ORDER, PRICE, QUANTITY, TRANSACTION};
pub(crate) use value::Array;
pub use value::{Kind, Time, Value};

/// Of so many rows those that are new are put in as bulk: for fewer it is not worth a question.
const BULK_ROWS_MIN: usize = 100;

/// A mirrored table. Its first column is the primary key `id`.
#[derive(Debug)]
pub struct Table {
    /// Whose table it is: also the mirror's schema.
    pub source: &'static str,
    /// `schema.table` in the source.
    pub captured: &'static str,
    /// `schema.table` of the copy.
    pub mirror: &'static str,
    pub columns: &'static [Column],
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.mirror == other.mirror
    }
}

impl Eq for Table {}

impl PartialOrd for Table {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Table {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.mirror.cmp(other.mirror)
    }
}

/// Which copy of a source's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that the unified rows follow from.
    Served,
    /// The one that a rebuild fills beside it.
    Rebuilt,
}

/// A column of source and mirror.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    /// Do changes report it?
    pub reported: bool,
}

impl Column {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            reported: false,
        }
    }

    const fn reported(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            reported: true,
        }
    }
}

/// The reported columns of a row, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    pub table: &'static Table,
    values: Vec<Value>,
}

impl Reported {
    /// Of a whole row.
    #[must_use]
    pub fn of(table: &'static Table, row: &[Value]) -> Self {
        let values = table
            .columns
            .iter()
            .zip(row)
            .filter(|(column, _)| column.reported)
            .map(|(_, value)| value.clone())
            .collect();
        Self { table, values }
    }

    fn value(&self, name: &str) -> Option<&Value> {
        let place = self.table.reported().position(|column| column.name == name);
        place.and_then(|place| self.values.get(place))
    }

    /// An integer column; none where it is null.
    #[must_use]
    pub fn integer(&self, name: &str) -> Option<i64> {
        match self.value(name) {
            Some(Value::Integer(value)) => Some(*value),
            _ => None,
        }
    }

    /// A column, null where there is none of this name.
    pub(crate) fn cloned(&self, name: &str) -> Value {
        self.value(name).cloned().unwrap_or(Value::Null)
    }
}

/// A row of a mirror that a step changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    pub old: Option<Reported>,
    pub new: Option<Reported>,
}

/// The last state that events give a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A value for each column.
    Row(Vec<Value>),
    Gone,
}

impl Table {
    /// The table that a source's `schema.table` is copied to.
    #[must_use]
    pub fn find(source: &str, captured: &str) -> Option<&'static Self> {
        TABLES
            .into_iter()
            .find(|table| table.source == source && table.captured == captured)
    }

    /// The captured tables of a source.
    #[must_use]
    pub fn captured_by(source: &str) -> Vec<String> {
        TABLES
            .into_iter()
            .filter(|table| table.source == source)
            .map(|table| table.captured.to_owned())
            .collect()
    }

    /// What a column of the mirror holds.
    pub(crate) fn kind_of(&self, name: &str) -> Kind {
        let column = self.columns.iter().find(|column| column.name == name);
        column.map_or(Kind::Text, |column| column.kind)
    }

    fn reported(&self) -> impl Iterator<Item = &'static Column> {
        self.columns.iter().filter(|column| column.reported)
    }

    /// `expression` of every column, where `*` is the column's name.
    fn each(&self, expression: &str) -> String {
        let all = self.columns.iter();
        all.map(|column| expression.replace('*', column.name))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// What is reported of `row` (`old`, or a table), as it crosses to the client.
    fn report(&self, row: &str) -> String {
        self.reported()
            .map(|column| format!("{row}.{}::{}", column.name, column.kind.wire()))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Parameters: an array a column of the rows to be. Returns the id of each row that it changed
    /// and what was reported of it before, nulls where there was none.
    ///
    /// An event that leaves its row as it was changes nothing: it is neither written nor
    /// returned. What the events of a step say of one key must have been reduced to one state.
    pub(crate) fn upsert_sql(&self, side: Side) -> String {
        let arrays = self.columns.iter().enumerate();
        let arrays = arrays.map(|(index, column)| column.kind.array_sql(index + 1));
        let arrays = arrays.collect::<Vec<_>>().join(", ");
        let others = &self.columns[1..];
        let row = |prefix: &str| {
            let names = others
                .iter()
                .map(|column| format!("{prefix}{}", column.name));
            names.collect::<Vec<_>>().join(", ")
        };
        let set = others.iter().map(|c| format!("{0} = excluded.{0}", c.name));
        format!(
            "INSERT INTO {mirror} AS m ({names}) SELECT {names} FROM unnest({arrays}) AS e({names})
            ON CONFLICT (id) DO UPDATE SET {set}
            WHERE ROW({current}) IS DISTINCT FROM ROW({excluded})
            RETURNING new.id, {old}",
            names = self.each("*"),
            mirror = self.copy(side),
            set = set.collect::<Vec<_>>().join(", "),
            current = row("m."),
            excluded = row("excluded."),
            old = self.report("old"),
        )
    }

    /// Parameter: ids. Returns those that are there.
    pub(crate) fn there_sql(&self, side: Side) -> String {
        format!("SELECT id FROM {} WHERE id = ANY($1)", self.copy(side))
    }

    fn put_sql(&self, side: Side) -> String {
        format!(
            "COPY {} ({}) FROM STDIN (FORMAT binary)",
            self.copy(side),
            self.each("*")
        )
    }

    /// Parameter: the ids of the rows to go. Returns what was reported of each that was there.
    pub(crate) fn delete_sql(&self, side: Side) -> String {
        format!(
            "DELETE FROM {mirror} AS m WHERE id = ANY($1) RETURNING {reported}",
            mirror = self.copy(side),
            reported = self.report("m"),
        )
    }

    /// Brings the served copy to what the rebuilt one holds: as many rows as differed.
    pub(crate) fn swap_sql(&self) -> String {
        let others = &self.columns[1..];
        let list = |prefix: &str| {
            let names = others
                .iter()
                .map(|column| format!("{prefix}{}", column.name));
            names.collect::<Vec<_>>().join(", ")
        };
        let set = others.iter().map(|c| format!("{0} = r.{0}", c.name));
        format!(
            "MERGE INTO {served} AS m USING {rebuilt} AS r ON m.id = r.id
            WHEN MATCHED AND ROW({current}) IS DISTINCT FROM ROW({should}) THEN UPDATE SET {set}
            WHEN NOT MATCHED THEN INSERT (id, {names}) VALUES (r.id, {should})
            WHEN NOT MATCHED BY SOURCE THEN DELETE",
            served = self.copy(Side::Served),
            rebuilt = self.copy(Side::Rebuilt),
            current = list("m."),
            should = list("r."),
            set = set.collect::<Vec<_>>().join(", "),
            names = list(""),
        )
    }

    /// `schema.table` of the copy on this side.
    pub(crate) fn copy(&self, side: Side) -> String {
        match (side, self.mirror.split_once('.')) {
            (Side::Rebuilt, Some((_, table))) => format!("rebuild.{table}"),
            _ => self.mirror.to_owned(),
        }
    }

    /// The reported columns from `start` on; none where the id, the first, is null.
    fn read_report(
        &'static self,
        row: &Row,
        start: usize,
    ) -> Result<Option<Reported>, tokio_postgres::Error> {
        let values = self
            .reported()
            .enumerate()
            .map(|(index, column)| match column.kind {
                Kind::Id | Kind::Integer => Ok(row
                    .try_get::<_, Option<i64>>(start + index)?
                    .map_or(Value::Null, Value::Integer)),
                Kind::Text | Kind::Numeric => Ok(row
                    .try_get::<_, Option<String>>(start + index)?
                    .map_or(Value::Null, Value::Text)),
                Kind::Time => Ok(Value::Null),
            })
            .collect::<Result<Vec<_>, tokio_postgres::Error>>()?;
        Ok((values.first() != Some(&Value::Null)).then_some(Reported {
            table: self,
            values,
        }))
    }
}

/// The prepared statements of one mirror.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    table: &'static Table,
    upsert: Statement,
    delete: Statement,
    look: Statement,
    there: Statement,
    put: Statement,
}

impl Mirror {
    pub(crate) async fn prepare(
        client: &Client,
        table: &'static Table,
        side: Side,
    ) -> Result<Self, tokio_postgres::Error> {
        let look = format!(
            "SELECT {} FROM {} AS m WHERE id = ANY($1)",
            table.report("m"),
            table.copy(side)
        );
        Ok(Self {
            table,
            upsert: client.prepare(&table.upsert_sql(side)).await?,
            delete: client.prepare(&table.delete_sql(side)).await?,
            look: client.prepare(&look).await?,
            there: client.prepare(&table.there_sql(side)).await?,
            put: client.prepare(&table.put_sql(side)).await?,
        })
    }

    /// Brings the rows to these states; what it really changed.
    pub(crate) async fn apply(
        &self,
        client: &Client,
        states: &HashMap<i64, State>,
    ) -> Result<Vec<Changed>, tokio_postgres::Error> {
        let (mut rows, mut gone) = (Vec::new(), Vec::new());
        // By key, whatever the partitions' order: neighbours come to lie on one page, where whoever
        // joins them finds them together.
        let mut by_key: Vec<_> = states.iter().collect();
        by_key.sort_unstable_by_key(|(id, _)| **id);
        for (id, state) in by_key {
            match state {
                State::Row(row) => rows.push(row),
                State::Gone => gone.push(*id),
            }
        }
        // Sent one after the other without waiting in between.
        let (mut changed, deleted) =
            try_join!(self.bring(client, rows), self.delete(client, &gone))?;
        changed.extend(deleted);
        Ok(changed)
    }

    /// Of many rows those that are not there yet are put in as bulk: no other session writes, so that
    /// none can come in between.
    async fn bring(
        &self,
        client: &Client,
        rows: Vec<&Vec<Value>>,
    ) -> Result<Vec<Changed>, tokio_postgres::Error> {
        if rows.len() < BULK_ROWS_MIN {
            return self.upsert(client, &rows).await;
        }
        let ids: Vec<_> = rows.iter().filter_map(|row| id(row)).collect();
        let there = client.query(&self.there, &[&ids]).await?;
        let there = there.iter().map(|row| row.try_get(0));
        let there = there.collect::<Result<HashSet<i64>, _>>()?;
        let (old, new): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .partition(|row| id(row).is_some_and(|id| there.contains(&id)));
        if !new.is_empty() {
            bulk::put(client, &self.put, self.table.columns, &new).await?;
        }
        let mut changed = self.upsert(client, &old).await?;
        changed.extend(new.into_iter().map(|row| Changed {
            old: None,
            new: Some(Reported::of(self.table, row)),
        }));
        Ok(changed)
    }

    async fn upsert(
        &self,
        client: &Client,
        rows: &[&Vec<Value>],
    ) -> Result<Vec<Changed>, tokio_postgres::Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let columns = self.table.columns.iter().enumerate();
        let arrays: Vec<_> = columns
            .map(|(index, column)| {
                let values = rows
                    .iter()
                    .map(|row| row.get(index).unwrap_or(&Value::Null));
                column.kind.array(values)
            })
            .collect();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            arrays.iter().map(|array| &**array as _).collect();
        let changed = client.query(&self.upsert, &parameters).await?;
        // The new state is what was sent, and need not come back.
        let changed = changed.iter().map(|row| {
            let id = Value::Integer(row.try_get(0)?);
            let new = rows.binary_search_by(|row| row.first().cmp(&Some(&id)));
            Ok(Changed {
                old: self.table.read_report(row, 1)?,
                new: new.ok().map(|place| Reported::of(self.table, rows[place])),
            })
        });
        changed.collect()
    }

    async fn delete(
        &self,
        client: &Client,
        gone: &[i64],
    ) -> Result<Vec<Changed>, tokio_postgres::Error> {
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        let deleted = client.query(&self.delete, &[&gone]).await?;
        let deleted = deleted.iter().map(|row| {
            Ok(Changed {
                old: self.table.read_report(row, 0)?,
                new: None,
            })
        });
        deleted.collect()
    }

    /// What stands in the mirror for these ids.
    pub(crate) async fn look(
        &self,
        client: &Client,
        ids: &[i64],
    ) -> Result<Vec<Reported>, tokio_postgres::Error> {
        let found = client.query(&self.look, &[&ids]).await?;
        let rows = found.iter().map(|row| self.table.read_report(row, 0));
        rows.filter_map(Result::transpose).collect()
    }
}

/// The primary key of a row.
fn id(row: &[Value]) -> Option<i64> {
    match row.first() {
        Some(Value::Integer(id)) => Some(*id),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
