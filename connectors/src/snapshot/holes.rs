//! Values that PostgreSQL did not resend (unchanged TOAST), read from the source.
//!
//! A read view stays open until the stream has passed its LSN, and later holes are filled from
//! it meanwhile: with a new one for each, a steady flow of such events would push `reach` before
//! the stream for ever, and there would be no checkpoint any more.
//!
//! The view is a REPEATABLE READ transaction that holds no lock: each query of it runs in a
//! savepoint that is rolled back, which releases the table's lock, and its owner's TRUNCATE or
//! ALTER TABLE waits for nothing of ours. Hence the look at the file node with every query.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metrics::{counter, histogram};
use service::fault::{self, in_force};

use super::sql::{constant, list};
use super::view::View;
use crate::captured::{Captured, Key};
use crate::error::LifeError;
use crate::life::Life;
use crate::source::{Session, Snapshot, SourceError, identifier, session};
use crate::status::names;

const DOING: &str = "read a value that was not resent";

/// New views tried for one value, while its table gets new files or columns.
const TRIES_MAX: u32 = 1000;
const RETRY: Duration = Duration::from_millis(5);

/// The read view that is kept, and what happened since it opened.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    kept: Option<View>,
    touched: HashSet<(u32, Bytes)>,
}

/// A value that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filled {
    Null,
    /// As PostgreSQL has it; no UTF-8 perhaps.
    Text(Vec<u8>),
    /// The column is gone; a RELATION message will say so.
    Dropped,
}

/// The event with the hole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hole<'a> {
    pub(crate) captured: &'a Captured,
    pub(crate) key: &'a Key,
    pub(crate) xid: u64,
    pub(crate) key_changed: bool,
    /// Places of the columns without a value.
    pub(crate) columns: &'a [usize],
}

/// May a kept view give the event's values? One that shows the transaction has them, or the
/// log up to its LSN has newer ones. One that does not has them if nothing since but in-place
/// updates that left them out, too, touched the row.
fn can_fill(
    view: &Snapshot,
    touched: &HashSet<(u32, Bytes)>,
    table: u32,
    key: &Bytes,
    xid: u64,
    key_changed: bool,
) -> bool {
    !view.running(xid) || (!key_changed && !touched.contains(&(table, key.clone())))
}

enum Answer {
    Row(Vec<Filled>),
    /// The row is not there (any more).
    NoRow,
    /// The table got a new file since the snapshot, which shows it empty.
    Moved,
}

impl Holes {
    /// An event was sent. Any but an in-place update with a hole sets the row's values in a way
    /// that a view which does not show it cannot know.
    pub(crate) fn touch<'a>(&mut self, table: u32, xid: u64, keys: impl Iterator<Item = &'a Key>) {
        if self
            .kept
            .as_ref()
            .is_some_and(|view| view.snapshot.running(xid))
        {
            self.touched
                .extend(keys.map(|key| (table, key.json.clone())));
        }
    }
}

