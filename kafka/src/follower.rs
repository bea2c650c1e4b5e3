//! How anybody reads a source's topics: by checkpoints.
//!
//! A checkpoint names an offset for each partition; the rows up to these offsets, and no row
//! beyond, are the source at one position. So a reader takes the newest whole checkpoint there
//! is, reads every partition exactly up to its offset, and has one state more. What it must not
//! do is come too late: log compaction takes superseded records away after
//! [`crate::topic::LATENESS_MAX_MS`], and what is left up to an old checkpoint's offsets is then
//! no state at all. Hence the two rules of time in [`Follower::next`].
//!
//! No consumer group: a reader's offsets belong to its data and commit with that.

mod anew;
mod checkpoint_log;
mod reading;
mod scan;
mod step;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;

use crate::config::KafkaConfig;
use crate::partition::{PartitionConsumer, PartitionError, PartitionReader, Read};
use crate::topic;
use crate::{Checkpoint, Offsets};

use checkpoint_log::{CheckpointLog, Found, Lost};
use reading::{Progress, Reading, Target};

pub use checkpoint_log::{last_offset, last_record};
pub use scan::{TopicScan, record};
pub use step::{Event, Standing, Step};

/// Names `<source>.quarantine` among the tables: its records come before those of the tables. Made
/// anew, it is read from its beginning, while a reader of a table that was made anew rebuilds.
pub const QUARANTINE: &str = "quarantine";

/// How much at once, and which tables.
#[derive(Debug, Clone)]
pub struct FollowerOptions {
    /// Events in a step, at most.
    pub step_events_max: usize,
    /// Keys and values in a step, bytes; a step goes over it by one event at most.
    pub step_bytes_max: usize,
    /// `schema.table`, and [`QUARANTINE`] where that is wanted too; none: all tables.
    pub tables: Option<Vec<String>>,
}

impl Default for FollowerOptions {
    fn default() -> Self {
        Self {
            step_events_max: 10_000,
            step_bytes_max: 16 << 20,
            tables: None,
        }
    }
}

/// After any of these the follower is to be dropped; a new one goes on from the last standing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowerError {
    #[error(transparent)]
    Partition(#[from] PartitionError),
    #[error(
        "record {offset} of {topic} is no checkpoint that this version understands; if a newer \
         version wrote it, start that one; else stop the source's connector and delete the topic: \
         its next start makes it anew and reads all tables again"
    )]
    Record {
        topic: String,
        offset: i64,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "a checkpoint names topic {topic}, which does not exist; start the source's connector, \
         which makes it anew"
    )]
    Missing { topic: String },
    #[error("records of topic {topic} that are still needed are gone; start a new epoch")]
    Lost { topic: String },
}

/// Reads a source's topics checkpoint by checkpoint.
#[derive(Debug)]
pub struct Follower {
    // Readers stand before their consumer, so as to be dropped before it.
    readers: BTreeMap<(Arc<str>, i32), PartitionReader>,
    log: Option<CheckpointLog>,
    consumer: PartitionConsumer,
    config: KafkaConfig,
    /// The clients' own.
    name: String,
    checkpoint_topic: Arc<str>,
    /// What a topic's name begins with, before `schema.table`.
    prefix: String,
    options: FollowerOptions,
    lateness_max_ms: i64,
    /// After the checkpoint taken last.
    standing: Standing,
    since_ms: i64,
    /// The newest whole checkpoint that was seen and not taken.
    candidate: Option<Found>,
    reading: Option<Reading>,
    /// The readers are to go back to `standing`.
    to_be_undone: bool,
}

/// A topic that a record covers: full name, `schema.table`, and the offset by partition.
type Covered<'a> = (Arc<str>, Arc<str>, &'a BTreeMap<i32, i64>);

impl Follower {
    /// Does not connect yet.
    ///
    /// # Errors
    /// Where the configuration is not one that a client can have.
    pub fn new(
        config: &KafkaConfig,
        source: &str,
        standing: Standing,
        options: FollowerOptions,
    ) -> Result<Self, FollowerError> {
        let name = format!("{source}.follower");
        Ok(Self {
            readers: BTreeMap::new(),
            log: None,
            consumer: PartitionConsumer::new(config, &name)?,
            config: config.clone(),
            name,
            checkpoint_topic: topic::checkpoint(config, source).into(),
            prefix: format!("{}{source}.", config.topic_prefix),
            options,
            lateness_max_ms: config.lateness_max_ms,
            since_ms: standing.since_ms.unwrap_or_else(now_ms),
            standing,
            candidate: None,
            reading: None,
            to_be_undone: false,
        })
    }

