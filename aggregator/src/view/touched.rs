//! Which unified rows a changed mirror row touches, those of its old and of its new state, and
//! how contributions move.

use std::collections::{BTreeMap, BTreeSet};

use service::fault;

use super::resource::Resource;
use super::totals::Of;
use super::unified::RESOURCES;
use crate::mirror::{Array, Changed, Reported, TRANSACTION, Table, Value};

/// The unified rows that this state of a mirror row is an input of. That the orders of named
/// transactions are touched as well is not said here: see [`super::resource::Rows::through`].
pub(crate) fn named(row: &Reported) -> impl Iterator<Item = (&'static Resource, i64)> {
    let named_by = RESOURCES.into_iter().flat_map(|resource| {
        let names = resource.rows().map_or(&[][..], |rows| rows.named_by);
        names
            .iter()
            .map(move |(table, name)| (resource, *table, *name))
    });
    named_by
        .filter(|(_, table, _)| *table == row.table)
        .filter_map(|(resource, _, name)| Some((resource, row.integer(name)?)))
}

/// By the name of a unified table: rows that came or went, or that an input in quarantine belongs to
/// from now on or no more.
pub(super) type Turned = BTreeMap<&'static str, BTreeSet<i64>>;

/// What a step touched.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// By the name of the unified table.
    ids: BTreeMap<&'static str, BTreeSet<i64>>,
    /// Rows, there or not, that an input in quarantine belongs to from now on or no more.
    turned: Turned,
    /// What mirror rows contribute, by the name of the total.
    moves: BTreeMap<&'static str, Moves>,
}

impl Touched {
    pub(crate) fn add(&mut self, changes: &[Changed]) {
        for change in changes {
            for (row, sign) in [(&change.old, -1), (&change.new, 1)] {
                let Some(row) = row else { continue };
                // Not the design: as if a payment's order never changed.
                let forgets = sign < 0
                    && *row.table == TRANSACTION
                    && !fault::in_force("both_orders_touched");
                for (resource, id) in named(row) {
                    if !(forgets && resource.name() == "orders") {
                        self.insert(resource, id);
                    }
                }
                self.contribute(row, sign);
            }
        }
    }

    fn insert(&mut self, resource: &'static Resource, id: i64) {
        self.ids.entry(resource.name()).or_default().insert(id);
    }

    /// An input in quarantine belongs to this row from now on, or no more.
    pub(super) fn turn(&mut self, resource: &'static Resource, id: i64) {
        self.insert(resource, id);
        self.turned.entry(resource.name()).or_default().insert(id);
    }

    pub(super) fn turned(&self) -> &Turned {
        &self.turned
    }

    /// What another step touched as well.
    pub(super) fn absorb(&mut self, other: Self) {
        for (name, ids) in other.ids {
            self.ids.entry(name).or_default().extend(ids);
        }
        for (name, ids) in other.turned {
            self.turned.entry(name).or_default().extend(ids);
        }
        for (name, moves) in other.moves {
            let all = self.moves.entry(name).or_default();
            all.signs.extend(moves.signs);
            all.taken.extend(moves.taken);
        }
    }

    /// How many rows.
    pub(super) fn rows(&self) -> usize {
        self.ids.values().map(BTreeSet::len).sum()
    }

    /// How many contributions.
    pub(super) fn contributions(&self) -> usize {
        self.moves.values().map(|moves| moves.signs.len()).sum()
    }

    /// The contributions alone; the rows stay.
    pub(super) fn take_contributions(&mut self) -> Self {
        Self {
            moves: std::mem::take(&mut self.moves),
            ..Self::default()
        }
    }

    /// Of these resources alone, in parts of at most so many rows of each.
    pub(super) fn parts(&self, resources: &[&'static Resource], rows_max: usize) -> Vec<Self> {
        let mut parts: Vec<Self> = Vec::new();
        for resource in resources {
            let ids = self.ids(resource);
            for (place, ids) in ids.chunks(rows_max).enumerate() {
                if parts.len() <= place {
                    parts.push(Self::default());
                }
                let part = &mut parts[place].ids;
                part.insert(resource.name(), ids.iter().copied().collect());
            }
        }
        parts
    }

    pub(super) fn ids(&self, resource: &Resource) -> Vec<i64> {
        let ids = self.ids.get(resource.name());
        ids.into_iter().flatten().copied().collect()
    }

    /// What mirror rows contribute to this total.
    pub(super) fn take_moves(&mut self, total: &Resource) -> Moves {
        self.moves.remove(total.name()).unwrap_or_default()
    }

    fn contribute(&mut self, row: &Reported, sign: i64) {
        for resource in RESOURCES {
            if let Some(totals) = resource.totals()
                && let Of::Mirror(table) = totals.of
                && table == row.table
            {
                let taken = totals.takes.iter().map(|name| row.cloned(name));
                let moves = self.moves.entry(resource.name()).or_default();
                moves.push(sign, taken.collect());
            }
        }
    }
}

/// Contributions to be added (1) or taken away (-1).
#[derive(Debug, Default)]
pub(super) struct Moves {
    signs: Vec<i64>,
    /// Of each what the contribution is computed from.
    taken: Vec<Vec<Value>>,
}

impl Moves {
    fn push(&mut self, sign: i64, taken: Vec<Value>) {
        self.signs.push(sign);
        self.taken.push(taken);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.signs.is_empty()
    }

    /// As parameters of the statement: the signs, then an array a column of the mirror taken.
    pub(super) fn parameters(self, of: &Table, columns: &[&str]) -> Vec<Array> {
        let arrays = columns.iter().enumerate().map(|(place, name)| {
            let values = self.taken.iter();
            let values = values.map(|taken| taken.get(place).unwrap_or(&Value::Null));
            of.kind_of(name).array(values)
        });
        let arrays: Vec<_> = arrays.collect();
        std::iter::once(Box::new(self.signs) as _)
            .chain(arrays)
            .collect()
    }
}
