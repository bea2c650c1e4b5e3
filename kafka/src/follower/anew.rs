//! Topics that are not the ones that a reader stood in.
//!
//! A topic that was deleted and made anew begins at offset 0 again. Who has read it all the time
//! falls out of its range. Who was away must not take the new topic's offsets for the old one's:
//! below its own there would be events that it never saw.

use std::time::Duration;

use crate::checkpoint::Offsets;
use crate::partition::{PartitionConsumer, PartitionError};

/// Brokers' clocks may differ by so much: a partition's leader and the checkpoint topic's stamp
/// with their own.
const CLOCKS_MAX: Duration = Duration::from_secs(60);

/// Does a checkpoint name an earlier offset than one that was named before?
pub(super) fn goes_back(before: &Offsets, named: &Offsets) -> bool {
    named.iter().any(|(topic, partitions)| {
        let Some(before) = before.get(topic) else {
            return false;
        };
        let earlier = |(partition, end): (&i32, &i64)| before.get(partition) > Some(end);
        partitions.iter().any(earlier)
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
    use super::*;

    #[test]
    fn only_a_partition_named_before_can_go_back() {
        let offsets =
            |of: &[(i32, i64)]| Offsets::from([("t".to_owned(), of.iter().copied().collect())]);
        let before = offsets(&[(0, 5), (1, 7)]);
        assert!(!goes_back(&before, &offsets(&[(0, 5), (1, 9), (2, 1)])));
        assert!(!goes_back(&before, &offsets(&[(1, 7)])));
        assert!(goes_back(&before, &offsets(&[(0, 6), (1, 6)])));
        assert!(!goes_back(&Offsets::new(), &before));
    }
}