    /// Waits for the next step. Nothing is lost where the future is dropped.
    ///
    /// Two rules of time stand here. A checkpoint is taken only while it is younger than half of
    /// the lateness allowed: then nothing that supersedes a record below its offsets was old
    /// enough, while they were read, for the superseded one to have been taken away unseen. And
    /// a reader goes on only within the lateness of its last checkpoint: later, tombstones that
    /// it needs may be gone.
    ///
    /// # Errors
    /// See [`FollowerError`].
    pub async fn next(&mut self) -> Result<Step, FollowerError> {
        loop {
            if self.to_be_undone {
                self.undo().await?;
            }
            if self.reading.is_none() {
                match self.wait_for_candidate().await? {
                    Ok(found) => match self.plan(found).await? {
                        Ok(Some(reading)) => self.reading = Some(reading),
                        Ok(None) => {
                            self.reopen()?;
                            continue;
                        }
                        Err(Lost) => return Ok(Step::Behind),
                    },
                    Err(Lost) => return Ok(Step::Behind),
                }
            }
            let progress = self.read_on().await?;
            let now = now_ms();
            let late = now - self.since_ms >= self.lateness_max_ms;
            if late && service::fault::in_force("resume_rule") {
                return Ok(Step::Behind);
            }
            match progress {
                Progress::Lost => return Ok(Step::Behind),
                Progress::StepIsFull => {
                    if let Some(reading) = &mut self.reading {
                        reading.begun = true;
                        reading.bytes = 0;
                        return Ok(Step::Events(std::mem::take(&mut reading.events)));
                    }
                }
                Progress::Complete => {
                    if let Some(step) = self.complete(now) {
                        return Ok(step);
                    }
                }
                Progress::Anew => {
                    let step = self.give_up();
                    self.reopen()?;
                    if let Some(step) = step {
                        return Ok(step);
                    }
                }
            }
        }
    }

    /// The youngest whole checkpoint, if it is young enough to be taken: its offset, its time in
    /// milliseconds since 1970, itself. The follower then stands there: what follows is
    /// [`Follower::next`]'s.
    ///
    /// # Errors
    /// See [`FollowerError`].
    pub async fn last_checkpoint(
        &mut self,
    ) -> Result<Option<(i64, i64, Checkpoint)>, FollowerError> {
        let name = Arc::clone(&self.checkpoint_topic);
        if self.consumer.partitions(&name).await?.is_none() {
            return Ok(None);
        }
        self.log = None;
        let opened = CheckpointLog::open(&self.consumer, &name, 0, Checkpoint::is_whole).await?;
        let Ok((log, Some(found))) = opened else {
            return Ok(None);
        };
        if !self.is_young(&found, now_ms()) {
            return Ok(None);
        }
        self.log = Some(log);
        self.readers.clear();
        self.candidate = None;
        self.reading = None;
        self.to_be_undone = false;
        self.stand_at(&found);
        Ok(Some((found.offset, found.time_ms, found.record)))
    }

    /// Offsets of the checkpoint that is being read, of all partitions together: how far
    /// [`Standing::offsets`] has to come. None: none is.
    #[must_use]
    pub fn offsets_wanted(&self) -> Option<i64> {
        let reading = self.reading.as_ref()?;
        Some(reading.targets.iter().map(|target| target.end).sum())
    }

    fn is_young(&self, found: &Found, now_ms: i64) -> bool {
        now_ms - found.time_ms < self.lateness_max_ms / 2 || !service::fault::in_force("age_rule")
    }

