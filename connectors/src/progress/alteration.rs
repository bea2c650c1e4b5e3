//! A table of the source was altered: what of it the topics still know, and what is read again.
//!
//! The log tells new columns and types with the next change, as RELATION. It does not tell that
//! every row changed (`ALTER … TYPE … USING`), that the table was dropped and made again, or that
//! the publication left it out for a while. These the catalog tells ([`Definition`]). The catalog
//! speaks of now, the log of some time before; so what follows from a look at the catalog begins
//! once the stream has passed the LSN of that look. Before, events of the older table may come.

use std::collections::BTreeMap;

use kafka::checkpoint::Read;
use kafka::{Definition, Lsn, TableState};
use service::fault::in_force;

use super::{Progress, stale};
use crate::source::catalog::TableColumn;

/// What happened to a table that the log did not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Alteration {
    #[error("was dropped and made again")]
    Remade,
    #[error("was not in the publication for a while, or with other rows or columns")]
    Republished,
    #[error("has another key")]
    Rekeyed,
    #[error("was rewritten by ALTER TABLE")]
    Rewritten,
}

impl Alteration {
    /// A rewrite alone is VACUUM FULL or TRUNCATE, another entry of a column alone is its default
    /// or its name: neither changes a row.
    fn between(then: &Definition, now: &Definition) -> Option<Self> {
        if then.oid != now.oid {
            Some(Self::Remade)
        } else if then.published != now.published {
            Some(Self::Republished)
        } else if then.key != now.key {
            Some(Self::Rekeyed)
        } else if then.file_node != now.file_node && then.attributes != now.attributes {
            Some(Self::Rewritten)
        } else {
            None
        }
    }

    /// Is not even known any more which rows there are?
    #[must_use]
    pub fn forgets_rows(self) -> bool {
        match self {
            Self::Remade | Self::Republished | Self::Rekeyed => true,
            Self::Rewritten => false,
        }
    }
}

impl Progress {
    /// What happened to a table since the topics were last compared with its definition.
    #[must_use]
    pub fn alteration(&self, table: &str, now: &Definition) -> Option<Alteration> {
        let then = self.tables.get(table)?.definition.as_ref()?;
        Alteration::between(then, now).filter(|_| in_force("altered_table_is_read"))
    }

    /// The catalog defines a table so, and nothing of its rows follows from that.
    pub fn define(&mut self, table: &str, now: Definition) {
        if let Some(state) = self.tables.get_mut(table) {
            state.definition = Some(now);
        }
    }

    /// What the topics have of a table is of no use any more: as if it had never been read, and
    /// its topic (`ends`: partition → end offset) held the keys of another.
    pub fn forget(
        &mut self,
        table: &str,
        now: Definition,
        ends: &BTreeMap<i32, i64>,
        looked_at: Lsn,
    ) {
        if let Some(state) = self.tables.get_mut(table) {
            let mut requests = std::mem::take(&mut state.requests);
            for request in &mut requests {
                request.read = Read::First;
            }
            *state = TableState {
                definition: Some(now),
                reconcile: stale(ends),
                requests,
                ..TableState::default()
            };
        }
        self.hold(table, looked_at);
    }

    /// The rows of a table are there, but of their values only the key is known.
    pub fn forget_values(&mut self, table: &str, now: Definition, looked_at: Lsn) {
        if let Some(state) = self.tables.get_mut(table) {
            let key: Vec<_> = now.key.iter().map(|(name, _)| name.clone()).collect();
            state.columns.retain(|name| key.contains(name));
            state.read = Read::First;
            state.definition = Some(now);
        }
        self.hold(table, looked_at);
    }

    /// A table's read and comparison begin once the stream has passed `looked_at`. `reach` is as it
    /// was: nothing of what was looked at stands in the topics, and it may not be flushed.
    fn hold(&mut self, table: &str, looked_at: Lsn) {
        if !in_force("read_after_look") {
            return;
        }
        if let Some(state) = self.tables.get_mut(table) {
            state.not_before = state.not_before.max(looked_at);
        }
    }

