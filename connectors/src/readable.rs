//! What PostgreSQL may forget: what the topics' readers can read.
//!
//! A transaction that Kafka has decided to commit may still lack its markers, and may lack them
//! for ever (see `kafka::producer::hanging`). Until they are there the source must be able to
//! tell it again. So beside the stream the ends of what was committed are looked at, and only
//! then is the position confirmed.
//!
//! What lacks its markers a new life ends. What cannot be looked at, because a partition has no
//! leader, a new life could not either, and the other tables would stand still for it: the stream
//! goes on, and that the source must keep its WAL meanwhile is said as a stall.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kafka::topic::{Topics, shorter};
use kafka::{Lsn, Offsets};
use metrics::gauge;
use tokio::sync::Notify;

use crate::error::LifeError;
use crate::replication::Feedback;
use crate::status::{names, precise};
use crate::topics::extend;
use crate::watch::{Awaited, Waits};

/// Between two looks, while there is something to look at.
const LOOK: Duration = Duration::from_millis(50);

/// Markers come within milliseconds. After this long another life is to end what hangs.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// What is committed and not known to be readable. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Readable(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something was committed.
    news: Notify,
}

#[derive(Debug)]
struct State {
    committed: Committed,
    recorded: Lsn,
    confirmed: Lsn,
}

#[derive(Debug, Default)]
struct Committed {
    position: Lsn,
    /// Where its events and its checkpoint end.
    offsets: Offsets,
}

impl Readable {
    /// A life goes on at `position`, which its takeover has found readable.
    pub(crate) fn new(position: Lsn) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                committed: Committed::default(),
                recorded: position,
                confirmed: position,
            }),
            news: Notify::new(),
        }))
    }

    /// Kafka has committed everything up to `position`; the last transaction ends at `offsets`.
    pub(crate) fn committed(&self, position: Lsn, offsets: &Offsets) {
        self.change(|state| {
            state.recorded = state.recorded.max(position);
            let committed = &mut state.committed;
            committed.position = committed.position.max(position);
            extend(&mut committed.offsets, offsets);
        });
        self.0.news.notify_one();
    }

    /// Waits until something is committed, and takes it.
    async fn next(&self) -> Committed {
        self.0.news.notified().await;
        // Under load several at once, and seldom before their markers.
        tokio::time::sleep(LOOK).await;
        self.change(|state| std::mem::take(&mut state.committed))
    }

    fn confirmed(&self, position: Lsn) {
        self.change(|state| state.confirmed = state.confirmed.max(position));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut state);
        let behind = state.recorded.0.saturating_sub(state.confirmed.0);
        gauge!(names::UNCONFIRMED).set(precise(behind));
        changed
    }
}

/// Confirms what has become readable. Returns once something that is committed does not.
pub(crate) async fn watch(
    topics: Topics,
    readable: Readable,
    feedback: Feedback,
    waits: &Waits,
) -> LifeError {
    loop {
        let committed = readable.next().await;
        if let Err(error) = until_readable(&topics, &committed, waits).await {
            return error;
        }
        waits.end(Awaited::Readable);
        feedback.confirm(committed.position);
        readable.confirmed(committed.position);
    }
}

async fn until_readable(
    topics: &Topics,
    committed: &Committed,
    waits: &Waits,
) -> Result<(), LifeError> {
    let Committed { position, offsets } = committed;
    let sentence = |why: String| {
        format!(
            "Kafka does not show what was committed up to {position}{why}; until it does the \
             source keeps its WAL; see whether each partition has a leader (kafka-topics.sh \
             --describe --unavailable-partitions)"
        )
    };
    waits.begin(Awaited::Readable, || sentence(String::new()));
    // Since when it is known to lack its markers.
    let mut hangs: Option<Instant> = None;
    while !offsets.is_empty() {
        match topics.stable(offsets).await {
            Ok(now) => {
                let Some(source) = shorter(offsets, &now) else {
                    break;
                };
                let since = hangs.get_or_insert_with(Instant::now).elapsed();
                if since >= HANGS_AFTER {
                    return Err(LifeError::Hangs {
                        waited_ms: since.as_millis(),
                        source: Box::new(source),
                    });
                }
            }
            Err(error) => {
                hangs = None;
                let reason = LifeError::from(error).chain();
                tracing::debug!(error = reason, "cannot look at the ends: {reason}");
                waits.explain(Awaited::Readable, sentence(format!(" ({reason})")));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kafka::KafkaConfig;

    use super::*;

    /// Nobody listens there, as for a partition whose leader is away.
    #[tokio::test]
    async fn what_cannot_be_looked_at_is_waited_for_and_said() {
        let mut config = KafkaConfig::new("127.0.0.1:1", 1);
        config.request_timeout_ms = 1000;
        let topics = Topics::connect(&config).unwrap();
        let (readable, feedback) = (Readable::new(Lsn(5)), Feedback::unheard());
        let waits = Waits::default();
        let ends = Offsets::from([("t".to_owned(), [(0, 3)].into())]);
        readable.committed(Lsn(9), &ends);
        let watched = watch(topics, readable.clone(), feedback.clone(), &waits);
        let said = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let said = waits.overdue(Duration::ZERO, Instant::now());
                let said = said.map(|found| found.sentence).unwrap_or_default();
                if said.contains("cannot ask") {
                    return said;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let said = tokio::select! {
            error = watched => panic!("{error}"),
            said = said => said.unwrap(),
        };
        assert!(
            said.contains("committed up to 0/9 (cannot ask Kafka about topic t"),
            "{said}"
        );
        assert_eq!(feedback.confirmed(), Lsn(0));
    }
}
