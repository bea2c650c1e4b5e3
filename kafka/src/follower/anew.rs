//! Topics that are not the ones that a reader stood in.
//!
//! A topic that was deleted and made anew begins at offset 0 again. Who has read it all the time
//! falls out of its range. Who was away must not take the new topic's offsets for the old one's:
//! below its own there would be events that it never saw. And who waits for an offset of the old
//! one waits for ever, unless the next record is heeded, which no longer names that offset.
//!
//! Of a table's topic that means to rebuild. Not of the quarantine: what the old one said is still
//! true until its rows change, and nobody but its readers knows of it any more.

use std::sync::Arc;
use std::time::Duration;

use service::fault::in_force;

use super::checkpoint_log::{CheckpointLog, Found};
use super::reading::{Progress, Target};
use super::{Follower, FollowerError, QUARANTINE, standing_in};
use crate::checkpoint::{Checkpoint, Offsets};
use crate::partition::{PartitionConsumer, PartitionError};

/// Brokers' clocks may differ by so much: a partition's leader and the checkpoint topic's stamp
/// with their own.
const CLOCKS_MAX: Duration = Duration::from_secs(60);

impl Follower {
    /// Goes on where the last checkpoint left the readers, with a new client: the old one's idea
    /// of a partition that was made anew is of before.
    pub(super) fn reopen(&mut self) -> Result<(), PartitionError> {
        self.readers.clear();
        self.log = None;
        self.candidate = None;
        self.reading = None;
        self.to_be_undone = false;
        self.consumer = PartitionConsumer::new(&self.config, &self.name)?;
        Ok(())
    }

    /// Takes every reader back to where the last checkpoint left it.
    pub(super) async fn undo(&mut self) -> Result<(), FollowerError> {
        for ((topic, partition), reader) in &mut self.readers {
            let next = standing_in(&self.standing.offsets, topic, *partition);
            reader.seek(next).await?;
        }
        self.to_be_undone = false;
        Ok(())
    }

    pub(super) fn quarantine_topic(&self) -> String {
        format!("{}{QUARANTINE}", self.prefix)
    }

    /// Does the quarantine end before this reader's offset? Then it is another one, to be read
    /// from its beginning.
    pub(super) fn notice_quarantine(&mut self, record: &Checkpoint) -> bool {
        let topic = self.quarantine_topic();
        let named = Offsets::from([(topic.clone(), record.quarantine.clone())]);
        goes_back(&self.standing.offsets, &named)
            && forget_quarantine(&mut self.standing.offsets, &topic)
    }

    /// One of these partitions' topics, where the reader stood in it, that was made anew meanwhile.
    pub(super) async fn another_topic(
        &self,
        resumed: &[(Arc<str>, i32, Option<i64>)],
    ) -> Result<Option<Arc<str>>, FollowerError> {
        let Some(since_ms) = self.standing.since_ms else {
            return Ok(None);
        };
        for (topic, partition, next) in resumed {
            let Some(next) = *next else { continue };
            let (consumer, late) = (&self.consumer, self.lateness_max_ms);
            if is_younger(consumer, topic, *partition, next, since_ms, late).await? {
                return Ok(Some(Arc::clone(topic)));
            }
        }
        Ok(None)
    }
}

/// The partition no longer has the reader's offset. Is it one of the quarantine, and not read from
/// its beginning already?
pub(super) fn begins_again(standing: &mut Offsets, target: &Target) -> bool {
    &*target.table == QUARANTINE && forget_quarantine(standing, &target.topic)
}

/// If a reader stands in the quarantine, `topic`: it then stands nowhere there.
pub(super) fn forget_quarantine(standing: &mut Offsets, topic: &str) -> bool {
    let is_quarantine = topic.ends_with(&format!(".{QUARANTINE}"));
    let forgotten =
        is_quarantine && in_force("quarantine_anew") && standing.remove(topic).is_some();
    if forgotten {
        tracing::warn!(
            topic,
            "topic {topic} is not the one that was read before, or lost records: it is read from \
             its beginning"
        );
    }
    forgotten
}