    /// The newest whole checkpoint that is young enough; waits until there is one.
    async fn wait_for_candidate(&mut self) -> Result<Result<Found, Lost>, FollowerError> {
        let name = Arc::clone(&self.checkpoint_topic);
        if self.log.is_none() {
            checkpoint_log::wait_for(&self.consumer, &name).await?;
            let seen = self.standing.seen;
            match CheckpointLog::open(&self.consumer, &name, seen, Checkpoint::is_whole).await? {
                Ok((log, found)) => {
                    self.log = Some(log);
                    self.candidate = found;
                }
                Err(lost) => return Ok(Err(lost)),
            }
        }
        while let Some(log) = &mut self.log {
            while let Some(found) = log.next_now(&name)? {
                match found {
                    Ok(found) if found.record.is_whole() => self.candidate = Some(found),
                    Ok(_) => {}
                    Err(lost) => return Ok(Err(lost)),
                }
            }
            if let Some(found) = self.candidate.take()
                && self.is_young(&found, now_ms())
            {
                return Ok(Ok(found));
            }
            let Some(log) = &mut self.log else { break };
            match log.next(&name).await? {
                Ok(found) if found.record.is_whole() => self.candidate = Some(found),
                Ok(_) => {}
                Err(lost) => return Ok(Err(lost)),
            }
        }
        Ok(Err(Lost))
    }

    /// What is to be read for a checkpoint; begins to fetch partitions that are new. None: the
    /// quarantine was made anew.
    async fn plan(&mut self, found: Found) -> Result<Result<Option<Reading>, Lost>, FollowerError> {
        let mut targets = Vec::new();
        let mut new = Vec::new();
        let same = service::fault::in_force("topics_same");
        if same && anew::goes_back(&self.standing.offsets, &found.record.offsets) {
            return Ok(Err(Lost));
        }
        if self.notice_quarantine(&found.record) {
            return Ok(Ok(None));
        }
        for (topic, table, partitions) in self.covered(&found.record) {
            let is_new = |p: &i32| !self.readers.contains_key(&(Arc::clone(&topic), *p));
            if partitions.keys().any(is_new) {
                new.extend(self.unread_partitions(&topic, partitions).await?);
            }
            for (&partition, &end) in partitions {
                let end = self.end_to_read(&topic, partition, end).await?;
                targets.push(Target {
                    topic: Arc::clone(&topic),
                    table: Arc::clone(&table),
                    partition,
                    end,
                });
            }
        }
        if same && let Some(topic) = self.another_topic(&new).await? {
            let begins = *topic == *self.quarantine_topic()
                && anew::forget_quarantine(&mut self.standing.offsets, &topic);
            return Ok(if begins { Ok(None) } else { Err(Lost) });
        }
        let readers = self.consumer.open(&new)?;
        let keys = new
            .into_iter()
            .map(|(topic, partition, _)| (topic, partition));
        self.readers.extend(keys.zip(readers));
        Ok(Ok(Some(Reading {
            found,
            targets,
            at: 0,
            events: Vec::new(),
            bytes: 0,
            begun: false,
        })))
    }

    fn reads(&self, table: &str) -> bool {
        match &self.options.tables {
            Some(tables) => tables.iter().any(|name| name == table),
            None => table != QUARANTINE,
        }
    }

