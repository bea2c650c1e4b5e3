//! Transactions that Kafka decided and never ended.
//!
//! A coordinator ends a decided transaction with a marker in each of its partitions. A partition
//! that has no leader at that moment it takes for deleted and leaves out (Apache Kafka with
//! `KRaft`, up to 4.3 at least). So does a single broker that died between the decision and the
//! markers: it loads its transactions before its partitions have leaders again. The transaction
//! counts as complete then, `init_transactions` finds nothing to end, and yet its records stand
//! there without an end: nobody who reads what is committed gets past them, until the same
//! transactional id ends another transaction in that partition, whose outcome becomes that of
//! both. Kafka's word for it is a hanging transaction.
//!
//! So whoever takes over looks for partitions that are not stable up to their end, now that
//! nothing is open, and ends what hangs as it was decided. The last checkpoint tells:
//!
//! - A checkpoint is sent when every event before it is acknowledged, and after it only the
//!   commit follows. So a transaction whose checkpoint is written is complete, and may be
//!   committed, unless one of its partitions shows it aborted.
//! - A writer's next transaction begins once the one before is decided. So what stands behind the
//!   last checkpoint's offsets is of a transaction without one, and is aborted.
//!
//! To commit what hangs in a partition, its writer sends the last event there once more, and the
//! checkpoint behind it; to abort it, anything. Which of the two writers it was, a header of the
//! checkpoint says.

mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};

use super::{Producer, ProducerError};
use crate::checkpoint::{Checkpoint, Offsets};
use crate::config::KafkaConfig;
use crate::follower::{FollowerError, last_offset};
use crate::topic;

use log::{Gap, Log, Place};

/// Between two looks whether the markers are written.
const LOOK: Duration = Duration::from_millis(20);
/// So many looks until what still hangs is taken to be the other writer's.
const LOOKS: u32 = 100;

/// The producer is to be dropped, and another one may try again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HangingError {
    #[error(transparent)]
    Producer(#[from] ProducerError),
    #[error(transparent)]
    Follower(#[from] FollowerError),
    #[error("Kafka: cannot {doing} of the connector's topics")]
    Kafka {
        doing: &'static str,
        #[source]
        source: KafkaError,
    },
    /// Or Kafka answers wrong.
    #[error(
        "a transaction that is not this connector's stands open in {topic} partition {partition}, \
         from offset {stable} on: no reader gets past it; find its producer with \
         kafka-transactions.sh find-hanging, and end it"
    )]
    Foreign {
        topic: String,
        partition: i32,
        stable: i64,
    },
}

impl HangingError {
    /// Must somebody change something before another try makes sense?
    #[must_use]
    pub fn is_setup(&self) -> bool {
        match self {
            Self::Producer(error) => error.is_setup(),
            Self::Follower(error) => matches!(error, FollowerError::Record { .. }),
            Self::Kafka { .. } | Self::Foreign { .. } => false,
        }
    }
}

/// What is to be done with what hangs.
#[derive(Debug)]
struct Plan {
    /// By writer, where it aborts.
    abort: [BTreeSet<Place>; 2],
    commit: Option<Commit>,
}

#[derive(Debug)]
struct Commit {
    /// Who sent the checkpoint.
    writer: usize,
    record: Checkpoint,
    /// The last event of each partition where it hangs.
    events: Vec<OwnedMessage>,
}

/// A checkpoint where it stands.
#[derive(Debug)]
struct Said {
    offset: i64,
    writer: usize,
    record: Checkpoint,
}

impl Producer {
    /// Ends what hangs in a source's topics: those of its tables and `quarantine`, and that of its
    /// checkpoints. To be called once connected, before the last record is read. Returns in how
    /// many partitions something hung.
    ///
    /// # Errors
    /// Where Kafka does not answer, a partition has no leader, or what hangs is not ours.
    pub async fn end_hanging(
        &mut self,
        config: &KafkaConfig,
        source: &str,
        tables: &[String],
    ) -> Result<usize, HangingError> {
        let checkpoint = topic::checkpoint(config, source);
        let quarantine = topic::quarantine(config, source);
        let mut names = tables.to_vec();
        names.extend([checkpoint.clone(), quarantine.clone()]);
        let log = Log::new(config)?;
        let (log, gaps) = log.ask(move |log| log.gaps(&names)).await?;
        if gaps.is_empty() {
            return Ok(0);
        }
        for (topic, partition) in gaps.keys() {
            tracing::warn!(
                topic,
                partition,
                "a transaction hangs in {topic} partition {partition}"
            );
        }
        let count = gaps.len();
        let committed = last_offset(config, source).await?;
        let topics = Topics {
            checkpoint,
            quarantine,
        };
        let (mut log, (plan, topics, mut gaps)) = log
            .ask(move |log| Ok((topics.plan(log, &gaps, committed)?, topics, gaps)))
            .await?;
        self.abort_hanging(&plan.abort).await?;
        if let Some(commit) = &plan.commit {
            // Mostly it is the one who sent the checkpoint; a transaction before that one may hang
            // too, and that is the other's.
            for writer in [commit.writer, 1 - commit.writer] {
                if !gaps.is_empty() {
                    self.turn = writer;
                    self.commit_hanging(&topics, commit).await?;
                    (log, gaps) = ended(log, gaps).await?;
                }
            }
        } else {
            (_, gaps) = ended(log, gaps).await?;
        }
        if let Some(((topic, partition), Gap { stable, .. })) = gaps.pop_first() {
            return Err(HangingError::Foreign {
                topic,
                partition,
                stable,
            });
        }
        tracing::info!("ended what hung in {count} partitions");
        Ok(count)
    }

