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
        let list = |prefix: &str| join(self.owned().map(|name| format!("{prefix}{name}")));
        format!(
            "WITH touched AS ({touched}), computed AS ({computed})
            MERGE INTO {table} AS r
            USING ({should_be}) AS s ON r.id = s.id
            WHEN MATCHED AND NOT s.present THEN DELETE
            WHEN MATCHED AND ({current}) IS DISTINCT FROM ({should}) THEN
                UPDATE SET {set}, revision = $1
            WHEN NOT MATCHED AND s.present THEN
                INSERT (id, {columns}, revision) VALUES (s.id, {should}, $1)",
            table = self.table,
            computed = self.computed(known),
            should_be = self.should_be(known),
            current = list("r."),
            should = list("s."),
            set = join(self.owned().map(|name| format!("{name} = s.{name}"))),
            columns = list(""),
        )
    }

    /// Of the keys above `after` and up to `end` (none: all above) those whose row is not what
    /// the mirrors say: key, what differs.
    pub(super) fn differences_sql(&self, known: &Known, after: i64, end: Option<i64>) -> String {
        let upper = end.map_or(String::new(), |end| format!(" AND id <= {end}"));
        let range = format!("id > {after}{upper}");
        let differs = self
            .owned()
            .map(|name| format!("CASE WHEN r.{name} IS DISTINCT FROM s.{name} THEN '{name}' END"));
        let list = |prefix: &str| join(self.owned().map(|name| format!("{prefix}{name}")));
        format!(
            "WITH touched AS (SELECT id FROM ({all}) AS a WHERE {range}),
            computed AS ({computed}), should AS ({should_be})
            SELECT s.id, CASE
                WHEN r.id IS NULL THEN '{{missing}}'::text[]
                WHEN NOT s.present THEN '{{surplus}}'
                ELSE array_remove(ARRAY[{differs}], NULL)
            END
            FROM should AS s LEFT JOIN {table} AS r ON r.id = s.id
            WHERE (s.present <> (r.id IS NOT NULL))
                OR (s.present AND ({current}) IS DISTINCT FROM ({should}))
            ORDER BY s.id",
            all = self.all,
            computed = self.computed(known),
            should_be = self.should_be(known),
            differs = join(differs),
            table = self.table,
            current = list("r."),
            should = list("s."),
        )
    }

    /// The columns that follow from the mirrors, but for the id.
    fn owned(&self) -> impl Iterator<Item = &'static str> {
        let columns = self.columns.iter().map(|column| column.name);
        columns.chain(["unknown", "degraded"])
    }

    fn computed(&self, known: &Known) -> String {
        let mut computed = self.computed.to_owned();
        for source in crate::SOURCES {
            let flag = known.contains(source).to_string();
            computed = computed.replace(&format!("{{{source}}}"), &flag);
        }
        computed
    }

    /// What the rows of `computed` are, where some sources are not known.
    fn should_be(&self, known: &Known) -> String {
        let values = self.columns.iter().map(|column| {
            if column.is_known(known) {
                format!("c.{}", column.name)
            } else {
                format!("NULL::{} AS {}", column.sql, column.name)
            }
        });
        format!(
            "SELECT c.id, c.present, {values}, '{{{unknown}}}'::text[] AS unknown, c.degraded
            FROM computed AS c",
            values = join(values),
            unknown = self.unknown(known).join(","),
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
