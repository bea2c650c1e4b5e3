//! The second look at a row of a source that differs from its mirror's.
//!
//! Each is looked at again: source, WAL position, mirror past it, source. If the source's row was
//! the same version before and after, then no change of it can explain a mirror that differs. A
//! row that changes meanwhile is equal if the mirror shows one of the versions seen. The stream
//! runs ahead of what a source shows (a commit that waits for a synchronous standby), so the last
//! look is one that shows whatever the mirror can have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use service::fault::in_force;
use tokio_postgres::Row;

use super::VerifyError;
use super::report::{Difference, Key, Report};
use super::row::{Columns, columns, columns_differing, list, quoted, texts};
use super::source::{Comparison, POLL};
use crate::mirror::Table;

/// Rows looked at again at once.
const RECHECKED_MAX: usize = 500;
/// How often a row that changes all the time is looked at again.
const ROUNDS_MAX: u32 = 30;
/// A row that is not in the source has no version: it has to be absent so often.
const ABSENT_ROUNDS: u32 = 3;
impl Comparison<'_> {
    /// Of the suspects those that no change in between can explain.
    pub(super) async fn differing(
        &self,
        table: &'static Table,
        suspects: Vec<i64>,
        report: &mut Report,
    ) -> Result<Vec<(i64, Difference)>, VerifyError> {
        let mut differing = Vec::new();
        let mut open: BTreeMap<i64, u32> = suspects.into_iter().map(|id| (id, 0)).collect();
        for _ in 0..ROUNDS_MAX {
            if open.is_empty() {
                return Ok(differing);
            }
            let ids: Vec<i64> = open.keys().copied().collect();
            for ids in ids.chunks(RECHECKED_MAX) {
                let look = self.look(table, ids).await?;
                for id in ids {
                    let rounds = open.get(id).copied().unwrap_or_default();
                    match look.says(table, *id) {
                        Verdict::Equal => {
                            open.remove(id);
                        }
                        Verdict::Changing => {
                            open.insert(*id, 0);
                        }
                        Verdict::Differs { absent: true, .. } if rounds + 1 < ABSENT_ROUNDS => {
                            open.insert(*id, rounds + 1);
                        }
                        Verdict::Differs { columns, .. } => {
                            open.remove(id);
                            let difference = Difference {
                                table: table.mirror.to_owned(),
                                key: Key::Id(*id),
                                columns,
                            };
                            differing.push((*id, difference));
                        }
                    }
                }
            }
        }
        if !open.is_empty() {
            let what = format!("{} rows of {}", open.len(), table.mirror);
            report.not_compared(what, "they changed each time they were looked at");
        }
        Ok(differing)
    }

    /// Looks at rows of the source until the mirror has passed what the first look showed.
    async fn look(&self, table: &Table, ids: &[i64]) -> Result<Look, VerifyError> {
        let mut seen = vec![self.rows_of_source(table, ids).await?];
        let lsn = self.lsn().await?;
        let deadline = self.deadline();
        while !self.is_past(lsn, deadline).await?.1 {
            tokio::time::sleep(POLL).await;
            seen.push(self.rows_of_source(table, ids).await?);
        }
        let mirror = self.rows_of_mirror(table, ids).await?;
        seen.push(self.rows_of_source(table, ids).await?);
        let mut look = Look { seen, mirror };
        let differs = |id: &i64| matches!(look.says(table, *id), Verdict::Differs { .. });
        if ids.iter().any(differs) && in_force("differs_once_visible") {
            self.shown(self.deadline()).await?;
            look.seen.push(self.rows_of_source(table, ids).await?);
        }
        Ok(look)
    }

    /// Waits until the source shows all that is committed in its log now: until no transaction that
    /// runs now does any more. One that waits for a standby runs, and keeps the lock on its number
    /// until it is shown; a snapshot may take it for one of the future.
    async fn shown(&self, deadline: Instant) -> Result<(), VerifyError> {
        const RUNNING: &str = "SELECT transactionid::text FROM pg_locks
            WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted";
        let running = async || -> Result<BTreeSet<String>, VerifyError> {
            let rows = self.of_source(RUNNING).await?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        };
        let begun = running().await?;
        while !running().await?.is_disjoint(&begun) {
            if Instant::now() > deadline {
                return Err(VerifyError::Cannot(format!(
                    "rows differ, and a transaction of the source that may explain it has not \
                    ended for {} ms (verify.wait_max_ms); is its synchronous standby away?",
                    self.config.wait_max_ms
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// By key the row's version and columns.
    async fn rows_of_source(
        &self,
        table: &Table,
        ids: &[i64],
    ) -> Result<BTreeMap<i64, (String, Columns)>, VerifyError> {
        let sql = format!(
            "SELECT id::bigint, xmin::text || ' ' || ctid::text, {} FROM {} WHERE id IN ({})",
            texts(table),
            quoted(table.captured),
            list(ids)
        );
        let rows = self.of_source(&sql).await?;
        let read = |row: &Row| (row.get(0), (row.get(1), columns(table, row, 2)));
        Ok(rows.iter().map(read).collect())
    }

    async fn rows_of_mirror(
        &self,
        table: &Table,
        ids: &[i64],
    ) -> Result<BTreeMap<i64, Columns>, VerifyError> {
        let sql = format!(
            "SELECT id, {} FROM {} WHERE id IN ({})",
            texts(table),
            table.mirror,
            list(ids)
        );
        let rows = self.of_view(&sql).await?;
        let read = |row: &Row| (row.get(0), columns(table, row, 1));
        Ok(rows.iter().map(read).collect())
    }
}

/// Rows of the source, looked at several times while the mirror's was read; by key the version
/// and the columns.
struct Look {
    seen: Vec<BTreeMap<i64, (String, Columns)>>,
    mirror: BTreeMap<i64, Columns>,
}

/// What a look says of one row.
enum Verdict {
    Equal,
    /// The source's row was not the same all the time.
    Changing,
    Differs {
        columns: Vec<String>,
        /// The source has no such row.
        absent: bool,
    },
}

impl Look {
    fn says(&self, table: &Table, id: i64) -> Verdict {
        let mirror = self.mirror.get(&id);
        let mut versions = self.seen.iter().map(|rows| rows.get(&id));
        if versions.any(|row| row.map(|(_, columns)| columns) == mirror) {
            return Verdict::Equal;
        }
        let first = self.seen.first().and_then(|rows| rows.get(&id));
        if self.seen.iter().any(|rows| rows.get(&id) != first) {
            return Verdict::Changing;
        }
        Verdict::Differs {
            columns: columns_differing(table, first.map(|(_, row)| row), mirror),
            absent: first.is_none(),
        }
    }
}
