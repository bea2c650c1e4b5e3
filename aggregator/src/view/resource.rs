//! What a unified table is made of, in one place each, and the statement that brings rows of
//! it to what the mirrors say.
//!
//! A [`Resource`] says which columns it has, which source each needs, and how a row follows
//! from the mirrors. From that alone come both statements: one for the rows that a change
//! touched, one for all of them. So a row cannot be one thing when it is touched and another
//! when the view is computed as a whole.

use std::collections::BTreeSet;

/// A unified table.
#[derive(Debug)]
pub(crate) struct Resource {
    /// `public.name`.
    pub table: &'static str,
    pub columns: &'static [Column],
    /// A SELECT of `id`, `present`, the columns and `degraded` for every row of `touched (id)`;
    /// `present` is whether there is such a row. `{source}` stands for whether that source is
    /// known.
    pub computed: &'static str,
    /// A SELECT of the ids that a change touches; parameters from `$2` on.
    pub touched: &'static str,
    /// A SELECT of every id that has a row or should have one.
    pub all: &'static str,
    /// What the statement for touched rows returns of each row that it changed.
    pub returning: Option<&'static str>,
}

/// A column that its source decides.
#[derive(Debug)]
pub(crate) struct Column {
    pub name: &'static str,
    pub sql: &'static str,
    /// The source without which it is null and named in `unknown`; none: the row is not there
    /// without it.
    pub needs: Option<&'static str>,
}

impl Column {
    pub(crate) const fn new(
        name: &'static str,
        sql: &'static str,
        needs: Option<&'static str>,
    ) -> Self {
        Self { name, sql, needs }
    }

    fn is_known(&self, known: &Known) -> bool {
        self.needs.is_none_or(|source| known.contains(source))
    }
}

/// The sources of which a first whole checkpoint has been applied.
pub(crate) type Known = BTreeSet<String>;

impl Resource {
    /// The statement for rows that a change touched: `$1` is the revision, then what `touched`
    /// takes.
    pub(crate) fn touched_sql(&self, known: &Known) -> String {
        let returning = self
            .returning
            .map(|columns| format!("\nRETURNING {columns}"))
            .unwrap_or_default();
        format!("{}{returning}", self.merge(self.touched, known))
    }

    /// The statement for all rows: `$1` is the revision. Only rows that differ change.
    pub(crate) fn all_sql(&self, known: &Known) -> String {
        self.merge(self.all, known)
    }

    fn merge(&self, touched: &str, known: &Known) -> String {
        let mut computed = self.computed.to_owned();
        for source in crate::SOURCES {
            let flag = known.contains(source).to_string();
            computed = computed.replace(&format!("{{{source}}}"), &flag);
        }
        let values = self.columns.iter().map(|column| {
            if column.is_known(known) {
                format!("c.{}", column.name)
            } else {
                format!("NULL::{} AS {}", column.sql, column.name)
            }
        });
        let names = || self.columns.iter().map(|column| column.name);
        let owned = || names().chain(["unknown", "degraded"]);
        let list = |prefix: &str| join(owned().map(|name| format!("{prefix}{name}")));
        format!(
            "WITH touched AS ({touched}), computed AS ({computed})
            MERGE INTO {table} AS r
            USING (
                SELECT c.id, c.present, {values}, '{{{unknown}}}'::text[] AS unknown, c.degraded
                FROM computed AS c
            ) AS s ON r.id = s.id
            WHEN MATCHED AND NOT s.present THEN DELETE
            WHEN MATCHED AND ({current}) IS DISTINCT FROM ({should}) THEN
                UPDATE SET {set}, revision = $1
            WHEN NOT MATCHED AND s.present THEN
                INSERT (id, {columns}, revision) VALUES (s.id, {should}, $1)",
            table = self.table,
            values = join(values),
            unknown = self.unknown(known).join(","),
            current = list("r."),
            should = list("s."),
            set = join(owned().map(|name| format!("{name} = s.{name}"))),
            columns = list(""),
        )
    }

    /// The columns that no source has told yet, sorted.
    pub(crate) fn unknown(&self, known: &Known) -> Vec<&'static str> {
        let columns = self.columns.iter();
        let unknown: BTreeSet<_> = columns
            .filter(|column| !column.is_known(known))
            .map(|column| column.name)
            .collect();
        unknown.into_iter().collect()
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}
