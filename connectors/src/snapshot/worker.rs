//! One slice of a chunk: read in a session of its own, encoded, handed to the life's task.
//!
//! A worker sends nothing. What it has read goes through a bounded channel to the one task that
//! holds the stream still meanwhile and sends it, so the order of events and records is that
//! task's, however many workers there are.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{FutureExt as _, StreamExt as _, pin_mut};
use kafka::checkpoint::KeyRange;
use kafka::event::Op;
use tokio::sync::mpsc;

use super::pace::Bounds;
use super::rows::Fields;
use super::sql::{self, Window};
use crate::captured::{Captured, Change, Frame};
use crate::encode::envelope::{Origin, Value};
use crate::progress::ChunkEnd;
use crate::quarantine::Undecodable;
use crate::source::{Session, SourceError, literal, session};

pub(super) const DOING: &str = "read a table";

/// The chunk's tables are locked already; a helper waits only behind an owner who waits for that.
const LOCK_WAIT_MS: u32 = 50;
/// Rows come from the key's index. Of a table without statistics the planner would sort what is left
/// of the range, on disk, for each statement.
const IN_KEY_ORDER: &str = "SET LOCAL enable_sort = off";
/// Encoded rows are handed over at so many bytes.
const BATCH_BYTES: usize = 128 * 1024;
/// Rows of one statement of a full chunk that has not yet met a key that is text.
const FETCH_ROWS_NAMELESS: usize = 500;

/// What a worker is to read.
#[derive(Debug)]
pub(super) struct Work {
    /// Which of the chunk's slices it is.
    pub(super) place: usize,
    pub(super) session: Arc<Session>,
    /// The exported snapshot to read in; none: the session's transaction has it already.
    pub(super) snapshot: Option<String>,
    pub(super) captured: Arc<Captured>,
    pub(super) origin: Origin,
    pub(super) range: KeyRange,
    pub(super) condition: Option<String>,
    pub(super) bounds: Bounds,
    /// Of a record's key and value.
    pub(super) record_bytes_max: usize,
}

/// Rows that were read, encoded.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) place: usize,
    bytes: Vec<u8>,
    /// Where each row's key and event end.
    ends: Vec<(usize, usize)>,
    /// Rows that cannot be sent.
    pub(super) undecodable: Vec<Undecodable>,
}

/// How a worker ended. What `end` says was handed over, also where an error followed.
#[derive(Debug)]
pub(super) struct SliceRead {
    pub(super) place: usize,
    /// None: nothing was passed.
    pub(super) end: Option<ChunkEnd>,
    pub(super) error: Option<SourceError>,
}

impl Batch {
    /// Key and event of each row.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        begins
            .zip(&self.ends)
            .map(|(begin, (key, end))| (&self.bytes[begin..*key], &self.bytes[*key..*end]))
    }
}

impl Work {
    /// Reads until the slice or the chunk is at its end.
    pub(super) async fn run(self, batches: mpsc::Sender<Batch>) -> SliceRead {
        let mut reader = Reader::new(&self, batches);
        let read = reader.read().await;
        let closed = self.close(read.is_err() || reader.stopped).await;
        SliceRead {
            place: self.place,
            end: reader.end(matches!(read, Ok(true))),
            error: read.err().or(closed.err()),
        }
    }

    async fn open(&self) -> Result<(), SourceError> {
        let sql = match &self.snapshot {
            Some(snapshot) => format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
                 SET LOCAL lock_timeout = {LOCK_WAIT_MS}; {IN_KEY_ORDER}",
                literal(snapshot)
            ),
            None => format!("SAVEPOINT slice; {IN_KEY_ORDER}"),
        };
        self.session.execute(DOING, &sql).await
    }

    /// By COMMIT, as [`super::view::View::close`]. The session that has the view keeps it.
    async fn close(&self, failed: bool) -> Result<(), SourceError> {
        let sql = match (&self.snapshot, failed) {
            (Some(_), _) => "COMMIT",
            (None, false) => "RELEASE slice",
            (None, true) => "ROLLBACK TO slice; RELEASE slice",
        };
        self.session.execute(DOING, sql).await
    }
}

struct Reader<'a> {
    work: &'a Work,
    batches: mpsc::Sender<Batch>,
    batch: Batch,
    fields: Fields,
    begun: Instant,
    /// Rows passed, and bytes of events; the last key of them.
    rows: usize,
    bytes: usize,
    after: Option<Vec<String>>,
    /// Rows passed behind that key whose own keys are no text: no statement can begin behind them.
    nameless: usize,
    /// A statement turned out too large and was stopped, which fails its transaction.
    stopped: bool,
}

