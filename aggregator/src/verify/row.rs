//! Rows as SQL and as text: what source and mirror are compared by.

use tokio_postgres::Row;

use crate::mirror::{Kind, Table};

/// A row of the source or the mirror: each column as text.
pub(super) type Columns = Vec<Option<String>>;

/// `schema.table` as an identifier.
pub(super) fn quoted(table: &str) -> String {
    let parts = table.split('.').map(|part| format!("\"{part}\""));
    parts.collect::<Vec<_>>().join(".")
}

/// A column as the text that both servers write of the same value.
fn text(name: &str, kind: Kind) -> String {
    match kind {
        Kind::Id | Kind::Integer => format!("{name}::bigint::text"),
        Kind::Text => format!("{name}::text"),
        Kind::Numeric => format!("trim_scale({name}::numeric)::text"),
        Kind::Time => format!("{name}::timestamptz::text"),
    }
}

/// Every column as text.
pub(super) fn texts(table: &Table) -> String {
    let columns = table.columns.iter();
    let columns = columns.map(|column| text(column.name, column.kind));
    columns.collect::<Vec<_>>().join(", ")
}

/// 64 bits of a row, as a number that can be summed.
pub(super) fn hash(table: &Table) -> String {
    format!(
        "('x' || left(md5(ROW({})::text), 16))::bit(64)::bigint::numeric",
        texts(table)
    )
}

pub(super) fn range(after: i64, end: Option<i64>) -> String {
    match end {
        Some(end) => format!("id > {after} AND id <= {end}"),
        None => format!("id > {after}"),
    }
}

pub(super) fn list(ids: &[i64]) -> String {
    let ids = ids.iter().map(ToString::to_string);
    ids.collect::<Vec<_>>().join(", ")
}

pub(super) fn columns(table: &Table, row: &Row, start: usize) -> Columns {
    let columns = 0..table.columns.len();
    columns.map(|index| row.get(start + index)).collect()
}

pub(super) fn columns_differing(
    table: &Table,
    source: Option<&Columns>,
    mirror: Option<&Columns>,
) -> Vec<String> {
    match (source, mirror) {
        (None, None) => Vec::new(),
        (Some(_), None) => vec!["missing".to_owned()],
        (None, Some(_)) => vec!["surplus".to_owned()],
        (Some(source), Some(mirror)) => {
            let columns = table.columns.iter().zip(source.iter().zip(mirror));
            columns
                .filter(|(_, (source, mirror))| source != mirror)
                .map(|(column, _)| column.name.to_owned())
                .collect()
        }
    }
}