/// Waits for a record that names an earlier offset of the target's partition than `read` does;
/// the newest whole one on the way is the next candidate.
pub(super) async fn superseded(
    log: &mut Option<CheckpointLog>,
    log_topic: &str,
    candidate: &mut Option<Found>,
    read: &Checkpoint,
    target: &Target,
) -> Result<Progress, FollowerError> {
    if !in_force("newer_record_heeded") {
        return std::future::pending().await;
    }
    let wanted = named(read, target);
    // It may have come while another partition was waited for.
    let newest = candidate.as_ref();
    if newest.is_some_and(|found| named(&found.record, target) < wanted) {
        return Ok(Progress::Anew);
    }
    let Some(log) = log.as_mut() else {
        return std::future::pending().await;
    };
    loop {
        let Ok(found) = log.next(log_topic).await? else {
            return Ok(Progress::Lost);
        };
        let goes_back = named(&found.record, target) < wanted;
        if found.record.is_whole() {
            *candidate = Some(found);
        }
        if goes_back {
            return Ok(Progress::Anew);
        }
    }
}

/// The offset that a record names of the target's partition.
fn named(record: &Checkpoint, target: &Target) -> i64 {
    let partitions = match &*target.table {
        QUARANTINE => Some(&record.quarantine),
        _ => record.offsets.get(&*target.topic),
    };
    let offset = partitions.and_then(|partitions| partitions.get(&target.partition));
    offset.copied().unwrap_or_default()
}

/// Does a checkpoint name an earlier offset than one that was named before? Of a topic that it
/// names, a partition that it leaves out has nothing.
pub(super) fn goes_back(before: &Offsets, named: &Offsets) -> bool {
    named.iter().any(|(topic, partitions)| {
        let mut before = before.get(topic).into_iter().flatten();
        before.any(|(partition, end)| partitions.get(partition).copied().unwrap_or(0) < *end)
    })
}

/// Is what stands in a partition below `next` younger than the checkpoint, of `since_ms`, that
/// covers everything below `next`? `lateness_max_ms` bounds what clocks may differ by.
pub(super) async fn is_younger(
    consumer: &PartitionConsumer,
    topic: &str,
    partition: i32,
    next: i64,
    since_ms: i64,
    lateness_max_ms: i64,
) -> Result<bool, PartitionError> {
    let clocks_ms = i64::try_from(CLOCKS_MAX.as_millis()).unwrap_or(i64::MAX);
    let after_ms = since_ms + clocks_ms.min(lateness_max_ms / 8);
    let first = consumer.offset_after(topic, partition, after_ms).await?;
    Ok(first.is_some_and(|first| first < next))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::lsn::Lsn;

    #[test]
    fn a_record_that_came_while_another_partition_was_waited_for_is_heeded() {
        let record = |end: i64| Checkpoint {
            epoch: 1,
            system_identifier: "1".to_owned(),
            timeline: 1,
            position: Lsn(1),
            reach: Lsn(1),
            half_sent: None,
            committed_at_us: None,
            current_at_us: None,
            wal_end: Lsn(1),
            offsets: Offsets::from([("t".to_owned(), BTreeMap::from([(0, 5), (1, end)]))]),
            quarantine: BTreeMap::new(),
            tables: BTreeMap::new(),
        };
        let target = |partition, end| Target {
            topic: "t".into(),
            table: "public.t".into(),
            partition,
            end,
        };
        let newest = Found {
            offset: 1,
            time_ms: 1,
            record: record(7),
        };
        let (mut log, mut candidate, read) = (None, Some(newest), record(1000));
        let mut heeded = |target: &Target| {
            let newer = superseded(&mut log, "checkpoint", &mut candidate, &read, target);
            newer.now_or_never()
        };
        assert!(heeded(&target(0, 5)).is_none(), "it names the same offset");
        let newer = heeded(&target(1, 1000));
        assert!(matches!(newer, Some(Ok(Progress::Anew))));
    }

    #[test]
    fn only_a_partition_named_before_can_go_back() {
        let offsets =
            |of: &[(i32, i64)]| Offsets::from([("t".to_owned(), of.iter().copied().collect())]);
        let before = offsets(&[(0, 5), (1, 7)]);
        assert!(!goes_back(&before, &offsets(&[(0, 5), (1, 9), (2, 1)])));
        assert!(goes_back(&before, &offsets(&[(1, 7)])), "0 is empty now");
        assert!(goes_back(&before, &offsets(&[])));
        assert!(!goes_back(&before, &Offsets::new()), "another topic");
        assert!(goes_back(&before, &offsets(&[(0, 6), (1, 6)])));
        assert!(!goes_back(&Offsets::new(), &before));
    }
}