impl<'a> Reader<'a> {
    fn new(work: &'a Work, batches: mpsc::Sender<Batch>) -> Self {
        Self {
            work,
            batches,
            batch: Batch::default(),
            fields: Fields::default(),
            begun: Instant::now(),
            rows: 0,
            bytes: 0,
            after: None,
            nameless: 0,
            stopped: false,
        }
    }

    fn end(self, complete: bool) -> Option<ChunkEnd> {
        (complete || self.after.is_some()).then(|| ChunkEnd {
            after: self.after.filter(|_| !complete),
            rows: self.rows as u64,
            bytes: self.bytes as u64,
        })
    }

    /// True if the slice is at its end.
    async fn read(&mut self) -> Result<bool, SourceError> {
        self.work.open().await?;
        while let Some(fetch) = self.next_fetch() {
            let range = KeyRange {
                after: self.after.clone().or_else(|| self.work.range.after.clone()),
                to: self.work.range.to.clone(),
            };
            let complete = match &self.work.condition {
                None => self.fetch(&range, fetch).await?,
                Some(condition) => self.sift(range, fetch, condition).await?,
            };
            if complete || self.stopped {
                return Ok(complete);
            }
        }
        Ok(false)
    }

    /// Rows of the next statement; none: the chunk is full, and its end can be named.
    fn next_fetch(&self) -> Option<usize> {
        let bounds = &self.work.bounds;
        let fetch = bounds.next_fetch(self.rows, self.bytes, self.begun.elapsed());
        fetch.or_else(|| (self.nameless > 0).then_some(FETCH_ROWS_NAMELESS))
    }

    /// The next `fetch` rows of a range; true if that were all.
    async fn fetch(&mut self, range: &KeyRange, fetch: usize) -> Result<bool, SourceError> {
        let window = Window {
            skip: self.nameless,
            rows: fetch,
        };
        let sql = sql::copy(&self.work.captured, range, None, Some(window));
        let before = self.rows;
        self.copy(&sql).await?;
        Ok(self.rows - before < fetch && !self.stopped)
    }

    /// Those of the next `fetch` rows that fulfil the condition; true if that were all. The
    /// window is cut first: how long a statement takes must not hang on how rare such rows are.
    async fn sift(
        &mut self,
        range: KeyRange,
        fetch: usize,
        condition: &str,
    ) -> Result<bool, SourceError> {
        let captured = &self.work.captured;
        let mut reaches = fetch;
        let edge = loop {
            let edge = sql::edge(captured, &range, reaches);
            let edge = self.work.session.rows(DOING, &edge).await?;
            let Some(row) = edge.first() else {
                break None;
            };
            let texts = (0..captured.key.len()).map(|at| session::text(row, at));
            match texts.map(|text| text.map(str::to_owned)).collect() {
                Some(key) => break Some(key),
                // A key that is no text bounds nothing.
                None => reaches += fetch,
            }
        };
        let window = KeyRange {
            after: range.after,
            to: edge.clone().or(range.to),
        };
        let sql = sql::copy(captured, &window, Some(condition), None);
        let before = self.rows;
        self.copy(&sql).await?;
        if self.stopped {
            return Ok(false);
        }
        if let Some(edge) = edge {
            self.rows = before + reaches;
            self.after = Some(edge);
            self.nameless = 0;
            return Ok(false);
        }
        Ok(true)
    }

