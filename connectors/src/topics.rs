//! Whether the topics go on holding what was written to them.
//!
//! An idle table's topic can be deleted, made anew, or given partitions without any send that
//! fails. So while a life goes on, the topics are looked at beside it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kafka::Offsets;
use kafka::topic::{TopicError, Topics, shorter};
use service::fault::in_force;

use crate::error::LifeError;
use crate::watch::{Awaited, Waits};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// Topics looked at with one look; with more, the next look takes the next ones.
const TOPICS_PER_LOOK: usize = 50;

/// Where the topics ended at least: looked at, or committed to. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Arc<Mutex<Offsets>>);

impl Held {
    pub(crate) fn new(ends: Offsets) -> Self {
        Self(Arc::new(Mutex::new(ends)))
    }

    /// So much is committed, or was found.
    pub(crate) fn extend(&self, offsets: &Offsets) {
        extend(&mut self.lock(), offsets);
    }

    fn of(&self, topics: &[String]) -> Offsets {
        let held = self.lock();
        let found = topics.iter().filter_map(|topic| held.get_key_value(topic));
        found
            .map(|(topic, ends)| (topic.clone(), ends.clone()))
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Offsets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The higher one of each partition.
pub(crate) fn extend(held: &mut Offsets, offsets: &Offsets) {
    for (topic, partitions) in offsets {
        let Some(ends) = held.get_mut(topic) else {
            held.insert(topic.clone(), partitions.clone());
            continue;
        };
        for (&partition, &offset) in partitions {
            let end = ends.entry(partition).or_default();
            *end = offset.max(*end);
        }
    }
}

/// The topics that are looked at.
#[derive(Debug)]
pub(crate) struct Watched {
    /// In which each key has one partition.
    pub(crate) keyed: Vec<String>,
    /// In which more partitions harm nobody.
    pub(crate) quarantine: String,
}

/// Returns once a topic is not what it was. That Kafka does not answer is said as a stall: the
/// topics that are written to are none the worse for it.
pub(crate) async fn watch(
    topics: Topics,
    watched: Watched,
    held: Held,
    waits: &Waits,
) -> LifeError {
    let Watched {
        keyed: mut names,
        quarantine,
    } = watched;
    names.push(quarantine.clone());
    // Whose last look failed.
    let mut unseen = BTreeSet::new();
    loop {
        for (place, some) in names.chunks(TOPICS_PER_LOOK).enumerate() {
            tokio::time::sleep(LOOK).await;
            let before = held.of(some);
            waits.begin(Awaited::Ends, || sentence(""));
            match topics.standing_since(some, &before).await {
                Ok(now) => {
                    if let Some(error) = changed(&topics, &quarantine, &before, &now)
                        && in_force("topics_watched")
                    {
                        return error.into();
                    }
                    held.extend(&now);
                    unseen.remove(&place);
                    if unseen.is_empty() {
                        waits.end(Awaited::Ends);
                    }
                    tracing::debug!(topics = some.len(), "looked at the topics");
                }
                Err(error) => {
                    let reason = LifeError::from(error).chain();
                    tracing::debug!(error = reason, "cannot look at the topics: {reason}");
                    unseen.insert(place);
                    waits.explain(Awaited::Ends, sentence(&format!(" ({reason})")));
                }
            }
        }
    }
}

fn sentence(why: &str) -> String {
    format!(
        "Kafka does not say where the topics end{why}, so that one that is deleted would not be \
         missed; see whether each partition has a leader (kafka-topics.sh --describe \
         --unavailable-partitions)"
    )
}

fn changed(
    topics: &Topics,
    quarantine: &str,
    before: &Offsets,
    now: &Offsets,
) -> Option<TopicError> {
    if let Some(error) = shorter(before, now) {
        return Some(error);
    }
    let mut keyed = now.iter().filter(|(topic, _)| *topic != quarantine);
    keyed.find_map(|(topic, ends)| {
        let then = before.get(topic)?.len();
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        (ends.len() > then && then > 0)
            .then(|| topics.partitions_added(topic, count(then), count(ends.len())))
    })
}