    /// The log ended at `end` when this life began, so what it has of before an earlier look stands
    /// below. A look may have shown what was never flushed: after a crash of the source the log is
    /// shorter, and would not reach the place of that look while nobody writes.
    pub fn log_ended_at(&mut self, end: Lsn) {
        for state in self.tables.values_mut() {
            state.not_before = state.not_before.min(end);
        }
    }

    /// Is the stream still to pass something, so that an idle source is to be asked how far it is?
    #[must_use]
    pub fn waits_for_log(&self) -> bool {
        !self.is_even() || self.tables.values().any(|state| self.is_held(state))
    }

    /// May what the log has of a table still be of before the last look at it?
    #[must_use]
    pub fn holds(&self, table: &str) -> bool {
        let state = self.tables.get(table);
        state.is_some_and(|state| self.is_held(state))
    }

    pub(super) fn is_held(&self, state: &TableState) -> bool {
        self.position < state.not_before
    }

    /// An event of a table comes with these columns, of these types. With others than its rows are
    /// read with, the table is read again from the first key. Also with fewer: an event from
    /// before ADD COLUMN may have overwritten a row that was read after it.
    ///
    /// True if the table's read starts over.
    pub fn learn_from_log(
        &mut self,
        table: &str,
        columns: &[String],
        types: &[(u32, i32)],
    ) -> bool {
        let Some(state) = self.tables.get_mut(table) else {
            return false;
        };
        if state.is_known(columns, types) {
            return false;
        }
        let older = columns.len() < state.target.len()
            && columns.iter().all(|name| state.target.contains(name));
        if older {
            if in_force("older_relation_restarts") {
                state.read = Read::First;
            }
            return in_force("older_relation_restarts");
        }
        state.learn(columns, types)
    }

    /// The catalog says that the table has these columns; unlike the log it speaks of now, so
    /// it is right also where it says fewer. True if the table's read starts over.
    pub fn learn_from_catalog(&mut self, table: &str, columns: &[TableColumn]) -> bool {
        let names: Vec<_> = columns.iter().map(|column| column.name.clone()).collect();
        let types: Vec<_> = columns.iter().map(TableColumn::type_pair).collect();
        match self.tables.get_mut(table) {
            Some(state) if state.is_known(&names, &types) => {
                state.types = types;
                false
            }
            Some(state) => state.learn(&names, &types),
            None => false,
        }
    }

    /// Likewise, of a look at the catalog that was ended at `looked_at`.
    pub fn learn_from_look(
        &mut self,
        table: &str,
        columns: &[TableColumn],
        looked_at: Lsn,
    ) -> bool {
        let new = self
            .tables
            .get(table)
            .is_none_or(|state| state.target.is_empty());
        let over = self.learn_from_catalog(table, columns) && !new;
        if over {
            self.hold(table, looked_at);
        }
        over
    }
}

/// What of a table's state changes by itself.
trait Learn {
    fn is_known(&self, columns: &[String], types: &[(u32, i32)]) -> bool;
    fn learn(&mut self, columns: &[String], types: &[(u32, i32)]) -> bool;
}

impl Learn for TableState {
    fn is_known(&self, columns: &[String], types: &[(u32, i32)]) -> bool {
        let same_types = self.types.is_empty() || types.is_empty() || self.types == types;
        self.target == columns && (same_types || !in_force("retyped_column_is_read"))
    }

    /// Of a column of another type no value is known any more.
    fn learn(&mut self, columns: &[String], types: &[(u32, i32)]) -> bool {
        let type_of = |names: &[String], types: &[(u32, i32)], name: &String| {
            let place = names.iter().position(|other| other == name)?;
            types.get(place).copied()
        };
        let (target, known) = (&self.target, &self.types);
        self.columns.retain(|name| {
            match (type_of(target, known, name), type_of(columns, types, name)) {
                (Some(then), Some(now)) => then == now,
                _ => true,
            }
        });
        self.target = columns.to_vec();
        self.types = types.to_vec();
        if in_force("added_column_is_read") || self.columns.is_empty() {
            self.read = Read::First;
            true
        } else {
            self.columns = columns.to_vec();
            false
        }
    }
}

#[cfg(test)]
mod tests;