    async fn abort_hanging(&mut self, abort: &[BTreeSet<Place>; 2]) -> Result<(), ProducerError> {
        for (writer, places) in abort.iter().enumerate() {
            self.turn = writer;
            for (topic, partition) in places {
                self.send_to(topic, Some(*partition), b"", None, &[])
                    .await?;
            }
            if !places.is_empty() {
                // An abort takes back what was not sent yet, and then ends nothing there.
                self.delivered().await?;
                self.abort_open().await?;
            }
        }
        Ok(())
    }

    async fn commit_hanging(
        &mut self,
        topics: &Topics,
        commit: &Commit,
    ) -> Result<(), ProducerError> {
        for event in &commit.events {
            let headers = event
                .headers()
                .into_iter()
                .flat_map(|headers| headers.iter());
            let headers = headers.map(|header| (header.key, header.value.unwrap_or_default()));
            self.send_to(
                event.topic(),
                Some(event.partition()),
                event.key().unwrap_or_default(),
                event.payload(),
                &headers.collect::<Vec<_>>(),
            )
            .await?;
        }
        let mut record = commit.record.clone();
        topics.advance(&mut record, self.delivered().await?);
        self.commit(&topics.checkpoint, &record).await?;
        Ok(())
    }
}

/// Waits until the markers are written; what still hangs after a while.
async fn ended(
    mut log: Log,
    mut gaps: BTreeMap<Place, Gap>,
) -> Result<(Log, BTreeMap<Place, Gap>), HangingError> {
    for _ in 0..LOOKS {
        (log, gaps) = log.ask(move |log| log.still_hanging(gaps.keys())).await?;
        if gaps.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok((log, gaps))
}

/// A source's topics that are not a table's.
struct Topics {
    checkpoint: String,
    quarantine: String,
}

impl Topics {
    /// `committed`: where the last committed checkpoint stands.
    fn plan(
        &self,
        log: &Log,
        gaps: &BTreeMap<Place, Gap>,
        committed: Option<i64>,
    ) -> Result<Plan, HangingError> {
        let place = (self.checkpoint.clone(), 0);
        let mut last = match committed {
            Some(offset) => log.first(&place, offset, offset + 1)?.map(said),
            None => None,
        };
        if let Some(gap) = gaps.get(&place) {
            let (mut from, mut newest) = (gap.stable, None);
            while let Some(message) = log.first(&place, from, gap.written)? {
                from = message.offset() + 1;
                newest = Some(said(message));
            }
            if let Some(newest) = newest.transpose()?
                && !self.is_aborted(log, gaps, &newest.record)?
            {
                last = Some(Ok(newest));
            }
        }
        let last = last.transpose()?;
        let mut plan = Plan {
            abort: Default::default(),
            commit: None,
        };
        for (place, gap) in gaps {
            let covered = last.as_ref().map_or(0, |last| self.covered(last, place));
            let hangs = gap.stable < covered;
            if let Some(last) = &last
                && hangs
            {
                let commit = plan.commit.get_or_insert_with(|| Commit {
                    writer: last.writer,
                    record: last.record.clone(),
                    events: Vec::new(),
                });
                if place.0 != self.checkpoint {
                    commit
                        .events
                        .extend(log.first(place, covered - 1, covered)?);
                }
            }
            if log
                .first(place, covered.max(gap.stable), gap.written)?
                .is_some()
            {
                // Behind a checkpoint that hangs stands what the other writer began after it.
                let writers = match (&last, hangs) {
                    (Some(last), true) => &[1 - last.writer][..],
                    _ => &[0, 1],
                };
                for writer in writers {
                    plan.abort[*writer].insert(place.clone());
                }
            }
        }
        Ok(plan)
    }

    /// Does a partition that has its marker show that this checkpoint's transaction was aborted?
    fn is_aborted(
        &self,
        log: &Log,
        gaps: &BTreeMap<Place, Gap>,
        record: &Checkpoint,
    ) -> Result<bool, HangingError> {
        let quarantine = record.quarantine.iter();
        let quarantine =
            quarantine.map(|(partition, end)| ((self.quarantine.clone(), *partition), *end));
        let tables = record.offsets.iter().flat_map(|(topic, ends)| {
            ends.iter()
                .map(|(partition, end)| ((topic.clone(), *partition), *end))
        });
        for (place, end) in tables.chain(quarantine) {
            let hangs = gaps.get(&place).is_some_and(|gap| gap.stable < end);
            if !hangs && log.is_aborted(&place, end - 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The offset after what a checkpoint covers of a partition, itself included.
    fn covered(&self, said: &Said, (topic, partition): &Place) -> i64 {
        let ends = if *topic == self.checkpoint {
            return said.offset + 1;
        } else if *topic == self.quarantine {
            Some(&said.record.quarantine)
        } else {
            said.record.offsets.get(topic)
        };
        ends.and_then(|ends| ends.get(partition))
            .copied()
            .unwrap_or_default()
    }

    fn advance(&self, record: &mut Checkpoint, delivered: Offsets) {
        for (topic, ends) in delivered {
            if topic == self.quarantine {
                record.quarantine.extend(ends);
            } else {
                record.offsets.entry(topic).or_default().extend(ends);
            }
        }
    }
}

fn said(message: OwnedMessage) -> Result<Said, HangingError> {
    let offset = message.offset();
    let record =
        serde_json::from_slice(message.payload().unwrap_or_default()).map_err(|source| {
            FollowerError::Record {
                topic: message.topic().to_owned(),
                offset,
                source,
            }
        })?;
    let mut headers = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter());
    // An older version's says nothing.
    let second = headers
        .any(|header| header.key == super::WRITER && header.value == Some(super::WRITERS[1]));
    Ok(Said {
        offset,
        writer: usize::from(second),
        record,
    })
}
