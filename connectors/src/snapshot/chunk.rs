//! A chunk of table reads: slices of tables, read at once in one snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka::checkpoint::{Read, RunningRead};
use kafka::event::Op;
use metrics::{counter, histogram};
use service::fault::{self, in_force};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::pace::{self, Bounds};
use super::sql;
use super::view::{Settling, View};
use super::worker::{Batch, DOING, SliceRead, Work};
use crate::captured::Captured;
use crate::encode::envelope::now_us;
use crate::error::LifeError;
use crate::life::Life;
use crate::progress::{NextRead, Slice};
use crate::source::{Session, SourceError, session};
use crate::status::names;

/// Batches of a worker that wait to be sent.
const BATCHES_WAITING: usize = 2;
/// Parts that a table is cut into for each worker: the last ones to be read are small then.
const PARTS_PER_WORKER: usize = 4;

/// Between two looks at whether the source has flushed its WAL.
const UNFLUSHED_RETRY: Duration = Duration::from_millis(10);

/// The captured tables of a chunk, as its snapshot has them.
type Tables = BTreeMap<String, Arc<Captured>>;

/// What became of a try to read.
enum Tried {
    Read,
    /// The source is in the way: a lock, a transaction that is not shown yet.
    StepBack,
}

impl Life<'_> {
    /// The next chunk of table reads, or the next batch of a reconciliation; if the source is in
    /// the way (a lock, a transaction that is not shown yet), nothing now.
    pub(crate) async fn read_some(&mut self) -> Result<(), LifeError> {
        let moved = self.try_to_read().await?;
        self.status.motion().tried_to_read(moved);
        self.tell_waits();
        Ok(())
    }

    /// True if a read went on.
    async fn try_to_read(&mut self) -> Result<bool, LifeError> {
        // A slow query must not outlast an open Kafka transaction.
        self.record_if_any().await?;
        if !self.is_flushed().await? {
            self.read_again_at = Instant::now() + UNFLUSHED_RETRY;
            return Ok(false);
        }
        let begun = Instant::now();
        let without = self.readers.left_alone();
        let workers = self.config.reads.read_workers;
        let (kind, tried) = match self.progress.next_read(workers, &without) {
            // All that is to be read is locked.
            None => {
                self.step_back();
                return Ok(false);
            }
            Some(NextRead::Slices(slices)) => ("chunk", self.read_chunk(slices).await),
            Some(NextRead::Reconcile {
                table,
                request,
                partition,
                stale,
            }) => {
                let read = self.reconcile_batch(&table, request, partition, stale);
                let read = Box::pin(read).await;
                let tried = |read| if read { Tried::Read } else { Tried::StepBack };
                ("reconcile", read.map(tried))
            }
        };
        if !self.progress.is_reading() {
            self.readers.close();
            self.settling = Settling::default();
        }
        match tried {
            Ok(Tried::Read) => {
                counter!(names::READS, "kind" => kind).increment(1);
                histogram!(names::READ_MS, "kind" => kind)
                    .record(begun.elapsed().as_secs_f64() * 1000.0);
                Ok(true)
            }
            Ok(Tried::StepBack) => {
                self.step_back();
                Ok(false)
            }
            // With rows sent there is no stepping back: no record may cover half a read, so the
            // life ends, and Kafka aborts them.
            Err(LifeError::Source(error)) if error.is_passing() && self.delivery.events() == 0 => {
                tracing::debug!(%error, "a read steps back");
                let session = Arc::clone(&self.reads);
                View::close(&session).await?;
                self.step_back();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn read_chunk(&mut self, slices: Vec<Slice>) -> Result<Tried, LifeError> {
        let (session, begun) = (Arc::clone(&self.reads), Instant::now());
        self.readers.open(self.config, slices.len() - 1).await;
        let Some(view) = self.try_view(&session).await? else {
            return Ok(Tried::StepBack);
        };
        let mut tables = Tables::new();
        for slice in &slices {
            if tables.contains_key(&slice.table) {
                continue;
            }
            match self.table_in_view(&session, slice).await? {
                Some(captured) => _ = tables.insert(slice.table.clone(), captured),
                None => self.readers.locked(&slice.table),
            }
        }
        // What was found out may have started reads over, or cut tables into ranges.
        let workers = self
            .config
            .reads
            .read_workers
            .min(self.readers.helpers.len() + 1);
        let mut without = self.readers.left_alone();
        without.extend(self.progress.tables_without(&tables));
        let next = self.progress.next_read(workers, &without);
        let Some(NextRead::Slices(slices)) = next else {
            View::close(&session).await?;
            return Ok(Tried::StepBack);
        };
        let rate = self.rows_per_second_max(&slices);
        let works = self.works(&session, &view, &tables, &slices, rate).await?;
        let mut reads = self.send_slices(works).await?;
        self.forgive(&mut reads, &slices)?;
        let lsn = self.lsn_of_read(&session, &view).await?;
        View::close(&session).await?;
        // How long Kafka takes belongs to the chunk; its record takes up the offsets.
        self.delivery.delivered().await?;
        if reads.iter().all(|read| read.end.is_none()) {
            return Ok(Tried::StepBack);
        }
        self.count_read(lsn).await?;
        let rows = self.count_slices(reads, &slices);
        let sent = usize::try_from(rows).unwrap_or(usize::MAX);
        let limits = &self.config.reads;
        self.readers.pace.took(sent, begun.elapsed(), limits);
        self.read_again_at = pace::next_at(begun, rows, rate);
        fault::point("connector.after_chunk").await;
        Ok(Tried::Read)
    }

    /// The table as the view has it, locked until the view is closed; none: its owner has locked
    /// it, or it got a new file. A read that begins is cut into ranges for several workers.
    ///
    /// Nobody waits for the lock here, since the stream would wait, too.
    async fn table_in_view(
        &mut self,
        session: &Session,
        slice: &Slice,
    ) -> Result<Option<Arc<Captured>>, LifeError> {
        let name = &slice.table;
        let Some(table) = self.catalog.tables.get(name) else {
            return Err(LifeError::Order("a table to be read is not in the catalog"));
        };
        let (oid, lock) = (table.oid, table.sql());
        let wait = if in_force("locks_not_waited_for") {
            "NOWAIT"
        } else {
            ""
        };
        let lock =
            format!("SAVEPOINT lock; LOCK TABLE {lock} IN ACCESS SHARE MODE {wait}; RELEASE lock");
        match session.execute(DOING, &lock).await {
            Ok(()) => self.readers.free(name),
            Err(error) if error.is_locked() => {
                session
                    .execute(DOING, "ROLLBACK TO lock; RELEASE lock")
                    .await?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        if is_moved(session, oid).await? {
            return Ok(None);
        }
        let publication = &self.config.postgres.publication;
        let columns = self.catalog.columns(session, publication, oid).await?;
        self.progress.learn_from_catalog(name, &columns);
        let captured = Arc::new(self.captured(name, &columns)?);
        if self.progress.read_of(slice) == Some(&Read::First) {
            self.begin_read(session, slice, &captured).await?;
        }
        Ok(Some(captured))
    }

    async fn begin_read(
        &mut self,
        session: &Session,
        slice: &Slice,
        captured: &Captured,
    ) -> Result<(), LifeError> {
        let limits = &self.config.reads;
        let parts = match limits.read_workers {
            1 => 1,
            workers => workers * PARTS_PER_WORKER,
        };
        let sql = sql::survey(captured, parts, limits.chunk_rows);
        let rows = session.rows("look how large a table is", &sql).await?;
        let key_columns = captured.key.len();
        let mut keys = Vec::with_capacity(parts);
        for row in &rows {
            let texts = (0..key_columns).map(|at| session::text(row, at).map(str::to_owned));
            // Without a cut there is one row, without a key.
            keys.extend(texts.collect::<Option<Vec<_>>>());
        }
        let estimate: i64 = match rows.first() {
            Some(row) => session::get(DOING, row, key_columns)?,
            None => 0,
        };
        let (table, ranges) = (&slice.table, keys.len() + 1);
        tracing::info!(
            table,
            request = slice.request,
            rows = estimate,
            ranges,
            "{table} is read: about {estimate} rows in {ranges} ranges"
        );
        let estimate = estimate.unsigned_abs();
        self.progress.read_begins(slice, keys, estimate, now_us());
        Ok(())
    }

    fn rows_per_second_max(&self, slices: &[Slice]) -> Option<u32> {
        let of_request = slices.first().and_then(|slice| {
            let request = self.progress.request(&slice.table, slice.request?)?;
            request.rows_per_second_max
        });
        let of_all = Some(self.config.reads.rows_per_second_max).filter(|rows| *rows > 0);
        of_all.into_iter().chain(of_request).min()
    }

    /// What each worker is to do. More than one read in the exported snapshot of the first.
    async fn works(
        &self,
        session: &Arc<Session>,
        view: &View,
        tables: &Tables,
        slices: &[Slice],
        rows_per_second_max: Option<u32>,
    ) -> Result<Vec<Work>, LifeError> {
        let (limits, origin) = (&self.config.reads, self.origin_of_read(view));
        let rows = self.readers.pace.rows(limits, rows_per_second_max);
        let workers = slices.len().min(rows);
        let snapshot: Option<String> = if workers > 1 {
            let exported = session.row(DOING, "SELECT pg_export_snapshot()").await?;
            Some(session::get(DOING, &exported, 0)?)
        } else {
            None
        };
        let helpers = self.readers.helpers.iter().cloned().map(Some);
        let sessions = std::iter::once(None).chain(helpers);
        let mut works = Vec::with_capacity(workers);
        for ((place, slice), helper) in slices.iter().enumerate().zip(sessions).take(workers) {
            let captured = tables.get(&slice.table).cloned();
            let captured =
                captured.ok_or(LifeError::Order("a slice of a table that is not locked"))?;
            let request = slice
                .request
                .and_then(|id| self.progress.request(&slice.table, id));
            works.push(Work {
                place,
                snapshot: helper.as_ref().and(snapshot.clone()),
                session: helper.unwrap_or_else(|| Arc::clone(session)),
                captured,
                origin,
                range: slice.range.clone(),
                condition: request.and_then(|request| request.condition.clone()),
                bounds: Bounds {
                    rows: rows / workers,
                    bytes: limits.chunk_bytes_max / workers,
                    time: Duration::from_millis(limits.chunk_ms_max),
                    row_bytes: self.progress.read_of(slice).and_then(row_bytes),
                },
                record_bytes_max: self.delivery.record_bytes_max(),
            });
        }
        Ok(works)
    }

    /// Sends what the workers read, until all of them have ended.
    async fn send_slices(&mut self, works: Vec<Work>) -> Result<Vec<SliceRead>, LifeError> {
        let (sender, mut batches) = mpsc::channel(works.len() * BATCHES_WAITING);
        let captured: Vec<_> = works
            .iter()
            .map(|work| Arc::clone(&work.captured))
            .collect();
        let mut workers = JoinSet::new();
        for work in works {
            workers.spawn(work.run(sender.clone()));
        }
        drop(sender);
        let mut first = true;
        while let Some(batch) = batches.recv().await {
            if std::mem::take(&mut first) {
                fault::point("connector.in_read").await;
            }
            if let Some(captured) = captured.get(batch.place) {
                self.send_batch(captured, &batch).await?;
            }
        }
        let mut reads = Vec::with_capacity(captured.len());
        while let Some(read) = workers.join_next().await {
            reads.push(read.map_err(|_| LifeError::Order("a worker of a read panicked"))?);
        }
        Ok(reads)
    }

    async fn send_batch(&mut self, captured: &Captured, batch: &Batch) -> Result<(), LifeError> {
        for (key, event) in batch.rows() {
            self.delivery
                .upsert(captured, Op::Read, key, event, &[])
                .await?;
        }
        for undecodable in &batch.undecodable {
            self.quarantine(captured, undecodable).await?;
        }
        Ok(())
    }

    /// What of the workers' errors is no end of the life. Rows that were handed over before are
    /// rows of the snapshot like others, and count.
    fn forgive(&mut self, reads: &mut [SliceRead], slices: &[Slice]) -> Result<(), LifeError> {
        for read in reads {
            let Some(error) = read.error.take() else {
                continue;
            };
            let slice = slices.get(read.place);
            let helper = read
                .place
                .checked_sub(1)
                .and_then(|at| self.readers.helpers.get(at));
            let request = slice.and_then(|slice| slice.request.zip(Some(&slice.table)));
            if error.is_locked() || (request.is_none() && error.is_passing()) {
                tracing::debug!(%error, "a worker steps back");
            } else if let Some((id, table)) = request.filter(|_| error.is_of_the_statement()) {
                self.give_up_request(&table.clone(), id, &error);
            } else if let Some(helper) = helper.cloned().filter(|_| error.is_of_the_session()) {
                tracing::warn!(%error, "a worker's session with the source is lost: {error}");
                self.readers.forget(&helper);
            } else {
                return Err(error.into());
            }
        }
        Ok(())
    }

    pub(super) fn give_up_request(&mut self, table: &str, id: u64, error: &SourceError) {
        counter!(names::REQUESTS_FAILED).increment(1);
        tracing::error!(
            table, request = id, %error,
            "read {id} of {table} is given up: {error}; ask for it again with another condition"
        );
        self.progress.give_up(table, id);
        self.status.request_failed(id, table, error.to_string());
    }

    /// Counts the chunk's slices as read; how many rows were passed.
    fn count_slices(&mut self, reads: Vec<SliceRead>, slices: &[Slice]) -> u64 {
        let mut rows = 0;
        for (end, slice) in reads
            .into_iter()
            .filter_map(|read| read.end.zip(slices.get(read.place)))
        {
            rows += end.rows;
            let table = slice.table.clone();
            counter!(names::READ_ROWS, "table" => table.clone()).increment(end.rows);
            counter!(names::READ_BYTES, "table" => table).increment(end.bytes);
            let mut read = self.progress.read_of(slice).cloned().unwrap_or_default();
            read.running().rows += end.rows;
            read.running().bytes += end.bytes;
            self.progress.chunk_sent(slice, end);
            if self.progress.read_of(slice).is_none_or(Read::is_done) {
                say("is complete", &slice.table, slice.request, read.running());
            }
        }
        if self.readers.is_to_say() {
            for (table, request, read) in self.progress.running_reads() {
                say("goes on", table, request, read);
            }
        }
        rows
    }
}

/// How far a read is, in the log.
fn say(how: &str, table: &str, request: Option<u64>, read: &RunningRead) {
    let (rows, bytes, about) = (read.rows, read.bytes, read.rows_estimate);
    let seconds = now_us().saturating_sub(read.begun_at_us) / 1_000_000;
    tracing::info!(
        table,
        request,
        rows,
        bytes,
        rows_estimate = about,
        ranges = read.ranges.len(),
        seconds,
        "the read of {table} {how}: {rows} of about {about} rows, {bytes} bytes, {seconds} s"
    );
}

fn row_bytes(read: &Read) -> Option<usize> {
    let Read::Running(running) = read else {
        return None;
    };
    let bytes = running.bytes.checked_div(running.rows)?;
    usize::try_from(bytes).ok()
}

/// See [`View::moved_sql`].
async fn is_moved(session: &Session, table: u32) -> Result<bool, SourceError> {
    let rows = session.rows(DOING, &View::moved_sql(table)).await?;
    Ok(rows.first().and_then(|row| session::text(row, 0)) != Some("f"))
}
