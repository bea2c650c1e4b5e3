//! Reconciliation: what the topics have and the source no longer has is deleted.
//!
//! A new epoch does not know what was deleted while nobody looked. The connector reads its own
//! topics, asks the source in batches which of their keys exist, and deletes the others.
//!
//! Only of keys that are live in the topic: what was deleted before would be deleted again each
//! time, and a topic would grow with each epoch. Which ones are is told by a pass over the partition
//! before; of more than may be remembered the others are taken for live.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka::checkpoint::Reconcile;
use kafka::follower::TopicScan;
use service::fault::{self, in_force};

use super::live::{LIVE_KEYS_MAX, LiveKeys};
use super::sql::{constant, list};
use super::view::View;
use crate::captured::{Captured, Key};
use crate::encode::envelope::{Origin, Snapshot as SnapshotMark};
use crate::encode::key;
use crate::error::LifeError;
use crate::life::Life;
use crate::source::{Session, SourceError, identifier, session};
use crate::watch::Activity;

const DOING: &str = "ask which keys exist";

const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '50ms'";

/// A partition being read, kept between batches.
#[derive(Debug)]
pub(crate) struct Scan {
    table: String,
    request: Option<u64>,
    partition: i32,
    /// The pass that tells which keys are live, until it is over.
    telling: Option<TopicScan>,
    live: LiveKeys,
    scan: TopicScan,
    /// Read and not compared yet: its keys, and where the scan goes on.
    batch: Option<(BTreeSet<Bytes>, i64)>,
}

/// What the source says of a batch of keys.
enum Existing {
    Keys(BTreeSet<Bytes>),
    /// The table got a new file since the snapshot, which shows it empty.
    Moved,
}

impl Life<'_> {
    /// Compares the next keys of a topic with the source; false if the source is in the way.
    pub(crate) async fn reconcile_batch(
        &mut self,
        table: &str,
        request: Option<u64>,
        partition: i32,
        stale: Reconcile,
    ) -> Result<bool, LifeError> {
        let session = &Arc::clone(&self.reads);
        let captured = self.captured_now(table)?;
        let stale_keys = self.stale_keys(&captured, request, partition, stale);
        let Some((keys, next)) = Box::pin(stale_keys).await? else {
            return Ok(true);
        };
        if keys.is_empty() {
            self.batch_compared(table, request, partition, next);
            return Ok(true);
        }
        let condition = request
            .and_then(|id| self.progress.request(table, id))
            .and_then(|request| request.condition.clone());
        let Some(view) = self.try_view(session).await? else {
            return Ok(false);
        };
        // The stream waits, so nobody waits for long for the table's lock.
        session.execute(DOING, LOCK_WAIT).await?;
        let existing = existing(session, &captured, condition.as_deref(), &keys).await;
        let existing = match (existing, request) {
            (Err(LifeError::Source(error)), _) if error.is_locked() => {
                View::close(session).await?;
                self.readers.locked(table);
                return Ok(false);
            }
            (Err(LifeError::Source(error)), Some(id)) if error.is_of_the_statement() => {
                View::close(session).await?;
                self.give_up_request(table, id, &error);
                return Ok(true);
            }
            (existing, _) => existing?,
        };
        self.readers.free(table);
        let Existing::Keys(existing) = existing else {
            View::close(session).await?;
            return Ok(false);
        };
        fault::point("connector.in_reconcile").await;
        let origin = self.origin_of_read(&view);
        for json in keys.difference(&existing) {
            self.delete_key(&captured, json.clone(), &origin).await?;
        }
        let lsn = self.lsn_of_read(session, &view).await?;
        View::close(session).await?;
        self.count_read(lsn).await?;
        self.batch_compared(table, request, partition, next);
        Ok(true)
    }

    fn batch_compared(&mut self, table: &str, request: Option<u64>, partition: i32, next: i64) {
        self.progress.reconciled(table, request, partition, next);
        if let Some(scan) = &mut self.scan {
            scan.batch = None;
        }
    }

    /// The next keys that a partition holds a value of, and the offset after them; none: not yet.
    async fn stale_keys(
        &mut self,
        captured: &Captured,
        request: Option<u64>,
        partition: i32,
        stale: Reconcile,
    ) -> Result<Option<(BTreeSet<Bytes>, i64)>, LifeError> {
        let begun = Instant::now();
        let limits = &self.config.reads;
        let time = Duration::from_millis(limits.chunk_ms_max);
        let wanted = (captured.name.as_str(), request, partition);
        let kept = self
            .scan
            .take()
            .filter(|scan| (scan.table.as_str(), scan.request, scan.partition) == wanted);
        let mut scan = match kept {
            Some(scan) => scan,
            None => {
                // All that is sent is committed.
                let sent = self.progress.offset(&captured.topic, partition);
                let scan = |next, end| {
                    TopicScan::new(&self.config.kafka, &captured.topic, partition, next, end)
                };
                Scan {
                    table: captured.name.clone(),
                    request,
                    partition,
                    telling: Some(scan(0, sent.max(stale.end))?),
                    live: LiveKeys::at_most(LIVE_KEYS_MAX),
                    scan: scan(stale.next, stale.end)?,
                    batch: None,
                }
            }
        };
        if let Some(mut telling) = scan.telling.take() {
            self.status.motion().begin(Activity::ReadingTopics);
            let mut is_over = false;
            while !is_over && begun.elapsed() < time {
                let (records, _) = telling.next_batch(limits.reconcile_keys).await?;
                is_over = records.is_empty();
                for (key, has_value) in records {
                    scan.live.see(&key, has_value || !in_force("deleted_once"));
                }
            }
            scan.telling = (!is_over).then_some(telling);
            self.scan = Some(scan);
            // The stream goes on for as long.
            self.read_again_at = Instant::now() + begun.elapsed();
            return Ok(None);
        }
        let batch = match scan.batch.take() {
            Some(batch) => batch,
            None => {
                let (mut keys, mut next) = (BTreeSet::new(), stale.next);
                while next < stale.end
                    && keys.len() < limits.reconcile_keys
                    && begun.elapsed() < time
                {
                    let records;
                    let room = limits.reconcile_keys - keys.len();
                    (records, next) = scan.scan.next_batch(room).await?;
                    let valued = records.into_iter().filter(|(_, has_value)| *has_value);
                    let keys_of = valued.map(|(key, _)| key);
                    keys.extend(keys_of.filter(|key| scan.live.take_if_known(key)));
                }
                (keys, next)
            }
        };
        scan.batch = Some(batch.clone());
        self.scan = Some(scan);
        Ok(Some(batch))
    }

    /// Deletes a key of a topic.
    pub(super) async fn delete_key(
        &mut self,
        captured: &Captured,
        json: Bytes,
        origin: &Origin,
    ) -> Result<(), LifeError> {
        // A key of other columns (of a former primary key) cannot be taken apart, and need not.
        let texts = key::parse(&captured.key, &json).unwrap_or_default();
        let key = Key { json, texts };
        let event = captured.delete_of_key(&key, origin);
        self.delivery.delete(captured, &key.json, &event, &[]).await
    }

    /// Where an event of a read comes from.
    pub(super) fn origin_of_read(&self, view: &View) -> Origin {
        Origin {
            snapshot: SnapshotMark::True,
            ts_us: view.opened_us,
            last_commit: self.progress.position(),
            lsn: view.lsn_before,
            xid: None,
        }
    }
}

