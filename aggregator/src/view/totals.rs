//! Totals over unbounded inputs: sums of contributions, which move by new minus old stored
//! contribution.
//!
//! A contribution is computed from one row of bounded inputs: of a mirror, or of a unified table
//! that is itself computed row by row. The old one is computed from that row as it was stored,
//! so what a change costs does not depend on how many contributions there are.

use service::fault;

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
    /// What of `p` is the first column of the keys that it contributes to, where an index finds `p`
    /// by that. None: what contributes to a key is found only by reading all.
    pub found_by: Option<&'static str>,
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
    /// Of how many columns a move consists.
    pub(super) fn width(&self, resource: &Resource) -> usize {
        resource.key.len() + self.sums.len()
    }

    /// A SELECT of what rows of `merged`, each with its old and its new state, move: `place`, then
    /// arrays of text, the keys' columns and by how much each of their sums moves, and as many nulls
    /// as make `width` columns of it.
    ///
    /// A row whose `degraded` alone changed moves its totals by nothing, so that they say it, too.
    pub(super) fn moves(&self, resource: &Resource, place: usize, width: usize) -> String {
        let list = |row: &str| {
            let taken = self.takes.iter().chain(&["degraded"]);
            join(taken.map(|name| format!("{row}_{name}")))
        };
        let state = |row: &str, sign: i64| {
            let taken = self.takes.iter();
            format!(
                "SELECT {sign} AS sign, {taken} FROM merged
                WHERE {row}_degraded IS NOT NULL AND ({old}) IS DISTINCT FROM ({new})",
                taken = join(taken.map(|name| format!("{row}_{name} AS {name}"))),
                old = list("old"),
                new = list("new"),
            )
        };
        // Not the design: as if what was counted once stayed where it was.
        let part = if fault::in_force("old_contributions") {
            format!("{} UNION ALL {}", state("old", -1), state("new", 1))
        } else {
            state("new", 1)
        };
        let keys = resource.key.iter().map(|(name, _)| *name);
        let arrays = keys
            .chain(self.sums.iter().copied())
            .map(|name| format!("array_agg(m.{name}::text)"))
            .chain(std::iter::repeat("NULL::text[]".to_owned()));
        format!(
            "SELECT {place}, {arrays} FROM (
                SELECT {keys}, {sums} FROM ({part}) AS p
                CROSS JOIN LATERAL ({contributions}) AS c GROUP BY {keys}
            ) AS m HAVING count(*) > 0",
            arrays = join(arrays.take(width)),
            keys = resource.key_list("c."),
            sums = self.summed(),
            contributions = self.contributions,
        )
    }

    /// What each sum moves by.
    fn summed(&self) -> String {
        let sums = self.sums.iter();
        join(sums.map(|name| format!("sum(p.sign * coalesce(c.{name}, 0)) AS {name}")))
    }

    /// Stored sums, moved. Of a mirror by contributions: `$signs`, then an array a column
    /// taken; else by what [`Totals::moves`] gave, an array of text a column.
    pub(super) fn moved(&self, resource: &Resource) -> Computed {
        // A private total has no revision, and a parameter that is not used has no type.
        let first = if resource.is_private() { 1 } else { 2 };
        let array = |place: usize, sql: &str| format!("${}::text[]::{sql}[]", first + place);
        let moved = match self.of {
            Of::Mirror(table) => {
                let taken = self.takes.iter().enumerate();
                let taken =
                    taken.map(|(place, name)| table.kind_of(name).array_sql(first + 1 + place));
                format!(
                    "SELECT {keys}, {sums}
                    FROM unnest(${first}::bigint[], {taken}) AS p (sign, {takes})
                    CROSS JOIN LATERAL ({contributions}) AS c GROUP BY {keys}",
                    keys = resource.key_list("c."),
                    sums = self.summed(),
                    taken = join(taken),
                    takes = self.takes.join(", "),
                    contributions = self.contributions,
                )
            }
            Of::Rows(_) => {
                let keys = resource.key.iter().copied();
                let columns = keys.chain(self.sums.iter().map(|name| (*name, "numeric")));
                let (names, arrays): (Vec<_>, Vec<_>) = columns
                    .enumerate()
                    .map(|(place, (name, sql))| (name, array(place, sql)))
                    .unzip();
                format!(
                    "SELECT * FROM unnest({}) AS c ({})",
                    arrays.join(", "),
                    names.join(", ")
                )
            }
        };
        let totals = self
            .sums
            .iter()
            .map(|name| format!("coalesce(r.{name}, 0) + m.{name} AS {name}"));
        Computed(format!(
            "moved AS ({moved}),
            total AS (
                SELECT {of_moved}, {totals}
                FROM moved AS m LEFT JOIN {table} AS r ON ({of_row}) = ({of_moved})
            ),
            {computed}",
            of_moved = resource.key_list("m."),
            totals = join(totals),
            table = resource.table,
            of_row = resource.key_list("r."),
            computed = self.computed(resource),
        ))
    }

    /// The sums of all contributions to the keys of a range, each contribution read once. `range` is the
    /// range of the keys, and `found` that of [`Totals::found_by`].
    pub(super) fn all(
        &self,
        resource: &Resource,
        known: &Known,
        range: &str,
        found: &str,
    ) -> Computed {
        let either = resource.key.iter();
        let either = either.map(|(name, _)| format!("coalesce(s.{name}, k.{name}) AS {name}"));
        Computed(format!(
            "summed AS (
                SELECT {of_part}, {sums} FROM {of} AS p CROSS JOIN LATERAL ({contributions}) AS c
                WHERE {is_known} AND {found} GROUP BY {of_part}
            ),
            total AS (
                SELECT {either}, {zeros} FROM summed AS s
                FULL JOIN (SELECT {keys} FROM {table} WHERE {range}) AS k ON ({of_summed}) = ({of_k})
            ),
            {computed}",
            of_part = resource.key_list("c."),
            sums = self.sums_of_all(),
            of = self.of.table(),
            contributions = self.contributions,
            is_known = self.of.is_known(known),
            either = join(either),
            zeros = self.zeros(),
            keys = resource.key_list(""),
            table = resource.table,
            of_summed = resource.key_list("s."),
            of_k = resource.key_list("k."),
            computed = self.computed(resource),
        ))
    }

    fn sums_of_all(&self) -> String {
        let sums = self.sums.iter();
        join(sums.map(|name| format!("sum(coalesce(c.{name}, 0)) AS {name}")))
    }

    /// A key that nothing contributes to has sums of nothing.
    fn zeros(&self) -> String {
        let sums = self.sums.iter();
        join(sums.map(|name| format!("coalesce(s.{name}, 0) AS {name}")))
    }

    /// Is what contributes to a row of `touched`?
    fn near(&self, resource: &Resource) -> String {
        match self.found_by {
            Some(found_by) => format!("{found_by} IN (SELECT {} FROM touched)", resource.key[0].0),
            None => format!(
                "({}) IN (SELECT {} FROM touched)",
                resource.key_list("c."),
                resource.key_list("")
            ),
        }
    }

    /// The sums of all contributions to the keys that this SELECT gives.
    pub(super) fn of_keys(&self, resource: &Resource, known: &Known, touched: &str) -> Computed {
        Computed(format!(
            "touched AS ({touched}),
            summed AS (
                SELECT {of_part}, {sums} FROM {of} AS p CROSS JOIN LATERAL ({contributions}) AS c
                WHERE {near} AND {is_known} GROUP BY {of_part}
            ),
            total AS (
                SELECT {of_touched}, {zeros}
                FROM touched AS k LEFT JOIN summed AS s ON ({of_summed}) = ({of_touched})
            ),
            {computed}",
            of_part = resource.key_list("c."),
            of = self.of.table(),
            contributions = self.contributions,
            is_known = self.of.is_known(known),
            sums = self.sums_of_all(),
            near = self.near(resource),
            of_touched = resource.key_list("k."),
            zeros = self.zeros(),
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

    /// A mirror fills before its source is known; a unified table says so itself.
    fn is_known(self, known: &Known) -> String {
        match self {
            Self::Mirror(table) => flags(&format!("{{{}}}", table.source), known),
            Self::Rows(_) => "true".to_owned(),
        }
    }
}
