//! The sessions that read tables, and how fast they are to be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pace::Pace;
use crate::config::ConnectorConfig;
use crate::life::read_session;
use crate::source::Session;

/// Between two tries for a session that the source refused.
const CONNECT_RETRY: Duration = Duration::from_secs(10);
/// Between two lines of the log about a read that goes on.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Sessions besides that of the life, opened when there is work for them.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    pub(super) helpers: Vec<Arc<Session>>,
    pub(super) pace: Pace,
    refused_at: Option<Instant>,
    said_at: Option<Instant>,
}

impl Readers {
    /// Opens helpers, `wanted` of them at most. Reading goes on with fewer where the source
    /// refuses: its connections are its owner's.
    pub(super) async fn open(&mut self, config: &ConnectorConfig, wanted: usize) {
        let lately = |at: Instant| at.elapsed() < CONNECT_RETRY;
        if self.helpers.len() >= wanted || self.refused_at.is_some_and(lately) {
            return;
        }
        while self.helpers.len() < wanted {
            match read_session(config).await {
                Ok(session) => self.helpers.push(session),
                Err(error) => {
                    let workers = self.helpers.len() + 1;
                    tracing::warn!(
                        %error, workers,
                        "tables are read with {workers} workers, the source refuses more: {error}"
                    );
                    self.refused_at = Some(Instant::now());
                    return;
                }
            }
        }
    }

    /// A helper's session is lost, or of no use any more.
    pub(super) fn forget(&mut self, session: &Arc<Session>) {
        self.helpers.retain(|helper| !Arc::ptr_eq(helper, session));
    }

    /// There is nothing to read any more.
    pub(super) fn close(&mut self) {
        self.helpers.clear();
        self.said_at = None;
    }

    /// Is it time for a line in the log? The first comes after a while, too.
    pub(super) fn is_to_say(&mut self) -> bool {
        let since = *self.said_at.get_or_insert_with(Instant::now);
        let due = since.elapsed() >= SAID_EVERY;
        if due {
            self.said_at = Some(Instant::now());
        }
        due
    }
}