    /// Encodes and hands over what a COPY gives, up to its end or to where the chunk is far beyond
    /// its bounds: how large rows are and how long they take is known only once they are here.
    async fn copy(&mut self, sql: &str) -> Result<(), SourceError> {
        let captured = Arc::clone(&self.work.captured);
        let frame = captured.frame(&self.work.origin);
        let lines = self.work.session.copy(DOING, sql).await?;
        pin_mut!(lines);
        let (mut last, timeout) = (None, self.work.session.answer_max());
        let before = self.rows;
        // Looked at where time may have passed, not for each row.
        let mut look = false;
        let copied = loop {
            if std::mem::take(&mut look)
                && last.is_some()
                && self.work.bounds.is_far_over(self.bytes, self.begun)
            {
                self.stopped = true;
                break self.work.session.stop(DOING, lines).await;
            }
            let line = match lines.next().now_or_never() {
                Some(line) => line,
                None => match tokio::time::timeout(timeout, lines.next()).await {
                    Ok(line) => {
                        look = true;
                        line
                    }
                    Err(_) => {
                        break Err(SourceError::Timeout {
                            doing: DOING,
                            timeout,
                        });
                    }
                },
            };
            match line {
                None => break Ok(()),
                Some(Ok(line)) => {
                    match self.encode(&captured, &frame, &line) {
                        Ok(named) => {
                            self.rows += 1;
                            self.nameless = if named { 0 } else { self.nameless + 1 };
                            if named {
                                last = Some(line);
                            }
                        }
                        Err(error) => break Err(error),
                    }
                    if self.batch.bytes.len() >= BATCH_BYTES || !self.batch.undecodable.is_empty() {
                        self.hand_over().await?;
                        look = true;
                    }
                }
                Some(Err(source)) => {
                    break Err(SourceError::Query {
                        doing: DOING,
                        source,
                    });
                }
            }
        };
        if self.rows > before {
            self.hand_over().await?;
        }
        // The next statement begins behind a key that can be written in it.
        if let Some(line) = last {
            self.fields.split(&line);
            self.after = self.key_texts(&captured, &line);
        }
        copied
    }

    /// Appends a row's key and event to the batch, or what becomes of it where that cannot be; true
    /// if its key is text.
    fn encode(
        &mut self,
        captured: &Captured,
        frame: &Frame,
        line: &[u8],
    ) -> Result<bool, SourceError> {
        if self.fields.split(line) != captured.columns.len() {
            return Err(SourceError::Answer { doing: DOING });
        }
        let (fields, bytes_max) = (&self.fields, self.work.record_bytes_max);
        let out = &mut self.batch.bytes;
        let begin = out.len();
        // No JSON is shorter than half of its text: what is far too large is not encoded first.
        let key_end = (line.len() / 2 <= bytes_max)
            .then(|| captured.append_read(out, frame, |at| fields.get(line, at)))
            .flatten()
            .filter(|_| out.len() - begin <= bytes_max);
        let named = match key_end {
            Some(key_end) => {
                self.batch.ends.push((key_end, out.len()));
                true
            }
            None => {
                out.truncate(begin);
                self.set_aside(captured, line)
            }
        };
        self.bytes += self.batch.bytes.len() - begin;
        Ok(named)
    }

    /// A row that cannot be sent as it is; true if its key is text.
    fn set_aside(&mut self, captured: &Captured, line: &[u8]) -> bool {
        let fields = &self.fields;
        let value_at = |at| fields.get(line, at).map_or(Value::Null, Value::Text);
        let values = (0..captured.columns.len()).map(value_at);
        let key = captured.key_of(value_at);
        let change = Change {
            op: Op::Read,
            key: &key,
            origin: &self.work.origin,
            text_bytes: values.clone().map(Value::bytes).sum(),
            bytes_max: self.work.record_bytes_max,
        };
        let encoded = captured.upsert(&change, None, values);
        if let (Some(event), Ok(key)) = (&encoded.event, &key) {
            self.batch.bytes.extend_from_slice(&key.json);
            let key_end = self.batch.bytes.len();
            self.batch.bytes.extend_from_slice(event);
            self.batch.ends.push((key_end, self.batch.bytes.len()));
        }
        self.batch
            .undecodable
            .extend(encoded.quarantined.map(|undecodable| *undecodable));
        key.is_ok()
    }

    /// The key of the line that was taken apart last; none: it is no text.
    fn key_texts(&self, captured: &Captured, line: &[u8]) -> Option<Vec<String>> {
        let texts = captured.key_at.iter().map(|at| {
            let text = self.fields.get(line, *at)?;
            std::str::from_utf8(text).ok().map(str::to_owned)
        });
        texts.collect()
    }

    async fn hand_over(&mut self) -> Result<(), SourceError> {
        let next = Batch {
            place: self.work.place,
            bytes: Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 8),
            ends: Vec::with_capacity(self.batch.ends.len()),
            undecodable: Vec::new(),
        };
        let mut batch = std::mem::replace(&mut self.batch, next);
        batch.place = self.work.place;
        // The other end is gone only with the life, and this task with it.
        let sent = self.batches.send(batch).await;
        sent.map_err(|_| SourceError::Answer { doing: DOING })
    }
}
