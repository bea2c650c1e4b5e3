//! What was sent, by table and operation. It counts once its record is committed: what an aborted
//! transaction held was never there.
//!
//! | metric | meaning |
//! |---|---|
//! | `connector_rows_total{table,op}` | events of rows in the table's topic; `op` as in the event: `c`, `u`, `d`, `r` |
//! | `connector_bytes_total{table}` | their keys and values, tombstones included |

use kafka::event::Op;
use metrics::{Unit, counter, describe_counter};

use crate::status::names;

/// Events since the last record.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    tables: Vec<Tally>,
    /// The table of the last event: mostly that of the next.
    last: usize,
}

#[derive(Debug)]
struct Tally {
    table: String,
    /// By place in [`OPS`].
    rows: [u64; OPS.len()],
    bytes: u64,
}

const OPS: [&str; 4] = ["c", "u", "d", "r"];

fn place(op: Op) -> usize {
    match op {
        Op::Create => 0,
        Op::Update => 1,
        Op::Delete => 2,
        Op::Read => 3,
    }
}

impl Tallies {
    pub(crate) fn add(&mut self, table: &str, op: Op, bytes: usize) {
        if self
            .tables
            .get(self.last)
            .is_none_or(|last| last.table != table)
        {
            let known = self.tables.iter().position(|tally| tally.table == table);
            self.last = known.unwrap_or_else(|| {
                self.tables.push(Tally {
                    table: table.to_owned(),
                    rows: [0; OPS.len()],
                    bytes: 0,
                });
                self.tables.len() - 1
            });
        }
        if let Some(tally) = self.tables.get_mut(self.last) {
            tally.rows[place(op)] += 1;
            tally.bytes += bytes as u64;
        }
    }

    /// They are committed.
    pub(crate) fn report(&mut self) {
        for tally in &mut self.tables {
            for (op, rows) in OPS.iter().zip(&mut tally.rows) {
                if *rows > 0 {
                    counter!(names::ROWS, "table" => tally.table.clone(), "op" => *op)
                        .increment(std::mem::take(rows));
                }
            }
            if tally.bytes > 0 {
                counter!(names::BYTES, "table" => tally.table.clone())
                    .increment(std::mem::take(&mut tally.bytes));
            }
        }
    }
}

pub(crate) fn describe() {
    describe_counter!(
        names::ROWS,
        Unit::Count,
        "events committed to the table's topic; op is c, u, d or r"
    );
    describe_counter!(
        names::BYTES,
        Unit::Bytes,
        "their keys and values, tombstones included"
    );
}