    /// What the record covers of the topics that are wanted.
    /// The quarantine comes first, so that a later change in the same checkpoint ends it.
    fn covered<'a>(&self, record: &'a Checkpoint) -> Vec<Covered<'a>> {
        let mut covered = Vec::new();
        if !record.quarantine.is_empty() && self.reads(QUARANTINE) {
            let topic = self.quarantine_topic().into();
            covered.push((topic, QUARANTINE.into(), &record.quarantine));
        }
        for (topic, partitions) in &record.offsets {
            let table = topic.strip_prefix(&self.prefix).unwrap_or(topic);
            if self.reads(table) {
                covered.push((topic.as_str().into(), table.into(), partitions));
            }
        }
        covered
    }

    /// The named offset. With the rule switched off, whatever more there is.
    async fn end_to_read(
        &self,
        topic: &str,
        partition: i32,
        end: i64,
    ) -> Result<i64, FollowerError> {
        if service::fault::in_force("read_to_offsets") {
            return Ok(end);
        }
        let (_, stable) = self.consumer.bounds(topic, partition).await?;
        Ok(end.max(stable))
    }

    /// The partitions of a topic that have no reader yet, also those that were not named so far:
    /// one that is added later waits for the request that is away.
    async fn unread_partitions(
        &self,
        topic: &Arc<str>,
        named: &BTreeMap<i32, i64>,
    ) -> Result<Vec<(Arc<str>, i32, Option<i64>)>, FollowerError> {
        let found = self.consumer.partitions(topic).await?;
        let partitions = found
            .filter(|count| named.keys().all(|partition| partition < count))
            .ok_or_else(|| FollowerError::Missing {
                topic: topic.to_string(),
            })?;
        Ok((0..partitions)
            .filter(|p| !self.readers.contains_key(&(Arc::clone(topic), *p)))
            .map(|p| {
                (
                    Arc::clone(topic),
                    p,
                    standing_in(&self.standing.offsets, topic, p),
                )
            })
            .collect())
    }

    /// Reads partition by partition until the step is full or every target is reached.
    async fn read_on(&mut self) -> Result<Progress, FollowerError> {
        let Some(reading) = &mut self.reading else {
            return Ok(Progress::Complete);
        };
        while let Some(target) = reading.targets.get(reading.at) {
            let key = (Arc::clone(&target.topic), target.partition);
            let Some(reader) = self.readers.get_mut(&key) else {
                return Ok(Progress::Lost);
            };
            loop {
                if reading.events.len() >= self.options.step_events_max
                    || reading.bytes >= self.options.step_bytes_max
                {
                    return Ok(Progress::StepIsFull);
                }
                let read = match reader.next_below(target.end).now_or_never() {
                    Some(read) => read?,
                    None => tokio::select! {
                        biased;
                        read = reader.next_below(target.end) => read?,
                        newer = anew::superseded(
                            &mut self.log, &self.checkpoint_topic, &mut self.candidate,
                            &reading.found.record, target,
                        ) => return newer,
                    },
                };
                match read {
                    Read::Record(record) => {
                        reading.bytes += record.bytes();
                        reading.events.push(target.event(record));
                    }
                    Read::Reached => break,
                    Read::Lost if anew::begins_again(&mut self.standing.offsets, target) => {
                        return Ok(Progress::Anew);
                    }
                    Read::Lost => return Ok(Progress::Lost),
                }
            }
            reading.at += 1;
        }
        Ok(Progress::Complete)
    }

    /// Takes the checkpoint that was read, if it still is young enough.
    fn complete(&mut self, now_ms: i64) -> Option<Step> {
        if !self.is_young(&self.reading.as_ref()?.found, now_ms) {
            return self.give_up();
        }
        let reading = self.reading.take()?;
        let standing = self.stand_at(&reading.found);
        // A target may lie beyond the record's offset, but only with a rule switched off.
        for target in &reading.targets {
            if let Some(partitions) = self.standing.offsets.get_mut(&*target.topic) {
                let next = partitions.entry(target.partition).or_default();
                *next = target.end.max(*next);
            }
        }
        let Found {
            offset,
            time_ms,
            record,
        } = reading.found;
        Some(Step::Checkpoint {
            record,
            events: reading.events,
            standing,
            record_offset: offset,
            record_time_ms: time_ms,
        })
    }

    /// Gives the checkpoint up that is being read. If none of its events were given, there is
    /// nothing to be said.
    fn give_up(&mut self) -> Option<Step> {
        let reading = self.reading.take()?;
        self.to_be_undone = true;
        reading.begun.then_some(Step::TooOld)
    }

    fn stand_at(&mut self, found: &Found) -> Standing {
        for (topic, _, partitions) in self.covered(&found.record) {
            let mine = self.standing.offsets.entry(topic.to_string()).or_default();
            for (&partition, &end) in partitions {
                let next = mine.entry(partition).or_default();
                *next = end.max(*next);
            }
        }
        self.since_ms = found.time_ms;
        self.standing.since_ms = Some(found.time_ms);
        self.standing.seen = found.offset + 1;
        self.standing.clone()
    }
}

/// Where a reader goes on in a partition; none: at the first offset there is, since before the
/// partition was ever named nothing was committed to it.
fn standing_in(offsets: &Offsets, topic: &str, partition: i32) -> Option<i64> {
    let next = offsets.get(topic)?.get(&partition).copied();
    next.filter(|next| *next > 0)
}

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
