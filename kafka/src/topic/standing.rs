//! Topics as they stand: what whoever writes them must notice when it is not what it was.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};

use super::{TopicError, Topics};
use crate::checkpoint::Offsets;
use crate::client::{self, Quiet};
use crate::ends::ends;

/// An end that is lower than before is looked at again this often before it is believed: a
/// leader that has just been elected may not know its own yet.
const BELIEVED_AFTER: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

impl Topics {
    /// Per topic and partition the offset after everything that is committed or aborted. A topic
    /// that does not exist has none. One request for all partitions' leaders, one to each leader.
    ///
    /// # Errors
    /// Where Kafka does not answer, or a partition has no leader now.
    pub async fn standing(&self, topics: &[String]) -> Result<Offsets, TopicError> {
        let (names, timeout) = (topics.to_vec(), client::request_timeout(&self.config));
        self.ask(topics.iter(), move |consumer| {
            // Of all topics: asked for one by its name, a broker may create it. By the client that
            // asks for the ends: partitions that it has not heard of it refuses to ask for.
            let metadata = consumer.fetch_metadata(None, timeout)?;
            let mut standing = Offsets::new();
            for name in names {
                let found = metadata.topics().iter().find(|found| found.name() == name);
                let partitions = found.map_or(&[][..], |found| found.partitions());
                let places = partitions.iter().map(|partition| (partition.id(), 0));
                standing.insert(name, places.collect());
            }
            standing.extend(ends(consumer, &standing, timeout)?);
            Ok(standing)
        })
        .await
    }

    /// The same of these partitions only, which must exist; their offsets do not matter. One
    /// request to each leader.
    ///
    /// # Errors
    /// As there.
    pub async fn stable(&self, partitions: &Offsets) -> Result<Offsets, TopicError> {
        let (asked, timeout) = (partitions.clone(), client::request_timeout(&self.config));
        self.ask(partitions.keys(), move |consumer| {
            ends(consumer, &asked, timeout)
        })
        .await
    }

    async fn ask<'a>(
        &self,
        mut topics: impl Iterator<Item = &'a String>,
        ask: impl FnOnce(&BaseConsumer<Quiet>) -> KafkaResult<Offsets> + Send + 'static,
    ) -> Result<Offsets, TopicError> {
        let consumer = Arc::clone(&self.ends);
        let first = topics.next().map_or("", String::as_str);
        tokio::task::spawn_blocking(move || ask(&consumer))
            .await
            .unwrap_or(Err(KafkaError::Canceled))
            .map_err(self.ask_error(first))
    }

    /// As [`Topics::standing`], once more and again while a topic holds less than `then`: what
    /// remains is lost.
    ///
    /// # Errors
    /// As there.
    pub async fn standing_since(
        &self,
        topics: &[String],
        then: &Offsets,
    ) -> Result<Offsets, TopicError> {
        let mut looks = 0;
        loop {
            let standing = self.standing(topics).await?;
            looks += 1;
            if shorter(then, &standing).is_none() || looks >= BELIEVED_AFTER {
                return Ok(standing);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// What there is to be said of a topic whose events need `then` partitions, and that has
    /// others now.
    #[must_use]
    pub fn partitions_added(&self, topic: &str, then: i32, now: i32) -> TopicError {
        TopicError::PartitionsAdded {
            topic: topic.to_owned(),
            then,
            now,
            bootstrap: self.config.bootstrap.clone(),
        }
    }
}

/// The first partition of `now`'s topics that ends before `then`.
#[must_use]
pub fn shorter(then: &Offsets, now: &Offsets) -> Option<TopicError> {
    now.iter().find_map(|(topic, ends)| {
        let (partition, then, now) = then.get(topic)?.iter().find_map(|(partition, then)| {
            let now = ends.get(partition).copied().unwrap_or_default();
            (now < *then).then_some((*partition, *then, now))
        })?;
        Some(TopicError::Shorter {
            topic: topic.clone(),
            partition,
            then,
            now,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(ends: &[(i32, i64)]) -> Offsets {
        Offsets::from([("t".to_owned(), ends.iter().copied().collect())])
    }

    #[test]
    fn a_topic_is_shorter_where_a_partition_ends_earlier_or_is_gone() {
        let then = offsets(&[(0, 5), (1, 0), (2, 7)]);
        assert!(shorter(&then, &offsets(&[(0, 5), (1, 0), (2, 7), (3, 1)])).is_none());
        for now in [&[(0, 4), (1, 0), (2, 7)][..], &[(0, 5)], &[]] {
            assert!(shorter(&then, &offsets(now)).is_some(), "{now:?}");
        }
        // What is not asked for is not missed.
        assert!(shorter(&then, &Offsets::new()).is_none());
    }
}
