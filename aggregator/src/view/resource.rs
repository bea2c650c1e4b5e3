//! What a unified table is made of, and the statements that bring rows of it to what the
//! mirrors say.
//!
//! A [`Resource`] says in one place which columns it has, which source each needs, how a row
//! follows from the mirrors and which changes touch it. From that alone come the statement for
//! the rows that a change touched, the one for all of them, and the one that compares. So a row
//! cannot be one thing when it is touched and another when the view is computed as a whole.

use std::collections::BTreeSet;

use super::totals::Totals;
use crate::mirror::Table;

/// A unified table, or a private total that one is computed from.
#[derive(Debug)]
pub(crate) struct Resource {
    /// `public.name`; in another schema it is private, and has neither `unknown` nor `degraded`
    /// nor `revision`.
    pub table: &'static str,
    /// The primary key, each column with its type.
    pub key: &'static [(&'static str, &'static str)],
    pub columns: &'static [Column],
    pub kept: Kept,
}

/// How its rows follow from the mirrors.
#[derive(Debug)]
pub(crate) enum Kept {
    /// Each is computed afresh from bounded inputs.
    Rows(Rows),
    /// Each sums contributions, of which it has any number.
    Totals(Totals),
}

/// Rows that are computed afresh when a change touches them.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Columns of mirrors that name a row by its id: a change of such a mirror row touches the
    /// rows that its old and its new state name, and one in quarantine degrades them.
    pub named_by: &'static [(&'static Table, &'static str)],
    /// Resources whose touched ids `touched` takes as well.
    pub through: &'static [&'static Resource],
    /// A SELECT of the keys that a change touches; `$2` is the ids that `named_by` gives, `$3` and
    /// on those of `through`.
    pub touched: &'static str,
    /// A SELECT of every key that has a row or should have one; where no index finds them by the key, it
    /// says itself how the range from behind `{after}` to `{end}` is found.
    pub all: &'static str,
    /// A SELECT of the key, `present`, the columns and `degraded` for every row of
    /// `touched (key)`; `present` is whether there is such a row. `{source}` stands for whether
    /// that source is known.
    pub computed: &'static str,
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

/// The CTEs of a statement; the last is `computed`.
pub(super) struct Computed(pub String);