/// Those of `keys` that the source has, or that a condition does not speak of; byte for byte as they would be written now: a numeric
/// `1.0` is not the row `1.00`.
async fn existing(
    session: &Session,
    captured: &Captured,
    condition: Option<&str>,
    keys: &BTreeSet<Bytes>,
) -> Result<Existing, LifeError> {
    let askable: Vec<_> = keys
        .iter()
        .filter_map(|json| key::parse(&captured.key, json))
        .collect();
    let mut existing = BTreeSet::new();
    let mut parts = vec![askable.as_slice()];
    while let Some(part) = parts.pop() {
        match ask(session, captured, condition, part).await {
            Ok(Existing::Keys(some)) => existing.extend(some),
            Ok(Existing::Moved) => return Ok(Existing::Moved),
            // A text that the column's type does not take cannot be a key of it any more.
            Err(error) if is_unfit(&error) && part.len() > 1 => {
                let (one, other) = part.split_at(part.len() / 2);
                parts.extend([one, other]);
            }
            Err(error) if is_unfit(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Existing::Keys(existing))
}

async fn ask(
    session: &Session,
    captured: &Captured,
    condition: Option<&str>,
    keys: &[Vec<String>],
) -> Result<Existing, SourceError> {
    if keys.is_empty() {
        return Ok(Existing::Keys(BTreeSet::new()));
    }
    let names: Vec<_> = captured.key.iter().map(|c| identifier(&c.name)).collect();
    let wanted = keys.iter().map(|texts| {
        let values = captured.key.iter().zip(texts);
        format!(
            "({})",
            list(values.map(|(c, text)| constant(text, &c.type_name)))
        )
    });
    let columns = list(names.iter().map(|name| format!("t.{name}")));
    let (names, wanted) = (names.join(", "), list(wanted));
    // Of other keys nobody asked whether they exist.
    let others = condition.map_or_else(String::new, |condition| {
        let table = identifier(captured.table());
        format!(
            " UNION ALL SELECT {names} FROM (VALUES {wanted}) AS {table} ({names}) \
             WHERE (\n{condition}\n) IS NOT TRUE"
        )
    });
    let sql = format!(
        "SAVEPOINT ask; SELECT {columns} FROM {} AS t JOIN (VALUES {wanted}) AS wanted ({names}) \
         USING ({names}){others}; {}; ROLLBACK TO ask; RELEASE ask",
        captured.sql,
        View::moved_sql(captured.oid)
    );
    let answer = session.rows(DOING, &sql).await;
    if let Err(error) = &answer
        && is_unfit(error)
    {
        session
            .execute(DOING, "ROLLBACK TO ask; RELEASE ask")
            .await?;
    }
    let mut rows = answer?;
    let moved = rows.pop();
    if moved.as_ref().and_then(|row| session::text(row, 0)) != Some("f") {
        return Ok(Existing::Moved);
    }
    let mut found = BTreeSet::new();
    for row in &rows {
        let texts = (0..captured.key.len())
            .map(|place| session::text(row, place).map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .ok_or(SourceError::Answer { doing: DOING })?;
        found.insert(captured.key(texts).json);
    }
    Ok(Existing::Keys(found))
}

/// SQLSTATE class 22: a value that its type does not take.
fn is_unfit(error: &SourceError) -> bool {
    error
        .sql_state()
        .is_some_and(|state| state.code().starts_with("22"))
}
