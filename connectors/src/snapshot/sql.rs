//! The statements of table reads.
//!
//! ORDER BY and comparison use each key column's own collation, as the primary key's index does.
//! A condition stands in brackets on lines of its own; that it is one expression was seen when it
//! was asked for ([`crate::command`]).

use kafka::checkpoint::KeyRange;

use crate::captured::Captured;
use crate::source::{identifier, literal};

/// Which of a range's rows: those behind the first `skip`, `rows` at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) skip: usize,
    pub(super) rows: usize,
}

/// Rows of a range in key order, as COPY sends them.
pub(super) fn copy(
    captured: &Captured,
    range: &KeyRange,
    condition: Option<&str>,
    window: Option<Window>,
) -> String {
    let columns = list(captured.columns.iter().map(|name| identifier(name)));
    let window = window.map_or_else(String::new, |Window { skip, rows }| {
        format!(" OFFSET {skip} LIMIT {rows}")
    });
    format!(
        "COPY (SELECT {columns} FROM {}{} ORDER BY {}{window}) TO STDOUT",
        captured.sql,
        filter(captured, range, condition),
        key(captured)
    )
}

/// The key of the last of a range's next `rows` rows, if there are so many.
pub(super) fn edge(captured: &Captured, range: &KeyRange, rows: usize) -> String {
    let key = key(captured);
    format!(
        "SELECT {key} FROM {}{} ORDER BY {key} OFFSET {} LIMIT 1",
        captured.sql,
        filter(captured, range, None),
        rows.saturating_sub(1)
    )
}

/// About how many rows a table has, and keys that cut it into parts of about the same size, as
/// many as `parts` says and as make parts of `part_rows` rows at least: from the rows of some
/// pages. A row for each key and at least one; the count is the last column.
pub(super) fn survey(captured: &Captured, parts: usize, part_rows: usize) -> String {
    let key = key(captured);
    let sampled = "100.0 / greatest(pg_relation_size($oid) / \
                   current_setting('block_size')::int8, 1)";
    format!(
        "WITH share AS (SELECT least(100, {PAGES} * {sampled})::float8 AS percent), \
         sample AS MATERIALIZED (SELECT {key} FROM {} TABLESAMPLE SYSTEM ((SELECT percent FROM share))), \
         size AS (SELECT count(*) AS sampled, \
             (count(*) * 100 / (SELECT percent FROM share))::int8 AS rows FROM sample), \
         cut AS (SELECT least({parts}, rows / {part_rows}, sampled) AS parts FROM size), \
         ranked AS (SELECT {key}, row_number() OVER (ORDER BY {key}) AS place FROM sample) \
         SELECT {ranked}, size.rows FROM size CROSS JOIN cut LEFT JOIN ranked \
         ON cut.parts > 1 AND place < sampled \
         AND place * parts / sampled <> (place + 1) * parts / sampled ORDER BY place",
        captured.sql,
        ranked = list(captured.key.iter().map(|c| format!("ranked.{}", identifier(&c.name)))),
    )
    .replace("$oid", &captured.oid.to_string())
}

/// Pages whose rows are looked at before a table is read.
const PAGES: u32 = 100;

fn filter(captured: &Captured, range: &KeyRange, condition: Option<&str>) -> String {
    let key = key(captured);
    let bound = |comparison: &str, texts: &Vec<String>| {
        let values = captured.key.iter().zip(texts);
        let values = values.map(|(column, text)| constant(text, &column.type_name));
        format!("({key}) {comparison} ({})", list(values))
    };
    let parts: Vec<_> = [
        range.after.as_ref().map(|texts| bound(">", texts)),
        range.to.as_ref().map(|texts| bound("<=", texts)),
        condition.map(|condition| format!("(\n{condition}\n)")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!(" WHERE {}", parts.join(" AND "))
    }
}

fn key(captured: &Captured) -> String {
    list(captured.key.iter().map(|column| identifier(&column.name)))
}

/// A constant of a column's type, from its text.
pub(super) fn constant(text: &str, type_name: &str) -> String {
    format!("{}::{type_name}", literal(text))
}

pub(super) fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