impl Resource {
    /// Without its schema.
    pub(crate) fn name(&self) -> &'static str {
        self.table
            .split_once('.')
            .map_or(self.table, |(_, name)| name)
    }

    pub(crate) fn is_private(&self) -> bool {
        !self.table.starts_with("public.")
    }

    pub(crate) fn rows(&self) -> Option<&Rows> {
        match &self.kept {
            Kept::Rows(rows) => Some(rows),
            Kept::Totals(_) => None,
        }
    }

    pub(crate) fn totals(&self) -> Option<&Totals> {
        match &self.kept {
            Kept::Rows(_) => None,
            Kept::Totals(totals) => Some(totals),
        }
    }

    /// The statement for rows that a change touched: `$1` is the revision, then what `touched` or
    /// the contributions take. Returns what that moves in each of these totals of the rows: see
    /// [`Totals::moves`]; and, behind them, an array of the keys as text of the rows that came or went,
    /// if it is to tell them.
    pub(crate) fn touched_sql(&self, known: &Known, totals: &[&Self], tells: bool) -> String {
        let computed = match &self.kept {
            Kept::Rows(rows) => self.computed(rows, rows.touched, known),
            Kept::Totals(totals) => totals.moved(self),
        };
        if totals.is_empty() && !tells {
            return self.merge(&computed, known);
        }
        let mut taken: Vec<&str> = vec!["degraded"];
        for name in totals
            .iter()
            .filter_map(|of| of.totals())
            .flat_map(|of| of.takes)
        {
            if !taken.contains(name) {
                taken.push(name);
            }
        }
        let returned = ["old", "new"].iter().flat_map(|row| {
            let columns = taken.iter();
            columns.map(move |name| format!("{row}.{name} AS {row}_{name}"))
        });
        let key = self.key[0].0;
        let returned = returned.chain([format!("coalesce(old.{key}, new.{key}) AS {key}")]);
        let moves = totals.iter().enumerate();
        let width = totals.iter().filter_map(|of| Some(of.totals()?.width(of)));
        let width = width.max().unwrap_or(1);
        let moves = moves.filter_map(|(place, of)| Some(of.totals()?.moves(of, place, width)));
        let turned = format!(
            "SELECT {place}, array_agg({key}::text){nulls} FROM merged
            WHERE old_degraded IS NULL OR new_degraded IS NULL HAVING count(*) > 0",
            place = totals.len(),
            nulls = ", NULL::text[]".repeat(width - 1),
        );
        let told = moves.chain(tells.then_some(turned));
        format!(
            "WITH {computed}, merged AS ({merge} RETURNING {returned})
            {told}",
            computed = computed.0,
            merge = self.merge_into(known),
            returned = join(returned),
            told = told.collect::<Vec<_>>().join("\nUNION ALL\n"),
        )
    }

    /// The statement for all rows: `$1` is the revision, unless this is private. Only rows that
    /// differ change.
    pub(crate) fn all_sql(&self, known: &Known) -> String {
        self.merge(&self.all(known, None, None), known)
    }

    /// The statement for rows that are named: `$1` is the revision, unless this is private, then an
    /// array of text a column of the key.
    pub(crate) fn named_sql(&self, known: &Known) -> String {
        let first = if self.is_private() { 1 } else { 2 };
        let arrays = self.key.iter().enumerate();
        let arrays = arrays.map(|(place, (_, sql))| format!("${}::text[]::{sql}[]", first + place));
        let touched = format!(
            "SELECT DISTINCT * FROM unnest({}) AS k ({})",
            join(arrays),
            self.key_list("")
        );
        let computed = match &self.kept {
            Kept::Rows(rows) => self.computed(rows, &touched, known),
            Kept::Totals(totals) => totals.of_keys(self, known, &touched),
        };
        self.merge(&computed, known)
    }

    fn all(&self, known: &Known, after: Option<&[String]>, end: Option<&[String]>) -> Computed {
        let range = self.range(after, end);
        match &self.kept {
            Kept::Rows(rows) => {
                let keys = self.key_list("");
                let all = bounded(rows.all, after, end);
                let touched = format!("SELECT {keys} FROM ({all}) AS a WHERE {range}");
                self.computed(rows, &touched, known)
            }
            Kept::Totals(totals) => {
                let found = totals
                    .found_by
                    .map(|found| self.first_in_range(found, after, end));
                let found = found.unwrap_or_else(|| "true".to_owned());
                totals.all(self, known, &range, &found)
            }
        }
    }

    fn merge(&self, computed: &Computed, known: &Known) -> String {
        format!("WITH {} {}", computed.0, self.merge_into(known))
    }

    /// Brings the rows to what `computed` says.
    fn merge_into(&self, known: &Known) -> String {
        let list = |prefix: &str| join(self.owned().map(|name| format!("{prefix}{name}")));
        let revision = |sql: &'static str| if self.is_private() { "" } else { sql };
        format!(
            "MERGE INTO {table} AS r
            USING ({should_be}) AS s ON ({of_row}) = ({of_should})
            WHEN MATCHED AND NOT s.present THEN DELETE
            WHEN MATCHED AND ({current}) IS DISTINCT FROM ({should}) THEN
                UPDATE SET {set}{set_revision}
            WHEN NOT MATCHED AND s.present THEN
                INSERT ({keys}, {columns}{column}) VALUES ({of_should}, {should}{value})",
            table = self.table,
            should_be = self.should_be(known),
            of_row = self.key_list("r."),
            of_should = self.key_list("s."),
            current = list("r."),
            should = list("s."),
            set = join(self.owned().map(|name| format!("{name} = s.{name}"))),
            keys = self.key_list(""),
            columns = list(""),
            set_revision = revision(", revision = $1"),
            column = revision(", revision"),
            value = revision(", $1"),
        )
    }

    /// Of the keys behind `after` (none: all) and up to `end` (none: all behind) those whose row
    /// is not what the mirrors say: the key as text, what differs.
    pub(crate) fn differences_sql(
        &self,
        known: &Known,
        after: Option<&[String]>,
        end: Option<&[String]>,
    ) -> String {
        let differs = self
            .owned()
            .map(|name| format!("CASE WHEN r.{name} IS DISTINCT FROM s.{name} THEN '{name}' END"));
        let list = |prefix: &str| join(self.owned().map(|name| format!("{prefix}{name}")));
        let (of_row, of_should) = (self.key_list("r."), self.key_list("s."));
        let first = self.key[0].0;
        format!(
            "WITH {computed}, should AS ({should_be})
            SELECT {key}, CASE
                WHEN r.{first} IS NULL THEN '{{missing}}'::text[]
                WHEN NOT s.present THEN '{{surplus}}'
                ELSE array_remove(ARRAY[{differs}], NULL)
            END
            FROM should AS s LEFT JOIN {table} AS r ON ({of_row}) = ({of_should})
            WHERE (s.present <> (r.{first} IS NOT NULL))
                OR (s.present AND ({current}) IS DISTINCT FROM ({should}))
            ORDER BY {of_should}",
            computed = self.all(known, after, end).0,
            should_be = self.should_be(known),
            key = self.key_text("s."),
            differs = join(differs),
            table = self.table,
            current = list("r."),
            should = list("s."),
        )
    }

    /// How many rows the range has that begins behind `after` and has `rows_max` of them, and the key
    /// of its last as text, none where there is no row. A range of totals goes on to where the first
    /// column of the key changes, and is named by that alone: then each contribution is read for one
    /// range. Where no index finds contributions, all is one range.
    pub(crate) fn range_sql(&self, after: Option<&[String]>, rows_max: u32) -> String {
        let (table, keys, range) = (self.table, self.key_list(""), self.range(after, None));
        match self.totals().map(|totals| totals.found_by) {
            None => format!(
                "SELECT count(*) OVER (), {key} FROM (
                    SELECT {keys} FROM {table} WHERE {range} ORDER BY {keys} LIMIT {rows_max}
                ) AS r ORDER BY ({keys}) DESC LIMIT 1",
                key = self.key_text("r."),
            ),
            Some(Some(_)) => format!(
                "SELECT (SELECT count(*) FROM {table} WHERE {range} AND {first} <= l.last),
                    CASE WHEN l.last IS NOT NULL THEN ARRAY[l.last::text] END
                FROM (
                    SELECT max({first}) AS last FROM (
                        SELECT {first} FROM {table} WHERE {range} ORDER BY {keys} LIMIT {rows_max}
                    ) AS r
                ) AS l",
                first = self.key[0].0,
            ),
            Some(None) => format!("SELECT count(*), NULL::text[] FROM {table}"),
        }
    }

    /// Keys of a range, as a condition. Its ends may name the first columns of a key alone. The first
    /// column's bounds are said once more by themselves: for a plan that looks for what the rest of the
    /// key stands in.
    fn range(&self, after: Option<&[String]>, end: Option<&[String]>) -> String {
        let is_whole = matches!(&self.kept, Kept::Totals(totals) if totals.found_by.is_none());
        if is_whole {
            return "true".to_owned();
        }
        let bound = |key: &[String], comparison: &str| {
            let named: Vec<_> = self.key.iter().zip(key).collect();
            let names = join(named.iter().map(|((name, _), _)| (*name).to_owned()));
            let values = join(named.iter().map(|((_, sql), value)| constant(value, sql)));
            format!("({names}) {comparison} ({values})")
        };
        let mut bounds = Vec::new();
        bounds.extend(after.map(|key| bound(key, ">")));
        bounds.extend(end.map(|key| bound(key, "<=")));
        if bounds.is_empty() {
            return "true".to_owned();
        }
        if self.key.len() > 1 {
            bounds.push(self.first_in_range(self.key[0].0, after, end));
        }
        bounds.join(" AND ")
    }

    /// Whether this is the first column of a key of a range.
    fn first_in_range(
        &self,
        first: &str,
        after: Option<&[String]>,
        end: Option<&[String]>,
    ) -> String {
        let sql = self.key[0].1;
        let after = after.map(|key| {
            let comparison = if key.len() == 1 { ">" } else { ">=" };
            format!("{first} {comparison} {}", constant(&key[0], sql))
        });
        let end = end.map(|key| format!("{first} <= {}", constant(&key[0], sql)));
        let bounds: Vec<_> = [after, end].into_iter().flatten().collect();
        if bounds.is_empty() {
            "true".to_owned()
        } else {
            bounds.join(" AND ")
        }
    }

    /// The key's columns, each with `prefix`.
    pub(super) fn key_list(&self, prefix: &str) -> String {
        join(self.key.iter().map(|(name, _)| format!("{prefix}{name}")))
    }

    fn key_text(&self, prefix: &str) -> String {
        let parts = self.key.iter();
        let parts = parts.map(|(name, _)| format!("{prefix}{name}::text"));
        format!("ARRAY[{}]", join(parts))
    }

    /// The columns that follow from the mirrors, but for the key.
    fn owned(&self) -> impl Iterator<Item = &'static str> {
        let columns = self.columns.iter().map(|column| column.name);
        let said_of_all: &[_] = if self.is_private() {
            &[]
        } else {
            &["unknown", "degraded"]
        };
        columns.chain(said_of_all.iter().copied())
    }

    /// The type of a column.
    pub(super) fn type_of(&self, name: &str) -> &'static str {
        let keys = self.key.iter().copied();
        let columns = self.columns.iter().map(|column| (column.name, column.sql));
        keys.chain(columns)
            .find_map(|(column, sql)| (column == name).then_some(sql))
            .unwrap_or("text")
    }

    fn computed(&self, rows: &Rows, touched: &str, known: &Known) -> Computed {
        let computed = flags(rows.computed, known);
        Computed(format!("touched AS ({touched}), computed AS ({computed})"))
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
            "SELECT {key}, c.present, {values}, '{{{unknown}}}'::text[] AS unknown, c.degraded
            FROM computed AS c",
            key = self.key_list("c."),
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

/// Where a SELECT of all keys names the ends of the range of ids that is wanted of it, it gets them.
fn bounded(all: &str, after: Option<&[String]>, end: Option<&[String]>) -> String {
    let id = |key: Option<&[String]>| key.and_then(|key| key.first()?.parse::<i64>().ok());
    let (after, end) = (id(after).unwrap_or(i64::MIN), id(end).unwrap_or(i64::MAX));
    all.replace("{after}", &constant(&after.to_string(), "bigint"))
        .replace("{end}", &constant(&end.to_string(), "bigint"))
}

fn constant(value: &str, sql: &str) -> String {
    format!("'{}'::{sql}", value.replace('\'', "''"))
}

/// Whether each source is known, for its name in braces.
pub(super) fn flags(sql: &str, known: &Known) -> String {
    let mut sql = sql.to_owned();
    for source in crate::SOURCES {
        let flag = known.contains(source).to_string();
        sql = sql.replace(&format!("{{{source}}}"), &flag);
    }
    sql
}

pub(super) fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}
