//! What PostgreSQL may forget: what the topics' readers can read.
//!
//! A transaction that Kafka has decided to commit may still lack its markers, and may lack them
//! for ever (see `kafka::producer::hanging`). Until they are there the source must be able to
//! tell it again. So beside the stream the ends of what was committed are looked at, and only
//! then is the position confirmed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kafka::topic::{Topics, shorter};
use kafka::{Lsn, Offsets};

use crate::error::LifeError;
use crate::replication::Feedback;
use crate::topics::extend;

/// Between two looks, while there is something to look at.
const LOOK: Duration = Duration::from_millis(50);

/// Markers come within milliseconds. After this long another life is to end what hangs.
const HANGS_AFTER: Duration = Duration::from_secs(10);

/// What is committed and not known to be readable. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readable(Arc<Mutex<Committed>>);

#[derive(Debug, Default)]
struct Committed {
    position: Lsn,
    /// Where its events and its checkpoint end.
    offsets: Offsets,
}

impl Readable {
    /// Kafka has committed everything up to `position`; the last transaction ends at `offsets`.
    pub(crate) fn committed(&self, position: Lsn, offsets: &Offsets) {
        let mut committed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        committed.position = committed.position.max(position);
        extend(&mut committed.offsets, offsets);
    }

    fn take(&self) -> Committed {
        let mut committed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut committed)
    }
}

/// Confirms what has become readable. Returns once something that is committed does not.
pub(crate) async fn watch(topics: Topics, readable: Readable, feedback: Feedback) -> LifeError {
    loop {
        tokio::time::sleep(LOOK).await;
        let committed = readable.take();
        let begun = Instant::now();
        while !committed.offsets.is_empty() {
            match topics.stable(&committed.offsets).await {
                Ok(now) => match shorter(&committed.offsets, &now) {
                    None => break,
                    Some(source) if begun.elapsed() >= HANGS_AFTER => {
                        return LifeError::Hangs {
                            waited_ms: begun.elapsed().as_millis(),
                            source: Box::new(source),
                        };
                    }
                    Some(_) => {}
                },
                Err(error) => tracing::debug!(%error, "cannot look at the ends: {error}"),
            }
            tokio::time::sleep(LOOK).await;
        }
        feedback.confirm(committed.position);
    }
}
