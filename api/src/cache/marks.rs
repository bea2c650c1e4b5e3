//! Marks: which reads of the view may be cached.
//!
//! A read of the database takes time. If the row changes meanwhile and the feed evicts its key,
//! the read must not put the old row back. So each key has a mark (many keys share one, by
//! hash): an event closes it, the checkpoint that covers the event sets it to that checkpoint's
//! revision, and a read is cached only if its mark is open and not above the read's revision.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use service::fault;

use crate::key::{RowKey, Table};
use crate::revision::Revision;

/// A fixed array of marks. No lock is held across an await.
#[derive(Debug)]
pub(super) struct Marks(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Grows whenever the cache starts over; a read from before is not cached.
    generation: u64,
    /// None: closed.
    marks: Box<[Option<Revision>]>,
    /// Which are closed since the last checkpoint; at most all.
    closed: Vec<usize>,
}

impl Marks {
    pub(super) fn new(marks: usize) -> Self {
        Self(Mutex::new(State {
            generation: 0,
            marks: vec![None; marks.max(1)].into(),
            closed: Vec::new(),
        }))
    }

    /// An event for this key was read; until [`open`](Self::open) no read of it is cached.
    /// Answers the generation whose entry is to be evicted.
    pub(super) fn close(&self, table: Table, row: &RowKey) -> u64 {
        let mut state = self.state();
        if fault::in_force("event_closes_mark") {
            let place = place(&state, table, row);
            if state.marks[place].take().is_some() {
                state.closed.push(place);
            }
        }
        state.generation
    }

    /// The checkpoint that covers every event so far has this revision.
    pub(super) fn open(&self, revision: Revision) {
        let revision = if fault::in_force("marks_take_revision") {
            revision
        } else {
            Revision::default()
        };
        let mut state = self.state();
        while let Some(place) = state.closed.pop() {
            state.marks[place] = Some(revision);
        }
    }

    /// Closes all: what was cached or is being read belongs to an older generation.
    pub(super) fn forget(&self) -> u64 {
        let mut state = self.state();
        state.generation += 1;
        state.closed.clear();
        state.marks.fill(None);
        state.generation
    }

    /// Opens all at this revision, in a new generation, which it answers.
    pub(super) fn start(&self, revision: Revision) -> u64 {
        let mut state = self.state();
        state.generation += 1;
        state.closed.clear();
        state.marks.fill(Some(revision));
        state.generation
    }

    /// May a read at `revision`, begun in `generation`, be cached?
    pub(super) fn admit(
        &self,
        generation: u64,
        table: Table,
        row: &RowKey,
        revision: Revision,
    ) -> bool {
        let state = self.state();
        let mark = state.marks[place(&state, table, row)];
        let open = !fault::in_force("marks") || mark.is_some_and(|mark| mark <= revision);
        generation == state.generation && open
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked here left whole values behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(state: &State, table: Table, row: &RowKey) -> usize {
    let mut hasher = DefaultHasher::new();
    (table.name, row).hash(&mut hasher);
    let marks = state.marks.len() as u64;
    usize::try_from(hasher.finish() % marks).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ID;

    const ORDERS: Table = Table {
        name: "public.orders",
        key: ID,
    };
    const PRODUCTS: Table = Table {
        name: "public.products",
        key: ID,
    };

    fn row(id: &str) -> RowKey {
        RowKey::from_path(&ORDERS, &[id.to_owned()]).unwrap()
    }

    const OLD: Revision = Revision {
        writer: 1,
        number: 1,
    };
    const NEW: Revision = Revision {
        writer: 1,
        number: 2,
    };

    #[test]
    fn a_read_older_than_the_last_change_of_its_key_is_not_admitted() {
        let marks = Marks::new(16);
        let generation = marks.start(OLD);
        assert!(marks.admit(generation, ORDERS, &row("5"), OLD));
        marks.close(ORDERS, &row("5"));
        assert!(
            !marks.admit(generation, ORDERS, &row("5"), NEW),
            "its mark is closed"
        );
        marks.open(NEW);
        assert!(
            !marks.admit(generation, ORDERS, &row("5"), OLD),
            "it is older than the mark"
        );
        assert!(marks.admit(generation, ORDERS, &row("5"), NEW));
    }

    #[test]
    fn a_read_from_before_a_start_over_is_not_admitted() {
        let marks = Marks::new(16);
        let generation = marks.start(OLD);
        marks.start(OLD);
        assert!(!marks.admit(generation, ORDERS, &row("5"), NEW));
        let generation = marks.forget();
        assert!(
            !marks.admit(generation, ORDERS, &row("5"), NEW),
            "nothing is open yet"
        );
    }

    #[test]
    fn keys_that_share_a_mark_are_closed_together() {
        let marks = Marks::new(1);
        let generation = marks.start(OLD);
        marks.close(PRODUCTS, &row("1"));
        assert!(!marks.admit(generation, ORDERS, &row("5"), NEW));
        marks.open(NEW);
        assert!(marks.admit(generation, ORDERS, &row("5"), NEW));
    }
}
