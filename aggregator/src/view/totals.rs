//! Totals over unbounded inputs: sums of contributions, which move by new minus old stored
//! contribution.
//!
//! A contribution is computed from one row of bounded inputs: of a mirror, or of a unified table
//! that is itself computed row by row. The old one is computed from that row as it was stored,
//! so what a change costs does not depend on how many contributions there are.

use super::resource::{Computed, Known, Resource, flags, join};
use crate::mirror::Table;

/// Rows that sum contributions.
#[derive(Debug)]
pub(crate) struct Totals {
    /// Whose rows contribute.
    pub of: Of,
    /// The columns of theirs that contributions are computed from; of a mirror they must be
    /// reported.
    pub takes: &'static [&'static str],
    /// A SELECT of the key and the sums of what one row `p` contributes, any number of rows.
    pub contributions: &'static str,
    /// A condition on `p` that is true where it contributes to a key of `touched`.
    pub near: &'static str,
    /// The columns that are sums of the contributions'. The first counts them: a row without any
    /// is none.
    pub sums: &'static [&'static str],
    /// The other columns, computed from the sums of `t`.
    pub derived: &'static [(&'static str, &'static str)],
    /// Is the row `t` degraded?
    pub degraded: &'static str,
}

/// What contributes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Of {
    Mirror(&'static Table),
    /// One whose rows are computed afresh.
    Rows(&'static Resource),
}

impl Totals {
    /// Contributions of `$signs`, then an array of text a column taken: stored sums, moved.
    pub(super) fn moved(&self, resource: &Resource) -> Computed {
        // A private total has no revision, and a parameter that is not used has no type.
        let signs = if resource.is_private() { 1 } else { 2 };
        let taken = self.takes.iter().enumerate().map(|(index, name)| {
            let sql = self.of.type_of(name);
            format!("${}::text[]::{sql}[]", signs + 1 + index)
        });
        let sums = self
            .sums
            .iter()
            .map(|name| format!("sum(p.sign * coalesce(c.{name}, 0)) AS {name}"));
        let moved = self
            .sums
            .iter()
            .map(|name| format!("coalesce(r.{name}, 0) + m.{name} AS {name}"));
        Computed(format!(
            "part AS (
                SELECT * FROM unnest(${signs}::bigint[], {taken}) AS p (sign, {takes})
            ),
            moved AS (
                SELECT {keys}, {sums} FROM part AS p CROSS JOIN LATERAL ({contributions}) AS c
                GROUP BY {keys}
            ),
            total AS (
                SELECT {of_moved}, {moved}
                FROM moved AS m LEFT JOIN {table} AS r ON ({of_row}) = ({of_moved})
            ),
            {computed}",
            taken = join(taken),
            takes = self.takes.join(", "),
            keys = resource.key_list("c."),
            sums = join(sums),
            contributions = self.contributions,
            of_moved = resource.key_list("m."),
            moved = join(moved),
            table = resource.table,
            of_row = resource.key_list("r."),
            computed = self.computed(resource),
        ))
    }

    /// The sums of all contributions to the keys of a range.
    pub(super) fn all(&self, resource: &Resource, known: &Known, range: &str) -> Computed {
        let sums = self
            .sums
            .iter()
            .map(|name| format!("sum(coalesce(c.{name}, 0)) AS {name}"));
        let zero = |name: &&str| format!("coalesce(s.{name}, 0) AS {name}");
        Computed(format!(
            "touched AS (
                SELECT {keys} FROM (
                    SELECT {of_part} FROM {of} AS p CROSS JOIN LATERAL ({contributions}) AS c
                    WHERE {is_known}
                    UNION SELECT {keys} FROM {table}
                ) AS a WHERE {range}
            ),
            summed AS (
                SELECT {of_part}, {sums} FROM {of} AS p CROSS JOIN LATERAL ({contributions}) AS c
                WHERE {near} AND {is_known} GROUP BY {of_part}
            ),
            total AS (
                SELECT {of_touched}, {zeros}
                FROM touched AS k LEFT JOIN summed AS s ON ({of_summed}) = ({of_touched})
            ),
            {computed}",
            keys = resource.key_list(""),
            of_part = resource.key_list("c."),
            of = self.of.table(),
            contributions = self.contributions,
            is_known = self.of.is_known(known),
            table = resource.table,
            sums = join(sums),
            near = self.near,
            of_touched = resource.key_list("k."),
            zeros = join(self.sums.iter().map(zero)),
            of_summed = resource.key_list("s."),
            computed = self.computed(resource),
        ))
    }

    fn computed(&self, resource: &Resource) -> String {
        let count = self.sums[0];
        let sums = self
            .sums
            .iter()
            .map(|name| format!("t.{name}::{} AS {name}", resource.type_of(name)));
        let derived = self.derived.iter();
        let derived = derived.map(|(name, sql)| format!(", {sql} AS {name}"));
        format!(
            "computed AS (
                SELECT {keys}, t.{count} > 0 AS present, {sums}{derived}, {degraded} AS degraded
                FROM total AS t
            )",
            keys = resource.key_list("t."),
            sums = join(sums),
            derived = derived.collect::<String>(),
            degraded = self.degraded,
        )
    }
}

impl Of {
    fn table(self) -> &'static str {
        match self {
            Self::Mirror(table) => table.mirror,
            Self::Rows(resource) => resource.table,
        }
    }

    fn type_of(self, name: &str) -> &'static str {
        match self {
            Self::Mirror(table) => table.type_of(name),
            Self::Rows(resource) => resource.type_of(name),
        }
    }

    /// A mirror fills before its source is known; a unified table says so itself.
    fn is_known(self, known: &Known) -> String {
        match self {
            Self::Mirror(table) => flags(&format!("{{{}}}", table.source), known),
            Self::Rows(_) => "true".to_owned(),
        }
    }
}