impl Life<'_> {
    /// The values of an event's holes; none: the row has gone since, its delete will come.
    pub(crate) async fn fill(&mut self, hole: Hole<'_>) -> Result<Option<Vec<Filled>>, LifeError> {
        let session = Arc::clone(&self.hole_reads);
        let begun = Instant::now();
        for _ in 0..TRIES_MAX {
            let (filled, view) = match self.kept_view(&hole) {
                Some(view) => (self.ask(&session, &hole).await, view),
                None => {
                    self.drop_view().await?;
                    let (table, xid) = (&hole.captured.name, hole.xid);
                    tracing::debug!(table, xid, "a hole is to be filled from a new read view");
                    fault::point("connector.before_view").await;
                    let view = self.settled_view(&session).await?;
                    self.holes.kept = Some(view.clone());
                    let answer = self.ask(&session, &hole).await;
                    if matches!(answer, Ok(Answer::Row(_) | Answer::NoRow)) {
                        tracing::debug!("a read view is open");
                        fault::point("connector.in_fill").await;
                        let lsn = self.lsn_of_read(&session, &view).await?;
                        self.count_read(lsn).await?;
                        tracing::debug!(%lsn, "a hole is filled, up to {lsn} is shown");
                        fault::point("connector.after_fill").await;
                        counter!(names::READS, "kind" => "hole").increment(1);
                        histogram!(names::READ_MS, "kind" => "hole")
                            .record(begun.elapsed().as_secs_f64() * 1000.0);
                    }
                    (answer, view)
                }
            };
            match filled {
                Ok(Answer::Row(values)) => return Ok(Some(values)),
                Ok(Answer::NoRow) => return Ok(None),
                Ok(Answer::Moved) => {
                    tracing::debug!(lsn = %view.lsn_before, "a read view's table moved")
                }
                Err(error) if error.is_passing() => tracing::debug!(%error, "a fill comes again"),
                Err(error) => return Err(error.into()),
            }
            self.drop_view().await?;
            self.record_if_old().await?;
            tokio::time::sleep(RETRY).await;
        }
        Err(LifeError::TableKeepsMoving {
            table: hole.captured.name.clone(),
            tries: TRIES_MAX,
        })
    }

    fn kept_view(&self, hole: &Hole<'_>) -> Option<View> {
        let view = self.holes.kept.as_ref()?;
        let fits = can_fill(
            &view.snapshot,
            &self.holes.touched,
            hole.captured.oid,
            &hole.key.json,
            hole.xid,
            hole.key_changed,
        );
        (in_force("read_view_kept") && fits).then(|| view.clone())
    }

    async fn ask(&self, session: &Session, hole: &Hole<'_>) -> Result<Answer, SourceError> {
        let wanted: Vec<_> = hole
            .columns
            .iter()
            .filter_map(|at| hole.captured.columns.get(*at))
            .collect();
        let there = self.columns_there(session, hole, &wanted).await?;
        let columns = wanted.iter().zip(&there).map(|(name, there)| {
            if *there {
                identifier(name)
            } else {
                "NULL".to_owned()
            }
        });
        let (columns, key) = (list(columns), &hole.captured.key);
        let conditions = key.iter().zip(&hole.key.texts).map(|(column, text)| {
            let value = constant(text, &column.type_name);
            format!("{} = {value}", identifier(&column.name))
        });
        let sql = format!(
            "SAVEPOINT hole; SELECT {columns} FROM {} WHERE {}; {}; ROLLBACK TO hole; RELEASE hole",
            hole.captured.sql,
            conditions.collect::<Vec<_>>().join(" AND "),
            View::moved_sql(hole.captured.oid)
        );
        let mut rows = session.rows(DOING, &sql).await?;
        let moved = rows.pop();
        if in_force("file_node")
            && moved.as_ref().and_then(|row| session::text(row, 0)) != Some("f")
        {
            return Ok(Answer::Moved);
        }
        let Some(row) = rows.pop() else {
            return Ok(Answer::NoRow);
        };
        let values = there.iter().enumerate().map(|(place, there)| {
            match (there, session::value(&row, place)) {
                (false, _) => Filled::Dropped,
                (true, None) => Filled::Null,
                (true, Some(text)) => Filled::Text(text.into()),
            }
        });
        Ok(Answer::Row(values.collect()))
    }

    /// Which of the wanted columns the table still has. Mostly all: only a table that is known
    /// to have other columns than the event is asked.
    async fn columns_there(
        &self,
        session: &Session,
        hole: &Hole<'_>,
        wanted: &[&String],
    ) -> Result<Vec<bool>, SourceError> {
        let sql = format!(
            "SELECT attname FROM pg_attribute \
             WHERE attrelid = {} AND attnum > 0 AND NOT attisdropped",
            hole.captured.oid
        );
        let rows = session.rows(DOING, &sql).await?;
        let there = |name: &&String| {
            rows.iter()
                .any(|row| session::text(row, 0) == Some(name.as_str()))
        };
        Ok(wanted.iter().map(there).collect())
    }

    /// The stream has passed the kept view's LSN, or the view's time is over: it is closed.
    pub(crate) async fn pass_view(&mut self) -> Result<(), LifeError> {
        let limits = &self.config.reads;
        let over = |view: &View| {
            self.progress.is_even()
                || view.opened.elapsed().as_millis() >= u128::from(limits.read_view_ms_max)
                || self.holes.touched.len() > limits.read_view_touched_max
        };
        if self.holes.kept.as_ref().is_some_and(over) {
            self.drop_view().await?;
        }
        Ok(())
    }

    pub(crate) async fn drop_view(&mut self) -> Result<(), LifeError> {
        self.holes.touched.clear();
        if self.holes.kept.take().is_some() {
            View::close(&self.hole_reads).await?;
        }
        Ok(())
    }

    /// When the kept view's time is over.
    pub(crate) fn view_deadline(&self) -> Option<Instant> {
        let limit = Duration::from_millis(self.config.reads.read_view_ms_max);
        self.holes.kept.as_ref().map(|view| view.opened + limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fills(shown: bool, touched: bool, key_changed: bool) -> bool {
        let view: Snapshot = "10:20:15".parse().unwrap();
        let key = Bytes::from_static(b"{\"id\":1}");
        let mut rows = HashSet::from([(7, Bytes::from_static(b"{\"id\":2}")), (8, key.clone())]);
        if touched {
            rows.insert((7, key.clone()));
        }
        can_fill(
            &view,
            &rows,
            7,
            &key,
            if shown { 14 } else { 15 },
            key_changed,
        )
    }

    #[test]
    fn a_view_that_shows_the_transaction_fills_whatever_happened() {
        assert!(fills(true, true, true));
    }

    #[test]
    fn a_view_that_does_not_fills_only_an_untouched_row_in_place() {
        assert!(fills(false, false, false));
        assert!(!fills(false, true, false));
        assert!(!fills(false, false, true));
    }

    #[test]
    fn only_what_the_view_does_not_show_touches() {
        let key = Key {
            json: Bytes::from_static(b"{}"),
            texts: Vec::new(),
        };
        let mut holes = Holes::default();
        holes.touch(7, 30, std::iter::once(&key));
        assert!(
            holes.touched.is_empty(),
            "without a view there is nothing to remember"
        );
        holes.kept = Some(View {
            snapshot: "10:20:15".parse().unwrap(),
            opened: Instant::now(),
            opened_us: 0,
            lsn_before: kafka::Lsn::ZERO,
        });
        holes.touch(7, 14, std::iter::once(&key));
        assert!(holes.touched.is_empty());
        holes.touch(7, 15, std::iter::once(&key));
        assert_eq!(holes.touched.len(), 1);
    }
}
